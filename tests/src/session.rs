//! A connection of somebody who goes on when the server was restarted.

use std::time::{Duration, Instant};

use anyhow::Result;
use fixtures::connect;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// How long a server may be away.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// Between two attempts to connect.
const PACE: Duration = Duration::from_millis(50);

/// A database, and a connection while there is one.
#[derive(Debug)]
pub struct Session {
    url: String,
    client: Option<Client>,
    away_since: Option<Instant>,
}

impl Session {
    /// Connects when it is first used.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            client: None,
            away_since: None,
        }
    }

    /// A connection; none, after a moment, while the server is away.
    ///
    /// # Errors
    /// Where it stays away.
    pub async fn client(&mut self) -> Result<Option<&mut Client>> {
        if self.client.is_none() {
            match connect(&self.url).await {
                Ok(client) => self.client = Some(client),
                Err(error) => {
                    tokio::time::sleep(PACE).await;
                    self.away(error)?;
                }
            }
        }
        Ok(self.client.as_mut())
    }

    /// What came of work with the connection. None where the server went away: whether a commit on
    /// its way reached it is then not known.
    ///
    /// # Errors
    /// Where it failed for another reason, or the server stays away.
    pub fn settle<T>(&mut self, done: Result<T>) -> Result<Option<T>> {
        match done {
            Ok(done) => {
                self.away_since = None;
                Ok(Some(done))
            }
            Err(error) if is_of_the_server(&error) => self.away(error).map(|()| None),
            Err(error) => Err(error),
        }
    }

    fn away(&mut self, error: anyhow::Error) -> Result<()> {
        self.client = None;
        if self.away_since.get_or_insert_with(Instant::now).elapsed() > BACK_WITHIN {
            return Err(error.context("the server stays away"));
        }
        Ok(())
    }
}

/// Has the connection ended, or the disk no room, rather than a statement failed?
fn is_of_the_server(error: &anyhow::Error) -> bool {
    let mut of_postgres = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    of_postgres.any(|error| {
        let ended = [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::DISK_FULL,
        ];
        match error.code() {
            Some(code) => ended.contains(code),
            None => error.is_closed() || has_io_error(error),
        }
    })
}

fn has_io_error(error: &tokio_postgres::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<std::io::Error>() {
            return true;
        }
        source = cause.source();
    }
    false
}
