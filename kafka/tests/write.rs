//! The one writer.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use fixtures::distant::DistantKafka;
use kafka::producer::{Producer, ProducerError};

use crate::support::{PATIENCE, Source, Writer, record, rows, take};

/// What a producer that was overtaken is told, whichever call meets it first.
async fn outcome(producer: &mut Producer, source: &Source) -> Result<(), ProducerError> {
    producer
        .send(&source.table, b"a", Some(b"zombie"), &[])
        .await?;
    producer.delivered().await?;
    let record = record(99, 99, std::collections::BTreeMap::new());
    producer.commit(&source.checkpoint, &record).await.map(drop)
}

#[tokio::test]
async fn a_successor_aborts_what_was_open_and_shuts_the_older_one_out() -> Result<()> {
    let source = Source::create("fence").await?;
    let mut old = source.producer().await?;
    old.send(&source.table, b"a", Some(b"sent before"), &[])
        .await?;
    old.delivered().await?;

    let mut writer = Writer::take_over(&source).await?;
    let fenced = outcome(&mut old, &source).await;
    assert!(
        fenced.as_ref().is_err_and(ProducerError::is_fenced),
        "{fenced:?}"
    );
    writer.send("b", Some("good")).await?;
    let record = writer.commit().await?;
    let taken = take(&mut source.follower()?).await?;
    assert_eq!(taken.record, record);
    assert_eq!(rows(&taken.events), [("b", "good")]);
    Ok(())
}

/// A producer has two ids, which take turns: here the second one's transaction is open.
#[tokio::test]
async fn a_successor_shuts_out_whichever_of_the_two_writers_is_at_work() -> Result<()> {
    let source = Source::create("turns").await?;
    let mut first = Writer::take_over(&source).await?;
    first.send("b", Some("committed")).await?;
    first.commit().await?;
    let mut old = first.producer;
    old.send(&source.table, b"a", Some(b"sent before"), &[])
        .await?;
    old.delivered().await?;

    let mut writer = Writer::take_over(&source).await?;
    let fenced = outcome(&mut old, &source).await;
    assert!(
        fenced.as_ref().is_err_and(ProducerError::is_fenced),
        "{fenced:?}"
    );
    writer.send("c", Some("good")).await?;
    let record = writer.commit().await?;
    let taken = take(&mut source.follower()?).await?;
    assert_eq!(taken.record, record);
    assert_eq!(rows(&taken.events), [("b", "committed"), ("c", "good")]);
    Ok(())
}

/// The older one's queue is full of events that no broker has seen when the other takes over.
#[tokio::test]
async fn what_an_overtaken_producer_had_queued_is_never_read() -> Result<()> {
    let source = Source::create("queued").await?;
    let mut old = source.producer().await?;
    let value = vec![b'x'; 1000];
    for number in 0..2000 {
        let key = format!("k{number}");
        old.send(&source.table, key.as_bytes(), Some(&value), &[])
            .await?;
    }
    let mut writer = Writer::take_over(&source).await?;
    let fenced = outcome(&mut old, &source).await;
    assert!(
        fenced.as_ref().is_err_and(ProducerError::is_fenced),
        "{fenced:?}"
    );
    writer.send("k1", Some("good")).await?;
    writer.commit().await?;
    let taken = take(&mut source.follower()?).await?;
    assert_eq!(rows(&taken.events), [("k1", "good")]);
    Ok(())
}

#[tokio::test]
async fn a_dropped_producer_does_not_wait_and_writes_nothing_more() -> Result<()> {
    let source = Source::create("dropped").await?;
    let mut old = source.producer().await?;
    let value = vec![b'x'; 1000];
    for number in 0..2000 {
        let key = format!("k{number}");
        old.send(&source.table, key.as_bytes(), Some(&value), &[])
            .await?;
    }
    let begun = Instant::now();
    drop(old);
    assert!(begun.elapsed() < Duration::from_millis(200));
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("good")).await?;
    writer.commit().await?;
    let taken = take(&mut source.follower()?).await?;
    assert_eq!(rows(&taken.events), [("a", "good")]);
    Ok(())
}

/// While no answer comes back, as many partitions get what was sent as requests may be on their way.
#[tokio::test(flavor = "multi_thread")]
async fn requests_are_on_their_way_at_once_as_many_as_configured() -> Result<()> {
    let distant = DistantKafka::start().await?;
    for requests in [1, 5] {
        let mut source = Source::on(&distant.bootstrap(), "distant");
        source.config.partitions = 3;
        source.config.requests_in_flight_max = requests;
        source.ensure().await?;
        let mut near = Source::on(&distant.kafka.bootstrap(), "near");
        near.table.clone_from(&source.table);
        let mut writer = Writer::take_over(&source).await?;
        let keys: Vec<_> = (0..40).map(|number| format!("k{number}")).collect();
        for key in &keys {
            writer.send(key, Some("to know the partitions")).await?;
        }
        let before = writer.producer.delivered().await?;
        assert_eq!(before[&source.table].len(), 3);

        distant.network.mute();
        for key in &keys {
            writer.send(key, Some("without an answer")).await?;
        }
        let wanted = if requests == 1 { 1 } else { 3 };
        let begun = Instant::now();
        let grown = loop {
            let now = &near.written(&before)?[&near.table];
            let ends = &before[&near.table];
            let grown = ends.iter().filter(|(at, end)| now[at] > **end).count();
            if grown >= wanted {
                break grown;
            }
            ensure!(begun.elapsed() < PATIENCE, "{grown} of {wanted} partitions");
        };
        assert_eq!(grown, wanted, "with {requests} requests");
        distant.network.up();
        writer.commit().await?;
        let taken = take(&mut source.follower()?).await?;
        assert_eq!(taken.events.len(), 2 * keys.len());
    }
    Ok(())
}

