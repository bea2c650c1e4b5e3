//! Numbers that somebody is called by are true just when something is away.

use anyhow::{Context, Result, ensure};
use fixtures::Kafka;
use fixtures::postgres::{Postgres, Version};

use crate::harness::{Connector, Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 20) g";
const MIB: f64 = 1024.0 * 1024.0;

/// Waits until a gauge is as wanted, and tells it.
async fn until(connector: &Connector, name: &str, wanted: impl Fn(f64) -> bool) -> Result<f64> {
    eventually(&format!("{name} is as wanted"), || async {
        Ok(connector.metric(name).await?.filter(|value| wanted(*value)))
    })
    .await
    .with_context(|| connector.log())
}

/// With Kafka away nothing is recorded, and the source goes on.
#[tokio::test(flavor = "multi_thread")]
async fn lag_grows_while_kafka_is_away() -> Result<()> {
    let server = Postgres::start(Version::Legacy15).await?;
    let mut kafka = Kafka::start().await?;
    let mut rig = Rig::on(&server, &[ITEM], DDL).await?;
    rig.bootstrap = kafka.bootstrap();
    let connector = rig.connector().start()?;
    connector.ready().await?;
    until(&connector, "connector_lag_bytes", |lag| lag < MIB).await?;
    kafka.stop().await;
    rig.switch_wal(3).await?;
    let end = rig.wal_lsn().await?;
    let lag = until(&connector, "connector_lag_bytes", |lag| lag > 32.0 * MIB).await?;
    let wal_end = until(&connector, "connector_wal_end_bytes", |wal_end| {
        wal_end >= f64::from(u32::try_from(end.0).unwrap_or(u32::MAX))
    })
    .await?;
    let position = connector.metric("connector_position_bytes").await?;
    ensure!(
        position.is_some_and(|position| wal_end - position >= lag),
        "{position:?} {wal_end} {lag}"
    );
    let status = connector.status().await?;
    ensure!(status["lag_bytes"].as_u64() > Some(32 << 20), "{status}");

    // One that starts now has no record, and the slot tells.
    connector.kill().await;
    let next = rig.connector().start()?;
    next.status().await?;
    until(&next, "connector_lag_bytes", |lag| lag > 32.0 * MIB).await?;
    until(&next, "connector_lag_ms", |lag| lag > 1000.0).await?;
    let (_, text) = next.command(&["status"]).await?;
    ensure!(
        text.contains("no record yet") && text.contains("slot: "),
        "{text}"
    );
    kafka.restart().await?;
    next.ready().await?;
    until(&next, "connector_lag_bytes", |lag| lag < MIB).await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await
}

/// Nothing can be reached from the very start.
#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_never_got_a_record_says_how_long_it_has_had_none() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let nobody = fixtures::place::free_port()?;
    let connector = rig.connector().through(nobody).start()?;
    connector.logged("trying again").await?;
    until(&connector, "connector_lag_ms", |lag| lag > 2000.0).await?;
    assert_eq!(connector.metric("connector_whole").await?, None);
    Ok(())
}

/// A leader that was paused stands by when it wakes, and knows nothing of the topics any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_became_a_standby_has_no_lag_and_no_alarm() -> Result<()> {
    let server = Postgres::start(Version::Legacy15).await?;
    let rig = Rig::on(&server, &[ITEM], DDL).await?;
    // Any WAL that is kept is an alarm.
    let alarmed = "slot_wal_bytes_max = 1073741824\nslot_wal_alarm_percent = 1";
    let first = rig.connector().postgres(alarmed).start()?;
    first.ready().await?;
    first.signal(nix::sys::signal::Signal::SIGSTOP);
    let second = rig.connector().start()?;
    second.ready().await?;
    first.signal(nix::sys::signal::Signal::SIGCONT);
    eventually("it stands by", || async {
        let status = first.status().await?;
        Ok((status["state"] == "waiting for lock").then_some(()))
    })
    .await
    .with_context(|| first.log())?;
    let lag = first.metric("connector_lag_ms").await?;
    let healthy = first.metric("connector_healthy").await?;
    assert_eq!(healthy, Some(1.0));
    ensure!(lag.is_some_and(f64::is_nan), "a standby's lag: {lag:?}");
    for name in [
        "lag_bytes",
        "position_bytes",
        "wal_end_bytes",
        "current_at_seconds",
        "slot_wal_bytes",
        "whole",
    ] {
        let value = first.metric(&format!("connector_{name}")).await?;
        ensure!(value.is_some_and(f64::is_nan), "{name} {value:?}");
    }
    for name in ["slot_alarm", "slot_lost", "degraded", "read_requests"] {
        let value = first.metric(&format!("connector_{name}")).await?;
        assert_eq!(value, Some(0.0), "{name}");
    }
    let status = first.status().await?;
    ensure!(
        status["epoch"].is_null() && status["slot"].is_null(),
        "{status}"
    );
    // Once it leads again it tells what is.
    second.kill().await;
    first.ready().await?;
    until(&first, "connector_lag_ms", |lag| lag < 60_000.0).await?;
    until(&first, "connector_whole", |whole| whole == 1.0).await?;
    Ok(())
}

