//! A replica takes the source's place, or a backup does.

use anyhow::{Context, Result, ensure};
use fixtures::postgres::{Postgres, Version};

use crate::harness::{Connector, Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 5) g";

async fn epoch(connector: &Connector) -> Result<u64> {
    let status = connector.status().await?;
    Ok(status["epoch"].as_u64().unwrap_or(0))
}

/// Waits until the replica has all that its primary has now.
async fn caught_up(rig: &Rig, replica: &Postgres) -> Result<()> {
    let end = rig.wal_lsn().await?;
    let db = replica.superuser("postgres").await?;
    eventually("the replica has caught up", || async {
        let row = db
            .query_one("SELECT pg_last_wal_replay_lsn()::text", &[])
            .await?;
        let replayed: kafka::Lsn = row.get::<_, String>(0).parse()?;
        Ok((replayed >= end).then_some(()))
    })
    .await
}

async fn promote(rig: &mut Rig, replica: &Postgres) -> Result<()> {
    rig.moved_to(replica).await?;
    let promoted: bool = rig.db.query_one("SELECT pg_promote()", &[]).await?.get(0);
    ensure!(promoted, "not promoted");
    Ok(())
}

/// Of version 15 a replica has no logical slots. Until it is promoted it is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_the_slot_is_read_anew_once_it_is_promoted() -> Result<()> {
    let mut primary = Postgres::start(Version::Legacy15).await?;
    let mut rig = Rig::on(&primary, &[ITEM], DDL).await?;
    let replica = primary.replica(None, &[]).await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let before = epoch(&connector).await?;
    rig.run("UPDATE item SET n = 7 WHERE id = 1").await?;
    caught_up(&rig, &replica).await?;
    connector.kill().await;
    rig.run("DELETE FROM item WHERE id = 2").await?;
    caught_up(&rig, &replica).await?;
    primary.crash().await;
    rig.moved_to(&replica).await?;
    let next = rig.connector().start()?;
    eventually("it says that this is a standby", || async {
        let reason = next.status().await?["reason"].clone();
        let reason = reason.as_str().unwrap_or_default();
        Ok(reason.contains("the source is a standby").then_some(()))
    })
    .await
    .with_context(|| next.log())?;
    promote(&mut rig, &replica).await?;
    next.ready().await?;
    rig.run("INSERT INTO item VALUES (6, 6)").await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await?;
    ensure!(epoch(&next).await? > before, "{}", next.log());
    next.logged("the slot is gone or was invalidated").await
}

/// A primary of version 18 and its replica, which takes the connector's slot along.
async fn with_failover_slot() -> Result<(Postgres, Postgres, Rig, u64)> {
    let primary = Postgres::start(Version::View18).await?;
    let rig = Rig::on(&primary, &[ITEM], DDL).await?;
    rig.run("SELECT pg_create_physical_replication_slot('replica', true)")
        .await?;
    let follows = [
        ("hot_standby_feedback", "on"),
        ("sync_replication_slots", "on"),
    ];
    let replica = primary.replica(Some("replica"), &follows).await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let before = epoch(&connector).await?;
    let db = replica.superuser("postgres").await?;
    let sql = "SELECT 1 FROM pg_replication_slots \
               WHERE slot_name = $1 AND synced AND NOT temporary AND invalidation_reason IS NULL";
    eventually("the replica has the slot", || async {
        // It is taken over once the replica has what the slot needs.
        rig.run("UPDATE item SET n = n + 1 WHERE id = 5").await?;
        Ok(db.query_opt(sql, &[&rig.slot]).await?.map(|_| ()))
    })
    .await
    .with_context(|| connector.log())?;
    connector.kill().await;
    Ok((primary, replica, rig, before))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_the_slot_is_gone_on_with_where_the_primary_was() -> Result<()> {
    let (mut primary, replica, mut rig, before) = with_failover_slot().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("INSERT INTO item VALUES (6, 6); DELETE FROM item WHERE id = 2")
        .await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await?;
    connector.kill().await;
    rig.run("INSERT INTO item VALUES (7, 7)").await?;
    caught_up(&rig, &replica).await?;
    primary.crash().await;
    promote(&mut rig, &replica).await?;
    let next = rig.connector().start()?;
    next.ready().await?;
    rig.run("INSERT INTO item VALUES (8, 8)").await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    assert_eq!(epoch(&next).await?, before, "{}", next.log());
    for id in 6..=8 {
        let times = journal.count(ITEM, &format!("{{\"id\":{id}}}"), "c");
        assert_eq!(times, 1, "the insert of {id} was sent {times} times");
    }
    let timeline = journal.checkpoints.last().map(|last| last.timeline);
    assert_eq!(timeline, Some(2));
    Ok(())
}

/// What the replica had not received was sent before: the topics have more than the source.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lacks_what_the_topics_hold_is_read_anew() -> Result<()> {
    let (mut primary, mut replica, mut rig, before) = with_failover_slot().await?;
    caught_up(&rig, &replica).await?;
    replica.stop().await;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("INSERT INTO item VALUES (6, 6); DELETE FROM item WHERE id = 2")
        .await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await?;
    connector.kill().await;
    primary.crash().await;
    replica.restart().await?;
    promote(&mut rig, &replica).await?;
    let next = rig.connector().start()?;
    next.ready().await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    ensure!(epoch(&next).await? > before, "{}", next.log());
    next.logged("does not contain").await?;
    // The insert that nobody has any more is taken back.
    assert_eq!(journal.count(ITEM, r#"{"id":6}"#, "d"), 1);
    Ok(())
}

/// The files of yesterday, on the same timeline.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_put_back_is_read_anew() -> Result<()> {
    let mut server = Postgres::start(Version::Legacy15).await?;
    let mut rig = Rig::on(&server, &[ITEM], DDL).await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let before = epoch(&connector).await?;
    connector.kill().await;
    server.stop().await;
    let backups = tempfile::tempdir()?;
    let backup = backups.path().join("data");
    server.back_up(&backup)?;
    server.restart().await?;
    rig.moved_to(&server).await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("INSERT INTO item SELECT g, g FROM generate_series(6, 5000) g; DELETE FROM item WHERE id = 2")
        .await?;
    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await?;
    server.stop().await;
    server.restore(&backup)?;
    server.restart().await?;
    rig.moved_to(&server).await?;
    eventually("a new epoch", || async {
        Ok((epoch(&connector).await? > before).then_some(()))
    })
    .await
    .with_context(|| connector.log())?;
    connector.ready().await?;
    connector.logged("the source's WAL ends at").await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await
}
