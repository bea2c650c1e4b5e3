//! Silence is impossible: whether anything moves that should is looked at from outside the life.
//!
//! Every wait of a life has a bound of its own, but bounds add up, some are long on purpose (a
//! slot waits for every transaction that runs), and a defect has none. So the life only counts:
//! what it is doing, how often it came round, how far the log has come. A task beside it looks
//! at these numbers each second. When they stand still for `stall_ms`, state, health, metric and
//! log say so, and in which step; when they move again, likewise. A table read that waits for its
//! owner is tried again and again, so the life moves: whether a read that readers wait for goes on is
//! counted by itself. What tasks beside the life wait for stands in `waits`, and is said in the same way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kafka::Lsn;
use metrics::{counter, gauge};
use service::fault::in_force;

use crate::status::{Reminder, StatusBoard, names};

mod waits;

pub(crate) use waits::{Awaited, Waits};

/// How often the numbers are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The step that a life is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Activity {
    Checking,
    TakingLock,
    AskingSource,
    AskingTopics,
    TakingSlot,
    TakingProducer,
    ReadingLastRecord,
    MakingSlot,
    Streaming,
    ReadingTables,
    ReadingTopics,
    Recording,
    /// Between two lives; why the last one ended has been said.
    Resting,
}

impl Activity {
    const ALL: [Self; 13] = [
        Self::Checking,
        Self::TakingLock,
        Self::AskingSource,
        Self::AskingTopics,
        Self::TakingSlot,
        Self::TakingProducer,
        Self::ReadingLastRecord,
        Self::MakingSlot,
        Self::Streaming,
        Self::ReadingTables,
        Self::ReadingTopics,
        Self::Recording,
        Self::Resting,
    ];

    /// Does the log come in, and are tables read in between?
    fn is_of_the_stream(self) -> bool {
        matches!(
            self,
            Self::Streaming | Self::Recording | Self::ReadingTables | Self::ReadingTopics
        )
    }

    /// What does not end, and what to look at.
    fn sentence(self) -> &'static str {
        match self {
            Self::Checking => "the check of the source does not end",
            Self::TakingLock => "the source does not answer the question for the advisory lock",
            Self::AskingSource => "the source does not answer with its catalog",
            Self::AskingTopics => {
                "Kafka does not answer about the topics; is it running at [kafka] bootstrap?"
            }
            Self::TakingSlot => {
                "the replication slot is not to be had; see active_pid in pg_replication_slots"
            }
            Self::TakingProducer => {
                "Kafka does not give the transactional id; see the logs of the brokers"
            }
            Self::ReadingLastRecord => {
                "Kafka does not give the last checkpoint; see the logs of the brokers"
            }
            Self::MakingSlot => {
                "the new replication slot waits for every transaction that runs in the source; \
                 see xact_start in pg_stat_activity and pg_prepared_xacts"
            }
            Self::Streaming => {
                "the changes that came are not handled: Kafka takes none, or a read of values \
                 for them does not end"
            }
            Self::ReadingTables => "a read of a table does not end",
            Self::ReadingTopics => {
                "Kafka does not give what a topic holds; see the logs of the brokers"
            }
            Self::Recording => "Kafka does not commit a checkpoint; see the logs of the brokers",
            Self::Resting => "the next try does not begin",
        }
    }
}

/// The numbers, written by the life. All are relaxed: each is looked at on its own, once a
/// second.
#[derive(Debug)]
pub(crate) struct Motion {
    activity: AtomicU8,
    /// Steps begun, and rounds of the loop that found nothing to handle.
    rounds: AtomicU64,
    /// Messages of the log handled, keepalives not counted.
    handled: AtomicU64,
    /// The highest LSN that came from the slot.
    received: AtomicU64,
    /// The source's WAL end, as the control session said last.
    flushed: AtomicU64,
    waits: Waits,
    /// How often a table read was tried, and how often one went on.
    read_tries: AtomicU64,
    read_moves: AtomicU64,
    /// Do readers of checkpoints wait for what is read?
    readers_wait: AtomicBool,
}

impl Default for Motion {
    fn default() -> Self {
        Self {
            activity: AtomicU8::new(Activity::Resting as u8),
            rounds: AtomicU64::new(0),
            handled: AtomicU64::new(0),
            received: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            waits: Waits::default(),
            read_tries: AtomicU64::new(0),
            read_moves: AtomicU64::new(0),
            readers_wait: AtomicBool::new(false),
        }
    }
}

impl Motion {
    /// A step begins, or goes on to its next part.
    pub(crate) fn begin(&self, activity: Activity) {
        self.activity.store(activity as u8, Ordering::Relaxed);
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }

    /// A message of the log that is no keepalive was handled.
    pub(crate) fn handled(&self) {
        self.handled.fetch_add(1, Ordering::Relaxed);
    }

