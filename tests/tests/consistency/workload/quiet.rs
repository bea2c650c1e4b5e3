//! Moments at which nothing goes wrong: what must be true then.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fixtures::legacy::System;
use fixtures::stack::{Stack, current_lsn};
use kafka::checkpoint::Read;
use kafka::follower::last_record;
use kafka::{Checkpoint, KafkaConfig, Lsn};
use serde_json::{Value, json};
use tests::api::Api;
use tests::rest;
use tests::topics::kafka_config;
use tokio::process::Child;
use tokio_postgres::Client;

use super::owners::{self, SPOILT};
use super::shop::Shop;

/// For a state that a busy machine reaches late.
const REACHED_WITHIN: Duration = Duration::from_secs(180);
/// Between two looks at a state.
const LOOK: Duration = Duration::from_millis(50);
/// How long a command that runs beside the faults may go on after them.
const COMMANDS_END_WITHIN: Duration = Duration::from_secs(180);
/// So often the view may be compared at the end, where nothing goes wrong, until that is done for all
/// of it.
const VERIFIED_AFTER: usize = 5;
/// So often a table may be read again, while nothing goes wrong, until it is served.
const RESUMED_AFTER: usize = 5;
/// Of a suspended table as a whole, in the place of a key.
const WHOLE_TABLE: &str = "*";

/// The columns of a source's tables, `schema.table`.
type Columns = BTreeMap<String, BTreeSet<String>>;

/// Nobody writes until everything has caught up. What cannot be applied stands in quarantine then, and
/// is said of the rows that show it; once it is mended, the view and the API equal the oracle.
pub(super) async fn rest(shop: &Shop) -> Result<()> {
    let _closed = shop.closed().await;
    let stack = &shop.stack;
    followed(stack).await?;
    let number = quarantined(shop).await?;
    mended(stack).await?;
    followed(stack).await?;
    equal(stack).await?;
    rest::shown(stack).await?;
    println!("at rest the view and the API equal the oracle; {number} keys were in quarantine");
    Ok(())
}

/// Nothing goes wrong any more: while writers go on everything is followed, and what is spoilt is mended.
pub(super) async fn recovered(stack: &Stack) -> Result<()> {
    followed(stack).await?;
    mended(stack).await?;
    followed(stack).await
}

/// While nothing goes wrong all of the view can be compared, and is equal.
pub(super) async fn verified(stack: &Stack) -> Result<()> {
    let mut left = Vec::new();
    for _ in 0..VERIFIED_AFTER {
        match verify(stack, &["verify", "--json"])?.await? {
            Compared::Equal => return Ok(()),
            Compared::NotAll(report) => left.push(report),
        }
    }
    bail!("verify never compares all: {left:?}")
}

/// After the end of all: everything equals the oracle, the topics too.
pub(super) async fn ended(stack: &Stack) -> Result<()> {
    followed(stack).await?;
    equal(stack).await?;
    rest::agrees(stack).await?;
    verified(stack).await
}

/// Waits until every connector has followed its server as it is now, whatever was put back or altered,
/// and the view shows all of that.
async fn followed(stack: &Stack) -> Result<()> {
    let config = kafka_config(stack)?;
    let mut least = Vec::new();
    for system in System::ALL {
        let client = stack.source(system).await?;
        let columns = columns(&client, system).await?;
        let record = recorded(&config, system.name(), &client, &columns).await?;
        // What the next record is of comes behind this one, also where nobody else writes.
        client.execute("select txid_current()", &[]).await?;
        let lsn = current_lsn(&client).await?;
        least.push(format!("{}={}:{lsn}", system.name(), record.epoch));
    }
    let view = stack.view().await?;
    recorded(&config, "unified", &view, &Columns::new()).await?;
    let api = Api::new(stack.api_url())?;
    let path = "/v1/sold-items?limit=1&max_wait_ms=5000";
    let answer = api.patient(path, Some(&least.join(", "))).await?;
    ensure!(answer.status.is_success(), "{path}: {}", answer.body);
    Ok(())
}

/// The epoch in which a source's connector has followed its server as it is now.
pub(super) async fn epoch(stack: &Stack, system: System) -> Result<u64> {
    let client = stack.source(system).await?;
    let config = kafka_config(stack)?;
    let record = recorded(&config, system.name(), &client, &Columns::new()).await?;
    Ok(record.epoch)
}

/// The columns that a source's tables have now.
async fn columns(client: &Client, system: System) -> Result<Columns> {
    let sql = "select table_schema || '.' || table_name, column_name::text
               from information_schema.columns
               where table_schema || '.' || table_name = any($1)";
    let mut columns = Columns::new();
    for row in client.query(sql, &[&system.tables()]).await? {
        let of = columns.entry(row.get(0)).or_default();
        of.insert(row.get(1));
    }
    Ok(columns)
}

