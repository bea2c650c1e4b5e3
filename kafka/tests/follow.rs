//! Reading by checkpoints.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use kafka::follower::{FollowerOptions, QUARANTINE, Standing, Step, last_record};
use kafka::producer::Producer;

use crate::support::{
    SOURCE, Source, Taken, Writer, apply, next_step, nothing_comes, record, rows, take,
};

#[tokio::test]
async fn a_checkpoint_comes_with_exactly_the_events_up_to_its_offsets() -> Result<()> {
    let source = Source::create("exact").await?;
    let mut writer = Writer::take_over(&source).await?;
    let mut follower = source.follower()?;
    let mut rows = BTreeMap::new();
    for round in 0..20 {
        for key in 0..7 {
            writer
                .send(&format!("k{key}"), Some(&round.to_string()))
                .await?;
        }
        let record = writer.commit().await?;
        let taken = take(&mut follower).await?;
        assert_eq!(taken.record, record);
        assert_eq!(taken.events.len(), 7);
        assert_eq!(taken.standing.offsets, record.offsets);
        apply(&mut rows, &taken.events);
        assert!(rows.values().all(|value| *value == round.to_string()));
    }
    Ok(())
}

#[tokio::test]
async fn events_behind_a_checkpoint_wait_for_the_next() -> Result<()> {
    let source = Source::create("behind").await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("1")).await?;
    let first = writer.commit().await?;
    // Half of a source transaction: the record is not whole.
    writer.send("a", Some("2")).await?;
    writer.send("b", Some("2")).await?;
    writer.commit_as(2, 5).await?;

    let mut follower = source.follower()?;
    let taken = take(&mut follower).await?;
    assert_eq!(taken.record, first);
    assert_eq!(rows(&taken.events), [("a", "1")]);
    nothing_comes(&mut follower).await?;

    writer.send("b", Some("3")).await?;
    let third = writer.commit_as(5, 5).await?;
    let taken = take(&mut follower).await?;
    assert_eq!(taken.record, third);
    let mut table = BTreeMap::new();
    apply(&mut table, &taken.events);
    assert_eq!(taken.events.len(), 3);
    assert_eq!(table["a"], "2");
    assert_eq!(table["b"], "3");
    Ok(())
}

#[tokio::test]
async fn aborted_events_are_never_seen() -> Result<()> {
    let source = Source::create("aborted").await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("good")).await?;
    writer.commit().await?;
    writer.send("a", Some("aborted")).await?;
    writer.send("b", Some("aborted")).await?;
    writer.producer.delivered().await?;
    drop(writer);

    let mut writer = Writer::take_over(&source).await?;
    writer.send("c", Some("good")).await?;
    let last = writer.commit().await?;
    let taken = take(&mut source.follower()?).await?;
    assert_eq!(taken.record, last);
    let mut seen = rows(&taken.events);
    seen.sort_unstable();
    assert_eq!(seen, [("a", "good"), ("c", "good")]);
    Ok(())
}

/// While the markers of a transaction are being written, a checkpoint can be visible before the
/// events that it covers. Another transaction that is open in the partition does to a reader
/// exactly what a missing marker does: the last stable offset stands before them.
#[tokio::test]
async fn a_checkpoint_waits_for_events_whose_markers_are_late() -> Result<()> {
    let source = Source::create("markers").await?;
    let mut writer = Writer::take_over(&source).await?;
    let mut late = Producer::connect(&source.config, &format!("{}late", source.table)).await?;
    late.send(&source.table, b"a", Some(b"never committed"), &[])
        .await?;
    late.delivered().await?;

    writer.send("a", Some("1")).await?;
    let record = writer.commit().await?;
    let mut follower = source.follower()?;
    nothing_comes(&mut follower).await?;

    late.abort().await?;
    let taken = take(&mut follower).await?;
    assert_eq!(taken.record, record);
    assert_eq!(rows(&taken.events), [("a", "1")]);
    Ok(())
}

/// As where compaction took the last covered record away: nothing is delivered up to the offset.
#[tokio::test]
async fn an_offset_that_no_record_reaches_is_reached_by_the_end_of_the_partition() -> Result<()> {
    let source = Source::create_with("ends", 1).await?;
    let mut lost = source.producer().await?;
    lost.send(&source.table, b"a", Some(b"aborted"), &[])
        .await?;
    lost.delivered().await?;
    lost.abort().await?;

    let mut writer = Writer::take_over(&source).await?;
    // The aborted event at offset 0, its marker at 1.
    let offsets = BTreeMap::from([(source.table.clone(), BTreeMap::from([(0, 2)]))]);
    writer.offsets = offsets.clone();
    writer.commit().await?;
    let mut follower = source.follower()?;
    let taken = take(&mut follower).await?;
    assert!(taken.events.is_empty());
    assert_eq!(taken.standing.offsets, offsets);

    writer.send("a", Some("1")).await?;
    writer.commit().await?;
    assert_eq!(rows(&take(&mut follower).await?.events), [("a", "1")]);
    Ok(())
}

