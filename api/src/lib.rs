//! The read API over the unified view.
//!
//! The shape of the problem: an answer must be fast, so single rows are cached; it must be
//! true, so it says how far in each source it is, and a cached row must be the view's row at
//! just that position, however slow the reads and late the evictions. Rejected: a cache with a
//! time to live (wrong for that long), one that the feed of changes also fills (wrong for ever
//! where a slow read comes late), and asking the database whether a cached row still holds
//! (then the cache saves nothing).
//!
//! A request goes [`route`] → [`cache`] → [`query`]; [`middleware`] stands around all of them,
//! [`server`] around that. The feed, [`cache::feed`], runs beside.

pub mod cache;
pub mod config;
pub mod cursor;
pub mod instant;
pub mod key;
mod measure;
pub mod middleware;
pub mod parameters;
pub mod position;
pub mod problem;
pub mod query;
pub mod revision;
pub mod route;
pub mod server;

pub use measure::describe as describe_metrics;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use service::admin::{self, Health};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, feed};
use crate::config::Config;
use crate::parameters::Wanted;
use crate::position::Positions;
use crate::problem::Problem;
use crate::query::{View, ViewError, Waited, Waits};

/// What every request shares.
#[derive(Debug)]
pub struct Api {
    pub config: Config,
    pub view: View,
    pub cache: Cache,
    pub waits: Waits,
}

impl Api {
    /// Connects nothing yet.
    ///
    /// # Errors
    /// The way into the view's database is not known.
    pub fn new(config: Config) -> Result<Self, ViewError> {
        Ok(Self {
            view: View::new(&config.view, &config.sources)?,
            cache: Cache::new(&config.cache),
            waits: Waits::new(config.limits.waits_max),
            config,
        })
    }

    /// Waits until it is worth looking again for what is `wanted`; `reached` is how far the
    /// request has seen. See [`Waits::until`] for `feed`.
    async fn wait(
        &self,
        wanted: &Wanted,
        feed: Option<&Cache>,
        started: Instant,
        reached: &Arc<Positions>,
    ) -> Result<(), Problem> {
        let deadline = started + wanted.wait;
        match self.waits.until(&wanted.minimum, feed, deadline).await {
            Waited::Reached => Ok(()),
            Waited::Refused => Err(Problem::TooManyWaits),
            Waited::OutOfTime => Err(Problem::PositionNotReached {
                positions: reached.clone(),
                waited_ms: u64::try_from(wanted.wait.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }
}

/// Runs until `shutdown`, then drains.
///
/// # Errors
/// A configuration that does not work, a port that cannot be bound.
pub async fn run(
    config: Config,
    metrics: metrics_exporter_prometheus::PrometheusHandle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    measure::describe();
    let health = Health::default();
    let api = Arc::new(Api::new(config)?);
    let listener = server::bind(api.config.listen).await?;
    // What serves stops first; what it needs goes on until it has drained.
    let needed = CancellationToken::new();
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    tasks.spawn({
        let (api, needed) = (api.clone(), needed.clone());
        async move {
            feed::run(&api.config, &api.cache, &api.view, needed).await;
            Ok(())
        }
    });
    tasks.spawn({
        let (api, needed) = (api.clone(), needed.clone());
        let interval = Duration::from_millis(api.config.view.poll_interval_ms);
        async move {
            api.waits.poll(&api.view, interval, needed).await;
            Ok(())
        }
    });
    tasks.spawn({
        let (api, health, needed) = (api.clone(), health.clone(), needed.clone());
        async move {
            watch(&api, &health, needed).await;
            Ok(())
        }
    });
    tasks.spawn({
        let (admin, health, needed) = (api.config.admin.clone(), health.clone(), needed.clone());
        async move { Ok(admin::serve(admin, health, metrics, axum::Router::new(), needed).await?) }
    });
    let ended = tokio::select! {
        () = server::serve(listener, api.clone(), health, shutdown) => None,
        ended = tasks.join_next() => ended,
    };
    needed.cancel();
    if let Some(ended) = ended {
        ended.context("a task of the API panicked")??;
        anyhow::bail!("a task of the API ended before its time");
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task of the API panicked")??;
    }
    Ok(())
}

/// Looks often whether the view answers. Ready from the first answer on, and then also without
/// the database: cached rows are still served, and say that they may be stale.
async fn watch(api: &Api, health: &Health, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_millis(api.config.view.watch_interval_ms));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut was_ready, mut did_answer) = (false, true);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let position = api.cache.position();
        measure::feed_age(position.map(|position| position.taken.elapsed()));
        match api.view.positions().await {
            Ok(_) if !was_ready && !shutdown.is_cancelled() => {
                health.ready();
                was_ready = true;
                did_answer = true;
                tracing::info!("ready: the view answers");
            }
            Ok(_) if !did_answer => {
                did_answer = true;
                tracing::info!("the view answers again");
            }
            Ok(_) => {}
            Err(error) if did_answer => {
                did_answer = false;
                tracing::warn!(%error, "the view does not answer: {error}");
                if !was_ready {
                    health.not_ready("the view does not answer");
                }
            }
            Err(_) => {}
        }
    }
}
