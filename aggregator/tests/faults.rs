//! Processes that are killed and paused where it hurts most.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::rules::order;
use crate::topics::{Aggregator, Place, WITHIN, wait};

/// Between loading, first serving and applying, a process passes each point several times.
const POINTS: [&str; 4] = [
    "before_fence",
    "after_mirror",
    "before_commit",
    "after_commit",
];

#[tokio::test]
async fn killed_at_any_point_it_goes_on_where_it_was() -> Result<()> {
    let mut place = Place::new(3).await?;
    place.work().await?;
    // Small steps: loads, and view transactions of several steps, are cut as well.
    let apply = "step_events_max = 2";
    for pass in 1..=6 {
        for point in POINTS {
            let faults = format!("aggregator.{point}:kill:{pass}");
            let aggregator = place.start(apply, &[("FAULT_POINTS", &faults)])?;
            // Until it has passed the point often enough.
            let deadline = Instant::now() + WITHIN;
            while aggregator.process.status().is_none() {
                ensure!(Instant::now() < deadline, "{}", aggregator.log());
                place.work().await?;
            }
            assert!(
                aggregator.log().contains(&format!("{point}: SIGKILL")),
                "{}",
                aggregator.log()
            );
        }
    }
    let aggregator = place.start(apply, &[])?;
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await
}

#[tokio::test]
async fn offsets_with_data_what_was_not_committed_is_read_again() -> Result<()> {
    let mut place = Place::new(5).await?;
    place.work().await?;
    let aggregator = place.start("", &[])?;
    place.caught_up(&[&aggregator]).await?;
    drop(aggregator);
    order(&mut place.shop, 1000, 1000);
    place.commit("sales").await?;
    let faults = [("FAULT_POINTS", "aggregator.before_commit:kill:1")];
    let aggregator = place.start("", &faults)?;
    aggregator.process.exited().await.context("no status")?;
    // A checkpoint that covers the first, whatever was taken of that.
    place.commit("sales").await?;
    let aggregator = place.start("", &[])?;
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await
}

#[tokio::test]
async fn a_paused_holder_is_replaced_and_cannot_write_when_it_comes_back() -> Result<()> {
    for point in ["before_fence", "after_mirror", "before_commit"] {
        let mut place = Place::new(4).await?;
        place.work().await?;
        let first = place.start("", &[])?;
        place.caught_up(&[&first]).await?;
        drop(first);
        let faults = format!("aggregator.{point}:stop:2");
        let first = place.start("", &[("FAULT_POINTS", &faults)])?;
        first.says("holds the view database's lock").await?;
        let second = place.start("", &[])?;
        second
            .says("standby: another aggregator holds the lock")
            .await?;
        assert_eq!(
            second.readiness().await?,
            "not ready: standby: another aggregator holds the lock"
        );
        let deadline = Instant::now() + WITHIN;
        while !first.log().contains("SIGSTOP") {
            ensure!(Instant::now() < deadline, "{}", first.log());
            place.work().await?;
        }
        stopped(&first).await?;
        second.says("follows every source").await?;
        place.work().await?;
        place.caught_up(&[&first, &second]).await?;
        let writer: i64 = place
            .database
            .one("SELECT writer FROM aggregator.fence")
            .await?;
        first.process.signal(Signal::SIGCONT);
        first.says("starts anew").await?;
        let metrics = first.ask("GET", "/metrics").await?.1;
        ensure!(!metrics.contains("aggregator_retries_total 0"), "{metrics}");
        ensure!(metrics.contains("aggregator_retries_total "), "{metrics}");
        first
            .says("standby: another aggregator holds the lock")
            .await?;
        place.work().await?;
        place.caught_up(&[&first, &second]).await?;
        place.is_right().await.with_context(|| point.to_owned())?;
        let now: i64 = place
            .database
            .one("SELECT writer FROM aggregator.fence")
            .await?;
        assert_eq!(now, writer, "{}", first.log());
    }
    Ok(())
}

/// Waits until SIGSTOP holds the process.
async fn stopped(aggregator: &Aggregator) -> Result<()> {
    let stat = format!("/proc/{}/stat", aggregator.process.id());
    wait("stopped", aggregator, || {
        let state = std::fs::read_to_string(&stat).unwrap_or_default();
        // The state follows the name, which stands in parentheses.
        state
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    })
    .await
}
