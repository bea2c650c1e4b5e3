//! The aggregator's process: configuration, admin port, lives.

use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;

use aggregator::command::{self, Admin, in_words};
use aggregator::config::Config;
use aggregator::{control, life, verify};
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
    /// Says how far the running aggregator is.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Reads sources again from the first record of their topics while the view serves, and mends
    /// what differs; returns when that is served.
    Rebuild {
        /// Only this source; may be given several times. Without it: all.
        #[arg(long, value_name = "NAME")]
        source: Vec<String>,
    },
    /// Shows what could not be applied, and ends it.
    Quarantine {
        #[command(subcommand)]
        command: command::quarantine::Command,
    },
    /// Compares the mirrors with their sources, and the unified tables with the mirrors, while
    /// everything runs. Prints what differs, never a value. Exits with 0: equal, 1: different,
    /// 2: not compared as a whole.
    Verify {
        /// Only the mirrors of this source; may be given several times. Without it: all, and the
        /// unified tables.
        #[arg(long, value_name = "NAME")]
        source: Vec<String>,
        /// Keeps the progress in this file, and goes on where it says.
        #[arg(long, value_name = "FILE")]
        resume: Option<PathBuf>,
        /// Has what differs mended: its connector reads the rows again, then the aggregator what
        /// is not right by then. Compares again, and reports that.
        #[arg(long)]
        repair: bool,
        /// The report as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Configuration or a prerequisite is wrong: no supervisor need try again at once.
const PREREQUISITE: u8 = 2;

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { config, command } = Arguments::parse();
    let loaded = service::config::load::<Config>(&config);
    let Ok(config) = loaded.inspect_err(|error| eprintln!("aggregator: {error}")) else {
        return Ok(ExitCode::from(PREREQUISITE));
    };
    match command.unwrap_or(Command::Run) {
        Command::Run => run(config).await,
        Command::Status { json } => {
            let status = Admin::new(config.admin.listen)?.status().await?;
            if json {
                println!("{}", serde_json::to_string(&status)?);
            } else {
                println!("{}", in_words(&status));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Rebuild { source } => {
            Admin::new(config.admin.listen)?.rebuild(&source).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Quarantine { command } => command::quarantine::run(&config, command).await,
        Command::Verify {
            source,
            resume,
            repair,
            json,
        } => {
            let options = verify::Options {
                unified: source.is_empty(),
                sources: if source.is_empty() {
                    config.sources.clone()
                } else {
                    source
                },
                resume,
            };
            command::verify(&config, options, repair, json).await
        }
    }
}

async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let metrics = telemetry::start(&config.log)?;
    let (stop, health) = (shutdown::on_signal()?, Health::default());
    let (extra, commands) = control::routes(&health);
    let listen = config.admin.clone();
    let admin = pin!(admin::serve(
        listen,
        health.clone(),
        metrics,
        extra,
        stop.clone()
    ));
    let ended = tokio::select! {
        ended = life::run(&config, &health, commands, stop) => ended.map_err(anyhow::Error::from),
        ended = admin => ended.map_err(anyhow::Error::from),
    };
    if let Err(error) = ended {
        tracing::error!(%error, "{error}");
        return Ok(ExitCode::from(PREREQUISITE));
    }
    Ok(ExitCode::SUCCESS)
}