#[tokio::test]
async fn a_late_reader_takes_the_newest_checkpoint_and_goes_on_where_it_stood() -> Result<()> {
    let source = Source::create("newest").await?;
    let mut writer = Writer::take_over(&source).await?;
    for number in 0..30 {
        writer
            .send(&format!("k{number}"), Some(&number.to_string()))
            .await?;
        writer.commit().await?;
    }
    let taken = take(&mut source.follower()?).await?;
    assert_eq!(taken.record.position.0, 30);
    assert_eq!(taken.events.len(), 30);

    writer.send("k1", Some("again")).await?;
    writer.commit().await?;
    let mut resumed = source.follower_from(taken.standing, FollowerOptions::default())?;
    let taken = take(&mut resumed).await?;
    assert_eq!(rows(&taken.events), [("k1", "again")]);
    Ok(())
}

#[tokio::test]
async fn a_large_checkpoint_comes_in_steps_of_bounded_size() -> Result<()> {
    let source = Source::create("large").await?;
    let mut writer = Writer::take_over(&source).await?;
    for number in 0..1000 {
        writer
            .send(&format!("k{number}"), Some(&"x".repeat(100)))
            .await?;
    }
    writer.commit().await?;
    for (step_events_max, step_bytes_max) in [(100, usize::MAX), (usize::MAX, 10_000)] {
        let options = FollowerOptions {
            step_events_max,
            step_bytes_max,
            tables: None,
        };
        let mut follower = source.follower_from(Standing::default(), options)?;
        let (mut steps, mut count) = (0, 0);
        loop {
            let (events, is_last) = match next_step(&mut follower).await? {
                Step::Events(events) => (events, false),
                Step::Checkpoint { events, .. } => (events, true),
                other => anyhow::bail!("told {other:?}"),
            };
            let bytes: usize = events
                .iter()
                .map(|event| event.key.len() + event.value.as_ref().map_or(0, |v| v.len()))
                .sum();
            assert!(events.len() <= step_events_max);
            assert!(bytes < step_bytes_max.saturating_add(200));
            steps += 1;
            count += events.len();
            if is_last {
                break;
            }
        }
        assert_eq!(count, 1000);
        assert!(steps >= 10, "{steps}");
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_of_some_tables_reads_and_stands_in_those_only() -> Result<()> {
    let source = Source::create("subset").await?;
    let other = source.table.replace("public.item", "public.price");
    let topics = kafka::topic::Topics::connect(&source.config)?;
    topics
        .ensure(std::slice::from_ref(&other), &source.checkpoint)
        .await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("item")).await?;
    writer
        .producer
        .send(&other, b"a", Some(b"price"), &[])
        .await?;
    let record = writer.commit().await?;
    assert_eq!(record.offsets.len(), 2);
    let options = FollowerOptions {
        tables: Some(vec!["public.price".to_owned()]),
        ..FollowerOptions::default()
    };
    let taken = take(&mut source.follower_from(Standing::default(), options)?).await?;
    assert_eq!(rows(&taken.events), [("a", "price")]);
    assert_eq!(&*taken.events[0].table, "public.price");
    assert_eq!(*taken.events[0].topic, *other);
    assert_eq!(taken.standing.offsets.keys().collect::<Vec<_>>(), [&other]);
    Ok(())
}

#[tokio::test]
async fn a_reader_that_comes_before_its_source_waits() -> Result<()> {
    let source = Source::unmade("early").await?;
    let mut follower = source.follower()?;
    assert!(follower.last_checkpoint().await?.is_none());
    let reader = tokio::spawn(async move { take(&mut follower).await });
    source.ensure().await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("1")).await?;
    let record = writer.commit().await?;
    assert_eq!(reader.await??.record, record);
    Ok(())
}

#[tokio::test]
async fn the_feed_begins_at_the_last_whole_checkpoint() -> Result<()> {
    let source = Source::create("feed").await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("1")).await?;
    let whole = writer.commit().await?;
    writer.send("b", Some("2")).await?;
    writer.commit_as(2, 9).await?;
    let mut follower = source.follower()?;
    let (offset, _, record) = follower.last_checkpoint().await?.context("none")?;
    assert_eq!((offset, &record), (0, &whole));
    nothing_comes(&mut follower).await?;
    writer.send("c", Some("3")).await?;
    writer.commit_as(9, 9).await?;
    let mut seen = take(&mut follower).await?;
    seen.events.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(rows(&seen.events), [("b", "2"), ("c", "3")]);
    Ok(())
}

