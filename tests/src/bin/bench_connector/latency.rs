//! From a commit in the source until its event is committed in Kafka, at an even pace of changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::connector::{Connectors, Running, Sink};
use crate::source::{Source, Written};
use tests::machine;

/// What is changed, and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) changes: usize,
    pub(crate) rate: u32,
    /// Changes before those that count.
    pub(crate) warm_up: usize,
}

/// For what is on its way when the last change was made.
const ARRIVE_MAX: Duration = Duration::from_secs(10);
/// How long an idle connector is watched.
const IDLE: Duration = Duration::from_secs(10);

/// What was seen of a connector into Kafka.
pub(crate) struct InKafka {
    /// From the acknowledgement of each commit until a consumer that reads committed has it.
    pub(crate) latencies: Vec<Duration>,
    /// Of one processor, while nothing changes.
    pub(crate) idle_cpu_percent: f64,
}

/// Through the shipped program, into a consumer that reads committed.
pub(crate) async fn in_kafka(
    connectors: &Connectors<'_>,
    written: &Written,
    pace: Pace,
) -> Result<InKafka> {
    let running = connectors.start_at(Sink::Kafka, written).await?;
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let stop = CancellationToken::new();
    let watched = async {
        connectors.caught_up(&running, written).await?;
        let consumer = watch(&running, Arc::clone(&seen), stop.clone())?;
        let changes = change_all(connectors.source, pace).await?;
        let latencies = arrived(&changes[pace.warm_up..], &seen).await;
        stop.cancel();
        consumer.await??;
        let before = machine::cpu_time(running.process.id())?;
        tokio::time::sleep(IDLE).await;
        let idle = machine::cpu_time(running.process.id())?.saturating_sub(before);
        Ok(InKafka {
            latencies: latencies?,
            idle_cpu_percent: 100.0 * idle.as_secs_f64() / IDLE.as_secs_f64(),
        })
    };
    let watched: Result<InKafka> = watched.await;
    let watched = watched.with_context(|| running.log_end())?;
    connectors.end(running).await?;
    Ok(watched)
}

/// Through the same code with a sink that notes when an event comes; from the commit's own time.
pub(crate) async fn in_nothing(
    connectors: &Connectors<'_>,
    written: &Written,
    pace: Pace,
) -> Result<Vec<Duration>> {
    let running = connectors
        .start_at(Sink::Null { latencies: true }, written)
        .await?;
    connectors.caught_up(&running, written).await?;
    change_all(connectors.source, pace).await?;
    connectors.all_confirmed(&running).await?;
    let report = connectors.end(running).await?.context("no report")?;
    last_latencies(&report.latencies_us, pace)
}

/// Those that count, of which the last were noted last.
pub(crate) fn last_latencies(all_us: &[i64], pace: Pace) -> Result<Vec<Duration>> {
    ensure!(
        all_us.len() >= pace.changes,
        "{} latencies were noted",
        all_us.len()
    );
    let counted = &all_us[all_us.len() - pace.changes..];
    Ok(counted
        .iter()
        .map(|us| Duration::from_micros(us.unsigned_abs()))
        .collect())
}

/// A row, its new value, and when the commit was acknowledged.
type Change = (i64, i64, Instant);

pub(crate) async fn change_all(source: &Source, pace: Pace) -> Result<Vec<Change>> {
    let sql = source.postgres.superuser("postgres").await?;
    let count = i64::try_from(pace.warm_up + pace.changes)?;
    let rows = sql
        .query("select id from line order by id limit $1", &[&count])
        .await?;
    ensure!(rows.len() as i64 == count, "only {} rows", rows.len());
    let update = sql
        .prepare("update line set quantity = quantity + 1000000 where id = $1 returning quantity")
        .await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / pace.rate);
    let mut changes = Vec::with_capacity(rows.len());
    for row in rows {
        let id: i64 = row.get(0);
        ticks.tick().await;
        let quantity: i32 = sql.query_one(&update, &[&id]).await?.get(0);
        changes.push((id, i64::from(quantity), Instant::now()));
    }
    Ok(changes)
}

type Seen = Arc<Mutex<HashMap<(i64, i64), Instant>>>;

/// Notes when each event arrives at a consumer.
fn watch(
    running: &Running,
    seen: Seen,
    stop: CancellationToken,
) -> Result<tokio::task::JoinHandle<Result<()>>> {
    let topic = running.table_topic();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &running.config.bootstrap)
        .set("group.id", "bench-connector")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(&topic), Duration::from_secs(10))?;
    let mut assignment = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        assignment.add_partition_offset(&topic, partition.id(), Offset::End)?;
    }
    consumer.assign(&assignment)?;
    Ok(tokio::task::spawn_blocking(move || {
        while !stop.is_cancelled() {
            let Some(message) = consumer.poll(Duration::from_millis(100)) else {
                continue;
            };
            let message = message?;
            let now = Instant::now();
            let Some(payload) = message.payload() else {
                continue;
            };
            let mut event: Value = serde_json::from_slice(payload)?;
            let row = event["after"].take();
            if let (Some(id), Some(quantity)) = (row["id"].as_i64(), row["quantity"].as_i64()) {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.insert((id, quantity), now);
            }
        }
        Ok(())
    }))
}

async fn arrived(changes: &[Change], seen: &Seen) -> Result<Vec<Duration>> {
    let deadline = Instant::now() + ARRIVE_MAX;
    loop {
        {
            let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let latencies: Option<Vec<_>> = changes
                .iter()
                .map(|(id, quantity, acknowledged)| {
                    let at = seen.get(&(*id, *quantity))?;
                    Some(at.saturating_duration_since(*acknowledged))
                })
                .collect();
            if let Some(latencies) = latencies {
                return Ok(latencies);
            }
        }
        ensure!(Instant::now() < deadline, "Kafka never showed all changes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
