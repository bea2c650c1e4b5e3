//! What the sources' followers give, queued for the one applier.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::Poll;
use std::time::Duration;

use kafka::follower::{
    Event, Follower, FollowerError, FollowerOptions, QUARANTINE, Standing, Step,
};
use kafka::{KafkaConfig, Offsets};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::decode::{Change, decode, decode_quarantined};
use crate::config::ApplyConfig;
use crate::mirror::Table;
use crate::view::{Moved, Part};

/// A follower that has neither given anything nor failed for so long counts as running.
const RUNS_AFTER: Duration = Duration::from_millis(500);

/// What a source's follower says.
#[derive(Debug)]
pub(crate) enum Item {
    /// It runs.
    Runs,
    /// A part of a checkpoint, and the offsets after its events.
    Events(Vec<Change>, Offsets),
    /// The last part of a checkpoint.
    Checkpoint(Box<Part>),
    /// The parts since the last checkpoint are to be undone: they come again.
    TooOld,
    /// It cannot go on: what it has not read may be gone.
    Behind,
    /// It ended; where it is to go on says [`Feeds::restart`].
    Failed(FollowerError),
}

/// How followers are made.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub kafka: KafkaConfig,
    pub apply: ApplyConfig,
}

/// What a source is followed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// To keep the view up to date, or to fill it first.
    Serve,
    /// To rebuild what is served.
    Rebuild,
}

/// A queue for each source and purpose.
#[derive(Debug)]
pub(crate) struct Feeds {
    options: Options,
    feeds: Vec<Feed>,
    /// Who is asked first next time, so that a busy source does not starve the others.
    first: usize,
}

#[derive(Debug)]
struct Feed {
    source: String,
    purpose: Purpose,
    /// Taken out of the queue to look at, and put back.
    head: Option<Item>,
    queue: mpsc::Receiver<Item>,
    /// Offsets of the checkpoint that is being read; 0: not known.
    wanted: Arc<AtomicI64>,
    task: JoinHandle<()>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feed {
    fn is(&self, source: &str, purpose: Purpose) -> bool {
        self.source == source && self.purpose == purpose
    }

    /// The next item, if it is here.
    fn here(&mut self) -> Option<Item> {
        self.head.take().or_else(|| self.queue.try_recv().ok())
    }

    fn start(
        options: &Options,
        source: &str,
        purpose: Purpose,
        standing: Standing,
        wait: Duration,
    ) -> Self {
        let (sender, queue) = mpsc::channel(options.apply.queue_steps_max);
        let (own, name) = (options.clone(), source.to_owned());
        let wanted = Arc::new(AtomicI64::new(0));
        let told = Arc::clone(&wanted);
        let task = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            if let Err(error) = follow(&own, &name, purpose, standing, &sender, &told).await {
                // The applier may be gone; then nobody needs to know.
                let _ = sender.send(Item::Failed(error)).await;
            }
        });
        Self {
            source: source.to_owned(),
            purpose,
            head: None,
            queue,
            wanted,
            task,
        }
    }
}