#[tokio::test]
async fn a_successor_finds_the_last_record_however_far_back() -> Result<()> {
    let source = Source::create("last").await?;
    assert!(last_record(&source.config, SOURCE).await?.is_none());
    let mut writer = Writer::take_over(&source).await?;
    for _ in 0..3 {
        writer.commit().await?;
    }
    let last = writer.commit_as(4, 8).await?;
    assert_eq!(
        last_record(&source.config, SOURCE).await?,
        Some(last.clone())
    );
    // Aborted records and markers: more of them than the first look takes in.
    let aborted = serde_json::to_vec(&record(99, 99, BTreeMap::new()))?;
    for _ in 0..3 {
        let mut producer = source.producer().await?;
        for _ in 0..150 {
            producer
                .send(&source.checkpoint, b"checkpoint", Some(&aborted), &[])
                .await?;
        }
        producer.delivered().await?;
        producer.abort().await?;
    }
    assert_eq!(last_record(&source.config, SOURCE).await?, Some(last));
    Ok(())
}

#[tokio::test]
async fn a_reader_whose_records_are_gone_is_told_that_it_is_behind() -> Result<()> {
    let source = Source::create_with("gone", 1).await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("1")).await?;
    writer.commit().await?;
    let stood = take(&mut source.follower()?).await?.standing;
    for number in 0..3 {
        writer.send("a", Some(&number.to_string())).await?;
        writer.commit().await?;
    }
    source.delete_records_before(6).await?;
    let resume = |standing| source.follower_from(standing, FollowerOptions::default());
    let step = next_step(&mut resume(stood.clone())?).await?;
    ensure!(matches!(step, Step::Behind), "{step:?}");

    // A checkpoint topic that was made anew is shorter than what was seen.
    let mut ahead = stood;
    ahead.seen = 1000;
    let step = next_step(&mut resume(ahead)?).await?;
    ensure!(matches!(step, Step::Behind), "{step:?}");

    // One that begins with nothing reads what there is.
    assert_eq!(
        rows(&take(&mut source.follower()?).await?.events),
        [("a", "2")]
    );
    Ok(())
}

fn with_quarantine() -> FollowerOptions {
    FollowerOptions {
        tables: Some(vec!["public.item".to_owned(), QUARANTINE.to_owned()]),
        ..FollowerOptions::default()
    }
}

/// The keys that a checkpoint brought from the quarantine.
fn set_aside(taken: &Taken) -> Vec<&str> {
    let events = taken.events.iter();
    let quarantined = events.filter(|event| &*event.table == QUARANTINE);
    quarantined
        .filter_map(|event| std::str::from_utf8(&event.key).ok())
        .collect()
}

/// A rebuild would forget what the old one said, and the new one does not say it again.
#[tokio::test]
async fn a_quarantine_that_was_made_anew_is_read_from_its_beginning_without_a_rebuild() -> Result<()>
{
    let source = Source::create("anew").await?;
    source.ensure_quarantine().await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("1")).await?;
    for key in ["q1", "q2", "q3"] {
        writer.set_aside(key).await?;
    }
    writer.commit().await?;
    let mut running = source.follower_from(Standing::default(), with_quarantine())?;
    let taken = take(&mut running).await?;
    assert_eq!(set_aside(&taken), ["q1", "q2", "q3"]);
    let away = taken.standing;

    drop(writer);
    source.delete_topic(&source.quarantine).await?;
    source.ensure_quarantine().await?;
    let mut writer = Writer::take_over(&source).await?;
    // As a takeover does: the topic holds nothing.
    writer.quarantine.clear();
    writer.commit().await?;
    let taken = take(&mut running).await?;
    assert!(taken.events.is_empty());
    ensure!(!taken.standing.offsets.contains_key(&source.quarantine));
    writer.set_aside("q4").await?;
    writer.send("b", Some("1")).await?;
    let record = writer.commit().await?;
    let mut resumed = source.follower_from(away, with_quarantine())?;
    for reader in [&mut running, &mut resumed] {
        let taken = take(reader).await?;
        assert_eq!((taken.events.len(), set_aside(&taken)), (2, vec!["q4"]));
        let quarantine = &taken.standing.offsets[&source.quarantine];
        assert_eq!(*quarantine, record.quarantine);
    }
    Ok(())
}

/// What is waited for can vanish meanwhile; the next record no longer names it.
#[tokio::test]
async fn a_reader_does_not_wait_for_an_offset_that_a_newer_record_takes_back() -> Result<()> {
    let source = Source::create("back").await?;
    source.ensure_quarantine().await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("1")).await?;
    writer.commit().await?;
    // The topic was made anew, and the last record is of before.
    writer.quarantine = BTreeMap::from([(0, 57)]);
    writer.commit().await?;
    let mut reader = source.follower_from(Standing::default(), with_quarantine())?;
    nothing_comes(&mut reader).await?;
    writer.quarantine.clear();
    let record = writer.commit().await?;
    let taken = take(&mut reader).await?;
    assert_eq!(taken.record, record);
    assert_eq!(rows(&taken.events), [("a", "1")]);
    Ok(())
}
