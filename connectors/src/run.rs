//! The process: lives, one after the other, until it is told to stop.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use kafka::topic::TopicError;
use kafka::topic::examine::trouble;
use links::backoff::Backoff;
use metrics::counter;
use service::{admin, shutdown, telemetry};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::check::{CheckError, Fault, Finding, check};
use crate::config::ConnectorConfig;
use crate::error::{LifeError, Remedy};
use crate::life::live;
use crate::status::{State, StatusBoard, names};
use crate::watch::{Activity, watch};

/// Waits between lives.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A life that lasted so long was a success: the next failure waits little again.
const SUCCESS: Duration = Duration::from_secs(10);

/// Told to stop, a life may end what it is doing, so long at most.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// The command `run`: telemetry, admin port, lives.
///
/// # Errors
/// Where logs, signals or the admin port fail.
pub async fn serve(config: &ConnectorConfig) -> anyhow::Result<ExitCode> {
    let metrics = telemetry::start(&config.log)?;
    let (shutdown, health) = (shutdown::on_signal()?, admin::Health::default());
    let status = StatusBoard::new(&config.source, health.clone());
    let served = tokio::spawn(admin::serve(
        config.admin.clone(),
        health,
        metrics,
        status.router(),
        shutdown.clone(),
    ));
    // A task, not a part of the main thread: then a worker that waits for the source's socket runs
    // the stream's reader and the life itself. A wake-up across threads for every few rows costs
    // more than the rows. In a set, so that it ends with this function.
    let mut life = JoinSet::new();
    let config = config.clone();
    life.spawn(async move { run(&config, &status, &shutdown).await });
    tokio::select! {
        Some(ended) = life.join_next() => {
            Ok(ended?.map_or_else(|faults| stopped(&faults), |()| ExitCode::SUCCESS))
        }
        served = served => served?.map(|()| ExitCode::SUCCESS).map_err(Into::into),
    }
}

/// Somebody has to put something right first: a sentence each, exit code 2.
#[must_use]
pub fn stopped(faults: &[Fault]) -> ExitCode {
    for fault in faults {
        eprintln!("error: {fault}");
    }
    ExitCode::from(2)
}

/// Lives until `shutdown`.
///
/// # Errors
/// What somebody has to put right before another try makes sense, a sentence each.
pub async fn run(
    config: &ConnectorConfig,
    status: &StatusBoard,
    shutdown: &CancellationToken,
) -> Result<(), Vec<Fault>> {
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    let mut warned = Vec::new();
    let stall = Duration::from_millis(config.stream.stall_ms);
    let _watch = AbortOnDropHandle::new(tokio::spawn(watch(status.clone(), stall)));
    loop {
        let begun = Instant::now();
        let ended = tokio::select! {
            ended = checked_life(config, status, shutdown, &mut warned) => ended,
            () = drained(shutdown) => Ok(()),
        };
        let error = match ended {
            Ok(()) => return Ok(()),
            Err(_) if shutdown.is_cancelled() => return Ok(()),
            Err(error) => error,
        };
        let mut reason = error.chain();
        // A client of Kafka only knows that nothing came of it.
        if let LifeError::Topic(TopicError::Ask { .. }) = &error
            && let Some(trouble) = trouble(&config.kafka).await
        {
            reason = format!("{reason}; {trouble}");
        }
        match error.remedy() {
            Remedy::Stop => return Err(faults(error)),
            Remedy::TryAgain => {
                if begun.elapsed() > SUCCESS {
                    backoff.reset();
                }
                let wait = backoff.wait();
                tracing::warn!(
                    error = reason,
                    wait_ms = wait.as_millis(),
                    "{reason}; trying again"
                );
                counter!(names::RETRIES).increment(1);
                status.set(State::Connecting, Some(reason));
                status.motion().begin(Activity::Resting);
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = shutdown.cancelled() => return Ok(()),
                }
            }
        }
    }
}

async fn checked_life(
    config: &ConnectorConfig,
    status: &StatusBoard,
    shutdown: &CancellationToken,
    warned: &mut Vec<Finding>,
) -> Result<(), LifeError> {
    status.motion().begin(Activity::Checking);
    let warnings = check(config).await?;
    // Said once, not by every life.
    for warning in warnings.iter().filter(|warning| !warned.contains(warning)) {
        tracing::warn!(code = warning.code, "{warning}");
    }
    *warned = warnings;
    Box::pin(live(config, status, shutdown)).await
}

async fn drained(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(DRAIN_MAX).await;
}

fn faults(error: LifeError) -> Vec<Fault> {
    match error {
        LifeError::Check(CheckError::Faults(faults) | CheckError::NotNow(faults)) => faults,
        error => vec![Fault(error.chain())],
    }
}
