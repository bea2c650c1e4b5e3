//! A broker that is killed again and again under a writer's hands.
//!
//! Every checkpoint that a reader of what is committed finds must be true: below its offsets
//! stand the transactions up to its position, all of each, and no others.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use kafka::Checkpoint;
use kafka::producer::ProducerError;
use tokio::sync::watch;

use crate::support::{Source, Writer};

const PARTITIONS: i32 = 3;
/// More with `KILLS` in the environment.
const KILLS: u64 = 2;

/// Transaction `number` has so many events: mostly few, sometimes many.
fn events_of(number: u64) -> u64 {
    match number % 7 {
        0 => 50,
        other => other,
    }
}

#[tokio::test]
async fn each_checkpoint_is_true_however_often_the_broker_is_killed() -> Result<()> {
    let kills = std::env::var("KILLS").map_or(Ok(KILLS), |kills| kills.parse())?;
    let mut broker = fixtures::Kafka::start().await?;
    let mut source = Source::on(&broker.bootstrap(), "crash");
    source.config.partitions = PARTITIONS;
    source.ensure().await?;
    // What was committed, and that nobody kills any more.
    let (committed, mut seen) = watch::channel(0);
    let (over, is_over) = watch::channel(false);
    let killer = async {
        for kill in 0..kills {
            let wanted = *seen.borrow() + 2 + kill % 9;
            seen.wait_for(|committed| *committed >= wanted).await?;
            tokio::time::sleep(Duration::from_micros(rand::random_range(0..20_000))).await;
            broker.crash().await;
            broker.restart().await?;
        }
        over.send_replace(true);
        Ok(())
    };
    let writer = async {
        loop {
            let error = match live(&source, &committed, &is_over).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let producer = error.downcast_ref::<ProducerError>();
            if producer.is_some_and(ProducerError::is_setup) || error.is::<Lost>() {
                return Err(error);
            }
            eprintln!("{error:#}");
        }
    };
    tokio::try_join!(killer, writer)?;
    let committed = *committed.borrow();
    check(&source, committed)
}

#[derive(Debug, thiserror::Error)]
#[error("transaction {committed} was committed, the last record is of {last}")]
struct Lost {
    committed: u64,
    last: u64,
}

/// Transactions until something fails, or it is over.
async fn live(
    source: &Source,
    committed: &watch::Sender<u64>,
    is_over: &watch::Receiver<bool>,
) -> Result<()> {
    let mut writer = Writer::take_over(source).await?;
    let (committed_last, last) = (*committed.borrow(), writer.lsn);
    if last < committed_last {
        bail!(Lost {
            committed: committed_last,
            last,
        });
    }
    while !*is_over.borrow() {
        let number = writer.lsn + 1;
        for event in 0..events_of(number) {
            let (key, value) = (format!("k{event}"), format!("{number}/{event}"));
            writer.send(&key, Some(&value)).await?;
        }
        writer.commit().await?;
        committed.send_replace(writer.lsn);
    }
    Ok(())
}

fn check(source: &Source, committed: u64) -> Result<()> {
    let mut counts = BTreeMap::new();
    let mut partitions = BTreeMap::<i32, Vec<(i64, u64)>>::new();
    let mut seen = HashSet::new();
    for (partition, offset, value) in source.records(&source.table, PARTITIONS)? {
        let transaction = value.split('/').next().unwrap_or_default().parse()?;
        let events = partitions.entry(partition).or_default();
        ensure!(
            events.last().is_none_or(|(_, last)| *last <= transaction),
            "{value} comes late in partition {partition}, at {offset}"
        );
        // The last event of a partition where something hung comes once more.
        if seen.insert(value) {
            *counts.entry(transaction).or_insert(0) += 1;
            events.push((offset, transaction));
        }
    }
    let mut last = 0;
    for (_, at, value) in source.records(&source.checkpoint, 1)? {
        let record: Checkpoint = serde_json::from_str(&value)?;
        let position = record.position.0;
        ensure!(
            position == last + 1 || position == last,
            "{position} follows {last} at {at}"
        );
        last = position;
        let found = counts.get(&position).copied().unwrap_or_default();
        ensure!(found == events_of(position), "{found} events of {position}");
        for (partition, events) in &partitions {
            let covered = record.offsets.get(&source.table);
            let covered = covered.and_then(|ends| ends.get(partition)).copied();
            let covered = covered.unwrap_or_default();
            let below = events.partition_point(|(offset, _)| *offset < covered);
            let expected = events.partition_point(|(_, transaction)| *transaction <= position);
            ensure!(
                below == expected,
                "checkpoint {position} covers {below} events of partition {partition} (up to \
                 {covered}), not {expected}"
            );
        }
    }
    ensure!(
        last >= committed,
        "{committed} were committed, {last} are there"
    );
    Ok(())
}
