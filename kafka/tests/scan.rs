//! The connector's look at what it has written.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use kafka::follower::TopicScan;
use kafka::producer::Producer;
use kafka::topic::Topics;

use crate::support::{PATIENCE, Source, Writer};

async fn all_keys(
    source: &Source,
    ends: &BTreeMap<i32, i64>,
    batch_max: usize,
) -> Result<Vec<(String, bool)>> {
    let mut found = Vec::new();
    for (&partition, &end) in ends {
        let mut scan = TopicScan::new(&source.config, &source.table, partition, 0, end)?;
        loop {
            let (batch, next) = scan.next_batch(batch_max).await?;
            assert!(batch.len() <= batch_max);
            found.extend(
                batch
                    .iter()
                    .map(|(key, has)| (String::from_utf8_lossy(key).into_owned(), *has)),
            );
            if next >= end {
                break;
            }
        }
    }
    found.sort();
    Ok(found)
}

#[tokio::test]
async fn a_scan_gives_every_key_up_to_the_end_in_bounded_batches() -> Result<()> {
    let source = Source::create("scan").await?;
    let topics = Topics::connect(&source.config)?;
    let mut writer = Writer::take_over(&source).await?;
    for number in 0..50 {
        writer.send(&format!("k{number:02}"), Some("x")).await?;
    }
    writer.send("k07", None).await?;
    writer.commit().await?;
    let ends = topics.ends(&source.table).await?;
    writer.send("later", Some("x")).await?;
    writer.commit().await?;

    let found = all_keys(&source, &ends, 7).await?;
    let mut expected: Vec<_> = (0..50).map(|n| (format!("k{n:02}"), true)).collect();
    expected.push(("k07".to_owned(), false));
    expected.sort();
    assert_eq!(found, expected);
    assert!(
        all_keys(&source, &BTreeMap::from([(0, 0)]), 7)
            .await?
            .is_empty()
    );
    Ok(())
}

#[tokio::test]
async fn a_scan_waits_for_the_markers_of_what_was_just_committed() -> Result<()> {
    let source = Source::create("scanwait").await?;
    let mut writer = Writer::take_over(&source).await?;
    let mut late = Producer::connect(&source.config, &format!("{}late", source.table)).await?;
    late.send(&source.table, b"a", Some(b"x"), &[]).await?;
    late.delivered().await?;
    writer.send("a", Some("x")).await?;
    let record = writer.commit().await?;
    let ends = record.offsets[&source.table].clone();
    let mut scan = std::pin::pin!(all_keys(&source, &ends, 10));
    let early = tokio::time::timeout(Duration::from_millis(500), &mut scan).await;
    assert!(early.is_err(), "{early:?}");
    late.abort().await?;
    let found = tokio::time::timeout(PATIENCE, scan).await??;
    assert_eq!(found, [("a".to_owned(), true)]);
    Ok(())
}
