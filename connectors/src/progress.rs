//! How far the topics are: the two numbers `position` and `reach`, and per table what is known.
//!
//! Pure state: no connection, no clock. Every sentence of the protocol that speaks of a
//! checkpoint's numbers is a method here, so that all of them can be tried against random
//! histories without a server.

use std::collections::BTreeMap;

use kafka::checkpoint::{Read, Reconcile};
use kafka::{Checkpoint, Lsn, Offsets, TableState};
use service::fault::in_force;

mod alteration;
mod half_sent;
mod pulses;
mod reads;

pub use alteration::Alteration;
pub use half_sent::PartDiffers;
use half_sent::Parts;
use pulses::Pulses;
pub use reads::{ChunkEnd, NextRead, RequestError, Slice};

/// What is to be done with a transaction that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Its changes are to be sent.
    Send,
    /// The slot sends it again: the topics have it.
    Drop,
}

/// Which source this is, as IDENTIFY_SYSTEM says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub system_identifier: String,
    pub timeline: u32,
}

/// The writer's state, from which each record is made.
#[derive(Debug, Clone)]
pub struct Progress {
    epoch: u64,
    identity: Identity,
    position: Lsn,
    reach: Lsn,
    /// What ends at or below it was sent by a predecessor.
    resent_below: Lsn,
    parts: Parts,
    committed_at_us: Option<i64>,
    current_at_us: Option<i64>,
    wal_end: Lsn,
    pulses: Pulses,
    offsets: Offsets,
    quarantine: BTreeMap<i32, i64>,
    tables: BTreeMap<String, TableState>,
    /// Something was read that no record covers yet.
    uncovered: bool,
    in_transaction: bool,
}

impl Progress {
    /// Goes on where the last record stands. `catalog` names the tables that are streamed now
    /// and their columns: a table that the record lacks is to be read, one that is not
    /// streamed any more is forgotten.
    #[must_use]
    pub fn resume(
        last: &Checkpoint,
        identity: Identity,
        catalog: &BTreeMap<String, Vec<String>>,
    ) -> Self {
        let tables = catalog
            .iter()
            .map(|(name, columns)| {
                let mut state = last.tables.get(name).cloned().unwrap_or_default();
                if !in_force("columns_recorded") && !state.columns.is_empty() {
                    state.columns.clone_from(columns);
                    state.target.clone_from(columns);
                    state.types.clear();
                }
                if !in_force("resume_at_chunk") && !state.read.is_done() {
                    state.read = Read::First;
                }
                (name.clone(), state)
            })
            .collect();
        Self {
            epoch: last.epoch,
            identity,
            position: last.position,
            reach: if in_force("reach_survives") {
                last.reach
            } else {
                last.position
            },
            resent_below: if in_force("drop_resent") {
                last.position
            } else {
                Lsn::ZERO
            },
            parts: Parts::left_by(last.half_sent),
            committed_at_us: last.committed_at_us,
            current_at_us: last.current_at_us,
            wal_end: last.wal_end,
            pulses: Pulses::default(),
            offsets: last.offsets.clone(),
            quarantine: last.quarantine.clone(),
            tables,
            uncovered: false,
            in_transaction: false,
        }
    }

