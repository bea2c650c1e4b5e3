//! One life of the aggregator: it takes lock and view over, follows every source, and applies
//! what they complete, until it is told to stop or loses what it holds.

mod apply;
mod follow;
mod rebuild;
mod recompute;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use links::backoff::Backoff;
use metrics::{counter, gauge, histogram};
use service::admin::Health;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::control::{self, Command, Commands, Recompute, Refused, Shared};
use crate::failure::Failure;
use crate::ingest::{Feeds, Item, Options, Purpose};
use crate::lock::Lock;
use crate::mirror::Table;
use crate::verify::sweep;
use crate::view::{Moved, View};
use follow::Stalled;

/// The waits before the next life, and before a source is followed again.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Runs life after life until `shutdown`.
///
/// # Errors
/// What the operator has to put right first.
pub async fn run(
    config: &Config,
    health: &Health,
    mut commands: Commands,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    crate::telemetry::describe();
    counter!(crate::telemetry::RETRIES).increment(0);
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        let began = Instant::now();
        let failure = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            ended = live(config, health, &mut commands) => match ended {
                Ok(never) => match never {},
                Err(failure) => failure,
            },
        };
        if failure.is_final() {
            return Err(failure);
        }
        commands.status.clear();
        commands.sweep.set(None);
        if began.elapsed() > BACKOFF_MAX {
            backoff.reset();
        }
        counter!(crate::telemetry::RETRIES).increment(1);
        let (wait, words) = (backoff.wait(), failure.in_words());
        tracing::warn!(
            error = words,
            "starts anew in {} ms: {words}",
            wait.as_millis()
        );
        health.not_ready(words);
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Ends only by failing.
async fn live(
    config: &Config,
    health: &Health,
    commands: &mut Commands,
) -> Result<std::convert::Infallible, Failure> {
    let silence_max = config.apply.silence_max();
    let lock = Lock::acquire(&config.view, silence_max, health).await?;
    health.not_ready("takes the view over");
    let lost = lock.keep();
    // Ends with this life.
    let mut beside = JoinSet::new();
    let work = async {
        let view = View::open(
            &config.view,
            &config.discrepancies,
            &config.sources,
            silence_max,
        )
        .await?
        .suspending_after(config.quarantine.suspend_after);
        let options = Options {
            kafka: config.kafka.clone(),
            apply: config.apply.clone(),
        };
        if config.sweep.enabled {
            beside.spawn(sweep::run(config.clone(), commands.sweep.clone()));
        }
        let mut applier = Applier::new(view, options, config.sources.clone(), health.clone());
        applier.run(commands).await
    };
    tokio::select! {
        failure = lost => Err(failure),
        ended = work => ended,
    }
}

/// The one task that writes the view.
struct Applier {
    view: View,
    feeds: Feeds,
    sources: Vec<String>,
    step_events_max: usize,
    silence_max: Duration,
    health: Health,
    /// Sources whose follower is known to run.
    running: BTreeSet<String>,
    /// Why others' does not, once that is known.
    not_running: BTreeMap<String, String>,
    /// Those whose events stopped within a checkpoint.
    stalled: BTreeMap<String, Stalled>,
    /// Of sources that failed since their last commit.
    backoffs: BTreeMap<(String, Purpose), Backoff>,
    /// Events that each rebuild under way has loaded since this life began.
    rebuilt_events: BTreeMap<String, u64>,
    /// The last computation of unified rows by command since this life began.
    recompute: Option<Recompute>,
}

impl Applier {
    fn new(view: View, options: Options, sources: Vec<String>, health: Health) -> Self {
        for source in &sources {
            // Whatever the last life knew.
            gauge!(crate::telemetry::STALLED, "source" => source.clone()).set(0.0);
        }
        Self {
            step_events_max: options.apply.step_events_max,
            silence_max: options.apply.silence_max(),
            feeds: Feeds::new(options),
            view,
            sources,
            health,
            running: BTreeSet::new(),
            not_running: BTreeMap::new(),
            stalled: BTreeMap::new(),
            backoffs: BTreeMap::new(),
            rebuilt_events: BTreeMap::new(),
            recompute: None,
        }
    }

    async fn run(&mut self, commands: &mut Commands) -> Result<std::convert::Infallible, Failure> {
        for source in self.sources.clone() {
            self.follow(&source, Duration::ZERO);
        }
        self.resume_rebuilds();
        loop {
            commands.status.set(self.status());
            self.say_progress();
            tokio::select! {
                next = self.feeds.next() => match next.ok_or(Failure::TaskEnded)? {
                    (source, Purpose::Serve, item) => self.take(&source, item).await?,
                    (source, Purpose::Rebuild, item) => self.take_rebuilt(&source, item).await?,
                },
                command = commands.next() => self.obey(command, &commands.status).await?,
            }
        }
    }

