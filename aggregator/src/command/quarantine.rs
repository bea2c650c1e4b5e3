//! `aggregator quarantine`: what could not be applied, and what is to become of it.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio_postgres::Row;

use super::Admin;
use crate::config::Config;
use crate::mirror::Table;
use crate::session::Session;
use crate::verify::Connector;

/// What to do with the quarantine.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists the keys in quarantine, the oldest first.
    List {
        /// Only this source's.
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows one key: why it is there, the unified rows that say `degraded` for it, and the
    /// record as it stands in Kafka.
    Show(Which),
    /// Has the key's connector read the row again; returns when that is applied, or is in
    /// quarantine again.
    Retry(Which),
    /// Accepts that the row stays as it is: its unified rows say `degraded` no more.
    Discard(Which),
    /// Has a suspended table read again by its connector, once what flooded it is mended; returns
    /// when that is served, or suspended again.
    Resume(WhichTable),
}

/// A table.
#[derive(Debug, Args)]
pub struct WhichTable {
    /// Whose it is.
    #[arg(long, value_name = "NAME")]
    pub source: String,
    /// `schema.table` in the source.
    #[arg(long, value_name = "TABLE")]
    pub table: String,
}

/// A key.
#[derive(Debug, Args)]
pub struct Which {
    /// Whose it is.
    #[arg(long, value_name = "NAME")]
    pub source: String,
    /// `schema.table` in the source.
    #[arg(long, value_name = "TABLE")]
    pub table: String,
    /// As `list` shows it: {"id":5}.
    #[arg(long, value_name = "KEY")]
    pub key: String,
}

/// A row of `public.quarantine`.
#[derive(Debug, Serialize)]
struct Entry {
    source: String,
    table: String,
    key: String,
    reason: String,
    /// The checkpoint that covers it; none while its source loads.
    position: Option<String>,
    /// Where in Kafka it stands.
    record: String,
    /// When it came, RFC 3339.
    at: String,
}

const ENTRIES: &str = r#"SELECT source, "table", key, reason, position, record,
    to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM public.quarantine"#;

impl Entry {
    fn read(row: &Row) -> Self {
        Self {
            source: row.get(0),
            table: row.get(1),
            key: row.get(2),
            reason: row.get(3),
            position: row.get(4),
            record: row.get(5),
            at: row.get(6),
        }
    }
}

/// Runs one of the commands.
///
/// # Errors
/// Where the view, the connector or the aggregator cannot be reached, or there is no such key.
pub async fn run(config: &Config, command: Command) -> anyhow::Result<ExitCode> {
    let settings = ["default_transaction_read_only = on".to_owned()];
    let view = Session::open(&config.view, "aggregator quarantine", &settings)
        .await
        .map_err(|failure| anyhow::anyhow!("{}", failure.in_words()))?;
    match command {
        Command::List { source, json } => list(&view, source.as_deref(), json).await?,
        Command::Show(which) => show(config, &view, &which).await?,
        Command::Retry(which) => return retry(config, &view, &which).await,
        Command::Resume(which) => return resume(config, &view, &which).await,
        Command::Discard(which) => {
            entry(&view, &which).await?;
            Admin::new(config.admin.listen)?.discard(&which).await?;
            println!("discarded");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(view: &Session, source: Option<&str>, json: bool) -> anyhow::Result<()> {
    let sql = format!("{ENTRIES} WHERE $1::text IS NULL OR source = $1 ORDER BY at, 1, 2, 3");
    let rows = view.client.query(&sql, &[&source]).await?;
    let entries: Vec<_> = rows.iter().map(Entry::read).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&entries)?);
        return Ok(());
    }
    for Entry {
        source,
        table,
        key,
        reason,
        at,
        ..
    } in &entries
    {
        println!("{at}  {source}  {table}  {key}  {reason}");
    }
    println!("{} in quarantine", entries.len());
    Ok(())
}

async fn show(config: &Config, view: &Session, which: &Which) -> anyhow::Result<()> {
    let entry = entry(view, which).await?;
    println!("{}", serde_json::to_string_pretty(&entry)?);
    let rows = view
        .client
        .query(
            r#"SELECT resource, id FROM aggregator.degraded
            WHERE source = $1 AND "table" = $2 AND key = $3 ORDER BY 1, 2"#,
            &[&which.source, &which.table, &which.key],
        )
        .await?;
    for row in rows {
        let (resource, id): (String, i64) = (row.get(0), row.get(1));
        println!("degraded: {resource} {id}");
    }
    let (topic, partition, offset) = place(&entry.record)?;
    match kafka::follower::record(&config.kafka, topic, partition, offset).await? {
        Some(bytes) => println!("record: {}", String::from_utf8_lossy(&bytes)),
        None => println!("record: Kafka no longer has it"),
    }
    Ok(())
}