/// The owner's bound ends the slot while Kafka is away: nobody makes a new one for now.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_lost_while_kafka_is_away_is_said_until_there_is_another() -> Result<()> {
    for version in [Version::Legacy15, Version::View18] {
        let server = Postgres::start_with(version, &[("max_slot_wal_keep_size", "96MB")]).await?;
        let mut kafka = Kafka::start().await?;
        let mut rig = Rig::on(&server, &[ITEM], DDL).await?;
        rig.bootstrap = kafka.bootstrap();
        let connector = rig.connector().start()?;
        connector.ready().await?;
        until(&connector, "connector_slot_lost", |lost| lost == 0.0).await?;
        kafka.stop().await;
        rig.switch_wal(4).await?;
        until(&connector, "connector_slot_alarm", |alarm| alarm == 1.0).await?;
        let (_, text) = connector.command(&["status"]).await?;
        ensure!(
            text.contains("ALARM") && text.contains(", degraded, "),
            "{text}"
        );
        let sql = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1";
        eventually("the slot is lost", || async {
            rig.switch_wal(2).await?;
            rig.run("CHECKPOINT").await?;
            let row = rig.db.query_one(sql, &[&rig.slot]).await?;
            Ok((row.get::<_, Option<String>>(0).as_deref() == Some("lost")).then_some(()))
        })
        .await?;
        until(&connector, "connector_slot_lost", |lost| lost == 1.0).await?;
        let said = "was invalidated by the source";
        connector.logged(said).await?;
        let status = connector.status().await?;
        ensure!(
            status["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains(said))
                && status["degraded"] == true,
            "{status}"
        );
        assert_eq!(connector.metric("connector_slot_alarm").await?, Some(0.0));
        let (_, text) = connector.command(&["status"]).await?;
        ensure!(text.contains("slot: lost"), "{text}");
        kafka.restart().await?;
        until(&connector, "connector_slot_lost", |lost| lost == 0.0).await?;
        connector.ready().await?;
        connector
            .logged("there is a replication slot again")
            .await?;
        let status = connector.status().await?;
        assert_eq!(status["degraded"], false, "{status}");
        equals_source(&rig, &mut rig.journal()?, &[ITEM]).await?;
    }
    Ok(())
}

/// The topics are up to date with the log and lack the rows of before: no lag shows that.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_epoch_is_not_whole_until_every_table_is_read_and_compared() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    rig.read_once().await?;
    eventually("the slot is dropped", || async {
        let sql = format!("SELECT pg_drop_replication_slot('{}')", rig.slot);
        Ok(rig.run(&sql).await.ok())
    })
    .await?;
    let file = tempfile::tempdir()?;
    let go_on = file.path().join("go on");
    let held = format!("connector.in_reconcile:hold:1:{}", go_on.display());
    let connector = rig.connector().faults(&held).start()?;
    connector.logged("in_reconcile: holds").await?;
    assert_eq!(connector.metric("connector_whole").await?, Some(0.0));
    assert_eq!(connector.status().await?["whole"], false);
    let (_, text) = connector.command(&["status"]).await?;
    ensure!(text.contains("readers wait"), "{text}");
    std::fs::write(&go_on, "")?;
    until(&connector, "connector_whole", |whole| whole == 1.0).await?;
    connector.ready().await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await
}