    /// Nothing is known any more: every table is to be read, and what else stands in the
    /// topics (`ends`: table → partition → end offset) is to be compared with the source.
    #[must_use]
    pub fn begin_epoch(
        last: Option<&Checkpoint>,
        now_s: u64,
        identity: Identity,
        slot_lsn: Lsn,
        catalog: &BTreeMap<String, Vec<String>>,
        ends: &BTreeMap<String, BTreeMap<i32, i64>>,
    ) -> Self {
        let tables = catalog
            .iter()
            .map(|(name, columns)| {
                let reconcile = ends.get(name).map(stale).unwrap_or_default();
                let columns = if in_force("all_chunks_first") {
                    Vec::new()
                } else {
                    columns.clone()
                };
                let state = TableState {
                    columns,
                    reconcile,
                    ..TableState::default()
                };
                (name.clone(), state)
            })
            .collect();
        Self {
            epoch: last.map_or(now_s, |last| now_s.max(last.epoch.saturating_add(1))),
            identity,
            position: slot_lsn,
            reach: slot_lsn,
            resent_below: Lsn::ZERO,
            parts: Parts::default(),
            committed_at_us: last.and_then(|last| last.committed_at_us),
            current_at_us: None,
            wal_end: slot_lsn,
            pulses: Pulses::default(),
            offsets: last.map(|last| last.offsets.clone()).unwrap_or_default(),
            quarantine: last.map(|last| last.quarantine.clone()).unwrap_or_default(),
            tables,
            uncovered: false,
            in_transaction: false,
        }
    }

    /// A table that the last record does not have: its topic (`ends`: partition → end offset)
    /// may hold keys from when it was captured before.
    pub fn add(&mut self, table: &str, ends: &BTreeMap<i32, i64>) {
        if let Some(state) = self.tables.get_mut(table) {
            state.reconcile = stale(ends);
        }
    }

    /// The table's topic has so many partitions.
    pub fn spread(&mut self, table: &str, partitions: usize) {
        if let Some(state) = self.tables.get_mut(table) {
            state.partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
        }
    }

    // -- the stream ----------------------------------------------------------------------

    /// A BEGIN, whose transaction's commit record begins at `commit_lsn`: the log comes in the
    /// order of commit records, so everything that committed below has been sent. That much of
    /// `reach` is passed.
    pub fn pass(&mut self, commit_lsn: Lsn) {
        if self.position < self.reach && self.reach <= commit_lsn {
            self.move_to(self.reach);
        }
    }

    /// The same BEGIN, after [`Progress::pass`].
    ///
    /// Whether the slot sends the transaction again would follow from where its commit *ends*,
    /// which only COMMIT tells. Where it begins decides the same. A position is a border
    /// between two WAL records: the end of a commit record, a keepalive's (the end of the last
    /// record that the server decoded), a slot's consistent point, or the WAL's insert
    /// position after a read. The one `reach` that is no such border, `commit_lsn + 1` of a
    /// half-sent transaction, becomes a position only at a later BEGIN, and that transaction's
    /// COMMIT came before it and moved the position further. So no position is inside a commit
    /// record: `commit_lsn < position` means `end_lsn <= position`.
    pub fn begin(&mut self, commit_lsn: Lsn, xid: u32) -> Disposition {
        self.in_transaction = true;
        if commit_lsn < self.resent_below {
            return Disposition::Drop;
        }
        if in_force("checkpoint_whole_transactions") {
            // Above every position before the transaction, not above its end.
            let half = if in_force("end_lsn") {
                Lsn(commit_lsn.0 + 1)
            } else {
                commit_lsn
            };
            self.reach = self.reach.max(half);
        }
        self.parts.begin(commit_lsn, xid);
        Disposition::Send
    }

