//! A transaction of the source, from BEGIN to COMMIT, change by change.

use std::sync::Arc;

use kafka::Lsn;
use kafka::event::Op;
use service::fault::in_force;

use crate::captured::{Captured, Change, Encoded, Key};
use crate::encode::EncodeError;
use crate::encode::envelope::{Origin, Snapshot, Value};
use crate::error::LifeError;
use crate::life::Life;
use crate::progress::{Disposition, PartDiffers};
use crate::replication::{Cell, OldRow, Tuple};
use crate::snapshot::holes::{Filled, Hole};

/// Header of the delete under the old key of a row whose key changed, and of its tombstone.
const NEW_KEY: &str = "__debezium.newkey";
/// Header of the create under the new key.
const OLD_KEY: &str = "__debezium.oldkey";

/// The transaction whose changes are coming.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transaction {
    xid: u32,
    /// With the upper half that BEGIN does not tell.
    wide_xid: u64,
    commit_time_us: i64,
    disposition: Disposition,
    last_commit: Lsn,
}

impl Transaction {
    pub(super) fn wide_xid(&self) -> u64 {
        self.wide_xid
    }

    fn origin(&self, lsn: Lsn) -> Origin {
        Origin {
            snapshot: Snapshot::False,
            ts_us: self.commit_time_us,
            last_commit: self.last_commit,
            lsn,
            xid: Some(self.xid),
        }
    }
}

/// What fills a row's holes: by place, in order.
type Fillings = Vec<(usize, Filled)>;

