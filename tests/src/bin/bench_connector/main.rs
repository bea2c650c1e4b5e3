//! What a connector can do, against PostgreSQL's own programs and against Debezium: rows a second
//! into nothing and into Kafka, a table read, memory, and how late a change is in Kafka.
//!
//! Everybody reads the same WAL of the same server over the same kind of connection: before each
//! run a slot is copied, so all begin at the same place. Runs alternate, so that whatever else the
//! machine does falls on all of them, and each ratio is the median of the rounds' ratios. What
//! came of it: `docs/performance.md`.

mod connector;
mod debezium;
mod latency;
mod programs;
mod rounds;
mod source;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use connectors::config::ConnectorConfig;

/// Measures the connector; needs PostgreSQL 15, Kafka and, for the peer, Debezium's engine. The
/// figures go to `bench/connector.json` in `LOCAL_DIR`.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: rounds::Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A connector with a sink that throws events away: what the benchmark measures.
    #[command(hide = true)]
    NullSink {
        #[arg(long)]
        config: PathBuf,
        #[arg(long)]
        report: PathBuf,
        #[arg(long)]
        latencies: bool,
    },
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.command {
        None => rounds::run(&arguments.options).await,
        Some(Command::NullSink {
            config,
            report,
            latencies,
        }) => {
            connectors::bench::discard_events(latencies);
            let config = service::config::load::<ConnectorConfig>(&config)?;
            let code = connectors::run::serve(&config).await?;
            let discarded = serde_json::to_vec(&connectors::bench::discarded())?;
            std::fs::write(report, discarded)?;
            Ok(code)
        }
    }
}