    /// A COMMIT: everything up to where the commit record ends has been sent.
    pub fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn, commit_time_us: i64) {
        self.in_transaction = false;
        self.parts.end();
        if end_lsn > self.position {
            self.committed_at_us = Some(commit_time_us);
            // When it committed, it was all that the source had; a clock ahead of ours is not
            // believed.
            let known = commit_time_us.min(crate::encode::envelope::now_us());
            self.current_at_us = self.current_at_us.max(Some(known));
        }
        self.move_to(if in_force("end_lsn") {
            end_lsn
        } else {
            commit_lsn
        });
    }

    /// A keepalive: up to `wal_end` there is nothing that has not come. Inside a transaction
    /// it says nothing, the server just read on.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        self.wal_end = self.wal_end.max(wal_end);
        if !self.in_transaction {
            self.position = self.position.max(wal_end);
            self.meet();
        }
    }

    fn move_to(&mut self, lsn: Lsn) {
        self.position = if in_force("drop_resent") {
            self.position.max(lsn)
        } else {
            lsn
        };
        self.meet();
    }

    /// The WAL was flushed to `flushed` at `at_us`: once that much has been sent, the topics are
    /// all that the source had then.
    pub fn current(&mut self, flushed: Lsn, at_us: i64) {
        self.wal_end = self.wal_end.max(flushed);
        self.pulses.add(flushed, at_us);
        self.meet();
    }

    fn meet(&mut self) {
        let met = self.pulses.meet(self.position);
        self.current_at_us = self.current_at_us.max(met);
    }

    // -- reads ---------------------------------------------------------------------------

    /// A read may show everything up to `lsn`.
    pub fn read_up_to(&mut self, lsn: Lsn) {
        if in_force("read_covered") {
            self.reach = self.reach.max(lsn);
        }
    }

    /// Is there anything to read, now that a record covers the last of it?
    #[must_use]
    pub fn wants_read(&self) -> bool {
        !self.in_transaction && !self.uncovered && self.is_reading()
    }

    // -- records -------------------------------------------------------------------------

    /// Per topic and partition the offset after the last event.
    pub fn delivered(&mut self, offsets: &Offsets) {
        for (topic, partitions) in offsets {
            let Some(ends) = self.offsets.get_mut(topic) else {
                self.offsets.insert(topic.clone(), partitions.clone());
                continue;
            };
            ends.extend(partitions);
        }
    }

    /// Likewise of the quarantine.
    pub fn quarantined(&mut self, ends: BTreeMap<i32, i64>) {
        self.quarantine.extend(ends);
    }

    /// The record of how far the topics are now.
    pub fn record(&mut self) -> Checkpoint {
        for state in self.tables.values_mut() {
            if self.position >= state.not_before {
                state.not_before = Lsn::ZERO;
            }
        }
        if self.is_even() {
            self.uncovered = false;
            for state in self.tables.values_mut() {
                if state.read == Read::Done && state.reconcile.is_empty() {
                    state.columns.clone_from(&state.target);
                }
            }
        }
        Checkpoint {
            epoch: self.epoch,
            system_identifier: self.identity.system_identifier.clone(),
            timeline: self.identity.timeline,
            position: self.position,
            reach: self.reach,
            half_sent: self.parts.half_sent(self.position),
            committed_at_us: self.committed_at_us,
            current_at_us: self.current_at_us,
            wal_end: self.wal_end.max(self.position),
            offsets: self.offsets.clone(),
            quarantine: self.quarantine.clone(),
            tables: self.tables.clone(),
        }
    }

    /// Do the topics hold nothing beyond the position?
    #[must_use]
    pub fn is_even(&self) -> bool {
        self.position >= self.reach
    }

    /// Would a record of now let the reads go on?
    #[must_use]
    pub fn covers_a_read(&self) -> bool {
        self.uncovered && self.is_even()
    }

    #[must_use]
    pub fn is_uncovered(&self) -> bool {
        self.uncovered
    }

    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    #[must_use]
    pub fn reach(&self) -> Lsn {
        self.reach
    }

    /// The offset after the last event of this source in a partition.
    #[must_use]
    pub fn offset(&self, topic: &str, partition: i32) -> i64 {
        let partitions = self.offsets.get(topic);
        partitions
            .and_then(|partitions| partitions.get(&partition))
            .copied()
            .unwrap_or(0)
    }
}

/// All of a topic that is to be compared with the source.
fn stale(ends: &BTreeMap<i32, i64>) -> BTreeMap<i32, Reconcile> {
    let ends = ends
        .iter()
        .filter(|(_, end)| in_force("reconcile") && **end > 0);
    ends.map(|(partition, end)| (*partition, Reconcile { next: 0, end: *end }))
        .collect()
}

#[cfg(test)]
mod tests;
