//! The metrics of a connector: their names and what each is.
//!
//! | metric | meaning |
//! |---|---|
//! | `connector_events_total` | records sent to tables' topics, tombstones included |
//! | `connector_quarantined_total{table,reason}` | changes that went to quarantine |
//! | `connector_records_total{whole}` | checkpoint records committed; `whole`: readers take it |
//! | `connector_commit_ms` | from a checkpoint record's sending to its commit |
//! | `connector_lives_total` | connections, each with lock, slot, and takeover |
//! | `connector_reads_total{kind}` | reads of the source: `chunk`, `hole`, `reconcile` |
//! | `connector_read_ms{kind}` | how long each took, waiting included |
//! | `connector_read_waiting_seconds` | for how long a table read has waited for something in the source |
//! | `connector_epoch` | the epoch, in seconds since 1970 when it began or one more than the last |
//! | `connector_position_bytes`, `connector_reach_bytes`, `connector_wal_end_bytes` | LSNs |
//! | `connector_lag_bytes` | WAL of the source behind the position, as its pulse tells, with Kafka or without |
//! | `connector_current_at_seconds` | when the topics were last known to be all that the source had |
//! | `connector_unsettled_transactions` | sent, not yet known to be visible in the source |
//! | `connector_buffered_bytes` | received from the slot, not yet handled |
//! | `connector_unacknowledged_events` | sent to Kafka, not yet acknowledged |
//! | `connector_healthy` | 1: it streams, reads or stands by; 0: it is connecting or stalled |
//! | `connector_degraded` | 1: it works, or tries to, and somebody has to act before that ends |
//! | `connector_whole` | 1: readers have a checkpoint that is whole; 0: tables are read or compared first |
//! | `connector_state{state}` | 1 for the state it is in, 0 for the others |
//! | `connector_lag_ms` | how old the topics are at most: since when they were last known current, or this one began |
//! | `connector_stalled_seconds` | for how long nothing has moved that should, once that is long |
//! | `connector_stalls_total` | how often that began |
//! | `connector_slot_wal_bytes` | WAL that the slot makes the source keep |
//! | `connector_slot_wal_max_bytes` | with more the slot is given up, or the source ends it |
//! | `connector_slot_alarm` | 1: that share of it is kept at which the alarm comes |
//! | `connector_slot_lost` | 1: the slot was invalidated or is gone, and there is no new one yet |
//! | `connector_slots_given_up_total` | slots dropped because they kept too much |
//! | `connector_retries_total` | lives that ended in an error and are followed by another |
//!
//! A standby knows nothing of topics and slot: it answers `NaN` for them, which no comparison is
//! true of and `max` and `min` pass over, and 0 for what counts or alarms.
//!
//! Those of table reads stand in `reads`, those of what was sent in `tally`.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};

pub(crate) const EVENTS: &str = "connector_events_total";
pub(crate) const ROWS: &str = "connector_rows_total";
pub(crate) const BYTES: &str = "connector_bytes_total";
pub(crate) const UNACKNOWLEDGED: &str = "connector_unacknowledged_events";
pub(crate) const QUARANTINED: &str = "connector_quarantined_total";
pub(crate) const RECORDS: &str = "connector_records_total";
pub(crate) const COMMIT_MS: &str = "connector_commit_ms";
pub(crate) const LIVES: &str = "connector_lives_total";
pub(crate) const HANGING: &str = "connector_hanging_partitions_total";
pub(crate) const READS: &str = "connector_reads_total";
pub(crate) const READ_MS: &str = "connector_read_ms";
pub(crate) const READ_WAITING: &str = "connector_read_waiting_seconds";
pub(crate) const READ_ROWS: &str = "connector_read_rows_total";
pub(crate) const READ_BYTES: &str = "connector_read_bytes_total";
pub(crate) const READ_ROWS_LEFT: &str = "connector_read_rows_left";
pub(crate) const REQUESTS: &str = "connector_read_requests";
pub(crate) const REQUESTS_FAILED: &str = "connector_read_requests_failed_total";
pub(crate) const EPOCH: &str = "connector_epoch";
pub(crate) const POSITION: &str = "connector_position_bytes";
pub(crate) const REACH: &str = "connector_reach_bytes";
pub(crate) const WAL_END: &str = "connector_wal_end_bytes";
pub(crate) const LAG: &str = "connector_lag_bytes";
pub(crate) const UNCONFIRMED: &str = "connector_unconfirmed_bytes";
pub(crate) const CURRENT_AT: &str = "connector_current_at_seconds";
pub(crate) const UNSETTLED: &str = "connector_unsettled_transactions";
pub(crate) const BUFFERED: &str = "connector_buffered_bytes";
pub(crate) const HEALTHY: &str = "connector_healthy";
pub(crate) const DEGRADED: &str = "connector_degraded";
pub(crate) const WHOLE: &str = "connector_whole";
pub(crate) const STATE: &str = "connector_state";
pub(crate) const LAG_MS: &str = "connector_lag_ms";
pub(crate) const STALLED: &str = "connector_stalled_seconds";
pub(crate) const STALLS: &str = "connector_stalls_total";
pub(crate) const SLOT_WAL: &str = "connector_slot_wal_bytes";
pub(crate) const SLOT_WAL_MAX: &str = "connector_slot_wal_max_bytes";
pub(crate) const SLOT_ALARM: &str = "connector_slot_alarm";
pub(crate) const SLOT_LOST: &str = "connector_slot_lost";
pub(crate) const SLOTS_GIVEN_UP: &str = "connector_slots_given_up_total";
pub(crate) const RETRIES: &str = "connector_retries_total";

