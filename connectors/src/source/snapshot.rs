//! Which transactions a snapshot shows, and the transactions that one must show.

use std::collections::BTreeSet;
use std::str::FromStr;

/// `pg_current_snapshot()`: 64-bit transaction ids, top-level ones only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// One more than the highest id that had ended: whatever is not below was running, or had
    /// not begun.
    next: u64,
    /// Those below that were running.
    in_progress: BTreeSet<u64>,
}

impl Snapshot {
    /// Does the snapshot not show what this transaction did?
    #[must_use]
    pub fn running(&self, xid: u64) -> bool {
        xid >= self.next || self.in_progress.contains(&xid)
    }

    /// The whole id of which BEGIN tells the lower half. Ids in use are never 2^31 apart, so it
    /// is the one nearest to the next id of any snapshot of about now.
    #[must_use]
    pub fn widen(&self, xid: u32) -> u64 {
        let lower = u32::try_from(self.next & u64::from(u32::MAX)).unwrap_or_default();
        let ahead = xid.wrapping_sub(lower).cast_signed();
        self.next.saturating_add_signed(i64::from(ahead))
    }
}

/// The text is no snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot as xmin:xmax:xip")]
pub struct SnapshotError;

impl FromStr for Snapshot {
    type Err = SnapshotError;

    fn from_str(text: &str) -> Result<Self, SnapshotError> {
        let mut parts = text.split(':');
        let mut part = || parts.next().ok_or(SnapshotError);
        let (_oldest, next, in_progress) = (part()?, part()?, part()?);
        Ok(Self {
            next: next.parse().map_err(|_| SnapshotError)?,
            in_progress: in_progress
                .split(',')
                .filter(|xid| !xid.is_empty())
                .map(|xid| xid.parse().map_err(|_| SnapshotError))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Transactions that were sent, or may have been by a predecessor, and that no snapshot is
/// known to show yet. The log runs ahead of what a SELECT finds: a commit is streamed once it
/// is flushed and shown a little later, with a synchronous standby away much later.
#[derive(Debug, Clone, Default)]
pub struct Unsettled(BTreeSet<u64>);

impl Unsettled {
    /// Every transaction that runs now: a predecessor may have sent it. `next_xid` is the id
    /// that the next transaction gets. A snapshot names only those below the highest id that
    /// has ended; the youngest, which a predecessor has sent most likely, are above.
    #[must_use]
    pub fn predecessors(now: &Snapshot, next_xid: u64) -> Self {
        Self(
            now.in_progress
                .iter()
                .copied()
                .chain(now.next..next_xid)
                .collect(),
        )
    }

    pub fn sent(&mut self, xid: u64) {
        self.0.insert(xid);
    }

    /// Forgets what `snapshot` shows, as every later one does. True if that is all.
    pub fn settle(&mut self, snapshot: &Snapshot) -> bool {
        self.0.retain(|xid| snapshot.running(*xid));
        self.0.is_empty()
    }

    /// The oldest.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.0.first().copied()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_snapshot_shows_what_ended_before_it() {
        let snapshot: Snapshot = "10:20:10,14,15".parse().unwrap();
        let running: Vec<_> = (8..22).filter(|xid| snapshot.running(*xid)).collect();
        assert_eq!(running, [10, 14, 15, 20, 21]);
        assert_eq!("10:10:".parse::<Snapshot>().unwrap().in_progress.len(), 0);
        for text in ["", "1", "1:2", "1:x:", "1:2:a"] {
            assert_eq!(text.parse::<Snapshot>(), Err(SnapshotError));
        }
    }

    #[test]
    fn what_a_snapshot_shows_is_settled_for_ever() {
        let mut unsettled = Unsettled::predecessors(&"10:20:10,14".parse().unwrap(), 22);
        assert_eq!(unsettled.len(), 4, "10, 14, 20, 21");
        unsettled.sent(22);
        assert!(!unsettled.settle(&"14:23:14".parse().unwrap()));
        assert_eq!((unsettled.first(), unsettled.len()), (Some(14), 1));
        assert!(unsettled.settle(&"23:23:".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn the_upper_half_of_an_id_is_found_across_a_wraparound(
            next in 1_u64 << 31..1 << 40,
            distance in -(1_i64 << 31) + 1..(1_i64 << 31) - 1,
        ) {
            let snapshot: Snapshot = format!("{next}:{next}:").parse().unwrap();
            let xid = next.saturating_add_signed(distance);
            let lower = u32::try_from(xid & u64::from(u32::MAX)).unwrap();
            prop_assert_eq!(snapshot.widen(lower), xid);
        }
    }
}
