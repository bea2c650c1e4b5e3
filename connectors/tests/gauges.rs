//! Numbers that somebody is called by are true just when something is away.

use anyhow::{Context, Result, ensure};
use fixtures::Kafka;
use fixtures::postgres::{Postgres, Version};

use crate::harness::{Connector, Journal, Record, Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const PART: &str = "public.part";
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
    connector.logged("admin port listens").await?;
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

/// The value of a metric that is there.
async fn value(connector: &Connector, name: &str) -> Result<f64> {
    let value = connector.metric(name).await?;
    value.with_context(|| format!("no metric {name}"))
}

/// Bytes of keys and values in a table's topic, of those events that `counts`.
fn bytes(journal: &Journal, table: &str, counts: impl Fn(&Record) -> bool) -> f64 {
    let records = journal.of(table).into_iter().filter(|one| counts(one));
    let bytes: usize = records
        .map(|one| one.key.len() + one.text.as_ref().map_or(0, String::len))
        .sum();
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_after_a_small_workload_are_the_workload() -> Result<()> {
    let bound = ("max_slot_wal_keep_size", "256MB");
    let server = Postgres::start_with(Version::Legacy15, &[bound]).await?;
    let ddl = format!(
        "{DDL}; CREATE TABLE part (id bigint PRIMARY KEY, n int NOT NULL); \
         INSERT INTO part SELECT g, g FROM generate_series(1, 7) g"
    );
    let rig = Rig::on(&server, &[ITEM, PART], &ddl).await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    for (table, rows) in [(ITEM, 20.0), (PART, 7.0)] {
        let of = |name: &str| format!("connector_{name}{{table=\"{table}\"}}");
        assert_eq!(value(&connector, &of("read_rows_total")).await?, rows);
        let read = bytes(&journal, table, |_| true);
        assert_eq!(value(&connector, &of("read_bytes_total")).await?, read);
        assert_eq!(value(&connector, &of("bytes_total")).await?, read);
        assert_eq!(value(&connector, &of("read_rows_left")).await?, 0.0);
    }

    rig.run("INSERT INTO item VALUES (21, 1), (22, 2), (23, 3)")
        .await?;
    rig.run("UPDATE item SET n = 0 WHERE id IN (1, 2); DELETE FROM item WHERE id = 3")
        .await?;
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    // The metric follows the commit that the journal has read.
    let count =
        |table: &str, op: &str| format!("connector_rows_total{{table=\"{table}\",op=\"{op}\"}}");
    until(&connector, &count(ITEM, "d"), |deleted| deleted > 0.0).await?;
    for (table, op, rows) in [
        (ITEM, "c", Some(3.0)),
        (ITEM, "u", Some(2.0)),
        (ITEM, "d", Some(1.0)),
        (ITEM, "r", Some(20.0)),
        (PART, "r", Some(7.0)),
        (PART, "c", None),
        (PART, "u", None),
        (PART, "d", None),
    ] {
        let name = count(table, op);
        assert_eq!(connector.metric(&name).await?, rows, "{name}");
    }
    let sent = bytes(&journal, ITEM, |_| true);
    let name = format!("connector_bytes_total{{table=\"{ITEM}\"}}");
    assert_eq!(value(&connector, &name).await?, sent);
    let rows = value(
        &connector,
        &format!("connector_read_rows_total{{table=\"{ITEM}\"}}"),
    )
    .await?;
    assert_eq!(rows, 20.0, "what the log brought was not read");
    // A row that was deleted has an event and a tombstone.
    assert_eq!(value(&connector, "connector_events_total").await?, 34.0);

    for (name, wanted) in [
        ("state{state=\"streaming\"}", 1.0),
        ("state{state=\"connecting\"}", 0.0),
        ("state{state=\"waiting for lock\"}", 0.0),
        ("state{state=\"reading\"}", 0.0),
        ("state{state=\"stalled\"}", 0.0),
        ("healthy", 1.0),
        ("degraded", 0.0),
        ("whole", 1.0),
        ("lag_bytes", 0.0),
        ("buffered_bytes", 0.0),
        ("unacknowledged_events", 0.0),
        ("read_waiting_seconds", 0.0),
        ("slot_alarm", 0.0),
        ("slot_lost", 0.0),
        ("slot_wal_max_bytes", 256.0 * MIB),
    ] {
        until(&connector, &format!("connector_{name}"), |found| {
            found == wanted
        })
        .await?;
    }
    eventually("the slot's WAL is what the source says", || async {
        let sql = "SELECT (pg_current_wal_flush_lsn() - restart_lsn)::float8 \
                   FROM pg_replication_slots WHERE slot_name = $1";
        let theirs = || async { anyhow::Ok(rig.db.query_one(sql, &[&rig.slot]).await?.get(0)) };
        let before: f64 = theirs().await?;
        let ours = connector.metric("connector_slot_wal_bytes").await?;
        let after: f64 = theirs().await?;
        Ok((ours == Some(before) && before == after && after > 0.0).then_some(()))
    })
    .await?;
    eventually("each record took a commit", || async {
        let records = "connector_records_total";
        let whole = connector
            .metric(&format!("{records}{{whole=\"true\"}}"))
            .await?;
        let others = connector
            .metric(&format!("{records}{{whole=\"false\"}}"))
            .await?;
        let records = whole.unwrap_or_default() + others.unwrap_or_default();
        let commits = connector.metric("connector_commit_ms_count").await?;
        Ok((commits == Some(records) && records >= 3.0).then_some(()))
    })
    .await?;
    let took_ms = value(&connector, "connector_commit_ms_sum").await?;
    ensure!(took_ms > 0.0 && took_ms < 600_000.0, "{took_ms} ms");
    Ok(())
}

/// Kafka takes less than the source has: what waits in between is bounded, and told.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_received_and_not_handled_is_told_and_bounded() -> Result<()> {
    let rig = Rig::new(
        &[ITEM],
        "CREATE TABLE item (id bigint PRIMARY KEY, n text NOT NULL)",
    )
    .await?;
    let connector = rig
        .connector()
        .postgres("buffer_bytes_max = 65536")
        .faults("connector.before_send:sleep:1:20")
        .start()?;
    connector.ready().await?;
    rig.run("INSERT INTO item SELECT g, repeat('x', 2000) FROM generate_series(1, 300) g")
        .await?;
    let name = "connector_buffered_bytes";
    let buffered = until(&connector, name, |buffered| buffered > 32_768.0).await?;
    // What was received last may be above the bound.
    ensure!(buffered <= 65_536.0 + 4096.0, "{buffered} bytes");
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await?;
    until(&connector, name, |buffered| buffered == 0.0).await?;
    Ok(())
}
