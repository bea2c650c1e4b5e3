//! How far table reads are, in `/status` and metrics.
//!
//! | metric | meaning |
//! |---|---|
//! | `connector_read_rows_total{table}` | rows that table reads have passed |
//! | `connector_read_bytes_total{table}` | bytes of the events that they sent |
//! | `connector_read_rows_left{table}` | rows that a running read has still to pass, about; 0: none runs |
//! | `connector_read_requests` | reads by command that are not complete |
//! | `connector_read_requests_failed_total` | reads by command that were given up |

use std::collections::VecDeque;

use kafka::checkpoint::{Read, ReadRequest};
use kafka::{Checkpoint, TableState};
use metrics::{Unit, describe_counter, describe_gauge, gauge};
use serde::Serialize;

use super::{names, precise};

/// A table in `/status`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TableStatus {
    /// `first`, `running` or `done`.
    read: &'static str,
    /// Of a read under way.
    progress: Option<ReadProgress>,
    columns: Vec<String>,
    /// Columns that a running read will add.
    reading_columns: Vec<String>,
    partitions_to_reconcile: usize,
    /// Reads by command that are not complete.
    requests: Vec<RequestStatus>,
}

#[derive(Debug, Clone, Serialize)]
struct RequestStatus {
    id: u64,
    condition: Option<String>,
    rows_per_second_max: Option<u32>,
    requested_at_us: i64,
    read: &'static str,
    progress: Option<ReadProgress>,
    partitions_to_reconcile: usize,
}

/// A read by command that was given up.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FailedRequest {
    id: u64,
    table: String,
    reason: String,
}

/// Failed requests that are remembered.
const FAILED_MAX: usize = 16;

#[derive(Debug, Clone, Copy, Serialize)]
struct ReadProgress {
    /// Rows passed.
    rows: u64,
    /// Bytes of the events that were sent for them.
    bytes: u64,
    /// Rows that there were when it began, about.
    rows_estimate: u64,
    /// Rows still to be passed, about.
    rows_left: u64,
    /// Ranges of the key that are not complete.
    ranges_left: usize,
    begun_at_us: i64,
}

impl TableStatus {
    pub(super) fn new(table: &TableState) -> Self {
        Self {
            read: name(&table.read),
            progress: progress(&table.read),
            columns: table.columns.clone(),
            reading_columns: if table.read.is_done() {
                Vec::new()
            } else {
                table.target.clone()
            },
            partitions_to_reconcile: table.reconcile.len(),
            requests: table.requests.iter().map(request).collect(),
        }
    }
}

/// Remembers one more failed request, and forgets the oldest.
pub(super) fn fail(failed: &mut VecDeque<FailedRequest>, id: u64, table: &str, reason: String) {
    failed.truncate(FAILED_MAX - 1);
    failed.push_front(FailedRequest {
        id,
        table: table.to_owned(),
        reason,
    });
}

/// Is anything being read or compared?
pub(super) fn is_reading(record: &Checkpoint) -> bool {
    record.tables.values().any(|table| {
        !table.read.is_done() || !table.reconcile.is_empty() || !table.requests.is_empty()
    })
}

/// Sets the gauges.
pub(super) fn measure(record: &Checkpoint) {
    let requests: usize = record.tables.values().map(|t| t.requests.len()).sum();
    gauge!(names::REQUESTS).set(precise(requests as u64));
    for (name, table) in &record.tables {
        let reads = table.requests.iter().map(|request| &request.read);
        let left = std::iter::once(&table.read)
            .chain(reads)
            .filter_map(progress)
            .map(|progress| progress.rows_left);
        gauge!(names::READ_ROWS_LEFT, "table" => name.clone()).set(precise(left.sum()));
    }
}

/// Another connector leads: nothing of these tables is read here.
pub(super) fn stand_by<'a>(tables: impl Iterator<Item = &'a String>) {
    for name in tables {
        gauge!(names::READ_ROWS_LEFT, "table" => name.clone()).set(0.0);
    }
}

pub(super) fn describe() {
    describe_counter!(names::READ_ROWS, Unit::Count, "rows passed by table reads");
    describe_counter!(names::READ_BYTES, Unit::Bytes, "events sent by table reads");
    describe_gauge!(
        names::READ_ROWS_LEFT,
        Unit::Count,
        "rows that a running read has still to pass, about"
    );
    describe_gauge!(names::REQUESTS, Unit::Count, "reads by command, incomplete");
    describe_counter!(
        names::REQUESTS_FAILED,
        Unit::Count,
        "reads by command given up"
    );
}

fn request(request: &ReadRequest) -> RequestStatus {
    RequestStatus {
        id: request.id,
        condition: request.condition.clone(),
        rows_per_second_max: request.rows_per_second_max,
        requested_at_us: request.requested_at_us,
        read: name(&request.read),
        progress: progress(&request.read),
        partitions_to_reconcile: request.reconcile.len(),
    }
}

fn name(read: &Read) -> &'static str {
    match read {
        Read::First => "first",
        Read::After(_) | Read::Running(_) => "running",
        Read::Done => "done",
    }
}

fn progress(read: &Read) -> Option<ReadProgress> {
    let Read::Running(running) = read else {
        return None;
    };
    Some(ReadProgress {
        rows: running.rows,
        bytes: running.bytes,
        rows_estimate: running.rows_estimate,
        rows_left: running.rows_estimate.saturating_sub(running.rows),
        ranges_left: running.ranges.len(),
        begun_at_us: running.begun_at_us,
    })
}
