//! The `roost` binary.

use std::process::ExitCode;

/// Also RocksDB's: the allocator of glibc took a sixth of a loaded node's processor time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    roost::cli::main()
}
