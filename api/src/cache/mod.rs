//! The cache of single rows, absent ones too, and this instance's position.
//!
//! Reads of the database fill it, the feed of the view's own changes only evicts. A cache that
//! both fill, newest revision wins, keeps wrong rows for ever where reads are slow; here a row
//! that was read is kept only under its mark. The instance's position is the position
//! of the last checkpoint the feed has evicted for: every cached row is the view's row there,
//! or, where its own revision is newer, at the position it was read at.

pub mod feed;
mod marks;
mod positions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::future::Cache as Moka;
use moka::ops::compute::{CompResult, Op};
use service::fault;
use tokio::sync::watch;

use self::marks::Marks;
pub use self::positions::SourceRow;
use crate::config::CacheConfig;
use crate::key::{RowKey, Table};
use crate::measure;
use crate::position::{Minimum, Positions};
use crate::revision::Revision;

/// A row as it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedRow {
    pub json: Bytes,
    /// Of a product: has it been sold? `sold-items` shows it then.
    pub is_sold: bool,
}

/// What one read of the database found.
#[derive(Debug, Clone)]
pub struct Entry {
    /// None: there was no such row.
    pub row: Option<CachedRow>,
    pub revision: Revision,
    pub positions: Arc<Positions>,
}

/// How far the feed has evicted.
#[derive(Debug, Clone)]
pub struct FeedPosition {
    generation: u64,
    /// The epoch of `unified`.
    pub epoch: u64,
    pub revision: Revision,
    pub positions: Arc<Positions>,
    /// The view's rows about its sources, as the feed told them.
    pub sources: Arc<Vec<SourceRow>>,
    /// By source the unified tables that suspended tables of it degrade.
    pub degraded: BTreeMap<String, String>,
    /// When this checkpoint was taken.
    pub taken: Instant,
}

/// The generation stands in the key, so that a start over makes all older entries, and the
/// ones that slow reads may still insert, unreachable at once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    generation: u64,
    table: &'static str,
    row: RowKey,
}

impl Key {
    fn of(generation: u64, table: Table, row: &RowKey) -> Self {
        Self {
            generation,
            table: table.name,
            row: row.clone(),
        }
    }
}

#[derive(Debug)]
pub struct Cache {
    entries: Moka<Key, Entry>,
    marks: Marks,
    position: watch::Sender<Option<Arc<FeedPosition>>>,
    row_bytes_max: usize,
    silence_max: Duration,
}

/// What an entry costs beside its JSON.
const ENTRY_BYTES: u32 = 256;

impl Cache {
    #[must_use]
    pub fn new(config: &CacheConfig) -> Self {
        let entries = Moka::builder()
            .max_capacity(config.bytes_max)
            .weigher(|_, entry: &Entry| {
                let json = entry.row.as_ref().map_or(0, |row| row.json.len());
                u32::try_from(json)
                    .unwrap_or(u32::MAX)
                    .saturating_add(ENTRY_BYTES)
            })
            .build();
        Self {
            entries,
            marks: Marks::new(config.marks),
            position: watch::Sender::new(None),
            row_bytes_max: config.row_bytes_max as usize,
            silence_max: config.silence_max(),
        }
    }

    /// This instance's position; none until the feed has taken a checkpoint.
    #[must_use]
    pub fn position(&self) -> Option<Arc<FeedPosition>> {
        self.position.borrow().clone()
    }

    /// Returns once this instance's position is at or past `minimum`.
    pub async fn reaches(&self, minimum: &Minimum) {
        let met = |position: &Option<Arc<FeedPosition>>| {
            position
                .as_ref()
                .is_some_and(|at| minimum.is_met_by(&at.positions))
        };
        // The sender lives as long as this cache, so waiting never fails.
        let _ = self.position.subscribe().wait_for(met).await;
    }

    /// Has the feed spoken lately? Else cached rows serve only where the database does not.
    #[must_use]
    pub fn is_fed(&self, position: &FeedPosition) -> bool {
        position.taken.elapsed() <= self.silence_max
    }

    /// What is cached for a row, as seen from an instance's position.
    pub async fn look(&self, position: &FeedPosition, table: Table, row: &RowKey) -> Option<Entry> {
        let key = Key::of(position.generation, table, row);
        self.entries.get(&key).await
    }

    /// A read that was begun at `position` found this. It is kept only if nothing changed the
    /// row since, as far as the feed knows; looking at the mark and inserting are one step for
    /// this key, which `evict` cannot come between.
    pub async fn offer(&self, position: &FeedPosition, table: Table, row: &RowKey, entry: Entry) {
        if entry
            .row
            .as_ref()
            .is_some_and(|row| row.json.len() > self.row_bytes_max)
        {
            return measure::offer(measure::Offer::TooLarge);
        }
        let generation = position.generation;
        let admit = || self.marks.admit(generation, table, row, entry.revision);
        let admitted_before = if fault::in_force("look_and_insert_are_one") {
            None
        } else {
            let admitted = admit();
            fault::point("api.between_look_and_insert").await;
            Some(admitted)
        };
        let key = Key::of(generation, table, row);
        let result = self
            .entries
            .entry(key)
            .and_compute_with(|kept| {
                let newer = kept.is_none_or(|kept| kept.value().revision < entry.revision);
                let op = if newer && admitted_before.unwrap_or_else(admit) {
                    Op::Put(entry.clone())
                } else {
                    Op::Nop
                };
                std::future::ready(op)
            })
            .await;
        measure::offer(match result {
            CompResult::Inserted(_) | CompResult::ReplacedWith(_) => measure::Offer::Kept,
            CompResult::StillNone(_) | CompResult::Unchanged(_) | CompResult::Removed(_) => {
                measure::Offer::Refused
            }
        });
    }

    /// The feed read an event for this row: its mark is closed, then the row is evicted, behind
    /// whoever is inserting it.
    async fn evict(&self, table: Table, row: &RowKey, changed: impl FnOnce() -> Option<CachedRow>) {
        let generation = self.marks.close(table, row);
        fault::point("api.between_close_and_evict").await;
        let key = Key::of(generation, table, row);
        self.entries
            .entry(key)
            .and_compute_with(|kept| {
                let op = match kept {
                    None => Op::Nop,
                    Some(_) if fault::in_force("feed_evicts") => Op::Remove,
                    // Only a test comes here: a feed that also writes.
                    Some(kept) => Op::Put(Entry {
                        row: changed(),
                        ..kept.into_value()
                    }),
                };
                std::future::ready(op)
            })
            .await;
    }

    /// Every event that a checkpoint covers was evicted for: reads at its revision may be cached.
    fn open_marks(&self, revision: Revision) {
        self.marks.open(revision);
    }

    /// Moves this instance's position, within the generation it is in.
    fn move_to(&self, mut position: FeedPosition) {
        if let Some(before) = self.position() {
            position.generation = before.generation;
        }
        self.publish(position);
    }

    /// Begins a new generation at this position.
    fn start_over(&self, mut position: FeedPosition) {
        position.generation = self.marks.start(position.revision);
        self.publish(position);
        self.entries.invalidate_all();
    }

    /// No cache until the feed has said where it starts.
    fn forget(&self) {
        self.marks.forget();
        self.position.send_replace(None);
        self.entries.invalidate_all();
    }

    fn publish(&self, position: FeedPosition) {
        self.position.send_replace(Some(Arc::new(position)));
        measure::cached(self.entries.entry_count(), self.entries.weighted_size());
    }
}
