/*
 * Stands in the place of getrandom(2) for one run of the simulation.
 *
 * What a program draws from the system decides which ready branch a select! of tokio takes first and how a HashMap is
 * ordered, and stable tokio has no other way to seed that. Rust's standard library calls getrandom through a weak
 * symbol "to allow interposition"; so a library that is loaded first makes all of it follow from the seed. Each
 * thread draws its own sequence (splitmix64), so what one draws does not depend on what others do.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>

static __thread uint64_t state;

static uint64_t next(void)
{
    uint64_t z;

    if (state == 0) {
        const char *seed = getenv("ROOST_SIMULATION_RANDOMNESS");
        state = (seed == NULL ? 0 : strtoull(seed, NULL, 10)) * 2 + 1;
    }
    state += 0x9e3779b97f4a7c15u;
    z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

ssize_t getrandom(void *buffer, size_t length, unsigned int flags)
{
    unsigned char *bytes = buffer;
    size_t at;

    (void)flags;
    for (at = 0; at < length; at++)
        bytes[at] = (unsigned char)next();
    return (ssize_t)length;
}
