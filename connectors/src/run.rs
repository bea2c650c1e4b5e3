//! The process: lives, one after the other, until it is told to stop.

use std::time::{Duration, Instant};

use service::backoff::Backoff;
use tokio_util::sync::CancellationToken;

use crate::config::ConnectorConfig;
use crate::error::{LifeError, Remedy};
use crate::life::live;
use crate::source::check::{CheckError, Fault, check};
use crate::status::{State, StatusBoard};

/// Waits between lives.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A life that lasted so long was a success: the next failure waits little again.
const SUCCESS: Duration = Duration::from_secs(10);

/// Told to stop, a life may end what it is doing, so long at most.
const DRAIN_MAX: Duration = Duration::from_secs(5);

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
    loop {
        let begun = Instant::now();
        let ended = tokio::select! {
            ended = checked_life(config, status, shutdown) => ended,
            () = drained(shutdown) => Ok(()),
        };
        let error = match ended {
            Ok(()) => return Ok(()),
            Err(_) if shutdown.is_cancelled() => return Ok(()),
            Err(error) => error,
        };
        let reason = error.chain();
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
                status.set(State::Connecting, Some(reason));
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
) -> Result<(), LifeError> {
    check(config).await?;
    Box::pin(live(config, status, shutdown)).await
}

async fn drained(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(DRAIN_MAX).await;
}

fn faults(error: LifeError) -> Vec<Fault> {
    match error {
        LifeError::Check(CheckError::Faults(faults)) => faults,
        error => vec![Fault(error.chain())],
    }
}
