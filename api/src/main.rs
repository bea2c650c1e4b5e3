//! `api`: serves the unified view.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use service::{config, shutdown, telemetry};

/// Serves the unified view of warehouse, accounting and sales over HTTP.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// The configuration; api/api.toml documents every key.
    #[arg(long, value_name = "FILE", default_value = "api.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until told to stop (the default).
    Run,
    /// Print the OpenAPI document.
    Openapi,
}

/// The configuration is wrong: starting again would not help.
const WRONG_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Openapi) = arguments.command {
        let document = api::route::document().to_pretty_json().unwrap_or_default();
        // Whoever reads it may have had enough.
        let _ = writeln!(std::io::stdout(), "{document}");
        return ExitCode::SUCCESS;
    }
    let config: api::config::Config = match config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(WRONG_CONFIGURATION);
        }
    };
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the API stopped: {error:#}");
            if error.is::<api::query::ViewError>() {
                return ExitCode::from(WRONG_CONFIGURATION);
            }
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn start(config: api::config::Config) -> anyhow::Result<()> {
    let metrics = telemetry::start(&config.log)?;
    let shutdown = shutdown::on_signal()?;
    api::run(config, metrics, shutdown).await
}
