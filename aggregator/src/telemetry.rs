//! The aggregator's metrics.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub(crate) const VIEW_TRANSACTIONS: &str = "aggregator_view_transactions";
pub(crate) const EVENTS: &str = "aggregator_events";
pub(crate) const APPLY_MS: &str = "aggregator_apply_ms";
pub(crate) const VISIBLE_MS: &str = "aggregator_visible_ms";
pub(crate) const LAG_BYTES: &str = "aggregator_lag_bytes";
pub(crate) const QUARANTINED: &str = "aggregator_quarantined";

/// Says what each metric is.
pub(crate) fn describe() {
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
}
