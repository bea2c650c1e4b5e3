//! What a late reader sees: real log compaction, with seconds for the 7 days.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use kafka::follower::{FollowerOptions, Standing, Step};
use kafka::producer::Producer;
use tokio::sync::OnceCell;

use crate::support::{SOURCE, Source, Taken, Writer, apply, next_step, nothing_comes, rows, take};

const LATENESS_MS: i64 = 8000;

/// A broker whose cleaner does not rest for 15 s between two looks.
async fn broker() -> Result<&'static fixtures::Kafka> {
    static BROKER: OnceCell<fixtures::Kafka> = OnceCell::const_new();
    BROKER
        .get_or_try_init(|| fixtures::Kafka::start_with(&[("log.cleaner.backoff.ms", "100")]))
        .await
}

/// A source whose records are taken away after [`LATENESS_MS`].
async fn source(name: &str) -> Result<Source> {
    let mut source = Source::on(&broker().await?.bootstrap(), name);
    source.config.lateness_max_ms = LATENESS_MS;
    source.config.partitions = 1;
    let lateness = LATENESS_MS.to_string();
    let settings = [
        ("cleanup.policy", "compact"),
        ("message.timestamp.type", "LogAppendTime"),
        ("min.compaction.lag.ms", &lateness),
        ("delete.retention.ms", &lateness),
        ("max.compaction.lag.ms", &lateness),
        ("max.message.bytes", "16777216"),
        ("segment.ms", "300"),
        ("min.cleanable.dirty.ratio", "0.001"),
    ];
    source.create_topic(&source.table, 1, &settings).await?;
    source.ensure().await?;
    Ok(source)
}

/// Lets time pass until the log is as wanted. Aborted events meanwhile make new segments, which
/// the cleaner needs, and nothing that a reader could see.
async fn compacted(source: &Source, wanted: impl Fn(&[(i64, String, bool)]) -> bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let id = format!("{}{SOURCE}.filler", source.config.topic_prefix);
        let mut filler = Producer::connect(&source.config, &id).await?;
        filler
            .send(&source.table, b"filler", Some(b"x"), &[])
            .await?;
        filler.delivered().await?;
        filler.abort().await?;
        let log = source.log()?;
        if wanted(&log) {
            return Ok(());
        }
        ensure!(begun.elapsed() < Duration::from_secs(90), "still {log:?}");
        tokio::time::sleep(Duration::from_millis(350)).await;
    }
}

/// What a new reader takes while the writer repeats its checkpoint, as it does when idle.
async fn take_a_young_one(source: &Source, writer: &mut Writer<'_>) -> Result<Taken> {
    let mut follower = source.follower()?;
    let reader = tokio::spawn(async move { take(&mut follower).await });
    while !reader.is_finished() {
        writer.commit().await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    reader.await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_ended_with_an_expired_tombstone_is_read_to_its_end() -> Result<()> {
    let source = source("tombstone").await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("1")).await?;
    writer.send("a", None).await?;
    let first = writer.commit().await?;
    assert_eq!(first.offsets[&source.table][&0], 2);
    compacted(&source, <[_]>::is_empty).await?;

    let taken = take_a_young_one(&source, &mut writer).await?;
    assert!(taken.events.is_empty());
    assert_eq!(taken.standing.offsets, first.offsets);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_would_miss_a_delete_rebuilds() -> Result<()> {
    let source = source("resume").await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("1")).await?;
    writer.send("b", Some("1")).await?;
    writer.commit().await?;
    let stood = take(&mut source.follower()?).await?.standing;
    writer.send("a", None).await?;
    writer.commit().await?;
    compacted(&source, |log| log.iter().all(|(_, key, _)| key != "a")).await?;

    writer.commit().await?;
    let mut late = source.follower_from(stood, FollowerOptions::default())?;
    let step = next_step(&mut late).await?;
    ensure!(matches!(step, Step::Behind), "{step:?}");
    let rebuilt = take_a_young_one(&source, &mut writer).await?;
    assert_eq!(rows(&rebuilt.events), [("b", "1")]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_whose_rows_were_superseded_long_ago_is_not_taken() -> Result<()> {
    let source = source("age").await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("1")).await?;
    writer.commit().await?;
    // Half of a source transaction that goes on for long.
    writer.send("a", Some("2")).await?;
    writer.commit_as(2, 9).await?;
    // Up to the first checkpoint's offset there is no row any more.
    compacted(&source, |log| log.iter().all(|(offset, ..)| *offset > 0)).await?;

    let mut follower = source.follower()?;
    nothing_comes(&mut follower).await?;
    ensure!(source.follower()?.last_checkpoint().await?.is_none());
    let whole = writer.commit_as(9, 9).await?;
    let taken = take(&mut follower).await?;
    assert_eq!(taken.record, whole);
    assert_eq!(rows(&taken.events), [("a", "2")]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_grows_old_while_it_is_read_is_undone_for_a_newer_one() -> Result<()> {
    let source = source("old").await?;
    let mut writer = Writer::take_over(&source).await?;
    for number in 0..50 {
        writer.send(&format!("k{number}"), Some("1")).await?;
    }
    writer.commit().await?;
    let options = FollowerOptions {
        step_events_max: 20,
        ..FollowerOptions::default()
    };
    let mut follower = source.follower_from(Standing::default(), options)?;
    let step = next_step(&mut follower).await?;
    let Step::Events(events) = step else {
        anyhow::bail!("{step:?}")
    };
    let written = events.last().map_or(0, |event| event.timestamp_ms);
    while now_ms() < written + LATENESS_MS / 2 + 500 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let step = next_step(&mut follower).await?;
    ensure!(matches!(step, Step::Events(_)), "{step:?}");
    let step = next_step(&mut follower).await?;
    ensure!(matches!(step, Step::TooOld), "{step:?}");

    writer.send("k1", Some("2")).await?;
    let newer = writer.commit().await?;
    let taken = take(&mut follower).await?;
    assert_eq!(taken.record, newer);
    assert_eq!(taken.events.len(), 51);
    let mut table = BTreeMap::new();
    apply(&mut table, &taken.events);
    assert_eq!(table["k1"], "2");
    Ok(())
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}

/// The topic was deleted and made anew while a reader was away; by the time it is back, the new
/// one is longer than the old one was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_a_topic_that_was_made_anew_rebuilds() -> Result<()> {
    let source = source("anew").await?;
    let mut writer = Writer::take_over(&source).await?;
    for key in ["a", "b"] {
        writer.send(key, Some("old")).await?;
    }
    writer.commit().await?;
    let mut follower = source.follower()?;
    let away = take(&mut follower).await?.standing;
    drop(follower);
    // Brokers' clocks may differ by so much.
    let since = away.since_ms.unwrap_or_default();
    while now_ms() <= since + LATENESS_MS / 8 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for longer in [false, true] {
        drop(writer);
        source.delete_topic(&source.table).await?;
        source.ensure().await?;
        writer = Writer::take_over(&source).await?;
        writer.offsets.clear();
        for key in ["c", "d", "e", "f", "g"]
            .into_iter()
            .take(if longer { 5 } else { 1 })
        {
            writer.send(key, Some("new")).await?;
        }
        writer.commit().await?;
        let options = FollowerOptions::default();
        let mut back = source.follower_from(away.clone(), options)?;
        let told = next_step(&mut back).await?;
        ensure!(
            matches!(told, Step::Behind),
            "longer: {longer}, told {told:?}"
        );
        let rebuilt = take(&mut source.follower()?).await?;
        assert_eq!(rebuilt.events.len(), if longer { 5 } else { 1 });
    }
    Ok(())
}
