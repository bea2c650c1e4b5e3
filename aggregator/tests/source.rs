//! A source as the aggregator sees it: topics of change events, and checkpoints.

#![expect(
    clippy::unwrap_used,
    reason = "what the tests made themselves is there"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use aggregator::ingest::{Change, changes};
use aggregator::mirror::Table;
use aggregator::view::{Moved, Part};
use bytes::Bytes;
use kafka::follower::{Event, Standing};
use kafka::{Checkpoint, Lsn, Offsets};
use serde_json::{Value as Json, json};

const PARTITIONS: usize = 2;
/// When the first event happened, milliseconds since 1970.
const BEGAN_MS: i64 = 1_763_900_000_000;

/// The rows that a source has now, and all events since its first.
pub(crate) struct Source {
    pub(crate) name: &'static str,
    /// By `schema.table`.
    pub(crate) tables: BTreeMap<&'static str, BTreeMap<i64, Json>>,
    topics: BTreeMap<&'static str, [Vec<Event>; PARTITIONS]>,
    /// The rows and the offsets at the newest checkpoint.
    pub(crate) checkpointed: BTreeMap<&'static str, BTreeMap<i64, Json>>,
    pub(crate) end: Offsets,
    pub(crate) lsn: u64,
    /// Its last commit, and until when it is known, microseconds since 1970.
    pub(crate) known_until_us: i64,
    /// Events that [`Source::unsent`] has given already.
    sent: BTreeMap<&'static str, [usize; PARTITIONS]>,
}

impl Source {
    pub(crate) fn new(name: &'static str) -> Self {
        let tables = aggregator::mirror::TABLES
            .into_iter()
            .filter(|table| table.source == name)
            .map(|table| table.captured);
        let mut source = Self {
            name,
            tables: tables
                .clone()
                .map(|table| (table, BTreeMap::new()))
                .collect(),
            topics: tables.map(|table| (table, Default::default())).collect(),
            checkpointed: BTreeMap::new(),
            end: Offsets::new(),
            lsn: 0,
            known_until_us: BEGAN_MS * 1000,
            sent: BTreeMap::new(),
        };
        source.checkpoint();
        source
    }

    /// The row is this from now on.
    pub(crate) fn put(&mut self, table: &'static str, row: Json) {
        let id = row["id"].as_i64().unwrap();
        let before = self.rows(table).insert(id, row.clone());
        let op = if before.is_some() { "u" } else { "c" };
        self.send(table, id, Some(envelope(op, before, Some(row))));
    }

    /// A table read sees the row again.
    pub(crate) fn read_again(&mut self, table: &'static str, id: i64) {
        if let Some(row) = self.rows(table).get(&id).cloned() {
            self.send(table, id, Some(envelope("r", None, Some(row))));
        }
    }

    /// The row goes: the event and the tombstone, or the tombstone alone, as compaction leaves it.
    pub(crate) fn delete(&mut self, table: &'static str, id: i64, lone_tombstone: bool) {
        let before = self.rows(table).remove(&id);
        if before.is_some() && !lone_tombstone {
            self.send(table, id, Some(envelope("d", before, None)));
        }
        self.send(table, id, None);
    }

    /// An event whose value is this, whatever it is.
    pub(crate) fn send(&mut self, table: &'static str, id: i64, value: Option<String>) {
        let partition = usize::try_from(id.rem_euclid(PARTITIONS as i64)).unwrap();
        let log = &mut self.topics.get_mut(table).unwrap()[partition];
        let offset = i64::try_from(log.len()).unwrap();
        log.push(Event {
            topic: topic(self.name, table).into(),
            table: table.into(),
            partition: i32::try_from(partition).unwrap(),
            offset,
            key: Bytes::from(json!({ "id": id }).to_string()),
            value: value.map(Bytes::from),
            timestamp_ms: BEGAN_MS + offset,
        });
        self.lsn += 8;
    }

