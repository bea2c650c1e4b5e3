//! Brokers that go away, and transactions that nobody ends.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kafka::producer::ProducerError;

use crate::support::{Source, Writer, rows, take};

#[tokio::test]
async fn a_reader_goes_on_after_the_broker_came_back_and_a_writer_starts_over() -> Result<()> {
    let mut broker = fixtures::Kafka::start().await?;
    let mut source = Source::on(&broker.bootstrap(), "restart");
    source.config.request_timeout_ms = 2000;
    source.ensure().await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("1")).await?;
    writer.commit().await?;
    let mut follower = source.follower()?;
    take(&mut follower).await?;

    broker.crash().await;
    let begun = Instant::now();
    writer.send("a", Some("lost")).await?;
    match writer.producer.delivered().await {
        Err(error @ (ProducerError::Retriable { .. } | ProducerError::TimedOut { .. })) => {
            assert!(!error.is_setup())
        }
        other => bail!("{other:?}"),
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(writer);

    broker.restart().await?;
    source.config.request_timeout_ms = 20_000;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("2")).await?;
    let record = writer.commit().await?;
    let taken = take(&mut follower).await?;
    assert_eq!(taken.record, record);
    assert_eq!(rows(&taken.events), [("a", "2")]);
    Ok(())
}

#[tokio::test]
async fn a_transaction_that_is_open_too_long_is_aborted_and_its_producer_fenced() -> Result<()> {
    let interval = "transaction.abort.timed.out.transaction.cleanup.interval.ms";
    let broker = fixtures::Kafka::start_with(&[(interval, "200")]).await?;
    let mut source = Source::on(&broker.bootstrap(), "timeout");
    source.config.transaction_timeout_ms = 1000;
    source.ensure().await?;
    let mut writer = Writer::take_over(&source).await?;
    writer.send("a", Some("aborted")).await?;
    writer.producer.delivered().await?;
    let ends = kafka::topic::Topics::connect(&source.config)?;
    // The abort's marker follows the event.
    while ends.ends(&source.table).await?.values().sum::<i64>() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let late = writer.commit().await;
    let Err(error) = late else { bail!("committed") };
    let error: ProducerError = error.downcast()?;
    assert!(error.is_fenced(), "{error:?}");
    Ok(())
}
