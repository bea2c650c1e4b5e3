//! A session in replication mode: the commands before the stream.

use std::time::Duration;

use kafka::Lsn;

use super::config::ReplicationConfig;
use super::error::{CommandError, ReplicationError};
use super::stream::ReplicationStream;

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
pub struct ReplicationClient {}

impl ReplicationClient {
    /// Connects, authenticates, and waits until the server takes commands.
    ///
    /// # Errors
    /// Where no host answers in time, or the server refuses the session.
    pub async fn connect(_config: &ReplicationConfig) -> Result<Self, ReplicationError> {
        std::future::ready(()).await;
        Err(ReplicationError::TlsUnsupported)
    }

    /// The server's version as it says it, `15.18 (Debian …)`.
    #[must_use]
    pub fn server_version(&self) -> &str {
        ""
    }

    /// The process that serves this session in the source (`pg_stat_replication.pid`).
    #[must_use]
    pub fn backend_pid(&self) -> i32 {
        0
    }

    /// IDENTIFY_SYSTEM.
    ///
    /// # Errors
    /// Where the server refuses, or does not answer in time.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        std::future::ready(()).await;
        Err(ReplicationError::IdentifySystem(CommandError::Closed))
    }

    /// TIMELINE_HISTORY: the timelines before `timeline`, oldest first. The first timeline has
    /// none, which is not asked.
    ///
    /// # Errors
    /// Where the server refuses, or does not answer in time.
    pub async fn timeline_history(
        &mut self,
        timeline: u32,
    ) -> Result<Vec<TimelineSwitch>, ReplicationError> {
        std::future::ready(()).await;
        Err(ReplicationError::TimelineHistory {
            timeline,
            source: CommandError::Closed,
        })
    }

    /// Makes a logical slot for `pgoutput` that exports no snapshot. The server waits for every
    /// transaction that runs now to end, so `timeout` is the caller's; once it is over, the
    /// server is asked to give up, too.
    ///
    /// # Errors
    /// Where the server refuses, or does not answer in time.
    pub async fn create_slot(
        &mut self,
        slot: &str,
        _timeout: Duration,
    ) -> Result<CreatedSlot, ReplicationError> {
        std::future::ready(()).await;
        Err(ReplicationError::CreateSlot {
            slot: slot.to_owned(),
            source: CommandError::Closed,
        })
    }

    /// Drops a slot that nobody uses.
    ///
    /// # Errors
    /// Where the server refuses (42704: there is none; 55006: somebody uses it), or does not
    /// answer in time.
    pub async fn drop_slot(&mut self, slot: &str) -> Result<(), ReplicationError> {
        std::future::ready(()).await;
        Err(ReplicationError::DropSlot {
            slot: slot.to_owned(),
            source: CommandError::Closed,
        })
    }

    /// Takes the slot and streams what it has not had confirmed yet of the tables of
    /// `publication`. Must run inside a tokio runtime: it spawns the reader and the status task.
    ///
    /// # Errors
    /// Where the server refuses (55006: somebody uses the slot; 42704: there is none), or does
    /// not answer in time.
    pub async fn start(
        self,
        slot: &str,
        _publication: &str,
    ) -> Result<ReplicationStream, ReplicationError> {
        std::future::ready(()).await;
        Err(ReplicationError::StartReplication {
            slot: slot.to_owned(),
            source: CommandError::Closed,
        })
    }
}
