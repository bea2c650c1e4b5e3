//! What table reads wait for in the source, and since when.

use std::time::{Duration, Instant};

use crate::encode::envelope::now_us;
use crate::encode::iso_text;
use crate::life::Life;

/// When something began, for us and for people.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Since {
    at: Instant,
    at_us: i64,
}

impl Since {
    pub(crate) fn now() -> Self {
        Self {
            at: Instant::now(),
            at_us: now_us(),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.at.elapsed()
    }
}

/// A read that does not go on.
#[derive(Debug, Clone)]
pub(crate) struct ReadsWait {
    pub(crate) since: Since,
    /// Which read, what for, and where to look.
    what: String,
}

impl ReadsWait {
    /// Stays the same while it lasts.
    pub(crate) fn sentence(&self) -> String {
        let second_us = self.since.at_us - self.since.at_us.rem_euclid(1_000_000);
        let since = iso_text(second_us).unwrap_or_default();
        format!("since {since} {}", self.what)
    }
}

impl Life<'_> {
    /// Tells what reads wait for now, or that they do not.
    pub(crate) fn tell_waits(&self) {
        let waits = [
            self.waits_for_transaction(),
            self.waits_for_lock(),
            self.waits_for_flush(),
        ];
        let longest = waits.into_iter().flatten().min_by_key(|one| one.since.at);
        self.status.reads_wait(longest);
    }

    fn waits_for_transaction(&self) -> Option<ReadsWait> {
        let since = self.settling.since()?;
        let xid = self.unsettled.first()?;
        let what = format!(
            "reads wait for transaction {xid} of the source, which runs since before the last \
             takeover or is committed and not visible yet (a synchronous standby away?); see \
             backend_xid in pg_stat_activity, and pg_prepared_xacts"
        );
        Some(ReadsWait { since, what })
    }

    fn waits_for_lock(&self) -> Option<ReadsWait> {
        let to_read = |table: &str| self.progress.is_to_read(table);
        let (table, since, others) = self.readers.locked_longest(to_read)?;
        let others = match others {
            0 => String::new(),
            others => format!(", and of {others} more tables,"),
        };
        let what = format!(
            "the read of {table}{others} waits for a lock of its owner's; see SELECT pid, mode \
             FROM pg_locks WHERE relation = '{table}'::regclass"
        );
        Some(ReadsWait { since, what })
    }

    fn waits_for_flush(&self) -> Option<ReadsWait> {
        let (lsn, since) = self.readers.unflushed?;
        let what = format!("reads wait until the source has flushed its WAL up to {lsn}");
        Some(ReadsWait { since, what })
    }
}
