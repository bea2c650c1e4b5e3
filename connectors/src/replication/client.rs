//! A session in replication mode: the commands before the stream.

use std::time::Duration;

use bytes::Bytes;
use kafka::Lsn;

use super::config::ReplicationConfig;
use super::error::{CommandError, ReplicationError};
use super::session::{Row, Session};
use super::stream::ReplicationStream;

/// The version from which on replicas can take over logical slots.
const FAILOVER_SLOTS_SINCE: u32 = 17;

/// Asks for the time at which the server was started.
pub const SERVER_STARTED: &str = "SELECT pg_postmaster_start_time()";

/// What IDENTIFY_SYSTEM answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's unique number, decimal.
    pub system_identifier: String,
    pub timeline: u32,
    /// How far the WAL is flushed.
    pub flushed: Lsn,
}

/// A past timeline and where the next one left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineSwitch {
    pub timeline: u32,
    pub switched_at: Lsn,
}

/// A replication slot that was just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    pub name: String,
    /// Transactions that commit after it are in the slot's stream, the others are not.
    pub consistent_point: Lsn,
}

/// A replication connection that does not stream yet. Dropping it closes it.
#[derive(Debug)]
pub struct ReplicationClient {
    session: Session,
    config: ReplicationConfig,
}

impl ReplicationClient {
    /// Connects, authenticates, and waits until the server takes commands.
    ///
    /// # Errors
    /// Where no host answers in time, or the server refuses the session.
    pub async fn connect(config: &ReplicationConfig) -> Result<Self, ReplicationError> {
        Ok(Self {
            session: Session::connect(config).await?,
            config: config.clone(),
        })
    }

    /// The server's version as it says it, `15.18 (Debian …)`.
    #[must_use]
    pub fn server_version(&self) -> &str {
        &self.session.server_version
    }

    /// The process that serves this session in the source (`pg_stat_replication.pid`).
    #[must_use]
    pub fn backend_pid(&self) -> i32 {
        self.session.backend_pid
    }

    /// IDENTIFY_SYSTEM.
    ///
    /// # Errors
    /// Where the server refuses, or does not answer in time.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let answer = self
            .session
            .query("IDENTIFY_SYSTEM", self.config.command_timeout)
            .await;
        answer
            .and_then(|rows| {
                let row = one_row(rows)?;
                Ok(SystemIdentity {
                    system_identifier: text(&row, 0)?.to_owned(),
                    timeline: parsed(&row, 1)?,
                    flushed: parsed(&row, 2)?,
                })
            })
            .map_err(ReplicationError::IdentifySystem)
    }

    /// When the server was started: no two servers of a cluster say the same microsecond.
    ///
    /// # Errors
    /// Where the server refuses, or does not answer in time.
    pub async fn server_started(&mut self) -> Result<String, ReplicationError> {
        let answer = self
            .session
            .query(SERVER_STARTED, self.config.command_timeout)
            .await;
        answer
            .and_then(|rows| Ok(text(&one_row(rows)?, 0)?.to_owned()))
            .map_err(ReplicationError::IdentifySystem)
    }

    /// TIMELINE_HISTORY: the timelines before `timeline`, oldest first. The first timeline has
    /// no history, and the server is not asked for it.
    ///
    /// # Errors
    /// Where the server refuses, or does not answer in time.
    pub async fn timeline_history(
        &mut self,
        timeline: u32,
    ) -> Result<Vec<TimelineSwitch>, ReplicationError> {
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let command = format!("TIMELINE_HISTORY {timeline}");
        let answer = self
            .session
            .query(&command, self.config.command_timeout)
            .await;
        answer
            .and_then(|rows| history(text(&one_row(rows)?, 1)?))
            .map_err(|source| ReplicationError::TimelineHistory { timeline, source })
    }

    /// Makes a logical slot for `pgoutput` that exports no snapshot. The server waits for every
    /// transaction that runs now to end, so `limit` is the caller's; once it is over, the
    /// server is asked to give up, too, and keeps no half-made slot.
    ///
    /// # Errors
    /// Where the server refuses (42710: there is one already), or is not done in time.
    pub async fn create_slot(
        &mut self,
        slot: &str,
        limit: Duration,
    ) -> Result<CreatedSlot, ReplicationError> {
        // A replica that synchronizes slots has it, too, and a failover goes on with it.
        let failover = if self.session.major_version() >= FAILOVER_SLOTS_SINCE {
            ", FAILOVER true"
        } else {
            ""
        };
        let command = format!(
            "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'nothing'{failover})",
            identifier(slot)
        );
        let answer = self.session.query_or_cancel(&command, limit).await;
        answer
            .and_then(|rows| {
                let row = one_row(rows)?;
                Ok(CreatedSlot {
                    name: text(&row, 0)?.to_owned(),
                    consistent_point: parsed(&row, 1)?,
                })
            })
            .map_err(|source| ReplicationError::CreateSlot {
                slot: slot.to_owned(),
                source,
            })
    }

    /// Drops a slot that nobody uses.
    ///
    /// # Errors
    /// Where the server refuses (42704: there is none; 55006: somebody uses it), or does not
    /// answer in time.
    pub async fn drop_slot(&mut self, slot: &str) -> Result<(), ReplicationError> {
        let command = format!("DROP_REPLICATION_SLOT {}", identifier(slot));
        let answer = self
            .session
            .query(&command, self.config.command_timeout)
            .await;
        answer
            .map(|_| ())
            .map_err(|source| ReplicationError::DropSlot {
                slot: slot.to_owned(),
                source,
            })
    }

    /// Takes the slot and streams what it has not had confirmed yet of the tables of
    /// `publication`. Must run inside a tokio runtime: it spawns the reader and the status task.
    ///
    /// The server does not say whether the publication exists before the first change.
    ///
    /// # Errors
    /// Where the server refuses (55006: somebody uses the slot; 42704: there is none), or does
    /// not answer in time.
    pub async fn start(
        mut self,
        slot: &str,
        publication: &str,
    ) -> Result<ReplicationStream, ReplicationError> {
        // From 0/0 means from where the slot is: a higher LSN would only skip, silently.
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {})",
            identifier(slot),
            literal(&identifier(publication))
        );
        self.session
            .start_copy(&command, self.config.command_timeout)
            .await
            .map_err(|source| ReplicationError::StartReplication {
                slot: slot.to_owned(),
                source,
            })?;
        Ok(ReplicationStream::spawn(
            self.session.transport,
            self.session.input,
            &self.config,
        ))
    }
}

