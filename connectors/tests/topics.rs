//! Topics that are deleted, made anew, given partitions, or whose broker lost what they held.

use anyhow::{Context, Result, bail, ensure};
use fixtures::Kafka;
use kafka::follower::{Follower, FollowerOptions, QUARANTINE, Standing, Step};
use kafka::{KafkaConfig, Lsn};

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

/// Somebody has to start another version, or to begin anew: trying again does not help.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_another_version_stops_the_connector_with_the_way_out() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let before = epoch(&connector).await?;
    connector.kill().await;
    rig.write("checkpoint", "checkpoint", r#"{"version":99}"#)
        .await?;
    let (code, log) = rig.connector().start()?.ended().await?;
    ensure!(code == Some(2), "{log}");
    let said = log.lines().find(|line| line.starts_with("error: "));
    let said = said.with_context(|| log.clone())?;
    for part in [
        "record ",
        "no checkpoint that this version",
        "delete the topic",
    ] {
        ensure!(said.contains(part), "{said}");
    }
    rig.run("DELETE FROM item WHERE id = 1").await?;
    rig.delete_topic("checkpoint").await?;
    let next = rig.connector().start()?;
    begins_a_new_epoch(&rig, &next, before).await
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

/// PostgreSQL checks text where it comes in; the cast makes some that is none.
const NOTES: &str = "CREATE TABLE item (id bigint PRIMARY KEY, note text NOT NULL); \
                     CREATE CAST (bytea AS text) WITHOUT FUNCTION";
const NO_TEXT: &str = "'\\xc8'::bytea::text";

/// A reader of the table and the quarantine, as the view's.
fn reader(rig: &Rig) -> Result<Follower> {
    let mut config = KafkaConfig::new(&rig.bootstrap, 1);
    config.topic_prefix.clone_from(&rig.prefix);
    let options = FollowerOptions {
        tables: Some(vec![ITEM.to_owned(), QUARANTINE.to_owned()]),
        ..FollowerOptions::default()
    };
    Ok(Follower::new(
        &config,
        "shop",
        Standing::default(),
        options,
    )?)
}

/// Follows up to a checkpoint at `lsn`; the keys that came from the quarantine.
async fn set_aside(reader: &mut Follower, lsn: Lsn) -> Result<Vec<String>> {
    let read = async {
        let mut keys = Vec::new();
        loop {
            let (events, at) = match reader.next().await? {
                Step::Events(events) => (events, None),
                Step::Checkpoint { record, events, .. } => (events, Some(record.position)),
                other => bail!("told {other:?}"),
            };
            let events = events.iter();
            let quarantined = events.filter(|event| &*event.table == QUARANTINE);
            keys.extend(quarantined.map(|event| String::from_utf8_lossy(&event.key).into_owned()));
            if at.is_some_and(|at| at >= lsn) {
                return Ok(keys);
            }
        }
    };
    let patience = std::time::Duration::from_secs(60);
    tokio::time::timeout(patience, read)
        .await
        .context("no checkpoint came")?
}

/// The quarantine was made anew and is empty: who reads it from its beginning and who has read the
/// old one both go on, in the same epoch, and hear of what comes.
async fn goes_on_with_a_new_quarantine(
    rig: &Rig,
    connector: &Connector,
    running: &mut Follower,
    epoch_before: u64,
) -> Result<()> {
    connector.logged("who reads it anew does not hear").await?;
    connector.ready().await?;
    rig.run("INSERT INTO item VALUES (3, 'c')").await?;
    let now = rig.wal_lsn().await?;
    assert_eq!(set_aside(running, now).await?.len(), 0);
    assert_eq!(set_aside(&mut reader(rig)?, now).await?.len(), 0);
    rig.run(&format!("INSERT INTO item VALUES (4, {NO_TEXT})"))
        .await?;
    let now = rig.wal_lsn().await?;
    let keys = set_aside(running, now).await?;
    ensure!(keys.len() == 1 && keys[0].contains('4'), "{keys:?}");
    assert_eq!(set_aside(&mut reader(rig)?, now).await?, keys);
    assert_eq!(epoch(connector).await?, epoch_before);
    Ok(())
}

async fn rig_with_a_quarantine() -> Result<(Rig, Connector, Follower)> {
    let rig = Rig::new(&[ITEM], NOTES).await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let bad = (1..=2).map(|id| format!("({id}, {NO_TEXT})"));
    let bad = bad.collect::<Vec<_>>().join(", ");
    rig.run(&format!("INSERT INTO item VALUES {bad}")).await?;
    let mut running = reader(&rig)?;
    let keys = set_aside(&mut running, rig.wal_lsn().await?).await?;
    ensure!(keys.len() == 2, "{keys:?}");
    Ok((rig, connector, running))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantine_that_is_deleted_is_missed_and_begun_anew() -> Result<()> {
    let (rig, connector, mut running) = rig_with_a_quarantine().await?;
    let before = epoch(&connector).await?;
    rig.delete_topic("quarantine").await?;
    connector.logged("was deleted, or Kafka lost").await?;
    goes_on_with_a_new_quarantine(&rig, &connector, &mut running, before).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantine_that_is_deleted_while_the_connector_is_down_is_begun_anew() -> Result<()> {
    let (rig, connector, mut running) = rig_with_a_quarantine().await?;
    let before = epoch(&connector).await?;
    connector.kill().await;
    rig.delete_topic("quarantine").await?;
    let (code, said) = connector.command(&["check"]).await?;
    let sentence = format!(
        "warning: topic {} was deleted, or Kafka",
        rig.topic("quarantine")
    );
    ensure!(code == Some(1) && said.contains(&sentence), "{said}");
    let next = rig.connector().start()?;
    goes_on_with_a_new_quarantine(&rig, &next, &mut running, before).await
}
