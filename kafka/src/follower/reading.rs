//! A checkpoint that is being read: how far it is, and what is to come.

use std::sync::Arc;

use super::Event;
use super::checkpoint_log::Found;
use crate::partition::Record;

/// A checkpoint that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) found: Found,
    pub(super) targets: Vec<Target>,
    /// Targets before this one have been reached.
    pub(super) at: usize,
    pub(super) events: Vec<Event>,
    pub(super) bytes: usize,
    /// Some of its events have been given.
    pub(super) begun: bool,
}

/// A partition, and the offset up to which it is read.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) topic: Arc<str>,
    pub(super) table: Arc<str>,
    pub(super) partition: i32,
    pub(super) end: i64,
}

#[derive(Debug)]
pub(super) enum Progress {
    StepIsFull,
    Complete,
    Lost,
    /// A topic was made anew, and that is no reason to rebuild.
    Anew,
}

impl Target {
    pub(super) fn event(&self, record: Record) -> Event {
        Event {
            topic: Arc::clone(&self.topic),
            table: Arc::clone(&self.table),
            partition: self.partition,
            offset: record.offset,
            key: record.key,
            value: record.value,
            timestamp_ms: record.timestamp_ms,
        }
    }
}
