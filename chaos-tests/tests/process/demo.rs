//! What newcomers see first.

use std::process::Stdio;

use anyhow::{Result, ensure};
use roost_chaos_tests::lab::within;
use tokio::process::Command;

use crate::LIMIT;

/// Goal: the demo tells its story to the end. Method: the program that `cargo xtask demo` runs.
#[tokio::test]
async fn the_demo_succeeds() -> Result<()> {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"));
    demo.stdin(Stdio::null()).kill_on_drop(true);
    let output = within(2 * LIMIT, "the demo", demo.output()).await??;
    let story = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && story.trim_end().ends_with("nothing was lost"),
        "{story}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