impl Feeds {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            options,
            feeds: Vec::new(),
            first: 0,
        }
    }

    /// Follows a source from where the view stands, after a wait; what was queued is dropped.
    pub(crate) fn restart(
        &mut self,
        source: &str,
        purpose: Purpose,
        standing: Standing,
        wait: Duration,
    ) {
        self.stop(source, purpose);
        let feed = Feed::start(&self.options, source, purpose, standing, wait);
        self.feeds.push(feed);
    }

    /// Follows a source no more for this purpose; what was queued is dropped.
    pub(crate) fn stop(&mut self, source: &str, purpose: Purpose) {
        self.feeds.retain(|feed| !feed.is(source, purpose));
    }

    /// How many offsets the checkpoint has that this source is read up to now, once that is known.
    pub(crate) fn offsets_wanted(&self, source: &str, purpose: Purpose) -> Option<i64> {
        let mut feeds = self.feeds.iter();
        let feed = feeds.find(|feed| feed.is(source, purpose))?;
        Some(feed.wanted.load(Ordering::Relaxed)).filter(|wanted| *wanted > 0)
    }

    /// The next item of any source; none where a task ended without a word.
    pub(crate) async fn next(&mut self) -> Option<(String, Purpose, Item)> {
        let count = self.feeds.len();
        poll_fn(|context| {
            for turn in 0..count {
                let feed = &mut self.feeds[(self.first + turn) % count];
                let polled = match feed.head.take() {
                    Some(head) => Poll::Ready(Some(head)),
                    None => feed.queue.poll_recv(context),
                };
                if let Poll::Ready(item) = polled {
                    self.first = (self.first + turn + 1) % count;
                    let (source, purpose) = (feed.source.clone(), feed.purpose);
                    return Poll::Ready(item.map(|item| (source, purpose, item)));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The next item of this source that is to be served.
    pub(crate) async fn next_of(&mut self, source: &str) -> Option<Item> {
        let mut feeds = self.feeds.iter_mut();
        let feed = feeds.find(|feed| feed.is(source, Purpose::Serve))?;
        match feed.head.take() {
            Some(head) => Some(head),
            None => feed.queue.recv().await,
        }
    }

    /// A checkpoint to be served, or the first part of one, that is here already of a source that
    /// `wanted` accepts.
    pub(crate) fn waiting(&mut self, wanted: impl Fn(&str) -> bool) -> Option<(String, Item)> {
        let feeds = self.feeds.iter_mut();
        let mut feeds = feeds.filter(|feed| feed.purpose == Purpose::Serve && wanted(&feed.source));
        feeds.find_map(|feed| match feed.here()? {
            item @ (Item::Events(..) | Item::Checkpoint(_)) => Some((feed.source.clone(), item)),
            other => {
                feed.head = Some(other);
                None
            }
        })
    }

    /// Is anything here already of a source that `wanted` accepts?
    pub(crate) fn is_any_here(&mut self, wanted: impl Fn(&str) -> bool) -> bool {
        let mut feeds = self.feeds.iter_mut();
        feeds.any(|feed| {
            if !wanted(&feed.source) {
                return false;
            }
            feed.head = feed.here();
            feed.head.is_some()
        })
    }

    /// Checkpoints to be served that are here already, of the sources that `wanted` accepts, with at most
    /// `changes_max` changes together. Two of one source become one.
    pub(crate) fn more(
        &mut self,
        first: Part,
        mut changes_max: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Vec<Part> {
        changes_max = changes_max.saturating_sub(first.changes.len());
        let mut parts = vec![first];
        for feed in &mut self.feeds {
            if feed.purpose != Purpose::Serve || !wanted(&feed.source) {
                continue;
            }
            while let Some(item) = feed.here() {
                match item {
                    Item::Checkpoint(part) if part.changes.len() <= changes_max => {
                        changes_max -= part.changes.len();
                        join(&mut parts, *part);
                    }
                    other => {
                        feed.head = Some(other);
                        break;
                    }
                }
            }
        }
        parts
    }
}

fn join(parts: &mut Vec<Part>, later: Part) {
    let same = parts
        .iter_mut()
        .find(|part| part.moved.source == later.moved.source);
    match same {
        Some(part) => {
            part.changes.extend(later.changes);
            part.moved = later.moved;
        }
        None => parts.push(later),
    }
}

/// Follows until the applier is gone, or nothing more can come.
async fn follow(
    options: &Options,
    source: &str,
    purpose: Purpose,
    standing: Standing,
    items: &mpsc::Sender<Item>,
    wanted_offsets: &AtomicI64,
) -> Result<(), FollowerError> {
    let follower_options = FollowerOptions {
        step_events_max: options.apply.step_events_max,
        step_bytes_max: options.apply.step_bytes_max,
        tables: Some(wanted(source)),
    };
    let mut follower = Follower::new(&options.kafka, source, standing, follower_options)?;
    let step = {
        let mut first = std::pin::pin!(follower.next());
        tokio::select! {
            step = &mut first => step?,
            () = tokio::time::sleep(RUNS_AFTER) => {
                if items.send(Item::Runs).await.is_err() {
                    return Ok(());
                }
                first.await?
            }
        }
    };
    let mut item = read(source, step);
    loop {
        let last = matches!(item, Item::Behind);
        if purpose == Purpose::Rebuild && matches!(item, Item::Checkpoint(_)) {
            service::fault::point("aggregator.before_rebuilt").await;
        }
        let is_step = matches!(item, Item::Events(..));
        if let Some(wanted) = follower.offsets_wanted() {
            wanted_offsets.store(wanted, Ordering::Relaxed);
        }
        if items.send(item).await.is_err() || last {
            return Ok(());
        }
        if is_step {
            service::fault::point("aggregator.step_queued").await;
        }
        item = read(source, follower.next().await?);
    }
}

fn read(source: &str, step: Step) -> Item {
    match step {
        Step::Events(events) => {
            let mut offsets = Offsets::new();
            for event in &events {
                let ends = offsets.entry(event.topic.to_string()).or_default();
                ends.insert(event.partition, event.offset + 1);
            }
            Item::Events(changes(source, &events), offsets)
        }
        Step::Checkpoint {
            record,
            events,
            standing,
            record_offset: _,
            record_time_ms,
        } => Item::Checkpoint(Box::new(Part {
            changes: changes(source, &events),
            moved: Moved {
                source: source.to_owned(),
                record,
                record_time_ms,
                standing,
            },
        })),
        Step::TooOld => Item::TooOld,
        Step::Behind => Item::Behind,
    }
}

/// The mirrored tables, and what the source's connector could not send of them.
fn wanted(source: &str) -> Vec<String> {
    let mut wanted = Table::captured_by(source);
    if service::fault::in_force("quarantine_is_read") {
        wanted.push(QUARANTINE.to_owned());
    }
    wanted
}

/// The events of mirrored tables, read, and what is in their quarantine. Others are skipped.
#[must_use]
pub fn changes(source: &str, events: &[Event]) -> Vec<Change> {
    let lone_tombstones = service::fault::in_force("lone_tombstone");
    let mut changes: Vec<Change> = Vec::with_capacity(events.len());
    let wanted = events
        .iter()
        .filter(|event| lone_tombstones || event.value.is_some());
    for event in wanted {
        if &*event.table == QUARANTINE {
            changes.extend(decode_quarantined(source, event));
        } else if let Some(table) = Table::find(source, &event.table) {
            let mut change = decode(table, event);
            // A tombstone says no position: it is its delete's, which stands right before it.
            if event.value.is_none() {
                let delete = changes.last().filter(|last| {
                    last.key == change.key && last.record.is_right_before(&change.record)
                });
                change.lsn = delete.and_then(|delete| delete.lsn);
            }
            changes.push(change);
        }
    }
    changes
}
