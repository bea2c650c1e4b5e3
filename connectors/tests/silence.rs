//! Nothing stands still in silence: state, health, metric and log say so, and what it is.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fixtures::disk::SmallDisk;
use fixtures::postgres::{Postgres, Version};
use fixtures::{Kafka, KafkaOptions, place};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Connector, Proxy, Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 5) g";

/// What an operator is promised.
const WITHIN: Duration = Duration::from_secs(30);

/// Waits until state, readiness, metrics and log say `reason`; not longer than is promised.
async fn says(connector: &Connector, since: Instant, state: &str, reason: &str) -> Result<()> {
    eventually(&format!("it says {reason:?}"), || async {
        let status = connector.status().await?;
        let said = status["reason"].as_str().unwrap_or_default();
        if status["state"] != state || !said.contains(reason) {
            return Ok(None);
        }
        let (code, text) = connector.readiness().await?;
        let healthy = connector.metric("connector_healthy").await?;
        Ok((code == 503 && text.contains(reason) && healthy == Some(0.0)).then_some(()))
    })
    .await
    .with_context(|| connector.log())?;
    connector.logged(reason).await?;
    ensure!(since.elapsed() < WITHIN, "said after {:?}", since.elapsed());
    Ok(())
}

async fn is_healthy(connector: &Connector) -> Result<()> {
    connector.ready().await?;
    eventually("it is healthy", || async {
        let healthy = connector.metric("connector_healthy").await?;
        let stalled = connector.metric("connector_stalled_seconds").await?;
        Ok((healthy == Some(1.0) && stalled == Some(0.0)).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_cut_off_is_said_and_found_again() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let proxy = Proxy::to(fixtures::servers().source().await?.port()).await?;
    let connector = rig.connector().through(proxy.port()).start()?;
    is_healthy(&connector).await?;
    // The first record may come before the source has said when its WAL ended where.
    let lag = || connector.metric("connector_lag_ms");
    eventually("it knows how old the topics are", || async {
        Ok(lag().await?.map(|_| ()))
    })
    .await?;
    let since = Instant::now();
    proxy.down();
    rig.run("INSERT INTO item VALUES (6, 6)").await?;
    says(
        &connector,
        since,
        "connecting",
        &format!(
            "cannot connect to the source at 127.0.0.1:{}: no answer",
            proxy.port()
        ),
    )
    .await?;
    eventually("the topics are said to be old", || async {
        Ok((lag().await? > Some(1000.0)).then_some(()))
    })
    .await?;
    proxy.up();
    is_healthy(&connector).await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    proxy.cut();
    rig.run("INSERT INTO item VALUES (7, 7)").await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    for key in [r#"{"id":6}"#, r#"{"id":7}"#] {
        assert_eq!(journal.count(ITEM, key, "c"), 1, "{key}");
    }
    Ok(())
}

/// The connections of the leader, and of the standby that asks for the lock, die unnoticed by
/// both ends.
#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_are_given_up_by_leader_and_standby() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let port = fixtures::servers().source().await?.port();
    let (leaders, standbys) = (Proxy::to(port).await?, Proxy::to(port).await?);
    let leader = rig.connector().through(leaders.port()).start()?;
    is_healthy(&leader).await?;
    let standby = rig.connector().through(standbys.port()).start()?;
    standby
        .logged("another connector of this source leads")
        .await?;
    standbys.silence();
    standby
        .logged("cannot take the advisory lock: no answer")
        .await?;
    eventually("it stands by again", || async {
        let retries = standby.metric("connector_retries_total").await?;
        let status = standby.status().await?;
        Ok((retries > Some(0.0) && status["state"] == "waiting for lock").then_some(()))
    })
    .await?;
    leaders.silence();
    rig.run("INSERT INTO item VALUES (6, 6)").await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    leader.logged("trying again").await?;
    assert_eq!(journal.count(ITEM, r#"{"id":6}"#, "c"), 1);
    Ok(())
}

/// The connection to Kafka stands and nothing is answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_is_stuck_is_said() -> Result<()> {
    let kafka = Kafka::start().await?;
    let mut rig = Rig::new(&[ITEM], DDL).await?;
    rig.bootstrap = kafka.bootstrap();
    let connector = rig.connector().stream("stall_ms = 5000").start()?;
    is_healthy(&connector).await?;
    let broker = kafka.process().context("the broker is stopped")?;
    broker.signal(Signal::SIGSTOP);
    let since = Instant::now();
    rig.run("INSERT INTO item VALUES (6, 6)").await?;
    says(
        &connector,
        since,
        "stalled",
        "Kafka does not commit a checkpoint",
    )
    .await?;
    broker.signal(Signal::SIGCONT);
    is_healthy(&connector).await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    assert_eq!(journal.count(ITEM, r#"{"id":6}"#, "c"), 1);
    Ok(())
}

/// A walsender waits for a standby that is away: it answers every keepalive, and sends nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_walsender_that_sends_nothing_while_the_wal_grows_is_said() -> Result<()> {
    let server = Postgres::start(Version::View18).await?;
    let rig = Rig::on(&server, &[ITEM], DDL).await?;
    let connector = rig.connector().stream("stall_ms = 3000").start()?;
    is_healthy(&connector).await?;
    rig.run("SELECT pg_create_physical_replication_slot('replica')")
        .await?;
    rig.run("ALTER SYSTEM SET synchronized_standby_slots = 'replica'")
        .await?;
    rig.run("SELECT pg_reload_conf()").await?;
    eventually("the setting holds", || async {
        let row = rig
            .db
            .query_one("SHOW synchronized_standby_slots", &[])
            .await?;
        Ok((row.get::<_, String>(0) == "replica").then_some(()))
    })
    .await?;
    let since = Instant::now();
    rig.run("INSERT INTO item VALUES (6, 6)").await?;
    says(
        &connector,
        since,
        "stalled",
        "the source has sent nothing beyond",
    )
    .await?;
    rig.run("ALTER SYSTEM RESET synchronized_standby_slots")
        .await?;
    rig.run("SELECT pg_reload_conf()").await?;
    is_healthy(&connector).await?;
    connector.logged("it moves again").await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await
}

/// A walsender that is stopped answers nothing at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_walsender_that_is_stopped_is_said() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let connector = rig.connector().start()?;
    is_healthy(&connector).await?;
    let sql = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
    let pid: i32 = rig.db.query_one(sql, &[&rig.slot]).await?.get(0);
    let walsender = Pid::from_raw(pid);
    kill(walsender, Signal::SIGSTOP)?;
    let since = Instant::now();
    rig.run("INSERT INTO item VALUES (6, 6)").await?;
    let said = says(
        &connector,
        since,
        "connecting",
        &format!("in use by process {pid}"),
    )
    .await;
    kill(walsender, Signal::SIGCONT)?;
    said?;
    is_healthy(&connector).await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    assert_eq!(journal.count(ITEM, r#"{"id":6}"#, "c"), 1);
    Ok(())
}

/// A new slot waits for whatever runs in the source; that is long, and said.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_waits_for_the_owners_transactions_is_said() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let long = rig.session().await?;
    long.batch_execute("BEGIN; INSERT INTO item VALUES (6, 6)")
        .await?;
    let since = Instant::now();
    let connector = rig.connector().stream("stall_ms = 3000").start()?;
    says(
        &connector,
        since,
        "stalled",
        "waits for every transaction that runs in the source",
    )
    .await?;
    long.batch_execute("COMMIT").await?;
    is_healthy(&connector).await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await
}

/// Nobody listens at the address of Kafka.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_said() -> Result<()> {
    let mut rig = Rig::new(&[ITEM], DDL).await?;
    rig.bootstrap = format!("127.0.0.1:{}", place::free_port()?);
    let since = Instant::now();
    let connector = rig.connector().start()?;
    says(&connector, since, "connecting", "cannot ask Kafka").await
}

/// A broker that cannot write any more ends itself. What it had acknowledged is on the disk, what
/// it had not is sent again: by this connector, which goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_disk_is_full_is_said_and_found_again() -> Result<()> {
    let disk = SmallDisk::mount(128)?;
    let mut kafka = Kafka::launch(KafkaOptions {
        folder: disk.path().join("broker"),
        log: disk.path().join("log"),
        port: place::free_port()?,
        controller_port: place::free_port()?,
        heap_mb: 384,
        properties: Vec::new(),
        security: fixtures::broker::Security::default(),
    })
    .await?;
    let mut rig = Rig::new(
        &[ITEM],
        "CREATE TABLE item (id bigint PRIMARY KEY, n text NOT NULL)",
    )
    .await?;
    rig.bootstrap = kafka.bootstrap();
    let connector = rig.connector().start()?;
    is_healthy(&connector).await?;
    rig.run("INSERT INTO item SELECT g, repeat('x', 1000) FROM generate_series(1, 100) g")
        .await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await?;
    disk.fill_but(4)?;
    let since = Instant::now();
    for id in 101..120 {
        rig.run(&format!(
            "INSERT INTO item SELECT {id}, repeat('x', 1000000)"
        ))
        .await?;
    }
    says(&connector, since, "connecting", "no broker answers").await?;
    let broker = kafka.process().context("the broker is stopped")?;
    eventually("the broker gives up", || async {
        Ok(broker.status().map(|_| ()))
    })
    .await?;
    rig.run("DELETE FROM item WHERE id <= 50").await?;
    disk.empty()?;
    kafka.restart().await?;
    is_healthy(&connector).await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    for id in 1..120 {
        let key = format!("{{\"id\":{id}}}");
        assert_eq!(journal.count(ITEM, &key, "c"), 1, "{key}");
        let deleted = journal.count(ITEM, &key, "d");
        assert_eq!(deleted, usize::from(id <= 50), "{key}");
    }
    Ok(())
}

/// A source of two tables, and a connector whose reads begin once `begin` is called, after the slot
/// is there and what runs in the source is known.
async fn held_before_its_reads(
    point: &str,
) -> Result<(Rig, Connector, tempfile::TempDir, std::path::PathBuf)> {
    let ddl = format!("{DDL}; CREATE TABLE part (id bigint PRIMARY KEY, n int NOT NULL)");
    let rig = Rig::new(&[ITEM, "public.part"], &ddl).await?;
    let folder = tempfile::tempdir()?;
    let begin = folder.path().join("begin");
    let connector = rig
        .connector()
        .stream("stall_ms = 3000")
        .faults(&format!("{point}:hold:1:{}", begin.display()))
        .start()?;
    connector.logged(&format!("{point}: holds")).await?;
    Ok((rig, connector, folder, begin))
}

/// The first read waits for an owner who has locked a table; readers of checkpoints wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_read_that_waits_for_a_lock_is_said() -> Result<()> {
    let (rig, connector, _folder, begin) = held_before_its_reads("connector.before_commit").await?;
    let owner = rig.session().await?;
    owner
        .batch_execute("BEGIN; LOCK TABLE item IN ACCESS EXCLUSIVE MODE")
        .await?;
    std::fs::write(&begin, "")?;
    let since = Instant::now();
    let reason = "the read of public.item waits for a lock of its owner's; see SELECT pid";
    says(&connector, since, "stalled", reason).await?;
    let status = connector.status().await?;
    assert_eq!(status["degraded"], true, "{status}");
    let said = status["reason"].as_str().unwrap_or_default();
    ensure!(said.contains("; since 20"), "since when: {said}");
    ensure!(said.contains("no table read goes on"), "{said}");
    let waiting = connector.metric("connector_read_waiting_seconds").await?;
    ensure!(waiting >= Some(3.0), "{waiting:?}");
    let (code, text) = connector.command(&["status"]).await?;
    ensure!(
        code == Some(1) && text.contains(", degraded, ") && text.contains("readers wait"),
        "{text}"
    );
    // The stream goes on meanwhile.
    rig.run("INSERT INTO part VALUES (6, 6)").await?;
    let mut journal = rig.journal()?;
    journal
        .until("the insert is sent", |journal| {
            journal.count("public.part", r#"{"id":6}"#, "c") == 1
        })
        .await?;
    owner.batch_execute("COMMIT").await?;
    is_healthy(&connector).await?;
    connector.logged("table reads go on").await?;
    eventually("nothing waits", || async {
        let waiting = connector.metric("connector_read_waiting_seconds").await?;
        let degraded = connector.metric("connector_degraded").await?;
        Ok((waiting == Some(0.0) && degraded == Some(0.0)).then_some(()))
    })
    .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await
}

/// A transaction that ran when the slot was taken has to end before a snapshot is of use.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_read_that_waits_for_a_transaction_is_said() -> Result<()> {
    let (rig, connector, _folder, begin) = held_before_its_reads("connector.after_create").await?;
    let long = rig.session().await?;
    long.batch_execute("BEGIN; INSERT INTO part VALUES (6, 6)")
        .await?;
    std::fs::write(&begin, "")?;
    let since = Instant::now();
    says(&connector, since, "stalled", "reads wait for transaction").await?;
    long.batch_execute("COMMIT").await?;
    is_healthy(&connector).await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await
}

/// A read again, for which no reader waits: somebody has to act, and the connector works.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_by_command_that_waits_for_a_lock_leaves_the_connector_ready() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let connector = rig.connector().stream("stall_ms = 3000").start()?;
    is_healthy(&connector).await?;
    let owner = rig.session().await?;
    owner
        .batch_execute("BEGIN; LOCK TABLE item IN ACCESS EXCLUSIVE MODE")
        .await?;
    let (code, output) = connector.command(&["read", "--table", ITEM]).await?;
    ensure!(code == Some(0), "{output}");
    let reason = "the read of public.item waits for a lock of its owner's; see SELECT pid";
    eventually("it says so", || async {
        let status = connector.status().await?;
        let said = status["reason"].as_str().unwrap_or_default();
        Ok((status["degraded"] == true && said.contains(reason)).then_some(()))
    })
    .await
    .with_context(|| connector.log())?;
    connector.logged(reason).await?;
    assert_eq!(connector.status().await?["state"], "reading");
    assert_eq!(connector.readiness().await?.0, 200);
    for (name, value) in [("healthy", 1.0), ("degraded", 1.0), ("stalls_total", 0.0)] {
        let found = connector.metric(&format!("connector_{name}")).await?;
        assert_eq!(found.unwrap_or_default(), value, "{name}");
    }
    owner.batch_execute("COMMIT").await?;
    is_healthy(&connector).await?;
    eventually("nothing is to be done any more", || async {
        let status = connector.status().await?;
        Ok((status["degraded"] == false && status["reason"].is_null()).then_some(()))
    })
    .await?;
    Ok(())
}
