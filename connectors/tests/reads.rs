//! Table reads: several at once, resumed at the chunk, paced.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use fixtures::postgres::{Postgres, Version};
use kafka::Checkpoint;
use kafka::checkpoint::{KeyRange, Read};

use crate::harness::{Journal, Record, Rig, always, equals_source, eventually, sum};

const ITEM: &str = "public.item";
const PART: &str = "public.part";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   CREATE TABLE part (id int, code text, n int NOT NULL, PRIMARY KEY (code, id)); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 60) g; \
                   INSERT INTO part SELECT g, E'c\\t\\\\' || g % 3, g FROM generate_series(1, 20) g";
/// Six ranges of `item`, three read at once, two rows each.
const RANGES: &str = "read_workers = 3\nchunk_rows = 6";

async fn rig() -> Result<Rig> {
    Rig::new(&[ITEM, PART], DDL).await
}

/// The ranges of a table's read in each record, in which it is under way.
fn ranges(journal: &Journal, table: &str) -> Vec<Vec<KeyRange>> {
    let reads = journal
        .checkpoints
        .iter()
        .map(|record| &record.tables[table].read);
    let running = reads.filter(|read| matches!(read, Read::Running(_)));
    running.map(Read::ranges).collect()
}

/// How often each row was read.
fn times_read(journal: &Journal) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for table in [ITEM, PART] {
        for record in journal.of(table) {
            if record
                .value
                .as_ref()
                .is_some_and(|value| value["op"] == "r")
            {
                *times.entry(format!("{table} {}", record.key)).or_default() += 1;
            }
        }
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_of_a_table_are_read_at_once() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().reads(RANGES).start()?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    connector.kill().await;
    let ranges = ranges(&journal, ITEM);
    let moved = ranges.windows(2).map(|records| {
        let stays = |range: &&KeyRange| records[1].contains(range);
        records[0].len() - records[0].iter().filter(stays).count()
    });
    ensure!(moved.max() == Some(3), "{ranges:#?}");
    ensure!(times_read(&journal).values().all(|times| *times == 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_tables_are_read_at_once() -> Result<()> {
    let rig = rig().await?;
    let reads = "read_workers = 4\nchunk_rows = 1000";
    let connector = rig.connector().reads(reads).start()?;
    connector.ready().await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    let of = |table: &str| -> Option<serde_json::Value> {
        let record = journal.of(table).into_iter().next()?;
        Some(record.value.as_ref()?["source"]["ts_us"].clone())
    };
    ensure!(
        of(ITEM).is_some() && of(ITEM) == of(PART),
        "one snapshot shows both"
    );
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_goes_on_at_the_chunk_of_each_range() -> Result<()> {
    let rig = rig().await?;
    let plan = rig.connector().reads(RANGES);
    for point in [
        "in_read:kill:2",
        "after_send:kill:4",
        "after_chunk:kill:2",
        "before_commit:kill:3",
        "after_commit:kill:3",
    ] {
        let killed = plan.clone().faults(&format!("connector.{point}")).start()?;
        let (_, log) = killed.ended().await?;
        ensure!(log.contains("fault point"), "{point}: {log}");
    }
    let connector = plan.start()?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    connector.kill().await;
    let twice: Vec<_> = times_read(&journal)
        .into_iter()
        .filter(|(_, times)| *times != 1)
        .collect();
    ensure!(twice.is_empty(), "read again: {twice:?}");
    Ok(())
}

/// Neither the stream nor other tables wait for an owner who has locked one.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_holds_up_nothing_but_its_own_read() -> Result<()> {
    is_left_alone_while_it_is_locked(&rig().await?).await
}

/// From 16 on a look at the publication as a whole opens every table of it.
#[tokio::test(flavor = "multi_thread")]
async fn on_18_a_locked_table_holds_up_nothing_but_its_own_read() -> Result<()> {
    let server = fixtures::servers().view().await?;
    is_left_alone_while_it_is_locked(&Rig::on(server, &[ITEM, PART], DDL).await?).await
}

async fn is_left_alone_while_it_is_locked(rig: &Rig) -> Result<()> {
    let reads = "read_workers = 1\nlock_wait_ms_max = 60000";
    // A look at the catalog each second.
    let looks = "check_ms = 1000";
    let connector = rig.connector().postgres(looks).reads(reads).start()?;
    connector.ready().await?;
    let owner = rig.session().await?;
    owner
        .batch_execute("BEGIN; LOCK TABLE item IN ACCESS EXCLUSIVE MODE")
        .await?;
    // A commit flushes what the lock wrote: an idle server may not for long, and reads wait for it.
    rig.run("CREATE TABLE flushed ()").await?;
    let (code, output) = connector.command(&["read", "--table", ITEM]).await?;
    ensure!(code == Some(0), "{output}");
    connector.logged("waits for a lock of its owner's").await?;
    let words = ["read", "--table", PART, "--wait"];
    let (code, output) = connector.command(&words).await?;
    ensure!(code == Some(0), "{output}");
    let looked = || connector.log().matches("the catalog was looked at").count();
    let looks = looked();
    eventually("a look at the catalog", || async {
        Ok((looked() > looks).then_some(()))
    })
    .await?;
    rig.run("UPDATE part SET n = 77 WHERE id = 5").await?;
    let mut journal = rig.journal()?;
    journal
        .until("the other table is read and streamed", |journal| {
            let part = journal.tables().remove(PART).unwrap_or_default();
            part.values().any(|row| row["n"] == 77)
        })
        .await?;
    let times = |journal: &Journal| {
        let times = times_read(journal);
        let of = |table: &str| {
            times
                .iter()
                .filter(|(row, _)| row.starts_with(table))
                .map(|(_, n)| *n)
                .max()
        };
        (of(ITEM), of(PART))
    };
    assert_eq!(times(&journal), (Some(1), Some(2)));
    owner.batch_execute("COMMIT").await?;
    journal
        .until("the table is read again", |journal| {
            times(journal) == (Some(2), Some(2))
        })
        .await?;
    equals_source(rig, &mut journal, &[ITEM, PART]).await?;
    assert_eq!(connector.metric("connector_lives_total").await?, Some(1.0));
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_a_second_are_bounded() -> Result<()> {
    let rig = rig().await?;
    let plan = rig.connector().reads("rows_per_second_max = 100");
    let connector = plan.start()?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    connector.kill().await;
    let sent = journal.records.iter().filter_map(|record| {
        let value = record.value.as_ref()?;
        value["ts_ms"].as_i64()
    });
    let (first, last) = (sent.clone().min(), sent.max());
    let took_ms = last.zip(first).map(|(last, first)| last - first);
    // 80 rows, and the last 25 of them come at once.
    ensure!(took_ms >= Some(500), "80 rows came within {took_ms:?} ms");
    Ok(())
}

/// What is read while the source changes is the source at every checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_change_while_they_are_read_are_whole_at_every_checkpoint() -> Result<()> {
    let rig = rig().await?;
    let first = rig.connector().start()?;
    first.ready().await?;
    // Every row is read again, while readers take checkpoints.
    let total = 60 * 61 / 2;
    let writer = {
        let session = rig.session().await?;
        tokio::spawn(async move {
            for step in 0..200_i64 {
                let (from, to) = (step * 7 % 60 + 1, step * 11 % 60 + 1);
                let sql = format!(
                    "BEGIN; UPDATE item SET n = n - 1 WHERE id = {from}; \
                     UPDATE item SET n = n + 1 WHERE id = {to}; COMMIT"
                );
                session.batch_execute(&sql).await?;
            }
            anyhow::Ok(())
        })
    };
    first.kill().await;
    rig.run("ALTER TABLE item ADD COLUMN color text NOT NULL DEFAULT 'red'")
        .await?;
    let plan = rig.connector().reads(RANGES).stream("record_ms = 1");
    let killed = plan
        .clone()
        .faults("connector.after_chunk:kill:3")
        .start()?;
    killed.ended().await?;
    let next = plan.start()?;
    writer.await??;
    let mut journal = rig.journal()?;
    journal
        .until("the column is known", |journal| {
            let last = journal.checkpoints.last();
            last.is_some_and(|last| last.tables[ITEM].columns.len() == 3)
        })
        .await?;
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    next.kill().await;
    ensure!(times_read(&journal).values().any(|times| *times > 1));
    always(&journal, "the sum", |tables| {
        sum(tables, ITEM, "n") == total
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_not_flushed_is_taken_back_before_kafka_ends_its_transaction() -> Result<()>
{
    let settings = [("wal_writer_delay", "10000ms"), ("autovacuum", "off")];
    let server = Postgres::start_with(Version::Legacy15, &settings).await?;
    let rig = Rig::on(&server, &[ITEM, PART], DDL).await?;
    let connector = rig
        .connector()
        .environment("TRIBUTARY_KAFKA__TRANSACTION_TIMEOUT_MS", "2000")
        .faults("connector.in_read:sleep:1:1500")
        .start()?;
    // After the read and before its LSN.
    connector.logged("in_read: sleeps").await?;
    rig.run("SET synchronous_commit = off; UPDATE item SET n = 0")
        .await?;
    connector
        .logged("what was read is taken back and read again")
        .await?;
    rig.run("SET synchronous_commit = on; UPDATE item SET n = 1")
        .await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM, PART])
        .await
        .with_context(|| connector.log())?;
    connector.kill().await;
    Ok(())
}

/// A table that was just loaded has no statistics: the planner takes its ranges for small, and
/// would sort what is left of one for every statement, on the owner's disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_statistics_is_read_in_the_order_of_its_index() -> Result<()> {
    let ddl = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL) \
                   WITH (autovacuum_enabled = off); \
               INSERT INTO item SELECT g, g FROM generate_series(1, 300000) g";
    let rig = Rig::new(&[ITEM], ddl).await?;
    rig.read_once().await?;
    let sql = "SELECT idx_tup_read, idx_tup_fetch FROM pg_stat_user_indexes WHERE relname = 'item'";
    let (read, fetched) = eventually("the server has counted the read", || async {
        let row = rig.db.query_one(sql, &[]).await?;
        let (read, fetched): (i64, i64) = (row.get(0), row.get(1));
        Ok((read >= 300_000).then_some((read, fetched)))
    })
    .await?;
    ensure!(
        fetched >= 300_000 && read < 400_000,
        "of {read} rows that the index gave {fetched} came in its order"
    );
    Ok(())
}

/// How large rows are is known once they are here, and older ones tell nothing of the next.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_become_large_make_no_large_chunk() -> Result<()> {
    const CHUNK_BYTES: usize = 1 << 20;
    const ROW_BYTES: usize = 100_000;
    let ddl = format!(
        "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL, body text NOT NULL); \
         INSERT INTO item SELECT g, g, CASE WHEN g % 250 < 100 THEN '' \
             ELSE repeat('x', {ROW_BYTES}) END FROM generate_series(0, 499) g"
    );
    let rig = Rig::new(&[ITEM], &ddl).await?;
    let reads = format!("read_workers = 2\nchunk_rows = 250\nchunk_bytes_max = {CHUNK_BYTES}");
    let connector = rig.connector().reads(&reads).start()?;
    let words = ["read", "--table", ITEM, "--where", "n >= 0", "--wait"];
    connector.ready().await?;
    let (code, output) = connector.command(&words).await?;
    ensure!(code == Some(0), "{output}");
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    ensure!(times_read(&journal).values().all(|times| *times == 2));
    // Each of the workers looks after the batch that it hands over: two such rows.
    let most = 2 * (CHUNK_BYTES + 3 * ROW_BYTES);
    for (before, record) in std::iter::zip(&journal.checkpoints, &journal.checkpoints[1..]) {
        let bytes = bytes_between(&journal, before, record);
        ensure!(bytes <= most, "{bytes} bytes in one chunk");
    }
    Ok(())
}

/// Of the events that a record covers and the one before it does not.
fn bytes_between(journal: &Journal, before: &Checkpoint, record: &Checkpoint) -> usize {
    let end = |of: &Checkpoint, at: &Record| {
        let ends = of.offsets.get(&at.topic);
        ends.and_then(|ends| ends.get(&at.partition))
            .copied()
            .unwrap_or_default()
    };
    let sent = journal.records.iter();
    let sent = sent.filter(|at| (end(before, at)..end(record, at)).contains(&at.offset));
    sent.filter_map(|at| Some(at.text.as_ref()?.len())).sum()
}
