//! What ends a life of the connector, and what becomes of it.

use std::fmt::Write as _;

use kafka::Lsn;
use kafka::follower::FollowerError;
use kafka::producer::ProducerError;
use kafka::producer::hanging::HangingError;
use kafka::topic::TopicError;
use service::fault::in_force;

use crate::check::CheckError;
use crate::encode::EncodeError;
use crate::progress::PartDiffers;
use crate::replication::ReplicationError;
use crate::source::SourceError;

/// Why a life ended; one variant for whom it was with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LifeError {
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    #[error(transparent)]
    Producer(#[from] ProducerError),
    #[error(transparent)]
    Topic(#[from] TopicError),
    #[error(transparent)]
    Follower(#[from] FollowerError),
    #[error(transparent)]
    Hanging(Box<HangingError>),
    #[error(
        "Kafka has committed what nobody can read after {waited_ms} ms: a marker is missing; a new \
         life ends what hangs"
    )]
    Hangs {
        waited_ms: u128,
        #[source]
        source: Box<TopicError>,
    },
    #[error("the advisory lock is lost: its session with the source ended")]
    LockLost,
    /// PostgreSQL 15 to 17. Later ones leave changes out instead; a look at the catalog tells.
    #[error(
        "the log has changes from when the publication {publication} did not exist, which no slot \
         can pass; the slot is given up, and a new epoch begins"
    )]
    PublicationUnseen {
        publication: String,
        #[source]
        source: ReplicationError,
    },
    #[error(
        "the change of {table} at {lsn}{} cannot be sent: {source}; on_undecodable is \"stop\": \
         with \"quarantine\" such a change goes to the quarantine topic, and the rest goes on",
        .key.as_ref().map(|key| format!(" with the key {key}")).unwrap_or_default()
    )]
    Undecodable {
        table: String,
        lsn: Lsn,
        key: Option<String>,
        #[source]
        source: EncodeError,
    },
    #[error("cannot encode a record of the quarantine")]
    Quarantine(#[source] serde_json::Error),
    #[error("a change of {table} lacks {column} of its primary key: the key was altered")]
    KeyAltered { table: String, column: String },
    #[error("a read view of {table} met another file of the table {tries} times")]
    TableKeepsMoving { table: String, tries: u32 },
    #[error(
        "the source has not flushed its WAL up to {lsn}, which a read showed, for {waited_ms} ms; \
         what was read is taken back and read again"
    )]
    NotFlushed { lsn: Lsn, waited_ms: u128 },
    #[error(
        "the replication slot {slot} made the source keep {bytes} bytes of WAL, more than \
         slot_wal_bytes_max ({bytes_max}): it is given up before it fills the owner's disk, and a \
         new epoch will read all tables again"
    )]
    SlotGivenUp {
        slot: String,
        bytes: u64,
        bytes_max: u64,
    },
    #[error(transparent)]
    PartDiffers(#[from] PartDiffers),
    #[error("epoch {epoch} ends by command")]
    EpochAsked { epoch: u64 },
    #[error("the stream broke its order: {0}")]
    Order(&'static str),
}

impl From<HangingError> for LifeError {
    fn from(error: HangingError) -> Self {
        Self::Hanging(Box::new(error))
    }
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// A new life after a while.
    TryAgain,
    /// Somebody has to put something right first: the process ends.
    Stop,
}

impl LifeError {
    /// The one place where it is decided.
    #[must_use]
    pub(crate) fn remedy(&self) -> Remedy {
        match self {
            Self::Check(CheckError::Faults(_)) => Remedy::Stop,
            Self::Topic(error) if error.is_setup() => Remedy::Stop,
            Self::Producer(error) if error.is_setup() => Remedy::Stop,
            Self::Hanging(error) if error.is_setup() => Remedy::Stop,
            Self::Undecodable { .. } | Self::Quarantine(_) => Remedy::Stop,
            // Whoever tries again meets the same bytes.
            Self::Replication(ReplicationError::Decode(_))
            | Self::Follower(FollowerError::Record { .. })
                if in_force("unreadable_stops") =>
            {
                Remedy::Stop
            }
            // What the source refuses for good, the next life's check says as a fault.
            Self::Check(CheckError::Source(_) | CheckError::NotNow(_))
            | Self::Source(_)
            | Self::Replication(_)
            | Self::Producer(_)
            | Self::Topic(_)
            | Self::Follower(_)
            | Self::Hanging(_)
            | Self::Hangs { .. }
            | Self::LockLost
            | Self::PublicationUnseen { .. }
            | Self::KeyAltered { .. }
            | Self::TableKeepsMoving { .. }
            | Self::NotFlushed { .. }
            | Self::SlotGivenUp { .. }
            | Self::EpochAsked { .. }
            | Self::PartDiffers(_)
            | Self::Order(_) => Remedy::TryAgain,
        }
    }

    /// The whole chain of reasons, each said once.
    #[must_use]
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            let reason = error.to_string();
            if !text.contains(&reason) {
                _ = write!(text, ": {reason}");
            }
            next = error.source();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::DecodeError;

    #[test]
    fn a_message_that_this_version_does_not_know_stops_it_with_the_way_out() {
        let unknown = ReplicationError::from(DecodeError::UnknownMessage('S'));
        let error = LifeError::from(unknown);
        assert_eq!(error.remedy(), Remedy::Stop);
        let said = error.chain();
        for part in [
            "no message 'S'",
            "start a version",
            "pg_drop_replication_slot",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }
}
