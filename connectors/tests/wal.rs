//! WAL that a slot keeps: said, bounded, and the slot given up or lost.

use anyhow::{Context, Result, ensure};
use fixtures::Kafka;
use fixtures::postgres::{Postgres, Version};

use crate::harness::{Connector, Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 20) g";

async fn epoch(connector: &Connector) -> Result<u64> {
    let status = connector.status().await?;
    Ok(status["epoch"].as_u64().unwrap_or(0))
}

async fn slots(rig: &Rig) -> Result<i64> {
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1";
    Ok(rig.db.query_one(sql, &[&rig.slot]).await?.get(0))
}

/// Kafka is away for long: the alarm comes first, then the owner's disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_keeps_too_much_is_said_and_given_up_while_kafka_is_away() -> Result<()> {
    for version in [Version::Legacy15, Version::View18] {
        let server = Postgres::start(version).await?;
        let mut kafka = Kafka::start().await?;
        let mut rig = Rig::on(&server, &[ITEM], DDL).await?;
        rig.bootstrap = kafka.bootstrap();
        let connector = rig
            .connector()
            .postgres("slot_wal_bytes_max = 134217728")
            .start()?;
        connector.ready().await?;
        let before = epoch(&connector).await?;
        kafka.stop().await;
        rig.switch_wal(5).await?;
        connector.logged("at which it is given up").await?;
        eventually("the alarm", || async {
            let alarm = connector.metric("connector_slot_alarm").await?;
            let status = connector.status().await?;
            Ok((alarm == Some(1.0) && status["slot"]["alarm"].is_string()).then_some(()))
        })
        .await?;
        assert_eq!(slots(&rig).await?, 1, "it is only an alarm");
        rig.run("DELETE FROM item WHERE id = 1; INSERT INTO item VALUES (30, 30)")
            .await?;
        rig.switch_wal(4).await?;
        eventually("the slot is gone", || async {
            Ok((slots(&rig).await? == 0).then_some(()))
        })
        .await
        .with_context(|| connector.log())?;
        connector.logged("more than slot_wal_bytes_max").await?;
        eventually("it says that the slot is lost", || async {
            let lost = connector.metric("connector_slot_lost").await?;
            let status = connector.status().await?;
            let reason = status["reason"].as_str().unwrap_or_default();
            Ok(
                (lost == Some(1.0) && reason.contains("it kept too much: the log cannot"))
                    .then_some(()),
            )
        })
        .await
        .with_context(|| connector.log())?;
        rig.run("DELETE FROM item WHERE id = 2").await?;
        kafka.restart().await?;
        eventually("a new epoch", || async {
            Ok((epoch(&connector).await? > before).then_some(()))
        })
        .await
        .with_context(|| connector.log())?;
        connector.ready().await?;
        equals_source(&rig, &mut rig.journal()?, &[ITEM]).await?;
        assert_eq!(slots(&rig).await?, 1);
        let given_up = connector.metric("connector_slots_given_up_total").await?;
        assert_eq!(given_up, Some(1.0), "{}", connector.log());
        eventually("no alarm any more", || async {
            let alarm = connector.metric("connector_slot_alarm").await?;
            Ok((alarm == Some(0.0)).then_some(()))
        })
        .await?;
        assert_eq!(connector.metric("connector_slot_lost").await?, Some(0.0));
    }
    Ok(())
}

/// The owner's own bound: the source ends the slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_source_invalidated_begins_a_new_epoch() -> Result<()> {
    for version in [Version::Legacy15, Version::View18] {
        let bound = ("max_slot_wal_keep_size", "48MB");
        let server = Postgres::start_with(version, &[bound]).await?;
        let rig = Rig::on(&server, &[ITEM], DDL).await?;
        let connector = rig.connector().start()?;
        connector.ready().await?;
        let before = epoch(&connector).await?;
        connector.kill().await;
        rig.run("DELETE FROM item WHERE id = 1; INSERT INTO item VALUES (30, 30)")
            .await?;
        let sql = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1";
        eventually("the slot is lost", || async {
            rig.switch_wal(2).await?;
            rig.run("CHECKPOINT").await?;
            let row = rig.db.query_one(sql, &[&rig.slot]).await?;
            Ok((row.get::<_, Option<String>>(0).as_deref() == Some("lost")).then_some(()))
        })
        .await?;
        let next = rig.connector().start()?;
        next.ready().await?;
        equals_source(&rig, &mut rig.journal()?, &[ITEM]).await?;
        ensure!(epoch(&next).await? > before, "{}", next.log());
        next.logged("the slot is gone or was invalidated").await?;
    }
    Ok(())
}
