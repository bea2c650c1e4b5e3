//! `make fuzz`: mutated inputs for what reads from outside, until the time is over.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Parser;
use tests::fuzz::{self, Target};

/// Tries the corpus (`tests/corpus`) and mutations of it; stops at the first input that panics or
/// breaks a rule, and keeps it there.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to fuzz; all by default.
    #[arg(long, value_enum)]
    target: Vec<Target>,
    /// For each of them.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Repeats the mutations of a run.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| now.as_secs())
    });
    let targets = if arguments.target.is_empty() {
        Target::ALL.to_vec()
    } else {
        arguments.target
    };
    for target in targets {
        let time = Duration::from_secs(arguments.seconds);
        let summary = fuzz::run(target, seed, time)?;
        println!(
            "{}: {} inputs, {} outcomes, seed {seed}: none breaks a rule",
            target.name(),
            summary.inputs,
            summary.outcomes
        );
    }
    Ok(())
}
