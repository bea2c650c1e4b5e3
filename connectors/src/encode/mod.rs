//! PostgreSQL's text into Debezium's JSON, the same bytes from the log and from a read.
//!
//! Both sources of a row, `pgoutput` and a query in the simple protocol, give each value as
//! PostgreSQL's output function writes it under the same session settings. One function
//! ([`value::write`]) turns that text into JSON, so a row cannot differ by where it came from.
//! Nothing goes through a value tree: rows are written into a buffer.
//!
//! What has no better form is sent as PostgreSQL's text, also a value that its type's form
//! cannot hold (`infinity`, `NaN`): nothing vanishes for being odd.

pub mod envelope;
pub mod key;
mod time;
pub mod value;

pub use envelope::{Origin, Snapshot, SourceBlock};
pub use key::KeyColumn;
pub use value::Kind;

/// Writes a JSON string.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string is always JSON, and a Vec takes any bytes");
}
