//! The `roost` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    roost::cli::main()
}