/// A name as the replication grammar takes any.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as the replication grammar takes it: without escapes, so a backslash is itself.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn one_row(rows: Vec<Row>) -> Result<Row, CommandError> {
    let count = rows.len();
    match <[Row; 1]>::try_from(rows) {
        Ok([row]) => Ok(row),
        Err(_) => Err(CommandError::Protocol(format!(
            "{count} rows instead of one"
        ))),
    }
}

fn text(row: &[Option<Bytes>], column: usize) -> Result<&str, CommandError> {
    row.get(column)
        .and_then(Option::as_deref)
        .and_then(|value| std::str::from_utf8(value).ok())
        .ok_or_else(|| CommandError::Protocol(format!("no text in column {column} of the answer")))
}

fn parsed<T: std::str::FromStr>(row: &[Option<Bytes>], column: usize) -> Result<T, CommandError> {
    let value = text(row, column)?;
    value
        .parse()
        .map_err(|_| CommandError::Protocol(format!("{value:?} in column {column} of the answer")))
}

/// A timeline history file: a line a switch, its fields parted by blanks; the third is a
/// comment. Source: PostgreSQL's `readTimeLineHistory`.
fn history(file: &str) -> Result<Vec<TimelineSwitch>, CommandError> {
    file.lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let switch = fields.next().zip(fields.next());
            switch
                .and_then(|(timeline, lsn)| {
                    Some(TimelineSwitch {
                        timeline: timeline.parse().ok()?,
                        switched_at: lsn.parse().ok()?,
                    })
                })
                .ok_or_else(|| CommandError::Protocol(format!("timeline history line {line:?}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_history_is_read() {
        let file = "1\t0/16B3748\tno recovery target specified\n\n# by hand\n\
                    2\t1/A0000000\tbefore 2026-01-01 00:00:00+00\n";
        assert_eq!(
            history(file).unwrap(),
            [
                TimelineSwitch {
                    timeline: 1,
                    switched_at: Lsn(0x16B_3748)
                },
                TimelineSwitch {
                    timeline: 2,
                    switched_at: Lsn(0x1_A000_0000)
                },
            ]
        );
        assert!(history("1 nowhere").is_err());
        assert!(history("").unwrap().is_empty());
    }

    #[test]
    fn names_are_quoted_for_the_replication_grammar() {
        assert_eq!(identifier("plain"), "\"plain\"");
        assert_eq!(
            literal(&identifier("o'dd \"one\"")),
            "'\"o''dd \"\"one\"\"\"'"
        );
    }
}
