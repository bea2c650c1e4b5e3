//! A source whose events stop in the middle of a checkpoint: a partition is held back.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use kafka::producer::Producer;
use kafka::topic;
use serde_json::json;

use crate::rules::order;
use crate::shop::LINE;
use crate::topics::{Aggregator, Place, WITHIN};

const OTHERS: [&str; 2] = ["accounting", "warehouse"];
/// Half of the silence allowed is then 500 ms, and the steps are held for six times that.
const APPLY: &str = "silence_max_ms = 1000\nstep_events_max = 2";
const HELD_FIRST: Duration = Duration::from_secs(3);

/// A transaction of another producer that is open in every partition of the lines: what is
/// committed behind its records cannot be read, as if the partitions had no leader. Then sales
/// commits more than two steps, and orders come before lines.
async fn held_back(place: &mut Place) -> Result<Producer> {
    let mut kafka = place.kafka.clone();
    kafka.transaction_timeout_ms = 60_000;
    let mut other = Producer::connect(&kafka, &format!("{}other", kafka.topic_prefix)).await?;
    let lines = topic::table(&kafka, "sales", "public", "sls_orderdetail");
    for id in 0..20 {
        let key = json!({ "id": id }).to_string();
        other.send(&lines, key.as_bytes(), None, &[]).await?;
    }
    other.delivered().await?;
    for id in 1000..1006 {
        order(&mut place.shop, id, id);
        let row = json!({
            "id": id, "item_id": 1, "unit_price": "1.25", "quantity": 1, "order_id": id,
        });
        place.shop.sales.put(LINE, row);
    }
    place.commit("sales").await?;
    Ok(other)
}

/// The others' next checkpoints; how long they took to be visible.
async fn others_go_on(place: &mut Place, aggregator: &Aggregator) -> Result<Duration> {
    let began = Instant::now();
    for source in OTHERS {
        place.shop.work(source);
        place.commit(source).await?;
    }
    place.stands_at(&OTHERS, &[aggregator]).await?;
    Ok(began.elapsed())
}

#[tokio::test]
async fn a_source_that_stalls_within_a_checkpoint_holds_the_others_up_once() -> Result<()> {
    let mut place = Place::new(31).await?;
    place.work().await?;
    let aggregator = place.start_as_shipped(APPLY, &[])?;
    place.caught_up(&[&aggregator]).await?;
    let other = held_back(&mut place).await?;
    let stalled = "sales stalled within a checkpoint";
    aggregator.says(stalled).await?;
    let since = Instant::now();
    let (mut rounds, mut longest) = (0, Duration::ZERO);
    // For as long as the old steps would have been held three times over.
    while since.elapsed() < 3 * HELD_FIRST {
        longest = longest.max(others_go_on(&mut place, &aggregator).await?);
        rounds += 1;
        let readiness = aggregator.readiness().await?;
        let why = "cannot follow sales: stalled within a checkpoint";
        ensure!(readiness.contains(why), "{readiness}");
    }
    let log = aggregator.log();
    assert_eq!(log.matches(stalled).count(), 1, "{log}");
    ensure!(rounds > 3 && longest < HELD_FIRST / 2, "{longest:?}: {log}");
    let status = aggregator.ask("GET", "/status").await?.1;
    ensure!(status.contains(r#""is_stalled":true"#), "{status}");
    let metrics = aggregator.ask("GET", "/metrics").await?.1;
    let gauge = r#"aggregator_stalled{source="sales"}"#;
    ensure!(metrics.contains(&format!("{gauge} 1")), "{metrics}");
    let undone = r#"aggregator_steps_undone_total{source="sales",reason="stalled"} 1"#;
    ensure!(metrics.contains(undone), "{metrics}");
    let made = "aggregator_view_transaction_timestamp_seconds ";
    let made = metrics.lines().find_map(|line| line.strip_prefix(made));
    let made: f64 = made.context("not said")?.parse()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    ensure!((0.0..10.0).contains(&(now - made)), "{made} at {now}");

    other.abort().await?;
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await?;
    assert_eq!(aggregator.readiness().await?, "ready");
    let metrics = aggregator.ask("GET", "/metrics").await?.1;
    ensure!(metrics.contains(&format!("{gauge} 0")), "{metrics}");
    place.work().await?;
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await
}

/// What comes whole once and then stalls again, as nothing does here unless the rule that it stands
/// aside is out of force: it is undone as soon as another waits.
#[cfg(feature = "faults")]
#[tokio::test]
async fn second_stall_is_short_where_another_source_waits() -> Result<()> {
    let mut place = Place::new(32).await?;
    place.work().await?;
    let inherited = std::env::var("RULES_OFF").unwrap_or_default();
    let off = format!("stalled_stands_aside,{inherited}");
    let aggregator = place.start_as_shipped(APPLY, &[("RULES_OFF", &off)])?;
    place.caught_up(&[&aggregator]).await?;
    let other = held_back(&mut place).await?;
    aggregator
        .says("sales stalled within a checkpoint for 3000 ms")
        .await?;
    let short = "sales stalled within a checkpoint for 500 ms";
    let deadline = Instant::now() + WITHIN / 2;
    while !aggregator.log().contains(short) {
        ensure!(Instant::now() < deadline, "{}", aggregator.log());
        others_go_on(&mut place, &aggregator).await?;
    }
    other.abort().await?;
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await
}
