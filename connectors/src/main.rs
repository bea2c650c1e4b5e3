//! `connector`: one source's changes into Kafka.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use connectors::config::ConnectorConfig;
use connectors::run;
use connectors::source::Fault;
use service::config;

/// Streams the tables of one PostgreSQL database into Kafka.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration, in TOML; TRIBUTARY_… variables override it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Streams until it is told to stop (the default).
    Run,
    /// Says what of the source is not as a connector needs it; changes nothing.
    Check,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match config::load::<ConnectorConfig>(&arguments.config) {
        Ok(config) => config,
        Err(error) => return run::stopped(&[Fault(error.to_string())]),
    };
    match arguments.command.unwrap_or(Command::Run) {
        Command::Check => run::report(&config).await,
        Command::Run => run::serve(&config).await.unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }),
    }
}