    /// The loop came round: the slot has sent up to `received`, the source's WAL ends at
    /// `flushed`.
    pub(crate) fn round(&self, received: Lsn, flushed: Lsn) {
        self.received.store(received.0, Ordering::Relaxed);
        self.flushed.store(flushed.0, Ordering::Relaxed);
        self.begin(Activity::Streaming);
    }

    /// What is waited for beside the life.
    pub(crate) fn waits(&self) -> &Waits {
        &self.waits
    }

    /// A table read was tried; did one go on?
    pub(crate) fn tried_to_read(&self, moved: bool) {
        self.read_tries.fetch_add(1, Ordering::Relaxed);
        self.read_moves
            .fetch_add(u64::from(moved), Ordering::Relaxed);
    }

    /// Do readers of checkpoints wait for what is read?
    pub(crate) fn readers_wait(&self, wait: bool) {
        self.readers_wait.store(wait, Ordering::Relaxed);
    }

    /// Is this the step that the life is in?
    pub(crate) fn is_in(&self, activity: Activity) -> bool {
        self.activity.load(Ordering::Relaxed) == activity as u8
    }

    fn look(&self) -> Look {
        let activity = self.activity.load(Ordering::Relaxed);
        Look {
            activity: Activity::ALL
                .into_iter()
                .find(|one| *one as u8 == activity)
                .unwrap_or(Activity::Resting),
            rounds: self.rounds.load(Ordering::Relaxed),
            handled: self.handled.load(Ordering::Relaxed),
            received: Lsn(self.received.load(Ordering::Relaxed)),
            flushed: Lsn(self.flushed.load(Ordering::Relaxed)),
            read_tries: self.read_tries.load(Ordering::Relaxed),
            read_moves: self.read_moves.load(Ordering::Relaxed),
            readers_wait: self.readers_wait.load(Ordering::Relaxed),
        }
    }
}

/// The numbers at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    activity: Activity,
    rounds: u64,
    handled: u64,
    received: Lsn,
    flushed: Lsn,
    read_tries: u64,
    read_moves: u64,
    readers_wait: bool,
}

/// What stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    Step(Activity),
    Source,
    TableRead,
    Beside(Awaited),
}

/// That it does, for how long, and the sentence for it.
#[derive(Debug)]
pub(crate) struct Stall {
    pub(crate) cause: Cause,
    pub(crate) lasts: Duration,
    pub(crate) sentence: String,
}

/// Since when what stands still.
#[derive(Debug)]
struct Watcher {
    stall: Duration,
    last: Look,
    /// When the life did anything at all.
    alive_at: Instant,
    /// When the slot sent anything, or there was nothing to send.
    fed_at: Instant,
    /// When a table read that readers wait for went on, or there was none to go on.
    read_at: Instant,
}

impl Watcher {
    fn new(first: Look, stall: Duration, now: Instant) -> Self {
        Self {
            stall,
            last: first,
            alive_at: now,
            fed_at: now,
            read_at: now,
        }
    }

    /// What should move and has stood still for too long.
    fn look(&mut self, look: Look, now: Instant) -> Option<Stall> {
        let last = std::mem::replace(&mut self.last, look);
        let handled = look.handled != last.handled;
        if handled || look.rounds != last.rounds || look.activity != last.activity {
            self.alive_at = now;
        }
        let owed = look.flushed > look.received;
        let streams = matches!(look.activity, Activity::Streaming | Activity::Recording);
        if handled || look.received != last.received || !owed || !streams {
            self.fed_at = now;
        }
        // Within a transaction of the source nothing is read.
        let within = handled && look.read_tries == last.read_tries;
        let moved = look.read_moves != last.read_moves;
        if moved || within || !look.readers_wait || !look.activity.is_of_the_stream() {
            self.read_at = now;
        }
        let (stuck, hungry) = (now - self.alive_at, now - self.fed_at);
        if stuck >= self.stall {
            let sentence = look.activity.sentence();
            return Some(Stall {
                cause: Cause::Step(look.activity),
                lasts: stuck,
                sentence: format!("for {} s nothing moves: {sentence}", stuck.as_secs()),
            });
        }
        if hungry >= self.stall {
            let sentence = format!(
                "for {} s the source has sent nothing beyond {}, while its WAL ends at {}; see \
                 wait_event of the walsender in pg_stat_activity (a large transaction that is \
                 being decoded, a standby that synchronized_standby_slots waits for)",
                hungry.as_secs(),
                look.received,
                look.flushed
            );
            return Some(Stall {
                cause: Cause::Source,
                lasts: hungry,
                sentence,
            });
        }
        let unread = now - self.read_at;
        (unread >= self.stall && in_force("read_waits_said")).then(|| {
            let sentence = format!(
                "for {} s no table read goes on that readers of checkpoints wait for",
                unread.as_secs()
            );
            Stall {
                cause: Cause::TableRead,
                lasts: unread,
                sentence,
            }
        })
    }
}

