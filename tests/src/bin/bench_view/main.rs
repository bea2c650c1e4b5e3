//! What the aggregator can do, against bare batches into the mirrors, row triggers, one statement a
//! change, and a materialized view: changes a second, with little and much before; how late a
//! checkpoint is seen; a transaction of a million rows, its memory and what it delays; catching up, a
//! first load, and a rebuild.
//!
//! All run on one server of the view's version, with the durability of an installation. The
//! aggregator is the shipped program on real topics; what connectors would write, this writes.
//! Rounds alternate, so that whatever else the machine does falls on all, and each ratio is the
//! median of the rounds' ratios. What came of it: `docs/performance.md`.

mod latency;
mod peers;
mod place;
mod rounds;
mod shop;
mod topics;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    rounds::run(rounds::Options::parse()).await
}
