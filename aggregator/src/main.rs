//! The aggregator's process: configuration, admin port, lives.

use std::path::PathBuf;
use std::process::ExitCode;

use aggregator::config::Config;
use aggregator::life;
use clap::{Parser, Subcommand};
use service::{admin, shutdown, telemetry};

/// Joins the three sources into the view: applies their checkpoints, and migrates the view.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration, TOML; variables TRIBUTARY_SECTION__KEY override it.
    #[arg(long, value_name = "FILE", default_value = "aggregator.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Follows the sources and writes the view until SIGINT or SIGTERM (the default).
    Run,
}

/// A configuration or a prerequisite is wrong: a supervisor need not try again at once.
const PREREQUISITE: u8 = 2;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let Arguments { config, command } = Arguments::parse();
    let Command::Run = command.unwrap_or(Command::Run);
    let config: Config = match service::config::load(&config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("aggregator: {error}");
            return ExitCode::from(PREREQUISITE);
        }
    };
    match run(config).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("aggregator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let metrics = telemetry::start(&config.log)?;
    let (shutdown, health) = (shutdown::on_signal()?, admin::Health::default());
    let extra = Default::default();
    let admin = admin::serve(
        config.admin.clone(),
        health.clone(),
        metrics,
        extra,
        shutdown.clone(),
    );
    let admin = tokio::spawn(admin);
    if let Err(failure) = life::run(&config, &health, shutdown.clone()).await {
        tracing::error!(error = %failure, "{failure}");
        return Ok(ExitCode::from(PREREQUISITE));
    }
    admin.await??;
    Ok(ExitCode::SUCCESS)
}
