//! Values that PostgreSQL does not resend, and what a read may show.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fixtures::postgres::{Postgres, Version};
use serde_json::Value;

use crate::harness::{Rig, Tables, always, equals_source, eventually};

const DOC: &str = "public.doc";
const PEER: &str = "public.peer";

/// `doc.big` is stored out of line, so an UPDATE that leaves it as it is does not resend it.
/// `peer` has the same value in line: a transaction that changes one changes the other.
const DDL: &str = "CREATE TABLE doc (id bigint PRIMARY KEY, n int NOT NULL, big text NOT NULL); \
                   ALTER TABLE doc ALTER big SET STORAGE EXTERNAL; \
                   CREATE TABLE peer (id bigint PRIMARY KEY, n int NOT NULL, big text NOT NULL); \
                   INSERT INTO doc SELECT g, 0, repeat('a', 3000) FROM generate_series(1, 5) g; \
                   INSERT INTO peer SELECT id, n, left(big, 1) FROM doc";

async fn rig() -> Result<Rig> {
    Rig::new(&[DOC, PEER], DDL).await
}

/// Changes both tables in one transaction.
fn rewrite(id: i64, letter: char) -> String {
    format!(
        "BEGIN; UPDATE doc SET big = repeat('{letter}', 3000) WHERE id = {id}; \
         UPDATE peer SET big = '{letter}' WHERE id = {id}; COMMIT"
    )
}

/// Does every row of `doc` have the value that its peer has?
fn peers_agree(tables: &Tables) -> bool {
    tables[DOC].iter().all(|(key, doc)| {
        let peer = tables[PEER].get(key).map(|peer| peer["big"].as_str());
        doc["big"].as_str().map(|big| Some(big.split_at(1).0)) == peer
    })
}

fn rows_are_whole(tables: &Tables) -> bool {
    let whole = |row: &Value| row["big"].as_str().is_some_and(|big| big.len() == 3000);
    tables[DOC].values().all(whole)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_event_carries_a_hole() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("UPDATE doc SET n = 1 WHERE id = 1").await?;
    rig.run("UPDATE doc SET id = 20 WHERE id = 2").await?;
    rig.run("BEGIN; INSERT INTO doc VALUES (6, 0, repeat('x', 3000)); UPDATE doc SET n = 6 WHERE id = 6; COMMIT")
        .await?;
    rig.run("BEGIN; UPDATE doc SET n = 3 WHERE id = 3; DELETE FROM doc WHERE id = 3; COMMIT")
        .await?;
    rig.run("ALTER TABLE doc REPLICA IDENTITY FULL; UPDATE doc SET n = 4 WHERE id = 4")
        .await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[DOC, PEER]).await?;
    connector.kill().await;
    for record in journal.of(DOC) {
        let after = record.value.as_ref().map(|value| &value["after"]);
        if let Some(after) = after.filter(|after| !after.is_null()) {
            let big = after["big"].as_str().context("an event with a hole")?;
            assert_eq!(big.len(), 3000);
        }
    }
    Ok(())
}

/// The value that fills a hole may be newer than the event: no checkpoint before the stream has
/// passed the read.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_covers_a_read_once_the_stream_has_passed_it() -> Result<()> {
    let rig = rig().await?;
    rig.read_once().await?;
    for id in 1..=5 {
        rig.run(&format!("UPDATE doc SET n = 1 WHERE id = {id}"))
            .await?;
        rig.run(&rewrite(id, 'b')).await?;
    }
    let connector = rig.connector().stream("record_ms = 1").start()?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[DOC, PEER]).await?;
    connector.kill().await;
    always(&journal, "a row and its peer", peers_agree)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lsn_of_a_read_is_taken_after_it() -> Result<()> {
    let rig = rig().await?;
    rig.read_once().await?;
    let connector = rig
        .connector()
        .stream("record_ms = 1\nheartbeat_ms = 600000\nidle_record_ms = 5000")
        .faults("connector.before_snapshot:sleep:1:4000,connector.in_fill:sleep:1:4000")
        .start()?;
    connector.logged("goes on at").await?;
    rig.run("UPDATE doc SET n = 1 WHERE id = 1").await?;
    // Between the read and its LSN, or, where that is taken too early, between it and the read.
    connector.logged(": sleeps").await?;
    rig.run(&rewrite(1, 'b')).await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[DOC, PEER]).await?;
    connector.kill().await;
    always(&journal, "a row and its peer", peers_agree)
}

