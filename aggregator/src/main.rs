//! The aggregator's process: configuration, admin port, lives.

use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;

use aggregator::config::Config;
use aggregator::life;
use clap::{Parser, Subcommand};
use service::admin::{self, Health};
use service::{shutdown, telemetry};

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

/// Configuration or a prerequisite is wrong: no supervisor need try again at once.
const PREREQUISITE: u8 = 2;

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { config, command } = Arguments::parse();
    let Command::Run = command.unwrap_or(Command::Run);
    let loaded = service::config::load::<Config>(&config);
    let Ok(config) = loaded.inspect_err(|error| eprintln!("aggregator: {error}")) else {
        return Ok(ExitCode::from(PREREQUISITE));
    };
    let metrics = telemetry::start(&config.log)?;
    let (stop, health) = (shutdown::on_signal()?, Health::default());
    let (listen, extra) = (config.admin.clone(), Default::default());
    let admin = pin!(admin::serve(
        listen,
        health.clone(),
        metrics,
        extra,
        stop.clone()
    ));
    let ended = tokio::select! {
        ended = life::run(&config, &health, stop) => ended.map_err(anyhow::Error::from),
        ended = admin => ended.map_err(anyhow::Error::from),
    };
    if let Err(error) = ended {
        tracing::error!(%error, "{error}");
        return Ok(ExitCode::from(PREREQUISITE));
    }
    Ok(ExitCode::SUCCESS)
}
