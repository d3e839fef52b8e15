//! The model of capacity: how many nodes a number of users needs, where the first bottleneck is, and what placement does
//! at that size. It prints the tables of docs/CAPACITY.md.
//!
//! [`figures`] is what it starts from: what was measured, and what is only assumed. [`rows`] asks the node's own encodings
//! what rows cost, [`model`] computes nodes, [`simulation`] places shards with the node's own function and takes nodes
//! away, [`proposal`] is what placement could do instead, [`meta`] what the meta shard has to carry, [`document`] puts
//! tables between their markers. Nothing here is random, and nothing is measured here.

mod document;
mod figures;
mod meta;
mod model;
mod proposal;
mod rows;
mod simulation;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use document::Block;
use figures::Figures;

#[derive(Parser)]
#[command(
    name = "capacity",
    about = "Says how many nodes a number of users needs, and what placement does at that size"
)]
struct Args {
    /// Write the tables into this document, between their markers, instead of printing them.
    #[arg(long, value_name = "DOCUMENT", conflicts_with = "check")]
    write: Option<PathBuf>,
    /// Only say whether this document has the tables as they are now.
    #[arg(long, value_name = "DOCUMENT")]
    check: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stdout, reason = "this is the output")]
fn run(args: &Args) -> Result<()> {
    let blocks = blocks()?;
    let Some(path) = args.write.as_ref().or(args.check.as_ref()) else {
        for block in &blocks {
            println!("{}\n\n{}", block.name, block.table);
        }
        return Ok(());
    };
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let filled = document::fill(&text, &blocks)?;
    if args.check.is_some() {
        ensure!(
            filled == text,
            "{shown} does not have these tables: run `cargo xtask capacity --write docs/CAPACITY.md`"
        );
        return Ok(());
    }
    fs::write(path, filled).with_context(|| format!("cannot write {shown}"))
}

/// Every table, in the order of the document.
///
/// # Errors
/// When a figure is missing, or the figures give no cluster.
fn blocks() -> Result<Vec<Block>> {
    let figures = Figures::read()?;
    let goals = figures.at_goals();
    let sizings = model::sizings(&figures)?;
    let simulated = simulation::run()?;
    Ok(vec![
        Block::new("figures", figures.table()),
        Block::new("nodes", model::nodes_table(&sizings)),
        Block::new("share", model::share_table(&sizings)),
        Block::new("goals", model::nodes_table(&model::sizings(&goals)?)),
        Block::new("placement", simulation::placement_table(&simulated)),
        Block::new("zones", simulation::zones_table(&simulated)),
        Block::new("meta", meta::table(&sizings)?),
    ])
}

#[allow(clippy::print_stderr, reason = "a program's last words")]
fn complain(error: &anyhow::Error) {
    eprintln!("capacity: {error:#}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the document says what the program computes. Method: the tables anew, against those between the markers.
    #[test]
    fn the_document_has_the_tables_of_the_program() -> Result<()> {
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CAPACITY.md");
        run(&Args {
            write: None,
            check: Some(document.into()),
        })
    }
}
