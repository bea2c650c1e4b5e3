//! Two connectors of one source: one that is paused, or cut off, and goes on.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::harness::{Connector, Journal, Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 5) g";

async fn rig() -> Result<Rig> {
    Rig::new(&[ITEM], DDL).await
}

/// The source ends whatever streams from the slot, as it does with one that is cut off.
async fn cut_off(rig: &Rig) -> Result<()> {
    let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
               WHERE slot_name = $1 AND active_pid IS NOT NULL";
    eventually("the slot's stream is cut", || async {
        Ok(rig.db.query_opt(sql, &[&rig.slot]).await?.map(|_| ()))
    })
    .await
}

/// Each row of ours was sent once, whoever sent it.
fn once(journal: &Journal, ids: &[i64]) {
    for id in ids {
        let times = journal.count(ITEM, &format!("{{\"id\":{id}}}"), "c");
        assert_eq!(times, 1, "the insert of {id} was sent {times} times");
    }
}

async fn lives(connector: &Connector) -> Result<f64> {
    let lives = connector.metric("connector_lives_total").await?;
    lives.context("no metric connector_lives_total")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_waits_and_leaves_a_healthy_leader_alone() -> Result<()> {
    let rig = rig().await?;
    // The leader is slow where it holds no slot: the old one is dropped, the new one not made.
    let leader = rig
        .connector()
        .faults("connector.after_drop:sleep:1:4000")
        .start()?;
    leader.logged("a new epoch begins").await?;
    let standby = rig.connector().start()?;
    leader.ready().await?;
    assert_eq!(standby.status().await?["state"], "waiting for lock");
    let (code, reason) = standby.readiness().await?;
    assert_eq!(
        (code, reason.trim()),
        (503, "not ready: another connector of this source leads")
    );
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    assert!(
        (lives(&leader).await? - 1.0).abs() < 0.1,
        "the leader was disturbed"
    );
    let epochs: std::collections::BTreeSet<_> = journal
        .checkpoints
        .iter()
        .map(|record| record.epoch)
        .collect();
    assert_eq!(epochs.len(), 1, "{epochs:?}");
    leader.kill().await;
    standby.ready().await?;
    rig.run("INSERT INTO item VALUES (6, 6)").await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    once(&journal, &[6]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_leader_loses_its_lock_and_what_it_had_queued_is_never_written() -> Result<()> {
    for point in [
        "connector.after_send:stop:3",
        "connector.before_commit:stop:2",
    ] {
        let rig = rig().await?;
        let plan = rig
            .connector()
            .stream("heartbeat_ms = 600000\nidle_record_ms = 60000");
        let reader = plan.start()?;
        reader.ready().await?;
        reader.kill().await;
        let first = plan.clone().faults(point).start()?;
        first.ready().await?;
        rig.run("INSERT INTO item SELECT g, g FROM generate_series(6, 9) g")
            .await?;
        first.stopped().await?;
        let second = rig.connector().start()?;
        let mut journal = rig.journal()?;
        second.ready().await?;
        equals_source(&rig, &mut journal, &[ITEM]).await?;
        let before = journal.records.len();
        first.signal(Signal::SIGCONT);
        // It finds out, and stands by.
        eventually("the zombie waits for the lock", || async {
            let status = first.status().await?;
            Ok((status["state"] == "waiting for lock").then_some(()))
        })
        .await
        .with_context(|| first.log())?;
        assert!(
            (lives(&second).await? - 1.0).abs() < 0.1,
            "the new leader was disturbed"
        );
        rig.run("INSERT INTO item VALUES (10, 10)").await?;
        equals_source(&rig, &mut journal, &[ITEM]).await?;
        assert_eq!(journal.records.len(), before + 1);
        once(&journal, &[6, 7, 8, 9, 10]);
    }
    Ok(())
}

/// Without the lock, as if the network had parted: only the fence keeps the two apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_that_commits_late_is_fenced() -> Result<()> {
    let rig = rig().await?;
    let calm = rig
        .connector()
        .without_rules("advisory_lock,end_predecessors_stream")
        .stream("heartbeat_ms = 600000\nidle_record_ms = 60000");
    let reader = calm.clone().start()?;
    reader.ready().await?;
    reader.kill().await;
    rig.run("INSERT INTO item VALUES (6, 6)").await?;
    let first = calm
        .clone()
        .faults("connector.before_commit:sleep:2:10000")
        .start()?;
    first
        .logged("fault point connector.before_commit: sleeps")
        .await?;
    // Its record is held from now on; the slot is taken from it meanwhile.
    cut_off(&rig).await?;
    let second = rig
        .connector()
        .without_rules("advisory_lock,end_predecessors_stream")
        .start()?;
    second.ready().await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    first.logged("trying again").await?;
    first.kill().await;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    once(&journal, &[6]);
    Ok(())
}

/// As above, but the zombie commits between two steps of its successor's takeover.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_record_is_read_when_nobody_can_write_another() -> Result<()> {
    let rig = rig().await?;
    let calm = rig
        .connector()
        .without_rules("advisory_lock,end_predecessors_stream")
        .stream("heartbeat_ms = 600000\nidle_record_ms = 60000");
    let reader = calm.clone().start()?;
    reader.ready().await?;
    reader.kill().await;
    rig.run("INSERT INTO item VALUES (6, 6)").await?;
    let first = calm
        .clone()
        .faults("connector.before_commit:sleep:2:6000")
        .start()?;
    first
        .logged("fault point connector.before_commit: sleeps")
        .await?;
    let mut journal = rig.journal()?;
    cut_off(&rig).await?;
    let second = rig
        .connector()
        .without_rules("advisory_lock,end_predecessors_stream")
        .faults("connector.before_init:sleep:1:12000")
        .start()?;
    second.ready().await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    first.kill().await;
    once(&journal, &[6]);
    Ok(())
}
