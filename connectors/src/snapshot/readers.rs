//! The sessions that read tables, and how fast they are to be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::Lsn;

use super::pace::Pace;
use super::waits::Since;
use crate::config::ConnectorConfig;
use crate::life::read_session;
use crate::source::Session;

/// Between two tries for a session that the source refused.
const CONNECT_RETRY: Duration = Duration::from_secs(10);
/// Between two looks at a table that is locked.
const LOCK_RETRY: Duration = Duration::from_millis(500);
/// Between two lines of the log about a read that goes on.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// Sessions besides that of the life, opened when there is work for them.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    pub(super) helpers: Vec<Arc<Session>>,
    pub(super) pace: Pace,
    /// A read waits until the source has flushed its WAL so far.
    pub(super) unflushed: Option<(Lsn, Since)>,
    refused_at: Option<Instant>,
    locked: BTreeMap<String, Locked>,
    said_at: Option<Instant>,
}

/// A table that its owner has locked.
#[derive(Debug)]
struct Locked {
    since: Since,
    looked_at: Instant,
}

impl Readers {
    /// Opens helpers, `wanted` of them at most. Reading goes on with fewer where the source
    /// refuses: its connections are its owner's.
    pub(super) async fn open(&mut self, config: &ConnectorConfig, wanted: usize) {
        let lately = |at: Instant| at.elapsed() < CONNECT_RETRY;
        if self.helpers.len() >= wanted || self.refused_at.is_some_and(lately) {
            return;
        }
        while self.helpers.len() < wanted {
            match read_session(config).await {
                Ok(session) => self.helpers.push(session),
                Err(error) => {
                    let workers = self.helpers.len() + 1;
                    tracing::warn!(
                        %error, workers,
                        "tables are read with {workers} workers, the source refuses more: {error}"
                    );
                    self.refused_at = Some(Instant::now());
                    return;
                }
            }
        }
    }

    /// A table is locked: it is left alone for a while, the others are read.
    pub(super) fn locked(&mut self, table: &str) {
        let looked_at = Instant::now();
        if let Some(locked) = self.locked.get_mut(table) {
            locked.looked_at = looked_at;
            return;
        }
        tracing::info!(table, "the read of {table} waits for a lock of its owner's");
        let since = Since::now();
        let locked = Locked { since, looked_at };
        self.locked.insert(table.to_owned(), locked);
    }

    /// A table could be locked for reading.
    pub(super) fn free(&mut self, table: &str) {
        self.locked.remove(table);
    }

    /// Tables that are left alone now.
    pub(super) fn left_alone(&self) -> BTreeSet<String> {
        let lately = self
            .locked
            .iter()
            .filter(|(_, locked)| locked.looked_at.elapsed() < LOCK_RETRY);
        lately.map(|(table, _)| table.clone()).collect()
    }

    /// The table that has been locked for longest, since when, and how many more are.
    pub(super) fn locked_longest(
        &self,
        to_read: impl Fn(&str) -> bool,
    ) -> Option<(&str, Since, usize)> {
        let locked = || self.locked.iter().filter(|(table, _)| to_read(table));
        let (table, longest) = locked().max_by_key(|(_, locked)| locked.since.elapsed())?;
        Some((table, longest.since, locked().count() - 1))
    }

    /// A helper's session is lost, or of no use any more.
    pub(super) fn forget(&mut self, session: &Arc<Session>) {
        self.helpers.retain(|helper| !Arc::ptr_eq(helper, session));
    }

    /// There is nothing to read any more.
    pub(super) fn close(&mut self) {
        self.helpers.clear();
        self.locked.clear();
        self.unflushed = None;
        self.said_at = None;
    }

    /// Is it time for a line in the log? The first comes after a while, too.
    pub(super) fn is_to_say(&mut self) -> bool {
        let since = *self.said_at.get_or_insert_with(Instant::now);
        let due = since.elapsed() >= SAID_EVERY;
        if due {
            self.said_at = Some(Instant::now());
        }
        due
    }
}