    /// What was sent so far is whole.
    pub(crate) fn checkpoint(&mut self) {
        self.checkpointed = self.tables.clone();
        self.checkpoint_without_rows();
    }

    /// [`Source::checkpoint`], but nobody will compare rows.
    pub(crate) fn checkpoint_without_rows(&mut self) {
        self.lsn += 8;
        for (table, partitions) in &self.topics {
            let ends = partitions.iter().enumerate().map(|(partition, log)| {
                (
                    i32::try_from(partition).unwrap(),
                    i64::try_from(log.len()).unwrap(),
                )
            });
            self.end.insert(topic(self.name, table), ends.collect());
        }
    }

    /// The record of the newest checkpoint.
    pub(crate) fn record(&self) -> Checkpoint {
        Checkpoint {
            epoch: 1_763_900_000,
            system_identifier: "1".to_owned(),
            timeline: 1,
            position: Lsn(self.lsn),
            reach: Lsn(self.lsn),
            half_sent: None,
            committed_at_us: Some(self.known_until_us),
            current_at_us: Some(self.known_until_us),
            wal_end: Lsn(self.lsn + 16),
            offsets: self.end.clone(),
            quarantine: BTreeMap::new(),
            tables: BTreeMap::new(),
        }
    }

    /// The newest checkpoint, taken by a view transaction, and what a reader that stands here has
    /// to apply for it.
    pub(crate) fn part(&self, standing: &Standing) -> Part {
        Part {
            moved: Moved {
                source: self.name.to_owned(),
                record: self.record(),
                record_time_ms: BEGAN_MS,
                standing: Standing {
                    offsets: self.end.clone(),
                    seen: standing.seen + 1,
                    since_ms: Some(BEGAN_MS),
                },
            },
            changes: self.events(standing),
        }
    }

    /// The events between a standing and the newest checkpoint, partition by partition.
    pub(crate) fn events(&self, standing: &Standing) -> Vec<Change> {
        let mut events = Vec::new();
        for (table, partitions) in &self.topics {
            let topic = topic(self.name, table);
            for (partition, log) in partitions.iter().enumerate() {
                let at = |offsets: &Offsets| {
                    let partition = i32::try_from(partition).unwrap();
                    let ends = offsets.get(&topic).and_then(|ends| ends.get(&partition));
                    usize::try_from(ends.copied().unwrap_or(0)).unwrap()
                };
                events.extend_from_slice(&log[at(&standing.offsets)..at(&self.end)]);
            }
        }
        changes(self.name, &events)
    }

    /// The events since the last call, for a real topic.
    pub(crate) fn unsent(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for (table, partitions) in &self.topics {
            let sent = self.sent.entry(*table).or_default();
            for (log, sent) in partitions.iter().zip(sent) {
                events.extend_from_slice(&log[*sent..]);
                *sent = log.len();
            }
        }
        events
    }

    fn rows(&mut self, table: &'static str) -> &mut BTreeMap<i64, Json> {
        self.tables.get_mut(table).unwrap()
    }
}

/// Moves a standing over these changes, as a load that is cut into pieces does.
pub(crate) fn advance(standing: &mut Standing, changes: &[Change]) {
    for Change { record, .. } in changes {
        let topic: &Arc<str> = &record.topic;
        let ends = standing.offsets.entry(topic.to_string()).or_default();
        ends.insert(record.partition, record.offset + 1);
    }
}

/// The change event's JSON.
pub(crate) fn envelope(op: &str, before: Option<Json>, after: Option<Json>) -> String {
    json!({
        "before": before, "after": after, "source": {"lsn": 1}, "transaction": null, "op": op,
        "ts_ms": 1, "ts_us": 1, "ts_ns": 1,
    })
    .to_string()
}

fn topic(source: &str, table: &str) -> String {
    format!("{source}.{table}")
}

/// The table's mirror.
pub(crate) fn mirror(source: &str, table: &str) -> &'static str {
    Table::find(source, table).unwrap().mirror
}