#[tokio::test]
async fn a_checkpoint_alone_is_a_transaction() -> Result<()> {
    let source = Source::create("alone").await?;
    let mut writer = Writer::take_over(&source).await?;
    let mut follower = source.follower()?;
    for _ in 0..3 {
        let record = writer.commit().await?;
        let taken = take(&mut follower).await?;
        assert_eq!(taken.record, record);
        assert!(taken.events.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn more_than_the_queue_holds_is_sent_by_waiting() -> Result<()> {
    let mut source = Source::create("full").await?;
    source.config.send_queue_kib = 64;
    let mut writer = Writer::take_over(&source).await?;
    let value = "x".repeat(1000);
    for number in 0..3000 {
        writer.send(&format!("k{number}"), Some(&value)).await?;
    }
    assert_eq!(writer.producer.events_in_transaction(), 3000);
    assert!(writer.producer.bytes_in_transaction() > 3_000_000);
    writer.commit().await?;
    assert_eq!(writer.producer.events_in_transaction(), 0);
    let taken = take(&mut source.follower()?).await?;
    assert_eq!(taken.events.len(), 3000);
    Ok(())
}

#[tokio::test]
async fn a_record_that_no_topic_takes_is_refused_and_named() -> Result<()> {
    let source = Source::create("size").await?;
    let mut producer = source.producer().await?;
    let large = vec![0; 16 << 20];
    let refused = producer.send(&source.table, b"a", Some(&large), &[]).await;
    match refused {
        Err(error @ ProducerError::TooLarge { .. }) => {
            assert!(error.is_too_large() && error.is_setup());
            assert!(error.to_string().contains(&source.table));
        }
        other => bail!("{other:?}"),
    }
    // A little less goes through, and is read.
    let large = "x".repeat((16 << 20) - 2000);
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some(&large)).await?;
    writer.commit().await?;
    let taken = take(&mut source.follower()?).await?;
    assert_eq!(rows(&taken.events), [("a", large.as_str())]);
    Ok(())
}

/// A reader need not be told how large a writer's records may be.
#[tokio::test]
async fn a_larger_record_is_sent_where_the_configuration_says_so_and_read_by_everybody()
-> Result<()> {
    let mut source = Source::unmade("large").await?;
    let reader = source.config.clone();
    source.config.record_bytes_max = 64 << 20;
    source.config.send_queue_kib = 128 << 10;
    source.ensure().await?;
    let large = "x".repeat((64 << 20) - 2000);
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some(&large)).await?;
    writer.commit().await?;
    source.config = reader;
    let taken = take(&mut source.follower()?).await?;
    assert_eq!(rows(&taken.events), [("a", large.as_str())]);
    Ok(())
}

/// Vectors of Apache Kafka's own test of `Utils.murmur2`, as positive numbers.
#[tokio::test]
async fn keys_go_to_the_partitions_that_javas_clients_choose() -> Result<()> {
    const HASHES: [(&str, u32); 4] = [
        ("21", 0x7FFF_FFFF & -973_932_308_i32 as u32),
        ("foobar", 0x7FFF_FFFF & -790_332_482_i32 as u32),
        (
            "a-little-bit-long-string",
            0x7FFF_FFFF & -985_981_536_i32 as u32,
        ),
        (
            "a-little-bit-longer-string",
            0x7FFF_FFFF & -1_486_304_829_i32 as u32,
        ),
    ];
    let source = Source::create_with("murmur", 11).await?;
    let mut writer = Writer::take_over(&source).await?;
    for (key, _) in HASHES {
        writer.send(key, Some("x")).await?;
    }
    writer.commit().await?;
    let taken = take(&mut source.follower()?).await?;
    for (key, hash) in HASHES {
        let event = taken.events.iter().find(|event| event.key == key);
        let partition = event.map(|event| event.partition);
        assert_eq!(partition, i32::try_from(hash % 11).ok(), "{key}");
    }
    Ok(())
}

#[tokio::test]
async fn a_takeover_of_nothing_is_quick_enough_to_be_tried_again() -> Result<()> {
    let source = Source::create("quick").await?;
    tokio::time::timeout(PATIENCE, source.producer()).await??;
    let begun = Instant::now();
    source.producer().await?;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    Ok(())
}