impl Life<'_> {
    pub(super) async fn begin(
        &mut self,
        commit_lsn: Lsn,
        commit_time_us: i64,
        xid: u32,
    ) -> Result<(), LifeError> {
        if self.transaction.is_some() {
            return Err(LifeError::Order("BEGIN inside a transaction"));
        }
        let last_commit = self.progress.position();
        self.progress.pass(commit_lsn);
        self.pass_view().await?;
        let disposition = self.progress.begin(commit_lsn, xid);
        if let Some(part) = self.progress.part_to_pass() {
            let changes = part.changes;
            tracing::info!(
                xid,
                changes,
                "transaction {xid} of the source goes on behind its first {changes} changes, \
                 which were sent before the takeover"
            );
            // What is passed over does not touch a kept view's rows; a new one shows them.
            self.drop_view().await?;
        }
        let wide_xid = self.pulse.borrow().snapshot.widen(xid);
        if disposition == Disposition::Send {
            self.unsettled.sent(wide_xid);
        }
        self.transaction = Some(Transaction {
            xid,
            wide_xid,
            commit_time_us,
            disposition,
            last_commit,
        });
        Ok(())
    }

    pub(super) async fn commit(
        &mut self,
        commit_lsn: Lsn,
        end_lsn: Lsn,
        commit_time_us: i64,
    ) -> Result<(), LifeError> {
        if self.transaction.is_none() {
            return Err(LifeError::Order("COMMIT outside a transaction"));
        }
        if let Err(differs) = self.progress.has_passed_part() {
            return self.send_all_again(differs).await;
        }
        self.transaction = None;
        self.progress.commit(commit_lsn, end_lsn, commit_time_us);
        self.pass_view().await
    }

    /// A change, of one row or a TRUNCATE, at `lsn`: did a predecessor send it?
    pub(super) async fn passes_over(&mut self, lsn: Lsn) -> Result<bool, LifeError> {
        match self.progress.passes_over(lsn) {
            Ok(passes) => Ok(passes),
            Err(differs) => self.send_all_again(differs).await,
        }
    }

    /// Ends the life, so that the slot sends the transaction again, and lets the record say that
    /// nothing of it may be passed over.
    async fn send_all_again<T>(&mut self, differs: PartDiffers) -> Result<T, LifeError> {
        self.progress.distrust_part();
        self.record().await?;
        Err(differs.into())
    }

    pub(super) async fn insert(
        &mut self,
        lsn: Lsn,
        relation: u32,
        new: Tuple,
    ) -> Result<(), LifeError> {
        let Some((captured, transaction)) = self.expect_change(relation).await? else {
            return Ok(());
        };
        let key = key_of(&captured, &new, None);
        let change = Change {
            op: Op::Create,
            key: &key,
            origin: &transaction.origin(lsn),
            text_bytes: new.bytes(),
            bytes_max: self.delivery.record_bytes_max(),
        };
        let encoded = captured.upsert(&change, None, new.cells().map(value_of));
        self.send_upsert(&captured, Op::Create, &key, encoded, &[])
            .await?;
        self.holes
            .touch(captured.oid, transaction.wide_xid, key.iter());
        Ok(())
    }

    pub(super) async fn delete(
        &mut self,
        lsn: Lsn,
        relation: u32,
        old: OldRow,
    ) -> Result<(), LifeError> {
        let Some((captured, transaction)) = self.expect_change(relation).await? else {
            return Ok(());
        };
        let key = key_of(&captured, old.tuple(), None);
        let origin = transaction.origin(lsn);
        self.send_delete(&captured, &key, &old, &origin, &[])
            .await?;
        self.holes
            .touch(captured.oid, transaction.wide_xid, key.iter());
        Ok(())
    }

    pub(super) async fn update(
        &mut self,
        lsn: Lsn,
        relation: u32,
        old: Option<OldRow>,
        new: Tuple,
    ) -> Result<(), LifeError> {
        let Some((captured, transaction)) = self.expect_change(relation).await? else {
            return Ok(());
        };
        let origin = transaction.origin(lsn);
        let key = key_of(&captured, &new, old.as_ref().map(OldRow::tuple));
        // With REPLICA IDENTITY FULL an old key comes with every update.
        let old_key = old
            .as_ref()
            .map(|old| key_of(&captured, old.tuple(), None))
            .filter(|old| json_of(old) != json_of(&key));
        let fillings = match &key {
            Ok(key) => {
                let (old, key_changed) = (old.as_ref(), old_key.is_some());
                self.fillings(&captured, &transaction, &new, old, key, key_changed)
                    .await?
            }
            Err(_) => Some(Vec::new()),
        };
        if let (Some(old), Some(old_key)) = (&old, &old_key) {
            let header = json_of(&key).map(|key| (NEW_KEY, key));
            self.send_delete(&captured, old_key, old, &origin, header.as_slice())
                .await?;
        }
        // None: the row has gone since, and its delete will come.
        if let Some(fillings) = fillings {
            let before = match &old {
                Some(OldRow::Full(old)) if old_key.is_none() => {
                    Some(captured.row(old.cells().map(value_of)))
                }
                _ => None,
            };
            let (op, header) = match &old_key {
                Some(old) => (Op::Create, json_of(old).map(|old| (OLD_KEY, old))),
                None => (Op::Update, None),
            };
            let change = Change {
                op,
                key: &key,
                origin: &origin,
                text_bytes: new.bytes() + bytes_of(&fillings),
                bytes_max: self.event_bytes_max(header.as_slice()),
            };
            let encoded = captured.upsert(&change, before, filled_values(&new, &fillings));
            self.send_upsert(&captured, op, &key, encoded, header.as_slice())
                .await?;
        }
        if !new.has_unchanged() || old_key.is_some() {
            let keys = key.iter().chain(old_key.iter().flatten());
            self.holes.touch(captured.oid, transaction.wide_xid, keys);
        }
        Ok(())
    }

    /// What these headers leave to an event and its key. A key's column can be some kilobytes long.
    fn event_bytes_max(&self, headers: &[(&str, &[u8])]) -> usize {
        let taken: usize = headers.iter().map(|(_, value)| value.len()).sum();
        self.delivery.record_bytes_max().saturating_sub(taken)
    }

    /// Sends the event of a row that is there, if one could be made; quarantines what could not.
    async fn send_upsert(
        &mut self,
        captured: &Captured,
        op: Op,
        key: &Result<Key, EncodeError>,
        encoded: Encoded,
        headers: &[(&str, &[u8])],
    ) -> Result<(), LifeError> {
        if let Some(undecodable) = &encoded.quarantined {
            self.quarantine(captured, undecodable).await?;
        }
        if let (Some(event), Ok(key)) = (&encoded.event, key) {
            self.delivery
                .upsert(captured, op, &key.json, event, headers)
                .await?;
        }
        Ok(())
    }

    /// Likewise of a row that is gone. Where its key is no text it never stood in the topic.
    async fn send_delete(
        &mut self,
        captured: &Captured,
        key: &Result<Key, EncodeError>,
        old: &OldRow,
        origin: &Origin,
        headers: &[(&str, &[u8])],
    ) -> Result<(), LifeError> {
        let change = Change {
            op: Op::Delete,
            key,
            origin,
            text_bytes: old.tuple().bytes(),
            bytes_max: self.event_bytes_max(headers),
        };
        let encoded = captured.delete(&change, old_values(captured, old));
        if let Some(undecodable) = &encoded.quarantined {
            self.quarantine(captured, undecodable).await?;
        }
        if let (Some(event), Ok(key)) = (&encoded.event, key) {
            self.delivery
                .delete(captured, &key.json, event, headers)
                .await?;
        }
        Ok(())
    }

    pub(super) async fn truncate_all(
        &mut self,
        lsn: Lsn,
        relations: &[u32],
    ) -> Result<(), LifeError> {
        for relation in relations {
            if let Some((captured, transaction)) = self.wanted(*relation)? {
                self.truncate(&captured, &transaction.origin(lsn)).await?;
            }
        }
        Ok(())
    }

    /// A change of this relation comes: the table and the transaction, if it is to be sent.
    async fn expect_change(
        &mut self,
        relation: u32,
    ) -> Result<Option<(Arc<Captured>, Transaction)>, LifeError> {
        let Some((captured, transaction)) = self.wanted(relation)? else {
            return Ok(None);
        };
        self.record_if_full().await?;
        if self
            .progress
            .learn_from_log(&captured.name, &captured.columns, &captured.types)
        {
            let table = &captured.name;
            tracing::info!(table, "{table} has other columns; it is read again");
        }
        Ok(Some((captured, transaction)))
    }

    fn wanted(&self, relation: u32) -> Result<Option<(Arc<Captured>, Transaction)>, LifeError> {
        let transaction = self
            .transaction
            .ok_or(LifeError::Order("a change outside a transaction"))?;
        if transaction.disposition == Disposition::Drop {
            return Ok(None);
        }
        match self.relations.get(&relation) {
            None => Err(LifeError::Order("a change before its RELATION message")),
            Some(None) => Ok(None),
            Some(Some(captured)) => Ok(Some((Arc::clone(captured), transaction))),
        }
    }

    /// The values that PostgreSQL did not resend; none: the row is gone.
    async fn fillings(
        &mut self,
        captured: &Captured,
        transaction: &Transaction,
        new: &Tuple,
        old: Option<&OldRow>,
        key: &Key,
        key_changed: bool,
    ) -> Result<Option<Fillings>, LifeError> {
        if !new.has_unchanged() {
            return Ok(Some(Vec::new()));
        }
        let holes: Vec<usize> = (new.cells().enumerate())
            .filter_map(|(at, cell)| matches!(cell, Cell::Unchanged).then_some(at))
            .collect();
        // With REPLICA IDENTITY FULL the old row has them: unchanged means equal.
        if let Some(OldRow::Full(old)) = old {
            let filled = holes.iter().map(|at| (*at, filled_from(old.cell(*at))));
            return Ok(Some(filled.collect()));
        }
        if !in_force("fill_unresent") {
            return Ok(Some(Vec::new()));
        }
        let hole = Hole {
            captured,
            key,
            xid: transaction.wide_xid,
            key_changed,
            columns: &holes,
        };
        let filled = self.fill(hole).await?;
        Ok(filled.map(|filled| holes.into_iter().zip(filled).collect()))
    }
}