/// Says what each metric is.
pub(super) fn describe() {
    describe_counter!(EVENTS, Unit::Count, "records sent to tables' topics");
    describe_counter!(QUARANTINED, Unit::Count, "changes that went to quarantine");
    describe_counter!(RECORDS, Unit::Count, "checkpoint records committed");
    describe_counter!(LIVES, Unit::Count, "takeovers begun");
    describe_counter!(
        HANGING,
        Unit::Count,
        "partitions in which Kafka had left a transaction without an end, ended at a takeover"
    );
    describe_counter!(READS, Unit::Count, "reads of the source");
    describe_histogram!(COMMIT_MS, Unit::Milliseconds, "commit of a record");
    describe_histogram!(READ_MS, Unit::Milliseconds, "a read of the source");
    describe_gauge!(
        READ_WAITING,
        Unit::Seconds,
        "for how long a table read has waited for a lock, a transaction or the WAL of the source; 0: none waits"
    );
    describe_gauge!(EPOCH, "the epoch; NaN on a standby");
    describe_gauge!(
        POSITION,
        Unit::Bytes,
        "LSN of the position; NaN on a standby"
    );
    describe_gauge!(
        REACH,
        Unit::Bytes,
        "LSN that the topics reach; NaN on a standby"
    );
    describe_gauge!(
        WAL_END,
        Unit::Bytes,
        "LSN of the source's WAL end; NaN on a standby"
    );
    describe_gauge!(
        LAG,
        Unit::Bytes,
        "WAL behind the position, whether Kafka is there or not; NaN on a standby"
    );
    describe_gauge!(
        UNCONFIRMED,
        Unit::Bytes,
        "WAL between the position that PostgreSQL was told and that of the last record; NaN on a standby"
    );
    describe_gauge!(
        CURRENT_AT,
        Unit::Seconds,
        "when last known current; NaN on a standby"
    );
    describe_gauge!(UNSETTLED, Unit::Count, "sent, not known to be visible");
    describe_gauge!(BUFFERED, Unit::Bytes, "received and not yet handled");
    describe_gauge!(
        UNACKNOWLEDGED,
        Unit::Count,
        "sent to Kafka and not yet acknowledged"
    );
    describe_gauge!(
        HEALTHY,
        "1: streams, reads or stands by; 0: connects or is stalled, or readers wait for a table read that does not go on"
    );
    describe_gauge!(
        DEGRADED,
        "1: somebody has to act, as the reason in /status says, also while it is healthy"
    );
    describe_gauge!(
        WHOLE,
        "1: readers have a whole checkpoint; 0: tables are read or compared first, whatever the lag; NaN on a standby"
    );
    describe_gauge!(STATE, "1 for the state it is in");
    describe_gauge!(
        LAG_MS,
        Unit::Milliseconds,
        "since the topics were last known to be all that the source had; before the first record since the start; NaN on a standby"
    );
    describe_gauge!(STALLED, Unit::Seconds, "nothing moves that should");
    describe_counter!(STALLS, Unit::Count, "stalls begun");
    describe_gauge!(
        SLOT_WAL,
        Unit::Bytes,
        "WAL kept by the slot; NaN on a standby"
    );
    describe_gauge!(
        SLOT_WAL_MAX,
        Unit::Bytes,
        "WAL it may keep, +Inf without a bound; NaN on a standby"
    );
    describe_gauge!(SLOT_ALARM, "1: too much of it is kept");
    describe_gauge!(
        SLOT_LOST,
        "1: the slot was invalidated or is gone, and no new one stands yet"
    );
    describe_counter!(SLOTS_GIVEN_UP, Unit::Count, "slots given up");
    describe_counter!(RETRIES, Unit::Count, "lives that ended in an error");
}

/// Another connector leads. A gauge that stayed where it was when this one led would tell of a
/// source that is long elsewhere, and one of age would grow for ever.
pub(super) fn stand_by() {
    gauge!(EPOCH).set(f64::NAN);
    gauge!(POSITION).set(f64::NAN);
    gauge!(REACH).set(f64::NAN);
    gauge!(WAL_END).set(f64::NAN);
    gauge!(LAG).set(f64::NAN);
    gauge!(UNCONFIRMED).set(f64::NAN);
    gauge!(CURRENT_AT).set(f64::NAN);
    gauge!(LAG_MS).set(f64::NAN);
    gauge!(WHOLE).set(f64::NAN);
    gauge!(SLOT_WAL).set(f64::NAN);
    gauge!(SLOT_WAL_MAX).set(f64::NAN);
    gauge!(SLOT_ALARM).set(0.0);
    gauge!(SLOT_LOST).set(0.0);
    gauge!(UNSETTLED).set(0.0);
    gauge!(BUFFERED).set(0.0);
    gauge!(UNACKNOWLEDGED).set(0.0);
    gauge!(REQUESTS).set(0.0);
}
