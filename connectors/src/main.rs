//! `connector`: one source's changes into Kafka.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use connectors::check::{Fault, Finding, Report, examine};
use connectors::command::cli::{self, ReadArguments, StatusArguments};
use connectors::config::ConnectorConfig;
use connectors::plan::{Plan, plan};
use connectors::run;
use service::config::{self, ConfigError};

/// Streams the tables of one PostgreSQL database into Kafka, as they change.
///
/// One process streams one source. Start a second one with the same configuration and it waits
/// as a standby. Nothing is ever written to the source but its replication slot.
#[derive(Debug, Parser)]
#[command(name = "connector", version, after_help = SHORT_HELP, after_long_help = LONG_HELP)]
struct Arguments {
    /// The configuration, in TOML; TRIBUTARY_… variables override it.
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        default_value = "connector.toml"
    )]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Streams until it is told to stop (the default).
    ///
    /// Ends with 0 on SIGINT or SIGTERM, and with 2 where somebody has to put something right
    /// first: it says what, as `check` does. Whatever may pass by itself it waits for. While it
    /// runs, the address `admin.listen` serves /livez, /readyz, /metrics and /status.
    #[command(after_help = "Example:\n  connector --config warehouse.toml run")]
    Run,
    /// Says everything that is wrong or doubtful, and what mends it; changes nothing.
    ///
    /// Looks at the configuration, the source (server, role, slot, publication, every table) and
    /// Kafka (brokers, topics). A finding has a cause, a place, and the SQL or setting that mends
    /// it. It may be run beside a connector that runs.
    #[command(after_help = "Exit code: 0 good, 1 warnings, 2 wrong.\n\nExample:\n  \
                            connector --config warehouse.toml check --json | jq -r '.findings[].sql // empty'")]
    Check(Output),
    /// Prints what it would stream: topics, tables, keys, types; changes nothing.
    ///
    /// Per table its topic and partitions, its size, its key, and for each column the SQL type
    /// and the form that a value has in an event.
    #[command(
        after_help = "Exit code: 0, or 2 where the source cannot be asked or a table \
                            cannot be captured.\n\nExample:\n  connector --config warehouse.toml plan"
    )]
    Plan(Output),
    /// Asks the running connector to read a table again, or some of its rows.
    ///
    /// Every row is sent anew as it is now (op `r`), and keys that the source no longer has are
    /// deleted from the topic. The stream goes on meanwhile, nothing is written to the source, and
    /// readers notice nothing but the rows. An accepted read stands in the checkpoint: it goes on
    /// after a restart or a crash. Ask on the machine of the one that leads.
    #[command(
        after_help = "Exit code: 0 accepted (with --wait: complete), 1 no connector answers, 2 refused \
                            or given up.\n\nExamples:\n  connector --config sales.toml read --table \
                            public.sls_order\n  connector --config sales.toml read --table \
                            public.sls_order --where 'id BETWEEN 1000 AND 2000' --rows-per-second 500 --wait"
    )]
    Read(ReadArguments),
    /// Asks the running connector to begin a new epoch: everything is read again.
    ///
    /// For what no connector can notice: a source that was copied back without a new timeline, or
    /// topics that are not to be trusted for any reason. The slot is dropped and made again, every
    /// table is read, and keys that the source no longer has are deleted from the topics. Until
    /// that is complete readers stay at their last checkpoint. Ask on the machine of the one that
    /// leads; where none runs, drop the slot instead: the next start does the same.
    #[command(
        after_help = "Exit code: 0 it has begun, 1 no connector answers, 2 refused.\n\nExample:\n  \
                            connector --config sales.toml epoch"
    )]
    Epoch,
    /// Tells how the running connector is: state, position, lag, how far table reads are.
    #[command(
        after_help = "Exit code: 0 it streams, reads or stands by; 1 it is connecting or stalled, or \
                            does not answer.\n\nExample:\n  connector --config warehouse.toml status \
                            --json | jq .lag_bytes"
    )]
    Status(StatusArguments),
}

#[derive(Debug, Clone, Copy, Args)]
struct Output {
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

const SHORT_HELP: &str = "`connector --help` shows examples and how to configure; \
                          `connector help COMMAND` a command's own help.";

const LONG_HELP: &str = "\
How to begin:
  1. The source's owner sets wal_level = logical and max_slot_wal_keep_size, and runs
       CREATE ROLE connector LOGIN REPLICATION PASSWORD '…';
       GRANT SELECT ON public.orders TO connector;
       CREATE PUBLICATION tributary FOR TABLE public.orders;
  2. You write connector.toml:
       source = \"shop\"
       tables = [\"public.orders\"]
       [postgres]
       url = \"postgres://connector@db.example:5432/shop\"
       slot = \"tributary_shop\"
       publication = \"tributary\"
       [kafka]
       bootstrap = \"kafka.example:9092\"
       [admin]
       listen = \"127.0.0.1:9100\"
  3. connector check     says what is missing, with the SQL for the owner
     connector plan      shows the topics, keys and types
     connector           reads the tables into shop.public.orders and then follows them

Environment:
  TRIBUTARY_SECTION__KEY   overrides a key of the file: TRIBUTARY_POSTGRES__URL is url in [postgres]
  RUST_LOG                 overrides log.filter

Every key with its default and meaning: docs/configuration.md.

Exit code:
  0  stopped in order; `check`: good
  1  failed; `check`: warnings only
  2  somebody has to put something right first; it was said what";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let command = arguments.command.unwrap_or(Command::Run);
    let config = match config::load::<ConnectorConfig>(&arguments.config) {
        Ok(config) => config,
        Err(error) => return misconfigured(&command, &error),
    };
    match command {
        Command::Run => run::serve(&config).await.unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }),
        Command::Read(arguments) => cli::read(&config, &arguments).await,
        Command::Epoch => cli::epoch(&config).await,
        Command::Status(arguments) => cli::status(&config, arguments).await,
        Command::Check(output) => said(&examine(&config).await, output),
        Command::Plan(output) => match plan(&config).await {
            Ok(plan) => planned(&plan, output),
            Err(findings) => said(&Report::new(&config.source, findings), output),
        },
    }
}

fn misconfigured(command: &Command, error: &ConfigError) -> ExitCode {
    match command {
        Command::Run | Command::Read(_) | Command::Epoch | Command::Status(_) => {
            run::stopped(&[Fault(error.to_string())])
        }
        Command::Check(output) | Command::Plan(output) => {
            said(&Report::unnamed(Finding::of_configuration(error)), *output)
        }
    }
}

fn said(report: &Report, output: Output) -> ExitCode {
    print!("{}", report.text(output.json));
    report.exit_code()
}

fn planned(plan: &Plan, output: Output) -> ExitCode {
    match output.json {
        true => println!("{}", serde_json::to_string_pretty(plan).unwrap_or_default()),
        false => print!("{plan}"),
    }
    ExitCode::from(if plan.left_out.is_empty() { 0 } else { 2 })
}
