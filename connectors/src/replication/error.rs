//! What can fail between us and a source, and what is worth another try.

use std::io;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::decode::DecodeError;

/// Why replication did not start or went on no longer; one variant an operation.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    #[error("the source's URL does not parse: {0}")]
    Url(#[source] tokio_postgres::Error),
    #[error("the source's URL lacks {0}; write it as postgres://user:password@host:port/database")]
    UrlIncomplete(&'static str),
    #[error("cannot connect to the source at {address}: {source}")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("no replication session at {address}: {source}")]
    Startup {
        address: String,
        #[source]
        source: CommandError,
    },
    #[error("the source asks for a password of user {user}, but its URL has none")]
    PasswordMissing { user: String },
    #[error(
        "the source asks for {method} authentication; only scram-sha-256, md5, password and trust are supported"
    )]
    AuthenticationMethod { method: &'static str },
    #[error("the source failed to prove that it knows the password: {0}")]
    Scram(#[source] io::Error),
    #[error("cannot identify the source: {0}")]
    IdentifySystem(#[source] CommandError),
    #[error("cannot read the history of the source's timeline {timeline}: {source}")]
    TimelineHistory {
        timeline: u32,
        #[source]
        source: CommandError,
    },
    #[error("cannot create the replication slot {slot}: {source}")]
    CreateSlot {
        slot: String,
        #[source]
        source: CommandError,
    },
    #[error("cannot drop the replication slot {slot}: {source}")]
    DropSlot {
        slot: String,
        #[source]
        source: CommandError,
    },
    #[error("cannot start replication from the slot {slot}: {source}")]
    StartReplication {
        slot: String,
        #[source]
        source: CommandError,
    },
    #[error("the source ended the replication stream: {0}")]
    Stream(#[source] CommandError),
    #[error("cannot report the position to the source: {0}")]
    Feedback(#[source] io::Error),
    #[error(
        "cannot decode a message of the replication stream: {0}; start a version of the connector \
         that knows this version of PostgreSQL; if there is none, stop it and let the owner run \
         SELECT pg_drop_replication_slot('…'): the next start reads all tables again"
    )]
    Decode(#[from] DecodeError),
}

/// How an exchange with the server failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("{0}")]
    Server(#[source] Box<ServerError>),
    #[error("the connection broke: {0}")]
    Io(#[source] io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server ended the stream, as it does when it shuts down")]
    Ended,
    #[error("the server said nothing for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("a message of {bytes} bytes is above the limit of {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
}

/// An ErrorResponse of the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{severity} {}: {message}{}{}", .code.code(), suffix(.detail.as_deref()), suffix(.hint.as_deref()))]
pub struct ServerError {
    pub severity: String,
    pub code: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

fn suffix(text: Option<&str>) -> String {
    text.map(|text| format!("; {text}")).unwrap_or_default()
}

impl ReplicationError {
    /// May the same thing work later, with nothing changed but time? If not, somebody has to
    /// change the configuration, the source's rights or settings, or the slot.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Url(_)
            | Self::UrlIncomplete(_)
            | Self::PasswordMissing { .. }
            | Self::AuthenticationMethod { .. }
            | Self::Scram(_)
            | Self::Decode(_) => false,
            Self::Connect { .. } | Self::Feedback(_) => true,
            Self::Startup { source, .. }
            | Self::IdentifySystem(source)
            | Self::TimelineHistory { source, .. }
            | Self::CreateSlot { source, .. }
            | Self::DropSlot { source, .. }
            | Self::StartReplication { source, .. }
            | Self::Stream(source) => source.is_retriable(),
        }
    }

    /// The server's SQLSTATE, if the server spoke.
    #[must_use]
    pub fn sql_state(&self) -> Option<&SqlState> {
        match self {
            Self::Startup { source, .. }
            | Self::IdentifySystem(source)
            | Self::TimelineHistory { source, .. }
            | Self::CreateSlot { source, .. }
            | Self::DropSlot { source, .. }
            | Self::StartReplication { source, .. }
            | Self::Stream(source) => source.sql_state(),
            Self::Url(_)
            | Self::UrlIncomplete(_)
            | Self::Connect { .. }
            | Self::PasswordMissing { .. }
            | Self::AuthenticationMethod { .. }
            | Self::Scram(_)
            | Self::Feedback(_)
            | Self::Decode(_) => None,
        }
    }
}

impl CommandError {
    /// As [`ReplicationError::is_retriable`].
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Server(error) => error.is_retriable(),
            Self::Io(_) | Self::Closed | Self::Ended | Self::Silent(_) | Self::Timeout(_) => true,
            Self::TooLarge { .. } | Self::Protocol(_) => false,
        }
    }

    /// The server's SQLSTATE, if the server spoke.
    #[must_use]
    pub fn sql_state(&self) -> Option<&SqlState> {
        match self {
            Self::Server(error) => Some(&error.code),
            Self::Io(_)
            | Self::Closed
            | Self::Ended
            | Self::Silent(_)
            | Self::Timeout(_)
            | Self::TooLarge { .. }
            | Self::Protocol(_) => None,
        }
    }
}

impl ServerError {
    /// As [`ReplicationError::is_retriable`]. SQLSTATE is an open set: what is not known to
    /// need a hand is tried again.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        // A slot in use, 55006, is the one state of its class that passes by itself.
        if self.code == SqlState::OBJECT_IN_USE {
            return true;
        }
        let class = self.code.code().get(..2).unwrap_or_default();
        // Not supported, wrong password or pg_hba, no such database, wrong or missing
        // object or right, and wrong state: wal_level, no free slot, a slot that lost its WAL.
        !matches!(class, "0A" | "28" | "3D" | "3F" | "42" | "55")
    }

    /// Reads the body of an ErrorResponse: pairs of a type and a text that ends with a zero
    /// byte. Fields that are missing or odd read as empty.
    pub(super) fn read(body: &[u8]) -> Self {
        let mut error = Self {
            severity: String::new(),
            code: SqlState::INTERNAL_ERROR,
            message: String::new(),
            detail: None,
            hint: None,
        };
        let mut localized_severity = String::new();
        for field in body.split(|&byte| byte == 0) {
            let Some((kind, value)) = field.split_first() else {
                break;
            };
            let value = String::from_utf8_lossy(value).into_owned();
            match kind {
                b'V' => error.severity = value,
                b'S' => localized_severity = value,
                b'C' if !value.is_empty() => error.code = SqlState::from_code(&value),
                b'M' => error.message = value,
                b'D' => error.detail = Some(value),
                b'H' => error.hint = Some(value),
                _ => {}
            }
        }
        if error.severity.is_empty() {
            error.severity = localized_severity;
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str) -> ReplicationError {
        let body = format!("SFEHLER\0VERROR\0C{code}\0Mno\0Dbecause\0Hdo that\0\0");
        ReplicationError::StartReplication {
            slot: "s".to_owned(),
            source: CommandError::Server(Box::new(ServerError::read(body.as_bytes()))),
        }
    }

    #[test]
    fn what_passes_by_itself_is_retried_and_what_needs_a_hand_is_not() {
        for code in [
            "55006", "57P01", "57P03", "53300", "08006", "XX000", "58P01", "57014",
        ] {
            assert!(refused(code).is_retriable(), "{code}");
        }
        for code in [
            "28P01", "28000", "42501", "42704", "55000", "3D000", "0A000", "42602",
        ] {
            assert!(!refused(code).is_retriable(), "{code}");
        }
    }

    #[test]
    fn the_servers_words_and_state_are_kept() {
        let error = refused("42704");
        assert_eq!(error.sql_state(), Some(&SqlState::UNDEFINED_OBJECT));
        assert_eq!(
            error.to_string(),
            "cannot start replication from the slot s: ERROR 42704: no; because; do that"
        );
    }

    #[test]
    fn a_damaged_error_is_still_an_error() {
        for body in [&b""[..], b"\0", b"C", b"M\xff\xfe", b"\0\0\0"] {
            assert_eq!(ServerError::read(body).code, SqlState::INTERNAL_ERROR);
        }
    }
}
