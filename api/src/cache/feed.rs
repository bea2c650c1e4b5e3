//! The feed: follows the view's own topics (`unified.*`) and evicts what changed.
//!
//! It begins at the youngest checkpoint: the positions topic from its beginning, because the
//! positions there give the revision that marks and position start at, all other topics from
//! that checkpoint's offsets. From the database it takes nothing: what a replica shows may be
//! older than the offsets the feed begins at, and a change between them would never be evicted.
//!
//! Where the stream of events cannot be continued (too far behind, events gone), where `unified`
//! began a new epoch or the view has a new writer, the cache starts over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::follower::{Event, Follower, FollowerError, FollowerOptions, Standing, Step};
use kafka::{Checkpoint, KafkaConfig};
use links::backoff::Backoff;
use serde::Deserialize;
use service::fault;
use tokio_util::sync::CancellationToken;

use super::positions::{PositionsTable, SourceRow};
use super::{Cache, CachedRow, FeedPosition};
use crate::config::Config;
use crate::key::RowKey;
use crate::measure;
use crate::query::View;
use crate::route::TABLES;

/// The source that is the view itself.
const UNIFIED: &str = "unified";
const POSITIONS: &str = "public.positions";

/// Why the feed stopped; it begins again after a moment.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error("cannot follow the topics of unified: {0}")]
    Follow(#[from] FollowerError),
    #[error("cannot read an event of {table}: {source}")]
    Event {
        table: Arc<str>,
        #[source]
        source: serde_json::Error,
    },
    #[error("an event of {table} has another key than the table")]
    Key { table: Arc<str> },
    #[error("the positions that the feed told do not parse: {0}")]
    Positions(#[source] anyhow::Error),
}

/// Where to go on.
enum Begin {
    /// From the youngest checkpoint, with nothing cached.
    Anew,
    /// From the last checkpoint that was taken: no event is missed in between.
    At(Standing),
}

/// Keeps the cache fed until `shutdown`.
pub async fn run(config: &Config, cache: &Cache, view: &View, shutdown: CancellationToken) {
    let mut feed = Feed {
        config,
        cache,
        view,
        table: PositionsTable::default(),
        last: None,
    };
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut begin = Begin::Anew;
    loop {
        let stopped = tokio::select! {
            stopped = feed.follow(begin) => stopped,
            () = shutdown.cancelled() => return,
        };
        let progressed = feed.last.is_some();
        if progressed {
            backoff.reset();
        }
        begin = match (stopped, feed.last.take()) {
            (Ok(Gap), _) => {
                tracing::warn!("the feed is too far behind; the cache starts over");
                Begin::Anew
            }
            // Once from the standing; where that fails too, what it names may be gone.
            (Err(FeedError::Follow(error)), Some(standing)) => {
                tracing::warn!(%error, "the feed stopped: {error}; it goes on where it was");
                Begin::At(standing)
            }
            (Err(error), _) => {
                tracing::warn!(%error, "the feed stopped: {error}; the cache starts over");
                Begin::Anew
            }
        };
        tokio::select! {
            () = tokio::time::sleep(backoff.wait()) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Events are missing between where the feed was and where it can go on.
struct Gap;

struct Feed<'a> {
    config: &'a Config,
    cache: &'a Cache,
    view: &'a View,
    table: PositionsTable,
    /// Where the last checkpoint that was taken left this feed.
    last: Option<Standing>,
}

impl Feed<'_> {
    async fn follow(&mut self, begin: Begin) -> Result<Gap, FeedError> {
        let standing = match begin {
            Begin::At(standing) => standing,
            Begin::Anew => {
                if fault::in_force("start_over_on_gap") {
                    self.cache.forget();
                    measure::start_over("gap");
                }
                self.table = PositionsTable::default();
                self.youngest().await?
            }
        };
        let mut follower = self.follower(standing)?;
        loop {
            match follower.next().await? {
                Step::Events(events) => self.read(&events).await?,
                Step::Checkpoint {
                    record,
                    events,
                    standing,
                    ..
                } => {
                    self.take(&record, &events).await?;
                    self.last = Some(standing);
                }
                // Evicting is never wrong, and whatever was told of positions is told again.
                Step::TooOld => {}
                Step::Behind => return Ok(Gap),
            }
        }
    }

    fn follower(&self, standing: Standing) -> Result<Follower, FollowerError> {
        let mut tables: Vec<_> = TABLES.map(|table| table.name.to_owned()).into();
        tables.push(POSITIONS.to_owned());
        let options = FollowerOptions {
            step_events_max: self.config.cache.step_events_max,
            step_bytes_max: self.config.cache.step_bytes_max,
            tables: Some(tables),
        };
        Follower::new(&self.config.kafka, UNIFIED, standing, options)
    }

    /// Where a feed that knows nothing begins: at the youngest checkpoint there is, once there
    /// is one; the positions topic from its beginning.
    async fn youngest(&self) -> Result<Standing, FollowerError> {
        let mut follower = self.follower(Standing::default())?;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let (offset, since_ms, record) = loop {
            match follower.last_checkpoint().await? {
                Some(found) => break found,
                None => tokio::time::sleep(backoff.wait()).await,
            }
        };
        let mut offsets = record.offsets;
        offsets.remove(&positions_topic(&self.config.kafka));
        Ok(Standing {
            offsets,
            seen: offset,
            since_ms: Some(since_ms),
        })
    }

    /// Evicts for events, and notes what they tell of positions.
    async fn read(&mut self, events: &[Event]) -> Result<(), FeedError> {
        self.read_positions(events)?;
        self.evict(events).await
    }

    /// Takes a checkpoint, whose last events these are.
    async fn take(&mut self, record: &Checkpoint, events: &[Event]) -> Result<(), FeedError> {
        self.read_positions(events)?;
        if !fault::in_force("evict_before_position") && self.cache.position().is_some() {
            self.cache.move_to(self.position(record)?);
            fault::point("api.after_position_moves").await;
        }
        let Some(before) = self.cache.position() else {
            if !fault::in_force("marks_start_at_checkpoint") {
                self.read_positions_of_view().await;
            }
            let position = self.position(record)?;
            tracing::info!(
                epoch = position.epoch,
                positions = %position.positions,
                "the feed begins at {}", position.positions
            );
            self.cache.start_over(position);
            measure::checkpoint(events.len());
            return Ok(());
        };
        self.evict(events).await?;
        let position = self.position(record)?;
        let new_epoch = position.epoch != before.epoch && fault::in_force("start_over_on_epoch");
        let new_writer = position.revision.writer != before.revision.writer
            && fault::in_force("start_over_on_writer");
        // Cached rows say what was degraded when they were read.
        let suspension =
            position.degraded != before.degraded && fault::in_force("start_over_on_suspension");
        if new_epoch || new_writer || suspension {
            let (reason, why) = if new_epoch {
                ("epoch", "the view has a new epoch")
            } else if new_writer {
                ("writer", "the view has a new writer")
            } else {
                ("suspension", "a table is suspended, or no longer")
            };
            tracing::info!(reason, "the cache starts over: {why}");
            measure::start_over(reason);
            self.cache.start_over(position);
        } else {
            self.cache.open_marks(position.revision);
            fault::point("api.before_position_moves").await;
            self.cache.move_to(position);
        }
        measure::checkpoint(events.len());
        Ok(())
    }

    async fn evict(&self, events: &[Event]) -> Result<(), FeedError> {
        for event in events {
            let table = TABLES.into_iter().find(|table| table.name == &*event.table);
            let Some(table) = table else { continue };
            let row = RowKey::from_event(&table, &event.key).ok_or_else(|| FeedError::Key {
                table: event.table.clone(),
            })?;
            let changed = || changed_row(event);
            self.cache.evict(table, &row, changed).await;
        }
        Ok(())
    }

    fn read_positions(&mut self, events: &[Event]) -> Result<(), FeedError> {
        for event in events.iter().filter(|event| &*event.table == POSITIONS) {
            let key: SourceKey = parse(event, &event.key)?;
            let value: Option<Change<SourceRow>> = event
                .value
                .as_ref()
                .map(|value| parse(event, value))
                .transpose()?;
            match value.and_then(|change| change.after) {
                Some(row) => self.table.put(row),
                None => self.table.remove(&key.source),
            }
        }
        Ok(())
    }

    fn position(&self, record: &Checkpoint) -> Result<FeedPosition, FeedError> {
        let positions = self
            .table
            .positions(&self.config.sources)
            .map_err(FeedError::Positions)?;
        Ok(FeedPosition {
            generation: 0,
            epoch: record.epoch,
            revision: self.table.revision(),
            positions: Arc::new(positions),
            sources: self.table.rows(),
            degraded: self.table.degraded(),
            taken: Instant::now(),
        })
    }

    /// Only a test comes here: the database instead of the checkpoint says where to start.
    async fn read_positions_of_view(&mut self) {
        if let Ok(rows) = crate::route::status::sources(self.view).await {
            self.table = PositionsTable::default();
            for row in rows.found {
                self.table.put(row);
            }
        }
    }
}

fn positions_topic(config: &KafkaConfig) -> String {
    kafka::topic::table(config, UNIFIED, "public", "positions")
}

fn parse<'a, T: Deserialize<'a>>(event: &Event, json: &'a [u8]) -> Result<T, FeedError> {
    serde_json::from_slice(json).map_err(|source| FeedError::Event {
        table: event.table.clone(),
        source,
    })
}

#[derive(Deserialize)]
struct SourceKey {
    source: String,
}

/// What this reader needs of an envelope.
#[derive(Deserialize)]
struct Change<Row> {
    after: Option<Row>,
}

/// The row that an event carries. Only a test uses it: see the rule `feed_evicts`.
fn changed_row(event: &Event) -> Option<CachedRow> {
    let change: Change<Box<serde_json::value::RawValue>> =
        serde_json::from_slice(event.value.as_deref()?).ok()?;
    Some(CachedRow {
        json: change.after?.get().to_owned().into(),
        is_sold: true,
    })
}
