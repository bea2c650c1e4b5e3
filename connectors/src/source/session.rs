//! One SQL session with the source.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, pin_mut};
use links::{AccessError, Endpoint};
use service::fault::in_force;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, CopyOutStream, SimpleQueryMessage, SimpleQueryRow};
use tokio_util::task::AbortOnDropHandle;

use crate::replication::{SERVER_STARTED, SESSION_SETTINGS, addresses};

/// For an answer, where nobody says otherwise.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Takes longer than a request to cancel is on its way.
const CANCELLED_INSTEAD: &str = "SELECT pg_sleep(1)";

/// A query of the source failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Endpoint(#[from] AccessError),
    #[error("cannot connect to the source at {address}: {}", reason(.source))]
    Connect {
        address: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("cannot connect to the source at {address}: no answer within {} ms", .timeout.as_millis())]
    ConnectTimeout { address: String, timeout: Duration },
    #[error("cannot {doing}: {}", reason(.source))]
    Query {
        doing: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("cannot {doing}: no answer within {} ms", .timeout.as_millis())]
    Timeout {
        doing: &'static str,
        timeout: Duration,
    },
    #[error(
        "two sessions with the source reached two servers; a failover is under way, or \
         postgres.url names a host that stands for several"
    )]
    OtherServer,
    #[error("cannot {doing}: the source answered something else")]
    Answer { doing: &'static str },
}

impl SourceError {
    /// What the server said, if it spoke.
    #[must_use]
    pub fn sql_state(&self) -> Option<&SqlState> {
        match self {
            Self::Connect { source, .. } | Self::Query { source, .. } => source.code(),
            Self::Endpoint(_)
            | Self::ConnectTimeout { .. }
            | Self::Timeout { .. }
            | Self::OtherServer
            | Self::Answer { .. } => None,
        }
    }

    /// Was a lock of the source's in the way?
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.sql_state().is_some_and(|state| {
            [
                SqlState::LOCK_NOT_AVAILABLE,
                SqlState::T_R_SERIALIZATION_FAILURE,
                SqlState::T_R_DEADLOCK_DETECTED,
            ]
            .contains(state)
        })
    }

    /// Is the session of no use any more? The connection broke, or the server ended it.
    #[must_use]
    pub fn is_of_the_session(&self) -> bool {
        match self {
            Self::Query { source, .. } => source
                .code()
                .is_none_or(|state| ["57P", "08"].iter().any(|c| state.code().starts_with(c))),
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Timeout { .. }
            | Self::OtherServer => true,
            Self::Endpoint(_) | Self::Answer { .. } => false,
        }
    }

    /// Did the server refuse the statement, and would again?
    #[must_use]
    pub fn is_of_the_statement(&self) -> bool {
        self.sql_state().is_some() && !self.is_of_the_session() && !self.is_locked()
    }

    /// Was the statement ended, by its limit or by a request?
    fn is_cancelled(&self) -> bool {
        self.sql_state() == Some(&SqlState::QUERY_CANCELED)
    }

    /// Does the read only have to step back and come again? A lock of the source's was in the
    /// way, or what was to be read was altered since its snapshot.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        let altered = [SqlState::UNDEFINED_COLUMN, SqlState::UNDEFINED_TABLE];
        self.is_locked()
            || self
                .sql_state()
                .is_some_and(|state| altered.contains(state))
    }
}

/// A server's own message instead of tokio-postgres' "db error"; never its detail, which may
/// hold values.
fn reason(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(server) => format!("{} ({})", server.message(), server.code().code()),
        None => {
            let mut text = error.to_string();
            if let Some(cause) = std::error::Error::source(error) {
                _ = write!(text, ": {cause}");
            }
            text
        }
    }
}

/// A session whose values have the same text as the log's.
#[derive(Debug)]
pub struct Session {
    client: Client,
    /// Where it leads, for whoever cancels a statement.
    endpoint: Endpoint,
    /// A statement that is not answered within this time never will be: the connection is
    /// half-open, or the server stands still.
    answer_max: Duration,
    /// Aborted with the session: the server sees the connection close.
    _connection: AbortOnDropHandle<()>,
}

impl Session {
    /// Connects and applies [`SESSION_SETTINGS`], then `settings`.
    ///
    /// # Errors
    /// Where the server cannot be reached in time or refuses.
    pub async fn connect(
        endpoint: &Endpoint,
        settings: &[(&str, String)],
    ) -> Result<Self, SourceError> {
        let timeout = endpoint
            .get_connect_timeout()
            .copied()
            .unwrap_or(Duration::from_secs(5));
        tokio::time::timeout(timeout, Self::connect_now(endpoint, settings))
            .await
            .map_err(|_| SourceError::ConnectTimeout {
                address: addresses(endpoint),
                timeout,
            })?
    }

