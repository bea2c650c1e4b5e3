//! A transaction of the source that spans several of Kafka's: how much of it the topics have.
//!
//! PostgreSQL sends a transaction whole or not at all, so a successor gets from its beginning
//! what its predecessor left half sent. The record says how many of its changes were sent; so
//! many are passed over. Which changes a transaction has follows from the log alone, and the LSN
//! of the last one tells whether it is so: else nothing is passed over, and the events of the
//! part stand in the topics twice.

use kafka::Lsn;
use kafka::checkpoint::HalfSent;
use service::fault::in_force;

use super::Progress;

/// The log does not have the changes that the last record counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "transaction {xid} of the source, which commits at {commit_lsn}, does not have the {changes} \
     changes up to {change_lsn} that were sent of it; it is sent again from its beginning"
)]
pub struct PartDiffers {
    xid: u32,
    commit_lsn: Lsn,
    changes: u64,
    change_lsn: Lsn,
}

impl From<HalfSent> for PartDiffers {
    fn from(part: HalfSent) -> Self {
        Self {
            xid: part.xid,
            commit_lsn: part.commit_lsn,
            changes: part.changes,
            change_lsn: part.change_lsn,
        }
    }
}

/// Counts the changes of a transaction.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parts {
    /// What a predecessor sent of a transaction, until the stream has passed that.
    left: Option<HalfSent>,
    /// The transaction that is open, and what of it has come.
    open: Option<HalfSent>,
}

impl Parts {
    pub(super) fn left_by(half_sent: Option<HalfSent>) -> Self {
        Self {
            left: half_sent.filter(|_| in_force("sent_part_is_passed_over")),
            open: None,
        }
    }

    /// A transaction that is to be sent. What was left of one that never came is forgotten.
    pub(super) fn begin(&mut self, commit_lsn: Lsn, xid: u32) {
        self.open = Some(HalfSent {
            commit_lsn,
            xid,
            changes: 0,
            change_lsn: Lsn::ZERO,
        });
        self.left = self.left.filter(|left| {
            commit_lsn < left.commit_lsn || (commit_lsn, xid) == (left.commit_lsn, left.xid)
        });
    }

    pub(super) fn end(&mut self) {
        self.open = None;
    }

    /// For a record: a transaction that ends behind the position, or none.
    pub(super) fn half_sent(&self, position: Lsn) -> Option<HalfSent> {
        let part = self.left.or(self.open.filter(|open| open.changes > 0));
        part.filter(|part| part.commit_lsn >= position)
    }

    /// What was left of the transaction that is open and has not been passed.
    fn left_of_open(&self) -> Option<HalfSent> {
        let open = self.open?;
        self.left.filter(|left| left.commit_lsn == open.commit_lsn)
    }

    fn count(&mut self, lsn: Lsn) -> u64 {
        let Some(open) = &mut self.open else {
            return 0;
        };
        open.changes += 1;
        open.change_lsn = lsn;
        open.changes
    }
}

impl Progress {
    /// What a predecessor sent of the transaction that has just begun.
    #[must_use]
    pub fn part_to_pass(&self) -> Option<HalfSent> {
        self.parts.left_of_open()
    }

    /// The next change of the open transaction comes: did a predecessor send it?
    ///
    /// # Errors
    /// The log has another change at the place where the predecessor stopped. Nothing of the
    /// transaction has been sent since, and [`Progress::distrust_part`] is to be called.
    pub fn passes_over(&mut self, lsn: Lsn) -> Result<bool, PartDiffers> {
        let Some(left) = self.parts.left_of_open() else {
            return Ok(false);
        };
        if self.parts.count(lsn) == left.changes {
            if lsn != left.change_lsn {
                return Err(left.into());
            }
            self.parts.left = None;
        }
        Ok(true)
    }

    /// Everything that comes of a change has been sent.
    pub fn change_sent(&mut self, lsn: Lsn) {
        self.parts.count(lsn);
    }

    /// The COMMIT of the open transaction comes.
    ///
    /// # Errors
    /// It had fewer changes than the predecessor sent; as in [`Progress::passes_over`].
    pub fn has_passed_part(&self) -> Result<(), PartDiffers> {
        self.parts
            .left_of_open()
            .map_or(Ok(()), |left| Err(left.into()))
    }

    /// Records say nothing of a part any more, so that a successor sends all of it.
    pub fn distrust_part(&mut self) {
        self.parts = Parts::default();
    }
}

#[cfg(test)]
mod tests;