fn filled_from(cell: Option<Cell<'_>>) -> Filled {
    match cell {
        Some(Cell::Text(text) | Cell::Binary(text)) => Filled::Text(text.to_vec()),
        Some(Cell::Null) => Filled::Null,
        Some(Cell::Unchanged) | None => Filled::Dropped,
    }
}

/// The key of a row. A key column that is itself TOASTed comes without its value in the new row
/// of an update, but then with the old key.
fn key_of(captured: &Captured, row: &Tuple, old: Option<&Tuple>) -> Result<Key, EncodeError> {
    captured.key_of(|at| {
        let cell = match row.cell(at) {
            Some(Cell::Unchanged) => old.and_then(|old| old.cell(at)),
            cell => cell,
        };
        cell.map_or(Value::Absent, value_of)
    })
}

fn json_of(key: &Result<Key, EncodeError>) -> Option<&[u8]> {
    key.as_ref().ok().map(|key| &key.json[..])
}

/// A row of which only the key is told shows only the key.
fn old_values<'a>(
    captured: &'a Captured,
    old: &'a OldRow,
) -> impl Iterator<Item = Value<'a>> + Clone {
    let key_only = matches!(old, OldRow::Key(_));
    old.tuple().cells().enumerate().map(move |(at, cell)| {
        if key_only && !captured.key_at.contains(&at) {
            Value::Absent
        } else {
            value_of(cell)
        }
    })
}

fn filled_values<'a>(
    new: &'a Tuple,
    fillings: &'a Fillings,
) -> impl Iterator<Item = Value<'a>> + Clone {
    let mut fillings = fillings.iter().peekable();
    new.cells().enumerate().map(move |(at, cell)| {
        match fillings.next_if(|(place, _)| *place == at) {
            None => value_of(cell),
            Some((_, Filled::Null)) => Value::Null,
            Some((_, Filled::Text(text))) => Value::Text(text),
            Some((_, Filled::Dropped)) => Value::Absent,
        }
    })
}

fn bytes_of(fillings: &Fillings) -> usize {
    let texts = fillings.iter().map(|(_, filled)| match filled {
        Filled::Text(text) => text.len(),
        Filled::Null | Filled::Dropped => 0,
    });
    texts.sum()
}

fn value_of(cell: Cell<'_>) -> Value<'_> {
    match cell {
        Cell::Null => Value::Null,
        Cell::Unchanged => Value::Absent,
        // The stream is in text form; nobody asked for another.
        Cell::Text(text) | Cell::Binary(text) => Value::Text(text),
    }
}
