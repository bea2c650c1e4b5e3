//! What a consumer of the topics sees, held against what the writers know.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use kafka::Checkpoint;

use super::writer::{Account, Committed, State};
use super::{ACCOUNT, CLOCK, IDS, PAGE, WRITERS};
use crate::harness::Journal;

fn number(row: &serde_json::Value, column: &str) -> i64 {
    row[column].as_i64().unwrap_or(i64::MIN)
}

fn account(row: &serde_json::Value) -> Account {
    let note = row["note"].as_str();
    Account {
        amount: number(row, "amount"),
        version: number(row, "version"),
        noted: note.and_then(|note| note.parse().ok()).unwrap_or(i64::MIN),
    }
}

/// What a reader has who reads to a checkpoint's offsets and no further, checkpoint by checkpoint.
pub(super) fn check_every_checkpoint(
    journal: &Journal,
    truth: &[Vec<Committed>],
    prefix: &str,
) -> Result<usize> {
    let mut partitions: BTreeMap<(&str, i32), Vec<_>> = BTreeMap::new();
    for record in &journal.records {
        let key = (record.topic.as_str(), record.partition);
        partitions.entry(key).or_default().push(record);
    }
    let mut next: BTreeMap<(&str, i32), usize> = BTreeMap::new();
    let mut tables: BTreeMap<&str, Rows<'_>> = BTreeMap::new();
    let mut whole = 0;
    for checkpoint in journal.checkpoints.iter().filter(|one| one.is_whole()) {
        for (key, records) in &partitions {
            let ends = checkpoint.offsets.get(key.0);
            let end = ends.and_then(|ends| ends.get(&key.1)).copied().unwrap_or(0);
            let at = next.entry(*key).or_default();
            while let Some(record) = records.get(*at).filter(|record| record.offset < end) {
                *at += 1;
                let table = key.0.strip_prefix(prefix).unwrap_or_default();
                let rows = tables.entry(table).or_default();
                match record.value.as_ref().map(|value| &value["after"]) {
                    Some(after) if !after.is_null() => _ = rows.insert(record.key.clone(), after),
                    _ => _ = rows.remove(&record.key),
                }
            }
        }
        whole += 1;
        is_truthful(checkpoint, &tables, truth)?;
    }
    Ok(whole)
}

type Rows<'a> = BTreeMap<String, &'a serde_json::Value>;

fn is_truthful(
    checkpoint: &Checkpoint,
    tables: &BTreeMap<&str, Rows<'_>>,
    truth: &[Vec<Committed>],
) -> Result<()> {
    let at = checkpoint.at();
    let rows = |table: &str| tables.get(table).into_iter().flat_map(BTreeMap::values);
    for (writer, truth) in (0..WRITERS).zip(truth) {
        let clock = rows(CLOCK).find(|row| number(row, "id") == writer);
        let clock = clock.with_context(|| format!("{at}: no clock of writer {writer}"))?;
        let n = usize::try_from(number(clock, "n"))?;
        let mine = rows(ACCOUNT).filter(|row| number(row, "id") / IDS == writer);
        let accounts = mine.map(|row| (number(row, "id"), account(row))).collect();
        let mut mine = State {
            accounts,
            ..State::default()
        };
        if writer == 0 {
            mine.page = rows(PAGE).map(|row| number(row, "id")).collect();
        }
        ensure!(
            mine == truth[n].state,
            "{at}: writer {writer} at transaction {n} has\n{mine:?}\nand had\n{:?}",
            truth[n].state
        );
        ensure!(
            truth[n].after <= checkpoint.position,
            "{at} shows transaction {n} of writer {writer}, which began at {}",
            truth[n].after
        );
        let missed = truth
            .get(n + 1)
            .filter(|next| next.by <= checkpoint.position);
        if let Some(missed) = missed {
            bail!(
                "{at} lacks transaction {} of writer {writer}, which was there by {}",
                n + 1,
                missed.by
            );
        }
    }
    Ok(())
}

/// Nothing twice that came from the log, and each key's versions in order.
pub(super) fn check_every_key(journal: &Journal) -> Result<()> {
    let mut last: BTreeMap<&str, (i64, i32)> = BTreeMap::new();
    let mut sent = BTreeSet::new();
    for record in journal.of(ACCOUNT) {
        let Some(value) = &record.value else { continue };
        if value["after"].is_null() {
            continue;
        }
        let (key, version) = (record.key.as_str(), number(&value["after"], "version"));
        // A read shows every change that was sent, and may be ahead of the log.
        let from_log = value["op"] != "r";
        if let Some((before, partition)) = last.get(key).copied() {
            ensure!(partition == record.partition, "{key} is in two partitions");
            ensure!(before <= version, "{key}: version {version} after {before}");
        }
        if from_log {
            last.insert(key, (version, record.partition));
            let first = sent.insert((key, version));
            ensure!(first, "{key}: version {version} twice");
        }
    }
    ensure!(sent.len() > 100, "only {} changes were sent", sent.len());
    Ok(())
}