/// A record of a source that covers what its server has now, on the timeline that it has now, with
/// these columns read.
async fn recorded(
    config: &KafkaConfig,
    source: &str,
    client: &Client,
    columns: &Columns,
) -> Result<Checkpoint> {
    let sql = "select pg_current_wal_lsn()::text,
                   ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int";
    let row = client.query_one(sql, &[]).await?;
    let (lsn, timeline): (String, i32) = (row.get(0), row.get(1));
    let (lsn, timeline) = (lsn.parse::<Lsn>()?, u32::try_from(timeline)?);
    let has_read = |record: &Checkpoint| {
        columns.iter().all(|(table, columns)| {
            record.tables.get(table).is_some_and(|state| {
                let known: BTreeSet<_> = state.columns.iter().collect();
                state.read == Read::Done
                    && state.reconcile.is_empty()
                    && known == columns.iter().collect()
            })
        })
    };
    let deadline = Instant::now() + REACHED_WITHIN;
    loop {
        let last = last_record(config, source).await;
        match last {
            Ok(Some(record))
                if record.is_whole()
                    && record.timeline == timeline
                    && record.position >= lsn
                    && has_read(&record) =>
            {
                return Ok(record);
            }
            last => ensure!(
                Instant::now() < deadline,
                "{source} is not followed to {lsn} on timeline {timeline} with {columns:?}: {last:?}"
            ),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What stands in quarantine is what is spoilt in the sources, but for what somebody accepted; the rows
/// that show it are degraded. How many keys that are.
async fn quarantined(shop: &Shop) -> Result<usize> {
    let found = in_quarantine(&shop.stack).await?;
    let view = shop.stack.view().await?;
    let mut spoilt: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for column in &SPOILT {
        let table = (
            column.system.name().to_owned(),
            format!("public.{}", column.table),
        );
        let (shown_in, _) = column.shown_in;
        for (id, shown) in column.found(&shop.stack).await? {
            let key = json!({ "id": id }).to_string();
            let is_suspended = found
                .get(&table)
                .is_some_and(|keys| keys.contains(WHOLE_TABLE));
            if is_suspended || shop.is_accepted(&key) {
                continue;
            }
            let sql = format!("select degraded from public.{shown_in} where id = $1");
            let row = view.query_opt(&sql, &[&shown]).await?;
            ensure!(
                row.is_none_or(|row| row.get(0)),
                "{} of {table:?} is spoilt at {key}, and {shown_in} {shown} does not say so",
                column.column
            );
            spoilt.entry(table.clone()).or_default().insert(key);
        }
    }
    let mut number = 0;
    for table in spoilt.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
        let (is, should) = (
            found.get(table).cloned().unwrap_or_default(),
            spoilt.get(table).cloned().unwrap_or_default(),
        );
        number += is.len();
        if is.contains(WHOLE_TABLE) {
            continue;
        }
        let differ: Vec<_> = is
            .symmetric_difference(&should)
            .filter(|key| !shop.is_accepted(key))
            .collect();
        ensure!(
            differ.is_empty(),
            "in quarantine of {table:?} stand {is:?}, and spoilt are {should:?}"
        );
    }
    Ok(number)
}

/// Keys by source and table.
async fn in_quarantine(stack: &Stack) -> Result<BTreeMap<(String, String), BTreeSet<String>>> {
    let view = stack.view().await?;
    let sql = r#"select source, "table", key from public.quarantine"#;
    let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for row in view.query(sql, &[]).await? {
        let table: (String, String) = (row.get(0), row.get(1));
        found.entry(table).or_default().insert(row.get(2));
    }
    Ok(found)
}

/// Nothing is in quarantine.
async fn equal(stack: &Stack) -> Result<()> {
    let found = in_quarantine(stack).await?;
    ensure!(found.is_empty(), "still in quarantine: {found:?}");
    Ok(())
}

/// The owners mend what is spoilt, and tables that are suspended are read again.
async fn mended(stack: &Stack) -> Result<()> {
    owners::mend(stack).await?;
    followed(stack).await?;
    for ((source, table), keys) in in_quarantine(stack).await? {
        if keys.contains(WHOLE_TABLE) {
            resumed(stack, &source, &table).await?;
        }
    }
    Ok(())
}

async fn resumed(stack: &Stack, source: &str, table: &str) -> Result<()> {
    let arguments = ["quarantine", "resume", "--source", source, "--table", table];
    let mut said = Vec::new();
    for _ in 0..RESUMED_AFTER {
        // Either may be the one that writes the view.
        for name in ["aggregator", "aggregator-standby"] {
            let service = stack.service(name);
            let running = service.spawn_command(service.config(), &arguments)?;
            let output = to_its_end(running).await?;
            let output = output.context("resume does not end")?;
            if output.status.success() {
                println!("{source}'s {table} is resumed");
                return Ok(());
            }
            said.push(String::from_utf8_lossy(&output.stderr).into_owned());
            said.push(String::from_utf8_lossy(&output.stdout).into_owned());
        }
    }
    bail!("{source}'s {table} is not resumed: {said:?}")
}

/// What a comparison of the view came to.
#[derive(Debug)]
pub(super) enum Compared {
    Equal,
    /// A part could not be compared; the rest is equal.
    NotAll(Value),
}

/// Starts `aggregator verify`, which may find nothing.
pub(super) fn verify(
    stack: &Stack,
    arguments: &[&str],
) -> Result<impl Future<Output = Result<Compared>> + use<>> {
    let aggregator = stack.service("aggregator");
    let running = aggregator.spawn_command(aggregator.config(), arguments)?;
    let begun = Instant::now();
    Ok(async move {
        let Some(output) = to_its_end(running).await? else {
            bail!("verify does not end");
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let code = output.status.code();
        let differ = report["difference_count"].as_u64().unwrap_or_default();
        println!(
            "verify ends with {code:?} after {:.1} s, {differ} differ; not compared: {}",
            begun.elapsed().as_secs_f64(),
            report["not_compared"]
        );
        match code {
            Some(0) if differ == 0 && !said.contains("again") => Ok(Compared::Equal),
            Some(2) if differ == 0 => Ok(Compared::NotAll(report["not_compared"].clone())),
            _ => bail!("verify found something, or broke: {code:?} {said} {report}"),
        }
    })
}

/// What a command said; none: it did not end in time, and was killed.
pub(super) async fn to_its_end(running: Child) -> Result<Option<std::process::Output>> {
    let output = tokio::time::timeout(COMMANDS_END_WITHIN, running.wait_with_output()).await;
    Ok(output.ok().transpose()?)
}
