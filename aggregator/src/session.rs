//! Sessions of the view database: each ends when its owner is silent for too long, so that a
//! paused process keeps neither the lock nor a row.

use std::time::Duration;

use links::Access;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::config::{SourceConfig, ViewConfig};
use crate::failure::{Failure, in_words};

/// How long to wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The oldest server with `RETURNING old, new`.
const VERSION_MIN: i32 = 180_000;

/// One connection; it closes when this is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    connection: JoinHandle<()>,
}

impl Drop for Session {
    /// Closed here and now: the server then rolls back, and frees locks.
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    /// Connects to the view database with these settings (`name = value`, for SET).
    pub(crate) async fn open(
        view: &ViewConfig,
        application_name: &str,
        settings: &[String],
    ) -> Result<Self, Failure> {
        let doing = Failure::database("connect to the view database");
        let session = Self::connect(view.access(), application_name, doing).await?;
        session.is_new_enough().await?;
        session.set(settings).await?;
        Ok(session)
    }

    /// Connects to a source with these settings.
    pub(crate) async fn open_source(
        config: &SourceConfig,
        source: &str,
        application_name: &str,
        settings: &[String],
    ) -> Result<Self, Failure> {
        let section = format!("verify.sources.{source}");
        let doing = |error: tokio_postgres::Error| {
            Failure::Prerequisite(format!(
                "cannot connect to {source}: {}; see {section}",
                error
                    .as_db_error()
                    .map_or_else(|| in_words(&error), |refusal| refusal.message().to_owned())
            ))
        };
        let access = config.access(&section);
        let session = Self::connect(access, application_name, doing).await?;
        session.set(settings).await?;
        Ok(session)
    }

    async fn connect(
        access: Access<'_>,
        application_name: &str,
        refused: impl FnOnce(tokio_postgres::Error) -> Failure,
    ) -> Result<Self, Failure> {
        let endpoint = access.endpoint();
        let mut endpoint = endpoint.map_err(|error| Failure::Prerequisite(error.to_string()))?;
        endpoint
            .postgres_mut()
            .application_name(application_name)
            .connect_timeout(CONNECT_MAX)
            .tcp_user_timeout(2 * CONNECT_MAX);
        let (client, connection) = tokio::time::timeout(2 * CONNECT_MAX, endpoint.connect())
            .await
            .map_err(|_| Failure::Silent)?
            .map_err(refused)?;
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a session ended");
            }
        });
        Ok(Self { client, connection })
    }

    async fn is_new_enough(&self) -> Result<(), Failure> {
        let version: i32 = self
            .client
            .query_one("SELECT current_setting('server_version_num')::int", &[])
            .await
            .and_then(|row| row.try_get(0))
            .map_err(Failure::database("ask the view database for its version"))?;
        if version < VERSION_MIN {
            return Err(Failure::Prerequisite(format!(
                "the view database is PostgreSQL {}, older than 18; point view.url to a newer server",
                version / 10_000
            )));
        }
        Ok(())
    }

    async fn set(&self, settings: &[String]) -> Result<(), Failure> {
        let set = settings.iter().map(|setting| format!("SET {setting};"));
        self.client
            .batch_execute(&set.collect::<String>())
            .await
            .map_err(Failure::database("prepare a session"))
    }
}
