//! The crate on a real broker: fencing, markers and compaction have no stand-in.

mod follow;
mod support;