/// A commit is streamed before it is visible, here for as long as a synchronous standby is away.
async fn away() -> Result<(Postgres, Rig)> {
    let server = Postgres::start(Version::Legacy15).await?;
    let rig = Rig::on(&server, &[DOC, PEER], DDL).await?;
    rig.run("SET synchronous_commit = local").await?;
    rig.run("ALTER SYSTEM SET synchronous_standby_names = 'away'")
        .await?;
    rig.run("SELECT pg_reload_conf()").await?;
    Ok((server, rig))
}

/// Commits in a session of its own that waits for the standby; flushed when this returns.
async fn commit_invisibly(rig: &Rig, sql: &str) -> Result<tokio::task::JoinHandle<Result<()>>> {
    let session = rig.session().await?;
    let sql = format!("SET synchronous_commit = on; {sql}");
    let task = tokio::spawn(async move { Ok(session.batch_execute(&sql).await?) });
    let waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' LIMIT 1";
    eventually("the commit waits for the standby", || async {
        Ok(rig.db.query_opt(waits, &[]).await?.map(|_| ()))
    })
    .await?;
    Ok(task)
}

async fn standby_is_given_up(rig: &Rig) -> Result<()> {
    rig.run("ALTER SYSTEM SET synchronous_standby_names = ''")
        .await?;
    rig.run("SELECT pg_reload_conf()").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_shows_every_transaction_sent() -> Result<()> {
    let (_server, rig) = away().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let commit = commit_invisibly(
        &rig,
        "BEGIN; INSERT INTO doc VALUES (6, 0, repeat('x', 3000)); UPDATE doc SET n = 6 WHERE id = 6; COMMIT",
    )
    .await?;
    // It has to wait for the snapshot to show the row; without, it finds none.
    connector.logged("a hole is to be filled").await?;
    standby_is_given_up(&rig).await?;
    commit.await??;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[DOC]).await?;
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_shows_what_a_predecessor_may_have_sent() -> Result<()> {
    let (_server, rig) = away().await?;
    rig.read_once().await?;
    // The table read of the new column is held back until the successor does it.
    rig.run("SET synchronous_commit = local; ALTER TABLE peer ADD COLUMN color text NOT NULL DEFAULT 'red'")
        .await?;
    let first = rig.connector().start()?;
    first.ready().await?;
    let commit = commit_invisibly(&rig, "UPDATE peer SET n = 1 WHERE id = 1").await?;
    let mut journal = rig.journal()?;
    journal
        .until("the update is sent", |journal| {
            journal.count(PEER, r#"{"id":1}"#, "u") == 1
        })
        .await?;
    first.kill().await;
    let second = rig.connector().start()?;
    // It reads the table only once the update is visible; without, it reads the row of before.
    let read_or_waits = || async {
        let status = second.status().await?;
        let done = status["tables"][PEER]["read"] == "done";
        let waits = second.log().contains("reads wait for transaction");
        Ok((done || waits).then_some(()))
    };
    eventually("the read waits", read_or_waits)
        .await
        .with_context(|| second.log())?;
    standby_is_given_up(&rig).await?;
    commit.await??;
    second.ready().await?;
    equals_source(&rig, &mut journal, &[PEER])
        .await
        .with_context(|| format!("{}\n{}", first.log(), second.log()))?;
    second.kill().await;
    Ok(())
}

/// An asynchronous commit is visible before it is flushed, and a crash of the server takes it
/// back.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_counts_once_the_wal_is_flushed() -> Result<()> {
    let settings = [("wal_writer_delay", "10000ms"), ("autovacuum", "off")];
    let mut server = Postgres::start_with(Version::Legacy15, &settings).await?;
    let rig = Rig::on(&server, &[DOC, PEER], DDL).await?;
    rig.read_once().await?;
    rig.run("UPDATE doc SET n = 1 WHERE id = 1").await?;
    let connector = rig
        .connector()
        .stream("kafka_transaction_ms_max = 100")
        .faults("connector.before_view:sleep:1:2000")
        .start()?;
    connector.logged("a hole is to be filled").await?;
    rig.run(&format!(
        "SET synchronous_commit = off; {}",
        rewrite(1, 'b')
    ))
    .await?;
    let mut journal = rig.journal()?;
    let before = {
        journal
            .until("a record", |journal| !journal.checkpoints.is_empty())
            .await?;
        journal.checkpoints.len()
    };
    // Counted too early, the read is recorded; else nothing is, for as long as the WAL writer
    // sleeps. Either way the server then falls.
    for _ in 0..50 {
        journal.until("what there is", |_| true).await?;
        if journal
            .checkpoints
            .iter()
            .skip(before)
            .any(|record| record.reach > record.position)
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.crash().await;
    connector.kill().await;
    server.restart().await?;
    let db = server.superuser(&rig.database).await?;
    let lost: i64 = db
        .query_one("SELECT count(*) FROM peer WHERE big = 'b'", &[])
        .await?
        .get(0);
    ensure!(
        lost == 0,
        "the server had flushed the commit that it was to lose"
    );
    // The log grows past the place that was lost.
    for _ in 0..50 {
        db.batch_execute("UPDATE peer SET n = n + 1").await?;
    }
    let next = rig.connector().start()?;
    let lsn: String = db
        .query_one("SELECT pg_current_wal_lsn()::text", &[])
        .await?
        .get(0);
    journal.until_position(lsn.parse()?).await?;
    next.kill().await;
    ensure!(rows_are_whole(&journal.tables()));
    always(&journal, "a row and its peer", peers_agree)
}

/// A steady flow of values that are not resent does not starve checkpoints.
#[tokio::test(flavor = "multi_thread")]
async fn a_steady_flow_of_holes_does_not_starve_checkpoints() -> Result<()> {
    let rig = rig().await?;
    // Each new view takes a while, in which more is committed than the stream has passed.
    let connector = rig
        .connector()
        .stream("heartbeat_ms = 600000")
        .faults("connector.in_fill:sleep:1:30")
        .start()?;
    connector.ready().await?;
    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await?;
    let whole = |journal: &crate::harness::Journal| {
        journal
            .checkpoints
            .iter()
            .filter(|record| record.is_whole())
            .count()
    };
    let before = whole(&journal);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut writers = Vec::new();
    for id in 1..=4 {
        let (session, stopped) = (rig.session().await?, stopped.clone());
        writers.push(tokio::spawn(async move {
            let mut commits = 0;
            while !*stopped.borrow() {
                session
                    .batch_execute(&format!("UPDATE doc SET n = n + 1 WHERE id = {id}"))
                    .await?;
                commits += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            anyhow::Ok(commits)
        }));
    }
    let flowed = journal
        .until("ten checkpoints while it flows", |journal| {
            whole(journal) >= before + 10
        })
        .await;
    stop.send(true)?;
    for writer in writers {
        writer.await??;
    }
    flowed?;
    equals_source(&rig, &mut journal, &[DOC]).await?;
    connector.kill().await;
    always(&journal, "every row", rows_are_whole)
}

/// A kept view finds a table empty that was truncated since.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_view_is_dropped_when_the_table_got_a_new_file() -> Result<()> {
    let rig = rig().await?;
    rig.read_once().await?;
    let connector = rig
        .connector()
        .stream("record_ms = 1\nheartbeat_ms = 600000\nidle_record_ms = 5000")
        .faults("connector.in_fill:sleep:1:2000,connector.after_fill:sleep:1:2000")
        .reads("read_view_ms_max = 60000")
        .start()?;
    connector.logged("goes on at").await?;
    rig.run("UPDATE doc SET n = 1 WHERE id = 1").await?;
    connector.logged("a read view is open").await?;
    // Before the view's LSN is taken: its place is behind this transaction.
    rig.run("BEGIN; UPDATE doc SET n = 7 WHERE id = 2; UPDATE peer SET n = 7 WHERE id = 2; COMMIT")
        .await?;
    connector.logged("a hole is filled").await?;
    // After it.
    rig.run("TRUNCATE doc").await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[DOC, PEER]).await?;
    connector.kill().await;
    always(&journal, "row 2 and its peer", |tables| {
        let key = r#"{"id":2}"#;
        tables[DOC]
            .get(key)
            .is_none_or(|doc| doc["n"] == tables[PEER][key]["n"])
    })
}