/// Watches until dropped.
pub(crate) async fn watch(status: StatusBoard, stall: Duration) {
    let mut watcher = Watcher::new(status.motion().look(), stall, Instant::now());
    let mut ticks = tokio::time::interval(LOOK);
    // Each cause is said by itself: what follows from the first may be what has to be mended.
    let mut said: BTreeMap<Cause, Reminder> = BTreeMap::new();
    loop {
        ticks.tick().await;
        let now = Instant::now();
        status.tick(stall);
        let motion = status.motion();
        let stalls = watcher.look(motion.look(), now).into_iter();
        let stalls: Vec<_> = stalls
            .chain(motion.waits().overdue(stall, now))
            .filter(|_| in_force("say_stalls"))
            .collect();
        let lasts = stalls.iter().map(|stall| stall.lasts).max();
        gauge!(names::STALLED).set(lasts.unwrap_or_default().as_secs_f64());
        if said.is_empty() && !stalls.is_empty() {
            counter!(names::STALLS).increment(1);
        }
        for stall in &stalls {
            if said.entry(stall.cause).or_default().is_due(now) {
                tracing::error!(stalled_s = stall.lasts.as_secs(), "{}", stall.sentence);
            }
        }
        if stalls.is_empty() && !std::mem::take(&mut said).is_empty() {
            tracing::info!("it moves again");
        }
        let sentences: Vec<_> = stalls.into_iter().map(|stall| stall.sentence).collect();
        status.stalled((!sentences.is_empty()).then(|| sentences.join("; ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(15);

    struct Trial {
        motion: Motion,
        watcher: Watcher,
        begun: Instant,
    }

    impl Trial {
        fn new() -> Self {
            let (motion, begun) = (Motion::default(), Instant::now());
            let watcher = Watcher::new(motion.look(), STALL, begun);
            Self {
                motion,
                watcher,
                begun,
            }
        }

        fn at(&mut self, second: u64) -> Option<String> {
            let now = self.begun + Duration::from_secs(second);
            let found = self.watcher.look(self.motion.look(), now);
            found.map(|found| found.sentence)
        }
    }

    #[test]
    fn each_step_that_does_not_end_is_named_once_the_time_is_over() {
        for activity in Activity::ALL {
            let mut trial = Trial::new();
            trial.motion.begin(activity);
            assert_eq!(trial.at(1), None);
            assert_eq!(trial.at(15), None, "{activity:?}");
            let said = trial.at(16).unwrap();
            assert!(said.contains(activity.sentence()), "{said}");
            trial.motion.begin(activity);
            assert_eq!(trial.at(17), None, "it moves again");
        }
    }

    #[test]
    fn a_loop_that_comes_round_while_the_source_sends_nothing_is_said() {
        let mut trial = Trial::new();
        for second in 1..=15 {
            trial.motion.round(Lsn(5), Lsn(5 + second));
            assert_eq!(trial.at(second), None);
        }
        trial.motion.round(Lsn(5), Lsn(30));
        let said = trial.at(16).unwrap_or_default();
        assert!(said.contains("nothing beyond 0/5"), "{said}");
        trial.motion.round(Lsn(6), Lsn(40));
        assert_eq!(trial.at(17), None, "it sends again");
    }

    #[test]
    fn a_read_that_readers_wait_for_and_that_does_not_go_on_is_said() {
        let mut trial = Trial::new();
        trial.motion.readers_wait(true);
        let mut waits = |second| {
            trial.motion.round(Lsn(5), Lsn(5));
            trial.motion.tried_to_read(false);
            trial.at(second)
        };
        for second in 1..15 {
            assert_eq!(waits(second), None);
        }
        let said = waits(15).unwrap_or_default();
        assert!(said.contains("no table read goes on"), "{said}");
        trial.motion.tried_to_read(true);
        assert_eq!(trial.at(17), None, "one went on");
        for second in 18..100 {
            trial.motion.handled();
            trial.motion.round(Lsn(5), Lsn(5));
            assert_eq!(trial.at(second), None, "a long transaction comes in");
        }
        trial.motion.readers_wait(false);
        for second in 100..200 {
            trial.motion.tried_to_read(false);
            trial.motion.round(Lsn(5), Lsn(5));
            assert_eq!(trial.at(second), None, "readers have what they need");
        }
    }

    #[test]
    fn an_idle_source_and_a_long_transaction_are_no_stall() {
        let mut trial = Trial::new();
        for second in 1..100 {
            trial.motion.round(Lsn(5), Lsn(5));
            assert_eq!(trial.at(second), None);
        }
        // Changes with LSNs below what came before: the transaction began earlier.
        for second in 100..200 {
            trial.motion.handled();
            trial.motion.round(Lsn(5), Lsn(second));
            assert_eq!(trial.at(second), None);
        }
    }
}
