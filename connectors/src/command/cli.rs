//! The commands `read`, `epoch` and `status`: they ask the connector that runs on this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::time::Instant;

use super::{EpochEnds, ReadAccepted, ReadOrder, show};
use crate::config::ConnectorConfig;

/// For an answer; the connector itself waits a little less.
const ANSWER_MAX: Duration = Duration::from_secs(35);
/// Between two looks at how far a read is.
const LOOK: Duration = Duration::from_millis(500);
/// For a connector that does not answer while it is waited for: time to be started again.
const AWAY_MAX: Duration = Duration::from_secs(30);

/// What to read again.
#[derive(Debug, Clone, Args)]
pub struct ReadArguments {
    /// The table, as the configuration names it.
    #[arg(long, value_name = "SCHEMA.TABLE")]
    table: String,
    /// Only rows that fulfil this SQL condition over the table's columns.
    #[arg(long = "where", value_name = "CONDITION")]
    condition: Option<String>,
    /// Rows read in a second at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rows_per_second: Option<u32>,
    /// Deletes what the source no longer has from the topic, or refuses if the condition cannot
    /// tell which keys those are.
    #[arg(long, conflicts_with = "no_reconcile")]
    reconcile: bool,
    /// Leaves what the source no longer has in the topic.
    #[arg(long)]
    no_reconcile: bool,
    /// Waits until it is complete, and says how far it is.
    #[arg(long)]
    wait: bool,
}

/// How to tell.
#[derive(Debug, Clone, Copy, Args)]
pub struct StatusArguments {
    /// Prints the JSON of /status instead of text.
    #[arg(long)]
    json: bool,
}

/// Why the running connector could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(
        "no connector answers on {0} (admin.listen): {1}; is it running on this machine, with this configuration?"
    )]
    Unreachable(SocketAddr, #[source] reqwest::Error),
    #[error("what answers on {0} (admin.listen) is no connector: {1}")]
    Strange(SocketAddr, String),
    #[error("admin.listen has the port 0, so nobody knows where the connector listens; set a port")]
    NoPort,
    #[error("{0}")]
    Refused(String),
    #[error("the read {0} was given up: {1}")]
    GivenUp(u64, String),
}