    /// Who asked may have gone: then nobody takes the answer.
    async fn obey(&mut self, command: Command, status: &Shared) -> Result<(), Failure> {
        match command {
            Command::Rebuild { sources, taken } => {
                let _ = taken.send(self.rebuild_by_command(&sources).await?);
            }
            Command::Recompute { keys, begun } => {
                self.recompute(keys.as_ref(), begun, status).await?;
            }
            Command::Discard { which, done } => {
                let control::Discard { source, table, key } = &which;
                let was_there = self.view.discard(source, table, key).await?;
                tracing::info!(
                    source,
                    table,
                    key,
                    was_there,
                    "{key} of {table} is taken out of quarantine by command"
                );
                let _ = done.send(was_there);
            }
            Command::Resume { which, done } => {
                let _ = done.send(self.resume(&which).await?);
            }
        }
        Ok(())
    }

    /// Begins to read a suspended table again, or notes what covers that.
    async fn resume(&mut self, which: &control::Resume) -> Result<Result<(), Refused>, Failure> {
        let control::Resume {
            source,
            table: name,
            covered_by,
        } = which;
        let Some(table) = Table::find(source, name) else {
            return Ok(Err(Refused::NotSuspended(name.clone())));
        };
        if self.view.rebuilds().contains_key(source) {
            return Ok(Err(Refused::IsRebuilt(source.clone())));
        }
        let is_taken = match covered_by {
            None => self.view.begin_resumption(table).await?,
            Some(offset) => self.view.cover_resumption(table, *offset).await?,
        };
        if !is_taken {
            return Ok(Err(Refused::NotSuspended(name.clone())));
        }
        if covered_by.is_none() {
            tracing::info!(
                source,
                table = name,
                "{name} of {source} is being read again by command"
            );
        }
        Ok(Ok(()))
    }

    async fn take(&mut self, source: &str, item: Item) -> Result<(), Failure> {
        match item {
            Item::Runs => self.runs(source),
            Item::Events(changes, offsets) if self.view.serves(source) => {
                drop(offsets);
                if !self.passes_over(source) {
                    self.apply_in_steps(source, changes).await?;
                }
            }
            Item::Events(changes, offsets) => {
                self.runs(source);
                let standing = moved_on(self.standing(source), offsets);
                count(source, changes.len());
                self.view.load(source, changes, standing).await?;
                self.committed(source, Purpose::Serve);
            }
            Item::Checkpoint(part) => {
                if !self.is_to_be_read_again(source) {
                    self.apply(*part).await?;
                }
            }
            // Outside of a view transaction there is nothing to undo: a source that is not
            // served reads the same events again into its mirrors.
            Item::TooOld => self.comes_again(source),
            Item::Behind => self.behind(source).await?,
            Item::Failed(error) => self.failed(source, Purpose::Serve, &error),
        }
        Ok(())
    }

    fn applied(&mut self, moves: &[Moved], began: Instant) {
        for moved in moves {
            self.committed(&moved.source, Purpose::Serve);
        }
        let apply_ms = began.elapsed().as_secs_f64() * 1000.0;
        counter!(crate::telemetry::VIEW_TRANSACTIONS).increment(1);
        histogram!(crate::telemetry::APPLY_MS).record(apply_ms);
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of today")]
        gauge!(crate::telemetry::VIEW_TRANSACTION_TIMESTAMP).set(now_ms() as f64 / 1e3);
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        gauge!(crate::telemetry::QUARANTINED).set(self.view.quarantined() as f64);
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        gauge!(crate::telemetry::SUSPENDED).set(self.view.suspended().count() as f64);
        for (rule, open) in self.view.discrepancies() {
            #[expect(clippy::cast_precision_loss, reason = "a gauge")]
            gauge!(crate::telemetry::DISCREPANCIES, "rule" => rule.clone()).set(*open as f64);
        }
        for moved in moves {
            let visible_ms = now_ms().saturating_sub(moved.record_time_ms);
            let lag_bytes = moved
                .record
                .wal_end
                .0
                .saturating_sub(moved.record.position.0);
            let source = moved.source.clone();
            tracing::debug!(
                source, visible_ms, apply_ms, revision = %self.view.revision(),
                "{source} at {}: shown {visible_ms} ms after its record", moved.record.at()
            );
            #[expect(
                clippy::cast_precision_loss,
                reason = "milliseconds and bytes of today"
            )]
            {
                histogram!(crate::telemetry::VISIBLE_MS, "source" => source.clone())
                    .record(visible_ms as f64);
                gauge!(crate::telemetry::LAG_BYTES, "source" => source).set(lag_bytes as f64);
            }
        }
    }
}

/// The standing after these offsets.
fn moved_on(
    mut standing: kafka::follower::Standing,
    offsets: kafka::Offsets,
) -> kafka::follower::Standing {
    for (topic, ends) in offsets {
        standing.offsets.entry(topic).or_default().extend(ends);
    }
    standing
}

fn count(source: &str, events: usize) {
    counter!(crate::telemetry::EVENTS, "source" => source.to_owned()).increment(events as u64);
}

pub(crate) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}
