//! `connector`: one source's changes into Kafka.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use connectors::config::ConnectorConfig;
use connectors::source::check::{CheckError, Fault, check};
use connectors::status::StatusBoard;
use service::{admin, config, shutdown, telemetry};

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
        Err(error) => return stopped(&[Fault(error.to_string())]),
    };
    match arguments.command.unwrap_or(Command::Run) {
        Command::Check => checked(&config).await,
        Command::Run => run(&config).await.unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }),
    }
}

async fn run(config: &ConnectorConfig) -> anyhow::Result<ExitCode> {
    let metrics = telemetry::start(&config.log)?;
    let (shutdown, health) = (shutdown::on_signal()?, admin::Health::default());
    let status = StatusBoard::new(&config.source, health.clone());
    let (listen, routes) = (config.admin.clone(), status.router());
    let served = tokio::spawn(admin::serve(
        listen,
        health,
        metrics,
        routes,
        shutdown.clone(),
    ));
    tokio::select! {
        ended = connectors::run::run(config, &status, &shutdown) => {
            Ok(ended.map_or_else(|faults| stopped(&faults), |()| ExitCode::SUCCESS))
        }
        served = served => served?.map(|()| ExitCode::SUCCESS).map_err(Into::into),
    }
}

async fn checked(config: &ConnectorConfig) -> ExitCode {
    match check(config).await {
        Ok(()) => {
            println!("the source is as a connector needs it");
            ExitCode::SUCCESS
        }
        Err(CheckError::Faults(faults)) => stopped(&faults),
        Err(CheckError::Source(error)) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Somebody has to put something right first: a sentence each, exit code 2.
fn stopped(faults: &[Fault]) -> ExitCode {
    for fault in faults {
        eprintln!("error: {fault}");
    }
    ExitCode::from(2)
}
