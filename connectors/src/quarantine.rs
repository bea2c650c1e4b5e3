//! What cannot be encoded, or is larger than a record may be, goes to `<source>.quarantine`.
//!
//! The connector neither stops for one odd row nor lets it vanish: the record has the change's
//! position, table, key, reason and the row's bytes, in the Kafka transaction of the changes
//! around it. In its table's topic the row keeps its last state until its next change.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kafka::event::Op;
use kafka::quarantine::{Quarantined, Sent};
use serde_json::json;

use crate::captured::{Captured, Change, Key};
use crate::config::OnUndecodable;
use crate::encode::EncodeError;
use crate::encode::envelope::{Origin, Snapshot, Value};
use crate::error::LifeError;
use crate::life::Life;

/// Kept of a row at the most; a value of PostgreSQL's may have 1 GiB.
const ROW_BYTES_MAX: usize = 64 << 20;
/// Of a row in one record at the most, before base64.
const PART_BYTES_MAX: usize = 4 << 20;
/// ... and at least, however small records may be.
const PART_BYTES_MIN: usize = 1024;

/// A change of which no event, or no whole one, could be made.
#[derive(Debug, Clone)]
pub(crate) struct Undecodable {
    op: Op,
    key: Option<Key>,
    reason: EncodeError,
    sent: Sent,
    origin: Origin,
    raw: Raw,
}

/// A row as `TupleData`, see [`Quarantined::raw`].
#[derive(Clone, PartialEq, Eq)]
struct Raw {
    /// At most [`ROW_BYTES_MAX`].
    kept: Vec<u8>,
    /// Bytes of the whole.
    bytes: usize,
}

impl std::fmt::Debug for Raw {
    /// A row's values never reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raw")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Raw {
    fn new<'v>(values: impl Iterator<Item = Value<'v>>) -> Self {
        let mut raw = Self {
            kept: vec![0, 0],
            bytes: 2,
        };
        let mut columns: u16 = 0;
        for value in values {
            columns = columns.saturating_add(1);
            match value {
                Value::Null => raw.push(b"n"),
                Value::Absent => raw.push(b"u"),
                Value::Text(text) => {
                    raw.push(b"t");
                    raw.push(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
                    raw.push(text);
                }
            }
        }
        raw.kept[..2].copy_from_slice(&columns.to_be_bytes());
        raw
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = ROW_BYTES_MAX - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.bytes += bytes.len();
    }
}

impl Undecodable {
    pub(crate) fn new<'v>(
        change: &Change<'_>,
        reason: EncodeError,
        sent: Sent,
        values: impl Iterator<Item = Value<'v>>,
    ) -> Self {
        Self {
            op: change.op,
            key: change.key.as_ref().ok().cloned(),
            reason,
            sent,
            origin: *change.origin,
            raw: Raw::new(values),
        }
    }

    /// The record, but for which part of the row it has.
    fn record(&self, captured: &Captured) -> Quarantined {
        let key = self.key.as_ref();
        Quarantined {
            table: captured.name.clone(),
            op: self.op,
            key: key.and_then(|key| serde_json::from_slice(&key.json).ok()),
            reason: self.reason.reason(),
            detail: self.reason.to_string(),
            sent: self.sent,
            lsn: self.origin.lsn,
            xid: self.origin.xid,
            ts_us: self.origin.ts_us,
            columns: captured.columns.clone(),
            bytes: self.raw.bytes as u64,
            part: 0,
            parts: 0,
            cut: self.raw.kept.len() < self.raw.bytes,
            raw: String::new(),
        }
    }

    /// Its records, of at most `bytes_max` bytes each, key included: (key, value).
    fn records(
        &self,
        captured: &Captured,
        bytes_max: usize,
    ) -> Result<(Vec<u8>, impl Iterator<Item = serde_json::Result<Vec<u8>>>), serde_json::Error>
    {
        let record = self.record(captured);
        let key = serde_json::to_vec(&json!({"table": record.table, "key": record.key}))?;
        let frame = key.len() + serde_json::to_vec(&record)?.len() + 2 * "4294967295".len();
        let room = bytes_max.saturating_sub(frame) / 4 * 3;
        let part_bytes = room.clamp(PART_BYTES_MIN, PART_BYTES_MAX);
        let parts = u32::try_from(self.raw.kept.len().div_ceil(part_bytes)).unwrap_or(u32::MAX);
        let records = self.raw.kept.chunks(part_bytes).zip(0..);
        let values = records.map(move |(raw, part)| {
            serde_json::to_vec(&Quarantined {
                part,
                parts,
                raw: BASE64.encode(raw),
                ..record.clone()
            })
        });
        Ok((key, values))
    }
}

impl Life<'_> {
    /// Puts a change aside, or ends the life where that is what the configuration wants.
    pub(crate) async fn quarantine(
        &mut self,
        captured: &Captured,
        undecodable: &Undecodable,
    ) -> Result<(), LifeError> {
        let (table, lsn) = (&captured.name, undecodable.origin.lsn);
        let key = undecodable.key.as_ref();
        let (reason, read) = (
            &undecodable.reason,
            undecodable.origin.snapshot == Snapshot::True,
        );
        if self.config.on_undecodable == OnUndecodable::Stop {
            return Err(LifeError::Undecodable {
                table: table.clone(),
                lsn,
                key: key.map(|key| String::from_utf8_lossy(&key.json).into_owned()),
                source: reason.clone(),
            });
        }
        let bytes_max = self.delivery.record_bytes_max();
        let (key, values) = undecodable
            .records(captured, bytes_max)
            .map_err(LifeError::Quarantine)?;
        for value in values {
            let value = value.map_err(LifeError::Quarantine)?;
            self.delivery.quarantine(&key, &value).await?;
        }
        let name = reason.reason().name();
        self.delivery.count_quarantined(table, name);
        tracing::warn!(
            table,
            %lsn,
            reason = name,
            read,
            "a change of {table} at {lsn} is in quarantine: {reason}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