/// The parts of `topic[partition]@offset`.
fn place(record: &str) -> anyhow::Result<(&str, i32, i64)> {
    let parts = record.rsplit_once('@').and_then(|(place, offset)| {
        let (topic, partition) = place.strip_suffix(']')?.rsplit_once('[')?;
        Some((topic, partition.parse().ok()?, offset.parse().ok()?))
    });
    parts.with_context(|| format!("{record} is no place of a record"))
}

async fn retry(config: &Config, view: &Session, which: &Which) -> anyhow::Result<ExitCode> {
    let before = entry(view, which).await?;
    if which.key == crate::view::WHOLE_TABLE {
        bail!("that is the whole table: aggregator quarantine resume");
    }
    let key: serde_json::Value = serde_json::from_str(&which.key).unwrap_or_default();
    let id = key["id"].as_i64().with_context(|| {
        format!(
            "{} is no key that can be read: discard it, or have the table read again: \
            connector read --table {}",
            which.key, which.table
        )
    })?;
    let table = Table::find(&which.source, &which.table)
        .with_context(|| format!("{} is not mirrored", which.table))?;
    let connector = Connector::of(config, &which.source)?;
    connector.read(table, &[id]).await?;
    let deadline = Instant::now() + config.verify.wait_max();
    loop {
        match find(view, which).await? {
            None => {
                println!("applied");
                return Ok(ExitCode::SUCCESS);
            }
            Some(now) if now.record != before.record => {
                println!("in quarantine again: {}", now.reason);
                return Ok(ExitCode::FAILURE);
            }
            Some(_) if Instant::now() > deadline => bail!(
                "the connector has read the row; the view did not show it within {} ms \
                (verify.wait_max_ms)",
                config.verify.wait_max_ms
            ),
            Some(_) => tokio::time::sleep(super::POLL).await,
        }
    }
}

async fn resume(config: &Config, view: &Session, which: &WhichTable) -> anyhow::Result<ExitCode> {
    let table = Table::find(&which.source, &which.table)
        .with_context(|| format!("{} of {} is not mirrored", which.table, which.source))?;
    let connector = Connector::of(config, table.source)?;
    let admin = Admin::new(config.admin.listen)?;
    // From here on what the connector sends fills the table's second copy.
    admin.resume(table, None).await?;
    eprintln!("{} is read again", table.captured);
    connector.read_all(table).await?;
    let covered_by = kafka::follower::last_offset(&config.kafka, table.source).await?;
    let covered_by = covered_by.context("the connector has written no checkpoint")?;
    admin.resume(table, Some(covered_by)).await?;
    let sql = r#"SELECT
        (SELECT reason FROM public.quarantine
            WHERE source = $1 AND "table" = $2 AND suspended),
        EXISTS (SELECT FROM aggregator.resumptions WHERE source = $1 AND "table" = $2)"#;
    loop {
        let row = view
            .client
            .query_one(sql, &[&table.source, &table.captured])
            .await?;
        let (suspended, is_resumed): (Option<String>, bool) = (row.get(0), row.get(1));
        match suspended {
            None => {
                println!("resumed");
                return Ok(ExitCode::SUCCESS);
            }
            Some(reason) if !is_resumed => {
                println!("suspended again: {reason}");
                return Ok(ExitCode::FAILURE);
            }
            Some(_) => tokio::time::sleep(super::POLL).await,
        }
    }
}

async fn entry(view: &Session, which: &Which) -> anyhow::Result<Entry> {
    let found = find(view, which).await?;
    found.with_context(|| {
        format!(
            "{} of {} of {} is not in quarantine; `aggregator quarantine list` shows what is",
            which.key, which.table, which.source
        )
    })
}

async fn find(view: &Session, which: &Which) -> anyhow::Result<Option<Entry>> {
    let sql = format!(r#"{ENTRIES} WHERE source = $1 AND "table" = $2 AND key = $3"#);
    let row = view
        .client
        .query_opt(&sql, &[&which.source, &which.table, &which.key])
        .await?;
    Ok(row.as_ref().map(Entry::read))
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn places_of_records_are_read_whatever_the_topic() -> anyhow::Result<()> {
        assert_eq!(place("a.b[c].d[3]@17")?, ("a.b[c].d", 3, 17));
        assert!(place("a[3]").is_err());
        assert!(place("a[x]@1").is_err());
        Ok(())
    }
}
