//! Transactions that a broker decided and did not end.

use std::collections::BTreeMap;

use anyhow::Result;
use fixtures::markers::MarkedKafka;
use kafka::producer::Producer;
use kafka::producer::hanging::HangingError;
use kafka::topic::{Topics, shorter};

use crate::support::{SOURCE, Source, Writer, apply, rows, take};

async fn on(broker: &MarkedKafka) -> Result<Source> {
    let mut source = Source::on(&broker.kafka.bootstrap(), "hanging");
    source.config.partitions = 3;
    source.ensure().await?;
    Ok(source)
}

/// Is a partition written further than it is stable?
async fn hangs(source: &Source) -> Result<bool> {
    let topics = Topics::connect(&source.config)?;
    let names = [source.table.clone(), source.checkpoint.clone()];
    let stable = topics.standing(&names).await?;
    Ok(shorter(&source.written(&stable)?, &stable).is_some())
}

#[tokio::test]
async fn what_was_committed_without_its_markers_is_committed() -> Result<()> {
    let mut broker = MarkedKafka::start().await?;
    let source = on(&broker).await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("1")).await?;
    writer.commit().await?;
    let mut follower = source.follower()?;
    take(&mut follower).await?;

    broker.markers.down();
    for key in ["a", "b", "c", "d"] {
        writer.send(key, Some("2")).await?;
    }
    let committed = writer.commit().await?;
    // The other writer is in the middle of the next one.
    writer.send("a", Some("open")).await?;
    writer.producer.delivered().await?;
    broker.crash().await?;
    drop(writer);

    let mut writer = Writer::take_over(&source).await?;
    assert_eq!(writer.lsn, committed.position.0, "the last record");
    assert!(!hangs(&source).await?);
    writer.send("e", Some("3")).await?;
    let last = writer.commit().await?;
    let mut found = BTreeMap::new();
    loop {
        let taken = take(&mut follower).await?;
        apply(&mut found, &taken.events);
        if taken.record == last {
            break;
        }
        assert_eq!(taken.record.position, committed.position);
    }
    let found = found
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()));
    let expected = [("a", "2"), ("b", "2"), ("c", "2"), ("d", "2"), ("e", "3")];
    assert!(found.eq(expected));
    Ok(())
}

#[tokio::test]
async fn what_was_aborted_without_its_markers_is_aborted() -> Result<()> {
    let mut broker = MarkedKafka::start().await?;
    let source = on(&broker).await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("1")).await?;
    let committed = writer.commit().await?;
    // Its markers are written: what hangs of it would be sent once more.
    take(&mut source.follower()?).await?;
    for key in ["a", "b", "c"] {
        writer.send(key, Some("open")).await?;
    }
    writer.producer.delivered().await?;
    broker.markers.down();
    writer.producer.abort().await?;
    broker.crash().await?;

    let mut writer = Writer::take_over(&source).await?;
    assert_eq!(writer.lsn, committed.position.0, "the last record");
    assert!(!hangs(&source).await?);
    writer.send("b", Some("2")).await?;
    let record = writer.commit().await?;
    let taken = take(&mut source.follower()?).await?;
    assert_eq!(taken.record, record);
    assert_eq!(rows(&taken.events), [("a", "1"), ("b", "2")]);
    Ok(())
}

#[tokio::test]
async fn what_somebody_else_left_open_is_said_and_left_alone() -> Result<()> {
    let source = Source::create("foreign").await?;
    let mut stranger = Producer::connect(&source.config, &source.table).await?;
    let table = &source.table;
    stranger.send(table, b"a", Some(b"open"), &[]).await?;
    stranger.delivered().await?;

    let mut producer = source.producer().await?;
    let tables = std::slice::from_ref(table);
    let ended = producer.end_hanging(&source.config, SOURCE, tables).await;
    let Err(HangingError::Foreign { topic, .. }) = &ended else {
        panic!("{ended:?}");
    };
    assert_eq!(topic, table);
    stranger.abort().await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("b", Some("good")).await?;
    writer.commit().await?;
    let taken = take(&mut source.follower()?).await?;
    assert_eq!(rows(&taken.events), [("b", "good")]);
    Ok(())
}