/// The command `read`.
pub async fn read(config: &ConnectorConfig, arguments: &ReadArguments) -> ExitCode {
    match ask_for_read(config, arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// The command `epoch`.
pub async fn epoch(config: &ConnectorConfig) -> ExitCode {
    match begin_epoch(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// The command `status`.
pub async fn status(config: &ConnectorConfig, arguments: StatusArguments) -> ExitCode {
    match look(config).await {
        Ok(status) => {
            let text = match arguments.json {
                true => serde_json::to_string_pretty(&status).unwrap_or_default() + "\n",
                false => show::status(&status),
            };
            print!("{text}");
            let state = status["state"].as_str().unwrap_or_default();
            let healthy = ["streaming", "reading", "waiting for lock"].contains(&state);
            ExitCode::from(u8::from(!healthy))
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &CliError) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(match error {
        CliError::Unreachable(..) | CliError::Strange(..) => 1,
        CliError::NoPort | CliError::Refused(_) | CliError::GivenUp(..) => 2,
    })
}

async fn ask_for_read(config: &ConnectorConfig, arguments: &ReadArguments) -> Result<(), CliError> {
    let order = ReadOrder {
        table: arguments.table.clone(),
        condition: arguments.condition.clone(),
        rows_per_second_max: arguments.rows_per_second,
        reconcile: match (arguments.reconcile, arguments.no_reconcile) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            (false, false) => None,
        },
    };
    let address = address(config)?;
    let request = client()
        .post(format!("http://{address}/reads"))
        .json(&order);
    let answer = answer(address, request).await?;
    let accepted: ReadAccepted = serde_json::from_value(answer)
        .map_err(|error| CliError::Strange(address, error.to_string()))?;
    let (id, table) = (accepted.id, &accepted.table);
    println!("read {id} of {table} is accepted and survives a restart");
    if !accepted.reconcile && !arguments.no_reconcile {
        println!(
            "keys that the source no longer has are left as they are: the condition names columns \
             that are not of the primary key"
        );
    }
    if arguments.wait {
        return until_complete(config, &accepted).await;
    }
    println!("`connector status` tells how far it is");
    Ok(())
}

/// Returns once the next epoch stands in the checkpoint.
async fn begin_epoch(config: &ConnectorConfig) -> Result<(), CliError> {
    let address = address(config)?;
    let request = client().post(format!("http://{address}/epochs"));
    let answer = answer(address, request).await?;
    let EpochEnds { epoch: last } = serde_json::from_value(answer)
        .map_err(|error| CliError::Strange(address, error.to_string()))?;
    println!("epoch {last} ends");
    let mut looks = Looks::default();
    loop {
        let status = looks.next(config).await?;
        if let Some(epoch) = status["epoch"].as_u64().filter(|epoch| *epoch > last) {
            println!(
                "epoch {epoch} has begun: all tables are read, `connector status` tells how far it is"
            );
            return Ok(());
        }
    }
}

/// Waits for the end of a read, through restarts of the connector.
async fn until_complete(config: &ConnectorConfig, read: &ReadAccepted) -> Result<(), CliError> {
    let mut said = String::new();
    let mut looks = Looks::default();
    loop {
        let status = looks.next(config).await?;
        if status["epoch"].is_null() {
            // It starts again; the read stands in the checkpoint.
            continue;
        }
        let mut failed = status["failed_requests"].as_array().into_iter().flatten();
        if let Some(failed) = failed.find(|failed| failed["id"] == read.id) {
            let reason = failed["reason"].as_str().unwrap_or_default().to_owned();
            return Err(CliError::GivenUp(read.id, reason));
        }
        let requests = status["tables"][&read.table]["requests"].as_array();
        match requests.into_iter().flatten().find(|r| r["id"] == read.id) {
            None => {
                println!("read {} of {} is complete", read.id, read.table);
                return Ok(());
            }
            Some(request) => {
                let how = show::progress(request);
                if how != said {
                    println!("{how}");
                    said = how;
                }
            }
        }
    }
}

/// Looks at a connector that may be started again meanwhile.
#[derive(Debug, Default)]
struct Looks {
    away_since: Option<Instant>,
}

impl Looks {
    /// The next status; fails where the connector has not answered for too long.
    async fn next(&mut self, config: &ConnectorConfig) -> Result<Value, CliError> {
        loop {
            tokio::time::sleep(LOOK).await;
            match look(config).await {
                Err(CliError::Unreachable(..))
                    if self.away_since.get_or_insert_with(Instant::now).elapsed() < AWAY_MAX => {}
                other => {
                    self.away_since = None;
                    return other;
                }
            }
        }
    }
}

async fn look(config: &ConnectorConfig) -> Result<Value, CliError> {
    let address = address(config)?;
    answer(address, client().get(format!("http://{address}/status"))).await
}

async fn answer(address: SocketAddr, request: reqwest::RequestBuilder) -> Result<Value, CliError> {
    let unreachable = |error| CliError::Unreachable(address, error);
    let answer = request
        .timeout(ANSWER_MAX)
        .send()
        .await
        .map_err(unreachable)?;
    let status = answer.status();
    let body = answer.text().await.map_err(unreachable)?;
    let value: Option<Value> = serde_json::from_str(&body).ok();
    let refusal = value.as_ref().and_then(|value| value["error"].as_str());
    match (status.is_success(), refusal, &value) {
        (true, _, Some(_)) => Ok(value.unwrap_or_default()),
        (false, Some(refusal), _) => Err(CliError::Refused(refusal.to_owned())),
        _ => Err(CliError::Strange(address, format!("{status}"))),
    }
}

fn client() -> reqwest::Client {
    // No proxy stands between us and this machine.
    let client = reqwest::Client::builder().no_proxy().build();
    client.unwrap_or_default()
}

/// Where the running connector listens, as seen from this machine.
fn address(config: &ConnectorConfig) -> Result<SocketAddr, CliError> {
    let mut address = config.admin.listen;
    if address.port() == 0 {
        return Err(CliError::NoPort);
    }
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(address)
}
