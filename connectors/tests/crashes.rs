//! Killed anywhere, a connector loses nothing and says nothing twice.

use anyhow::{Result, ensure};
use kafka::Lsn;

use crate::harness::{Rig, always, equals_source, sum};

const ACCOUNTS: &str = "CREATE TABLE account (id bigint PRIMARY KEY, amount int NOT NULL)";
const ACCOUNT: &str = "public.account";

async fn accounts() -> Result<Rig> {
    let rig = Rig::new(&[ACCOUNT], ACCOUNTS).await?;
    rig.run("INSERT INTO account SELECT g, 100 FROM generate_series(1, 6) g")
        .await?;
    Ok(rig)
}

/// Six accounts move money in one transaction: each checkpoint sees 600.
const TRANSFERS: &str = "BEGIN; UPDATE account SET amount = amount - 10 WHERE id <= 3; \
                         UPDATE account SET amount = amount + 10 WHERE id BETWEEN 4 AND 6; COMMIT";

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_point_of_the_stream_it_loses_and_doubles_nothing() -> Result<()> {
    let rig = accounts().await?;
    rig.read_once().await?;
    let mut journal = rig.journal()?;
    for (number, point) in [
        "after_lock:kill",
        "after_slot:kill",
        "after_init:kill",
        "before_send:kill:1",
        "before_send:kill:4",
        "after_send:kill:1",
        "after_send:kill:4",
        "before_commit:kill:1",
        "before_commit:kill:2",
        "after_commit:kill:1",
        "after_commit:kill:2",
        "after_confirm:kill:2",
    ]
    .into_iter()
    .enumerate()
    {
        let id = 100 + 2 * number;
        rig.run(&format!(
            "{TRANSFERS}; BEGIN; INSERT INTO account VALUES ({id}, 7), ({}, -7); COMMIT",
            id + 1
        ))
        .await?;
        let faulty = rig
            .connector()
            .faults(&format!("connector.{point}"))
            .start()?;
        let (_, log) = faulty.ended().await?;
        ensure!(
            log.contains("fault point") || point.starts_with("after_lock"),
            "{point}: {log}"
        );
        let next = rig.connector().start()?;
        equals_source(&rig, &mut journal, &[ACCOUNT]).await?;
        next.kill().await;
        for id in [id, id + 1] {
            let times = journal.count(ACCOUNT, &format!("{{\"id\":{id}}}"), "c");
            assert_eq!(
                times, 1,
                "{point}: an insert of {id} was sent {times} times"
            );
        }
    }
    always(&journal, "the sum", |tables| {
        sum(tables, ACCOUNT, "amount") == 600
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_point_of_a_first_read_it_goes_on_from_the_last_chunk() -> Result<()> {
    for point in [
        "begin_epoch:kill",
        "after_drop:kill",
        "after_create:kill",
        "before_commit:kill:1",
        "in_read:kill:2",
        "after_chunk:kill:2",
        "before_commit:kill:3",
        "after_commit:kill:3",
    ] {
        let rig = accounts().await?;
        let plan = rig.connector().reads("chunk_rows = 2");
        let faulty = plan.clone().faults(&format!("connector.{point}")).start()?;
        faulty.ended().await?;
        rig.run(TRANSFERS).await?;
        let next = plan.start()?;
        next.ready().await?;
        let mut journal = rig.journal()?;
        equals_source(&rig, &mut journal, &[ACCOUNT]).await?;
        always(&journal, "the sum", |tables| {
            sum(tables, ACCOUNT, "amount") == 600
        })?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_slot_sends_again_is_dropped() -> Result<()> {
    let rig = accounts().await?;
    rig.read_once().await?;
    rig.run("INSERT INTO account VALUES (7, 0)").await?;
    rig.run("INSERT INTO account VALUES (8, 0), (9, 0), (10, 0)")
        .await?;
    // The first record says that somebody writes again, the second stands within the first
    // transaction, the third within the second: its position is where the first one ends.
    let killed = rig
        .connector()
        .stream("kafka_transaction_events_max = 1")
        .faults("connector.after_commit:kill:3")
        .start()?;
    killed.ended().await?;
    let next = rig.connector().start()?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ACCOUNT]).await?;
    assert_eq!(journal.count(ACCOUNT, r#"{"id":7}"#, "c"), 1);
    next.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_checkpoint_shows_part_of_a_transaction_larger_than_kafkas() -> Result<()> {
    let rig = accounts().await?;
    rig.read_once().await?;
    for _ in 0..3 {
        rig.run(TRANSFERS).await?;
    }
    let connector = rig
        .connector()
        .stream("kafka_transaction_events_max = 1")
        .start()?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ACCOUNT]).await?;
    always(&journal, "the sum", |tables| {
        sum(tables, ACCOUNT, "amount") == 600
    })?;
    let half_sent = journal
        .checkpoints
        .iter()
        .filter(|record| !record.is_whole());
    assert!(
        half_sent.count() >= 15,
        "each event but a transaction's last has a record"
    );
    drop(connector);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_knows_that_a_transaction_is_half_sent() -> Result<()> {
    let rig = accounts().await?;
    rig.read_once().await?;
    rig.run(TRANSFERS).await?;
    let killed = rig
        .connector()
        .stream("kafka_transaction_events_max = 1")
        .faults("connector.after_commit:kill:3")
        .start()?;
    killed.ended().await?;
    let mut journal = rig.journal()?;
    journal
        .until("a record inside the transaction", |journal| {
            journal
                .checkpoints
                .last()
                .is_some_and(|last| last.reach > last.position)
        })
        .await?;
    let next = rig.connector().start()?;
    equals_source(&rig, &mut journal, &[ACCOUNT]).await?;
    next.kill().await;
    always(&journal, "the sum", |tables| {
        sum(tables, ACCOUNT, "amount") == 600
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_told_a_position_only_once_kafka_has_committed_it() -> Result<()> {
    let rig = accounts().await?;
    rig.read_once().await?;
    let recorded = {
        let mut journal = rig.journal()?;
        journal
            .until("a checkpoint", |journal| !journal.checkpoints.is_empty())
            .await?;
        journal
            .checkpoints
            .iter()
            .map(|record| record.position)
            .max()
    };
    rig.run("INSERT INTO account VALUES (7, 0)").await?;
    // Held before each commit: what it tells PostgreSQL meanwhile, Kafka does not have.
    let held = rig
        .connector()
        .faults("connector.before_commit:sleep:2:60000")
        .start()?;
    held.logged("fault point connector.before_commit: sleeps")
        .await?;
    // Three statuses later it has told whatever it was going to.
    for _ in 0..3 {
        rig.replies().await?;
    }
    let confirmed = rig.confirmed().await?.unwrap_or(Lsn::ZERO);
    ensure!(
        Some(confirmed) <= recorded,
        "PostgreSQL was told {confirmed}, Kafka has {recorded:?}"
    );
    held.kill().await;
    let next = rig.connector().start()?;
    equals_source(&rig, &mut rig.journal()?, &[ACCOUNT]).await?;
    next.kill().await;
    Ok(())
}