    async fn connect_now(
        endpoint: &Endpoint,
        settings: &[(&str, String)],
    ) -> Result<Self, SourceError> {
        let refused = |source| SourceError::Connect {
            address: addresses(endpoint),
            source,
        };
        let (client, connection) = endpoint.connect().await.map_err(refused)?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // The session's next query fails with the reason; here nobody waits for it.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a session with the source ended");
            }
        }));
        let mut sql = String::from("SET standard_conforming_strings = on; SET row_security = off;");
        let ours = SESSION_SETTINGS.iter().map(|(k, v)| (*k, (*v).to_owned()));
        for (name, value) in ours.chain(settings.iter().cloned()) {
            _ = write!(sql, "SET {name} = {};", literal(&value));
        }
        client.batch_execute(&sql).await.map_err(refused)?;
        Ok(Self {
            client,
            endpoint: endpoint.clone(),
            answer_max: ANSWER_MAX,
            _connection: connection,
        })
    }

    /// The same session, with another limit for each answer.
    #[must_use]
    pub fn answering_within(self, answer_max: Duration) -> Self {
        Self { answer_max, ..self }
    }

    /// The limit for each answer.
    #[must_use]
    pub fn answer_max(&self) -> Duration {
        self.answer_max
    }

    async fn answer<T>(
        &self,
        doing: &'static str,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, SourceError> {
        let timeout = if in_force("answers_bounded") {
            self.answer_max
        } else {
            Duration::MAX
        };
        tokio::time::timeout(timeout, asked)
            .await
            .map_err(|_| SourceError::Timeout { doing, timeout })?
            .map_err(|source| SourceError::Query { doing, source })
    }

    /// When the server was started: no two servers of a cluster say the same microsecond.
    ///
    /// # Errors
    /// As [`Session::rows`].
    pub async fn server_started(&self) -> Result<String, SourceError> {
        let doing = "ask which server this is";
        let row = self.row(doing, SERVER_STARTED).await?;
        get(doing, &row, 0)
    }

    /// Rows of one statement, or of several one after the other.
    ///
    /// # Errors
    /// Where a statement fails or the connection is lost.
    pub async fn rows(
        &self,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<SimpleQueryRow>, SourceError> {
        let messages = self.answer(doing, self.client.simple_query(sql)).await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            })
            .collect())
    }

    /// The one row of a statement.
    ///
    /// # Errors
    /// As [`Session::rows`], and where there is none.
    pub async fn row(&self, doing: &'static str, sql: &str) -> Result<SimpleQueryRow, SourceError> {
        self.rows(doing, sql)
            .await?
            .into_iter()
            .next()
            .ok_or(SourceError::Answer { doing })
    }

    /// What a `COPY … TO STDOUT` sends.
    ///
    /// # Errors
    /// Where it is refused or the connection is lost; what fails later shows in the stream, whose
    /// items come within [`Session::answer_max`] each.
    pub async fn copy(&self, doing: &'static str, sql: &str) -> Result<CopyOutStream, SourceError> {
        self.answer(doing, self.client.copy_out(sql)).await
    }

    /// Ends a COPY before its end: what the server has sent already is thrown away. The transaction
    /// has failed then, and is to be rolled back, at least to a savepoint.
    ///
    /// # Errors
    /// Where the server does not answer, or the connection is lost.
    pub async fn stop(
        &self,
        doing: &'static str,
        lines: impl Stream<Item = Result<Bytes, tokio_postgres::Error>>,
    ) -> Result<(), SourceError> {
        let cancelled = self.endpoint.cancel(&self.client);
        // Where it cannot be told, the statement comes to its end by itself.
        let mut is_told = match tokio::time::timeout(self.answer_max, cancelled).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot cancel a statement");
                false
            }
            Err(_) => false,
        };
        pin_mut!(lines);
        loop {
            let next = async { lines.next().await.transpose() };
            match self.answer(doing, next).await {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) if error.is_cancelled() => {
                    is_told = false;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if is_told {
            // It had ended before: this one is the next.
            match self.execute(doing, CANCELLED_INSTEAD).await {
                Err(error) if !error.is_cancelled() => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Has one statement parsed and planned, not executed.
    ///
    /// # Errors
    /// Where it is none, names what is not there, or the connection is lost.
    pub async fn prepare(&self, doing: &'static str, sql: &str) -> Result<(), SourceError> {
        self.answer(doing, self.client.prepare(sql)).await.map(drop)
    }

    /// Statements without an answer.
    ///
    /// # Errors
    /// Where one fails or the connection is lost.
    pub async fn execute(&self, doing: &'static str, sql: &str) -> Result<(), SourceError> {
        self.answer(doing, self.client.batch_execute(sql)).await
    }
}

/// A column of a row, parsed.
///
/// # Errors
/// Where it is NULL or does not parse.
pub fn get<T: std::str::FromStr>(
    doing: &'static str,
    row: &SimpleQueryRow,
    column: usize,
) -> Result<T, SourceError> {
    text(row, column)
        .and_then(|text| text.parse().ok())
        .ok_or(SourceError::Answer { doing })
}

/// A column of a row as text; none where it is NULL (or no text in UTF-8).
#[must_use]
pub fn text(row: &SimpleQueryRow, column: usize) -> Option<&str> {
    row.try_get(column).ok().flatten()
}

/// A column of a row as it is; none where it is NULL. The bytes of what is no UTF-8 are not to be
/// had from a [`SimpleQueryRow`]: something stands for them that is none, either.
#[must_use]
pub fn value(row: &SimpleQueryRow, column: usize) -> Option<&[u8]> {
    match row.try_get(column) {
        Ok(text) => text.map(str::as_bytes),
        Err(_) => Some(b"\xff"),
    }
}

/// A string constant.
#[must_use]
pub fn literal(text: &str) -> String {
    // The session's standard_conforming_strings is on: a quote is all that has to be doubled.
    format!("'{}'", text.replace('\'', "''"))
}

/// A name, quoted.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
