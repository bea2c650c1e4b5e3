//! The crate on a real broker: fencing, markers and compaction have no stand-in.

mod crash;
mod follow;
mod format;
mod hanging;
mod late;
mod restart;
mod scan;
mod support;
mod topics;
mod write;
