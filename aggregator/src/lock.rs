//! The advisory lock: one aggregator writes, the others wait.
//!
//! The lock belongs to a session that the server ends when nothing was heard for a while. A
//! paused or cut off holder thus loses it without anybody having to reach it; what it may
//! still do when it comes back is stopped by the fence.

use std::time::Duration;

use service::admin::Health;

use crate::config::ViewConfig;
use crate::failure::Failure;
use crate::session::Session;

/// `tributary` in ASCII, cut to 64 bits.
const KEY: i64 = 0x7472_6962_7574_6172;
/// How often a standby asks for the lock.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// The lock, as long as this lives and [`Lock::keep`] runs.
#[derive(Debug)]
pub(crate) struct Lock {
    session: Session,
    silence_max: Duration,
}

impl Lock {
    /// Waits until no other aggregator holds it.
    pub(crate) async fn acquire(
        view: &ViewConfig,
        silence_max: Duration,
        health: &Health,
    ) -> Result<Self, Failure> {
        let settings = [format!(
            "idle_session_timeout = {}",
            silence_max.as_millis()
        )];
        let session = Session::open(view, "aggregator lock", &settings).await?;
        let mut waits = false;
        loop {
            let got: bool = session
                .client
                .query_one("SELECT pg_try_advisory_lock($1)", &[&KEY])
                .await
                .and_then(|row| row.try_get(0))
                .map_err(Failure::database("ask for the view database's lock"))?;
            if got {
                tracing::info!("holds the view database's lock");
                return Ok(Self {
                    session,
                    silence_max,
                });
            }
            if !waits {
                waits = true;
                tracing::info!("standby: another aggregator holds the lock");
                health.not_ready("standby: another aggregator holds the lock");
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Speaks often enough to keep the session; returns when the lock may be lost.
    pub(crate) async fn keep(&self) -> Failure {
        let every = self.silence_max / 5;
        loop {
            tokio::time::sleep(every).await;
            let answer = self.session.client.simple_query("SELECT 1");
            match tokio::time::timeout(self.silence_max, answer).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return Failure::LockLost,
            }
        }
    }
}
