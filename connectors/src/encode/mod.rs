//! PostgreSQL's text into Debezium's JSON, the same bytes from the log and from a read.
//!
//! Both sources of a row, `pgoutput` and a query in the simple protocol, give each value as
//! PostgreSQL's output function writes it under the same session settings. One function
//! ([`value::write`]) turns that text into JSON, so a row cannot differ by where it came from.
//! Nothing goes through a value tree: rows are written into a buffer.
//!
//! A value that is no UTF-8 cannot stand in JSON: its row is [`EncodeError`]'s, never distorted.
//!
//! What has no better form is sent as PostgreSQL's text, also a value that its type's form
//! cannot hold (`infinity`, `NaN`): nothing vanishes for being odd.

pub mod envelope;
pub mod key;
mod time;
pub mod value;

use kafka::quarantine::Reason;

pub use envelope::{Origin, Snapshot, SourceBlock};
pub use key::KeyColumn;
pub(crate) use time::iso_text;
pub use value::Kind;

/// Why no event can be made of a row. Quotes no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("its value of column {column} is not valid UTF-8")]
    NotUtf8 { column: String },
    #[error("its event has {bytes} bytes or more, and a record at most {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("the source did not tell its key: column {column} has no value")]
    NoKey { column: String },
}

impl EncodeError {
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotUtf8 { .. } => Reason::NotUtf8,
            Self::TooLarge { .. } => Reason::TooLarge,
            Self::NoKey { .. } => Reason::NoKey,
        }
    }
}

/// Writes a JSON string.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    // Most need no escapes. Looked at without a way out, which the compiler makes many bytes at once of.
    let escapes = text.bytes().fold(false, |escapes, byte| {
        escapes | (byte < 0x20) | (byte == b'"') | (byte == b'\\')
    });
    if !escapes {
        out.reserve(text.len() + 2);
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    serde_json::to_writer(out, text).expect("a string is always JSON, and a Vec takes any bytes");
}
