//! The comparison in the background: slice by slice, round by round, for as long as this process
//! writes the view. It finds what `aggregator verify` finds, by the same means, says so in log,
//! metrics and status, and mends nothing.
//!
//! It is slow on purpose: a bounded number of rows a second, one statement at a time, and none to a
//! source that is behind.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use links::backoff::Backoff;
use metrics::counter;
use serde::{Deserialize, Serialize};
use service::fault;
use tokio_postgres::types::Json;

use super::progress::Place;
use super::report::{Difference, Report};
use super::{Slice, VerifyError, unified};
use crate::config::Config;
use crate::control::{Round, SharedSweep, Sweep};
use crate::life::now_ms;
use crate::mirror::{TABLES, Table};
use crate::session::Session;
use crate::telemetry;
use crate::view::resource::Resource;

/// The waits after a failure of the view database.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Differences that are remembered by name.
const NAMED_MAX: usize = 20;

/// A slice of a unified table is followed by a rest of so many times as long.
const RESTS: u32 = 9;

/// A table that is compared.
#[derive(Clone, Copy)]
enum Part {
    Mirror(&'static Table),
    Unified(&'static Resource),
}

/// What is kept between slices, also over restarts.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    sweep: Sweep,
    /// How far the table is.
    place: Option<Place>,
}

/// Compares for ever.
pub(crate) async fn run(config: Config, shared: SharedSweep) -> Infallible {
    let mut config = config;
    config.verify.chunk_rows = config.sweep.slice_rows;
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        let failed = match Sweeper::open(&config, &shared).await {
            Ok(mut sweeper) => {
                backoff.reset();
                match sweeper.rounds().await {
                    Ok(never) => match never {},
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let words = failed.in_words();
        tracing::warn!(error = words, "the sweep pauses: {words}");
        tokio::time::sleep(backoff.wait()).await;
    }
}

struct Sweeper<'a> {
    config: &'a Config,
    shared: &'a SharedSweep,
    /// Reads; may not write.
    view: Session,
    /// Keeps the state.
    keeper: Session,
    state: State,
}

impl<'a> Sweeper<'a> {
    async fn open(config: &'a Config, shared: &'a SharedSweep) -> Result<Self, VerifyError> {
        let view = super::open_view(config, "aggregator sweep").await?;
        let keeper = Session::open(&config.view, "aggregator sweep", &[]).await?;
        let sql = "SELECT state FROM aggregator.sweep";
        let row = keeper.client.query_opt(sql, &[]).await;
        let row = row.map_err(VerifyError::database("read how far the sweep is"))?;
        // What another version kept is no loss.
        let kept = row.and_then(|row| row.try_get(0).ok());
        let kept = kept.filter(|_| fault::in_force("sweep_goes_on"));
        let state = kept.map_or_else(State::default, |Json(state)| state);
        if let Some(Round {
            differences,
            not_compared,
            ended_at_ms,
            ..
        }) = &state.sweep.last
        {
            #[expect(clippy::cast_precision_loss, reason = "a gauge")]
            telemetry::swept(*differences, *not_compared, *ended_at_ms as f64 / 1e3);
        }
        Ok(Self {
            config,
            shared,
            view,
            keeper,
            state,
        })
    }

    async fn rounds(&mut self) -> Result<Infallible, VerifyError> {
        loop {
            if self.state.sweep.table.is_none() {
                self.keep().await?;
                let due = self.state.sweep.began_at_ms
                    + i64::from(self.config.sweep.round_min_s) * 1000
                    - now_ms();
                tokio::time::sleep(Duration::from_millis(due.max(0).unsigned_abs())).await;
                let last = self.state.sweep.last.take();
                self.state.sweep = Sweep {
                    began_at_ms: now_ms(),
                    last,
                    ..Sweep::default()
                };
            }
            self.round().await?;
        }
    }

    /// Goes on where the state is, to the end of the round.
    async fn round(&mut self) -> Result<(), VerifyError> {
        let parts = parts(&self.config.sources);
        let at = |part: &Part| Some(part.name()) == self.state.sweep.table.as_deref();
        let first = parts.iter().position(at).unwrap_or(0);
        let mut parts = parts[first..].iter().copied().peekable();
        while let Some(part) = parts.next() {
            if self.state.sweep.table.as_deref() != Some(part.name()) {
                self.state.sweep.table = Some(part.name().to_owned());
                self.state.place = None;
            }
            match part {
                Part::Unified(resource) => self.unified(resource).await?,
                Part::Mirror(table) => self.mirror(table).await?,
            }
            self.state.sweep.table = parts.peek().map(|next| next.name().to_owned());
            self.state.place = None;
        }
        let Sweep {
            began_at_ms,
            rows,
            differences,
            not_compared,
            ..
        } = self.state.sweep;
        let ended_at_ms = now_ms();
        tracing::info!(
            rows,
            differences,
            not_compared,
            "the sweep compared {rows} rows in {} s: {differences} differ, {not_compared} tables \
            were not compared",
            (ended_at_ms - began_at_ms) / 1000
        );
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        telemetry::swept(differences, not_compared, ended_at_ms as f64 / 1e3);
        self.state.sweep.last = Some(Round {
            began_at_ms,
            ended_at_ms,
            rows,
            differences,
            not_compared,
            found: self.state.sweep.found.clone(),
        });
        Ok(())
    }

    /// A mirror with its source. What keeps it from being compared is said, and the round goes on.
    async fn mirror(&mut self, table: &'static Table) -> Result<(), VerifyError> {
        let why = match self.compare(table).await {
            Ok(None) => return Ok(()),
            Ok(Some(why)) => why.to_owned(),
            Err(error) => error.in_words(),
        };
        tracing::info!(
            table = table.mirror,
            "the sweep leaves {} out: {why}",
            table.mirror
        );
        self.state.sweep.not_compared += 1;
        Ok(())
    }

    /// Why it is not compared, if it is not.
    async fn compare(
        &mut self,
        table: &'static Table,
    ) -> Result<Option<&'static str>, VerifyError> {
        if !self.is_current(table.source).await? {
            return Ok(Some("its source is behind"));
        }
        let config = self.config;
        let view = super::open_view(config, "aggregator sweep").await?;
        let comparison = super::begin(&view, config, table.source).await?;
        if comparison.is_suspended(table).await? {
            return Ok(Some("it is suspended"));
        }
        let mut after = match self.state.place {
            Some(Place::After(after)) => after,
            _ => i64::MIN,
        };
        loop {
            // A slice waits for what its source has shown, so one that stands still holds it up.
            if !self.is_current(table.source).await? {
                return Ok(Some("its source is behind"));
            }
            let mut report = Report::default();
            let Slice { end, rows_read } =
                comparison.slice(table, after, &mut report, &found).await?;
            let Some(end) = end else {
                self.compared(table.mirror, &report, None, rows_read)
                    .await?;
                return Ok(None);
            };
            after = end;
            let place = Some(Place::After(end));
            self.compared(table.mirror, &report, place, rows_read)
                .await?;
        }
    }

    async fn unified(&mut self, resource: &'static Resource) -> Result<(), VerifyError> {
        let mut after = match self.state.place.take() {
            Some(Place::Behind(key)) => Some(key),
            _ => None,
        };
        loop {
            let began = Instant::now();
            let mut report = Report::default();
            let (view, rows_max) = (&self.view, self.config.sweep.slice_rows);
            let slice = unified::slice(
                view,
                resource,
                after.as_deref(),
                rows_max,
                &mut report,
                &found,
            );
            let Slice { end, rows_read } = slice.await?;
            after = end;
            let place = after.clone().map(Place::Behind);
            let busy = began.elapsed();
            self.compared(resource.table, &report, place, rows_read)
                .await?;
            // A row may have any number of contributions.
            tokio::time::sleep(busy * RESTS).await;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Counts and keeps a slice, then rests for as long as its rows are allowed to take.
    async fn compared(
        &mut self,
        table: &'static str,
        report: &Report,
        place: Option<Place>,
        rows_read: u64,
    ) -> Result<(), VerifyError> {
        let rows: u64 = report.rows.values().sum();
        counter!(telemetry::SWEEP_SLICES, "table" => table).increment(1);
        counter!(telemetry::SWEEP_ROWS, "table" => table).increment(rows);
        counter!(telemetry::SWEEP_FOUND, "table" => table).increment(report.difference_count);
        let sweep = &mut self.state.sweep;
        sweep.slices += 1;
        sweep.rows += rows;
        sweep.differences += report.difference_count;
        let named = report.differences.iter().map(ToString::to_string);
        let room = NAMED_MAX.saturating_sub(sweep.found.len());
        sweep.found.extend(named.take(room));
        self.state.place = place;
        self.keep().await?;
        let rest_ms = rows_read * 1000 / u64::from(self.config.sweep.rows_per_second);
        tokio::time::sleep(Duration::from_millis(rest_ms)).await;
        Ok(())
    }

    async fn keep(&self) -> Result<(), VerifyError> {
        self.shared.set(Some(self.state.sweep.clone()));
        let sql = "INSERT INTO aggregator.sweep (state) VALUES ($1)
            ON CONFLICT (single) DO UPDATE SET state = excluded.state";
        let kept = self.keeper.client.execute(sql, &[&Json(&self.state)]).await;
        kept.map_err(VerifyError::database("keep how far the sweep is"))?;
        Ok(())
    }

    /// Was the source known to be where the view is, lately?
    async fn is_current(&self, source: &str) -> Result<bool, VerifyError> {
        let sql = "SELECT coalesce(bool_and(
                current_at > clock_timestamp() - $2::bigint * interval '1 millisecond'
            ), false) FROM public.positions WHERE source = $1 AND epoch IS NOT NULL";
        let stale_after_ms = i64::from(self.config.sweep.stale_after_ms);
        let client = &self.view.client;
        let row = client.query_one(sql, &[&source, &stale_after_ms]).await;
        let row = row.map_err(VerifyError::database("read the view"))?;
        Ok(row.get(0))
    }
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Mirror(table) => table.mirror,
            Self::Unified(resource) => resource.table,
        }
    }
}

/// Everything, in the order of a round.
fn parts(sources: &[String]) -> Vec<Part> {
    let is_wanted = |table: &&Table| sources.iter().any(|source| source == table.source);
    let mirrors = TABLES.into_iter().filter(is_wanted).map(Part::Mirror);
    mirrors
        .chain(unified::resources().map(Part::Unified))
        .collect()
}

fn found(difference: &Difference) {
    let (table, key) = (&difference.table, &difference.key);
    tracing::warn!(
        table,
        %key,
        "the sweep found a row that differs: {difference}; aggregator verify --repair mends it"
    );
}
