//! Topics that are deleted, made anew, given partitions, or whose broker lost what they held.

use anyhow::{Context, Result, ensure};
use fixtures::Kafka;

use crate::harness::{Connector, Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const PART: &str = "public.part";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   CREATE TABLE part (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 20) g; \
                   INSERT INTO part SELECT g, g FROM generate_series(1, 20) g";

async fn rig() -> Result<Rig> {
    Rig::new(&[ITEM, PART], DDL).await
}

async fn epoch(connector: &Connector) -> Result<u64> {
    let status = connector.status().await?;
    Ok(status["epoch"].as_u64().unwrap_or(0))
}

/// It begins a new epoch and everything is as in the source, for a reader who begins now.
async fn begins_a_new_epoch(rig: &Rig, connector: &Connector, before: u64) -> Result<()> {
    eventually("a new epoch", || async {
        Ok((epoch(connector).await? > before).then_some(()))
    })
    .await
    .with_context(|| connector.log())?;
    connector.ready().await?;
    equals_source(rig, &mut rig.journal()?, &[ITEM, PART]).await?;
    // It stays so: no loop.
    let now = epoch(connector).await?;
    rig.run("UPDATE item SET n = n + 1; DELETE FROM part WHERE id = 2")
        .await?;
    equals_source(rig, &mut rig.journal()?, &[ITEM, PART]).await?;
    assert_eq!(epoch(connector).await?, now);
    Ok(())
}

/// No change of the table's comes that could fail: the topic itself is looked at.
#[tokio::test(flavor = "multi_thread")]
async fn the_topic_of_an_idle_table_that_is_deleted_is_missed_and_written_anew() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    // Looked at once: from now on less is noticed.
    eventually("two looks at the topics", || async {
        Ok((connector.log().matches("looked at the topics").count() >= 2).then_some(()))
    })
    .await?;
    let before = epoch(&connector).await?;
    rig.delete_topic(ITEM).await?;
    begins_a_new_epoch(&rig, &connector, before).await?;
    connector.logged("was deleted, or Kafka lost").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_while_the_connector_is_down_is_written_anew() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let before = epoch(&connector).await?;
    connector.kill().await;
    rig.delete_topic(PART).await?;
    let (code, said) = connector.command(&["check"]).await?;
    ensure!(code == Some(1), "{said}");
    let sentence = format!("warning: topic {} was deleted, or Kafka", rig.topic(PART));
    ensure!(said.contains(&sentence), "{said}");
    let next = rig.connector().start()?;
    begins_a_new_epoch(&rig, &next, before).await?;
    next.logged("was deleted, or Kafka lost").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_topic_that_is_deleted_begins_a_new_epoch() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let before = epoch(&connector).await?;
    rig.run("DELETE FROM item WHERE id = 1").await?;
    rig.delete_topic("checkpoint").await?;
    begins_a_new_epoch(&rig, &connector, before).await
}

/// The events of one key would stand in two partitions, in no order.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_stop_the_connector_until_the_topic_is_made_anew() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let before = epoch(&connector).await?;
    eventually("two looks at the topics", || async {
        Ok((connector.log().matches("looked at the topics").count() >= 2).then_some(()))
    })
    .await?;
    rig.partition_topic(ITEM, 5).await?;
    let (code, log) = connector.ended().await?;
    ensure!(code == Some(2), "{log}");
    let said = format!(
        "error: topic {} has 5 partitions and had 2",
        rig.topic(ITEM)
    );
    ensure!(log.contains(&said), "{log}");
    let (code, checked) = connector.command(&["check"]).await?;
    ensure!(code == Some(2) && checked.contains(&said), "{checked}");
    rig.run("UPDATE item SET n = 0").await?;
    let (code, log) = rig.connector().start()?.ended().await?;
    ensure!(code == Some(2) && log.contains(&said), "{log}");
    rig.delete_topic(ITEM).await?;
    let next = rig.connector().start()?;
    begins_a_new_epoch(&rig, &next, before).await
}

/// A broker comes back without what it had acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_data_is_recognised() -> Result<()> {
    let mut kafka = Kafka::start().await?;
    let mut rig = rig().await?;
    rig.bootstrap = kafka.bootstrap();
    let connector = rig.connector().start()?;
    connector.ready().await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM, PART]).await?;
    let before = epoch(&connector).await?;
    kafka.stop().await;
    for partition in 0..2 {
        let folder = kafka
            .data()
            .join(format!("{}-{partition}", rig.topic(ITEM)));
        for file in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = file?.path();
            if path.extension().is_some_and(|kind| kind != "metadata") {
                std::fs::remove_file(path)?;
            }
        }
    }
    rig.run("DELETE FROM item WHERE id = 3").await?;
    kafka.restart().await?;
    begins_a_new_epoch(&rig, &connector, before).await?;
    connector.logged("was deleted, or Kafka lost").await
}
