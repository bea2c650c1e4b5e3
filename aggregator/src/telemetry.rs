//! The aggregator's metrics.

use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};

pub(crate) const VIEW_TRANSACTIONS: &str = "aggregator_view_transactions_total";
pub(crate) const EVENTS: &str = "aggregator_events_total";
pub(crate) const APPLY_MS: &str = "aggregator_apply_ms";
pub(crate) const VISIBLE_MS: &str = "aggregator_visible_ms";
pub(crate) const LAG_BYTES: &str = "aggregator_lag_bytes";
pub(crate) const QUARANTINED: &str = "aggregator_quarantined";
pub(crate) const SUSPENDED: &str = "aggregator_suspended_tables";
pub(crate) const RETRIES: &str = "aggregator_retries_total";
pub(crate) const VIEW_TRANSACTION_TIMESTAMP: &str = "aggregator_view_transaction_timestamp_seconds";
pub(crate) const STEPS_UNDONE: &str = "aggregator_steps_undone_total";
pub(crate) const REBUILD_READ: &str = "aggregator_rebuild_read_offsets";
pub(crate) const REBUILD_OFFSETS: &str = "aggregator_rebuild_offsets";
pub(crate) const STALLED: &str = "aggregator_stalled";
pub(crate) const DISCREPANCIES: &str = "aggregator_discrepancies";

const VERIFY_DIFFERENCES: &str = "aggregator_verify_differences";
const VERIFY_NOT_COMPARED: &str = "aggregator_verify_not_compared";
const VERIFY_TIMESTAMP: &str = "aggregator_verify_timestamp_seconds";

pub(crate) const SWEEP_SLICES: &str = "aggregator_sweep_slices_total";
pub(crate) const SWEEP_ROWS: &str = "aggregator_sweep_rows_total";
pub(crate) const SWEEP_FOUND: &str = "aggregator_sweep_found_total";
const SWEEP_DIFFERENCES: &str = "aggregator_sweep_differences";
const SWEEP_NOT_COMPARED: &str = "aggregator_sweep_not_compared";
const SWEEP_TIMESTAMP: &str = "aggregator_sweep_timestamp_seconds";

/// What the last whole round of the sweep found, and when it ended.
pub(crate) fn swept(differences: u64, not_compared: u64, ended_at_s: f64) {
    #[expect(clippy::cast_precision_loss, reason = "gauges")]
    {
        gauge!(SWEEP_DIFFERENCES).set(differences as f64);
        gauge!(SWEEP_NOT_COMPARED).set(not_compared as f64);
    }
    gauge!(SWEEP_TIMESTAMP).set(ended_at_s);
}

/// What the last comparison with the sources found.
pub(crate) fn verified(differences: u64, not_compared: u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    #[expect(clippy::cast_precision_loss, reason = "gauges")]
    {
        gauge!(VERIFY_DIFFERENCES).set(differences as f64);
        gauge!(VERIFY_NOT_COMPARED).set(not_compared as f64);
    }
    gauge!(VERIFY_TIMESTAMP).set(now.unwrap_or_default().as_secs_f64());
}

/// Says what each metric is.
pub fn describe() {
    describe_counter!(VIEW_TRANSACTIONS, "View transactions that moved a position");
    describe_counter!(EVENTS, "Change events applied, by source");
    describe_histogram!(
        APPLY_MS,
        Unit::Milliseconds,
        "From taking a checkpoint in hand to the commit of its view transaction"
    );
    describe_histogram!(
        VISIBLE_MS,
        Unit::Milliseconds,
        "From the broker's time of a checkpoint to the commit of its view transaction, by source"
    );
    describe_gauge!(
        LAG_BYTES,
        Unit::Bytes,
        "WAL of the source that the checkpoint applied last did not cover, by source"
    );
    describe_gauge!(QUARANTINED, "Keys in quarantine");
    describe_gauge!(
        SUSPENDED,
        "Tables that flooded the quarantine and stand still"
    );
    describe_counter!(RETRIES, "Lives that ended in an error");
    describe_gauge!(
        VIEW_TRANSACTION_TIMESTAMP,
        Unit::Seconds,
        "When this process last made a view transaction that moved a position, since 1970; its age is \
         time() minus this"
    );
    describe_counter!(
        STEPS_UNDONE,
        "Checkpoints of several steps that were undone before they were whole, by source and reason: \
         stalled, failed, too_old, behind"
    );
    describe_gauge!(
        REBUILD_READ,
        "Offsets that the source's rebuild has read since it began, over all lives; 0: none is under way"
    );
    describe_gauge!(
        REBUILD_OFFSETS,
        "Offsets that the source's rebuild has to read, records that are gone included; 0: not known"
    );
    describe_gauge!(
        STALLED,
        "1: the source's events stopped within a checkpoint, it stands aside until they go on"
    );
    describe_gauge!(DISCREPANCIES, "Open discrepancies, by rule");
    describe_counter!(SWEEP_SLICES, "Slices that the sweep compared, by table");
    describe_counter!(SWEEP_ROWS, "Rows that the sweep compared, by table");
    describe_counter!(
        SWEEP_FOUND,
        "Rows that the sweep found different, by table; each round counts them again"
    );
    describe_gauge!(
        SWEEP_DIFFERENCES,
        "Rows that the last whole round of the sweep found different"
    );
    describe_gauge!(
        SWEEP_NOT_COMPARED,
        "Tables that the last whole round of the sweep could not compare"
    );
    describe_gauge!(
        SWEEP_TIMESTAMP,
        Unit::Seconds,
        "When the last whole round of the sweep ended, since 1970"
    );
    describe_gauge!(
        VERIFY_DIFFERENCES,
        "Rows that the last `aggregator verify` found different"
    );
    describe_gauge!(
        VERIFY_NOT_COMPARED,
        "Parts that the last `aggregator verify` could not compare"
    );
    describe_gauge!(
        VERIFY_TIMESTAMP,
        Unit::Seconds,
        "When `aggregator verify` ended last, since 1970"
    );
}
