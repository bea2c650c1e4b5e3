//! Is each rule needed, or would its test pass without it?

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

/// Each rule of the API, and the test that fails without it.
const SHOWN_BY: [(&str, &str); 17] = [
    ("marks", "a_read_that_a_change_overtakes_is_not_cached"),
    (
        "event_closes_mark",
        "a_read_that_a_change_overtakes_is_not_cached",
    ),
    (
        "marks_take_revision",
        "a_read_that_a_change_overtakes_is_not_cached",
    ),
    (
        "feed_evicts",
        "an_older_event_does_not_bring_an_older_row_back",
    ),
    (
        "read_to_offsets",
        "the_feed_takes_nothing_beyond_a_checkpoint",
    ),
    (
        "evict_before_position",
        "the_position_moves_after_the_rows_it_covers_are_evicted",
    ),
    (
        "marks_start_at_checkpoint",
        "what_a_lagging_replica_shows_is_not_cached",
    ),
    (
        "start_over_on_gap",
        "a_gap_in_the_feed_starts_the_cache_over",
    ),
    (
        "start_over_on_epoch",
        "a_new_epoch_of_the_feed_starts_the_cache_over",
    ),
    (
        "start_over_on_writer",
        "a_new_writer_of_the_view_starts_the_cache_over",
    ),
    (
        "start_over_on_suspension",
        "a_table_that_is_suspended_degrades_cached_rows",
    ),
    (
        "revision_by_writer",
        "a_later_writer_is_newer_than_a_greater_number",
    ),
    (
        "position_before_look",
        "a_cached_row_has_the_position_from_before_the_look",
    ),
    (
        "later_position",
        "a_row_newer_than_the_feed_has_its_own_position",
    ),
    ("one_snapshot", "row_and_positions_are_of_one_snapshot"),
    (
        "look_and_insert_are_one",
        "nothing_comes_between_looking_at_a_mark_and_inserting",
    ),
    (
        "min_position_of_the_answer",
        "no_answer_is_below_its_min_position",
    ),
];

/// Runs each test once more in a process of its own, with its rule switched off.
#[test]
#[ignore = "some minutes; needs --features faults: cargo test -p api --features faults needed -- --ignored"]
fn without_each_rule_its_test_fails() -> Result<()> {
    let mut passed = Vec::new();
    for (rule, test) in SHOWN_BY {
        let output = Command::new(std::env::current_exe()?)
            .args(["--exact", &format!("rules::{test}"), "--nocapture"])
            .env("RULES_OFF", rule)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .output()?;
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        ensure!(said.contains("running 1 test"), "there is no test {test}");
        let why = said.lines().find_map(|line| line.strip_prefix("Error: "));
        println!("{rule}: {}", why.unwrap_or("passed"));
        if output.status.success() {
            passed.push(rule);
        }
    }
    ensure!(passed.is_empty(), "no test shows {passed:?}");
    Ok(())
}
