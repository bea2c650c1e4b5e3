//! Where the log cannot be continued, a new epoch reads everything and deletes what is gone.

use anyhow::{Context, Result};
use serde_json::json;

use crate::harness::{Rig, always, equals_source, eventually};

const ITEM: &str = "public.item";
const PART: &str = "public.part";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   CREATE TABLE part (id int, code text, n int NOT NULL, PRIMARY KEY (code, id)); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 7) g; \
                   INSERT INTO part SELECT g, 'c' || g % 3, g FROM generate_series(1, 7) g";

/// Read once and down, at epoch N.
async fn down() -> Result<(Rig, u64)> {
    let rig = Rig::new(&[ITEM, PART], DDL).await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let epoch = connector.status().await?["epoch"].as_u64();
    connector.kill().await;
    Ok((rig, epoch.context("no epoch")?))
}

async fn slot_is_free(rig: &Rig) -> Result<()> {
    let sql = "SELECT 1 FROM pg_replication_slots WHERE slot_name = $1 AND NOT active";
    eventually("the slot is free", || async {
        let free = rig.db.query_opt(sql, &[&rig.slot]).await?;
        Ok(free.map(|_| ()))
    })
    .await
}

/// Starts it again: in a new epoch, and in the end equal to the source.
async fn begins_a_new_epoch(rig: &Rig, before: u64) -> Result<()> {
    let connector = rig
        .connector()
        .reads("chunk_rows = 3\nreconcile_keys = 2")
        .start()?;
    let mut journal = rig.journal()?;
    equals_source(rig, &mut journal, &[ITEM, PART]).await?;
    let after = journal.checkpoints.last().context("no checkpoint")?.epoch;
    assert!(after > before, "epoch {after} after {before}");
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_goes_on_after_a_restart() -> Result<()> {
    let (rig, epoch) = down().await?;
    rig.run("UPDATE item SET n = 0 WHERE id = 1; DELETE FROM part WHERE id = 2")
        .await?;
    let connector = rig.connector().start()?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    assert_eq!(journal.checkpoints.last().context("none")?.epoch, epoch);
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_advanced_by_hand_begins_a_new_epoch() -> Result<()> {
    let (rig, epoch) = down().await?;
    rig.run("INSERT INTO item VALUES (8, 8); DELETE FROM item WHERE id = 1")
        .await?;
    slot_is_free(&rig).await?;
    let sql = "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())";
    rig.db.execute(sql, &[&rig.slot]).await?;
    begins_a_new_epoch(&rig, epoch).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_dropped_and_made_again_begins_a_new_epoch() -> Result<()> {
    let (rig, epoch) = down().await?;
    slot_is_free(&rig).await?;
    let slot = &[&rig.slot as &(dyn tokio_postgres::types::ToSql + Sync)];
    rig.db
        .execute("SELECT pg_drop_replication_slot($1)", slot)
        .await?;
    rig.run("DELETE FROM item WHERE id > 3; INSERT INTO part VALUES (9, 'new', 9); DELETE FROM part WHERE id = 4")
        .await?;
    rig.db
        .execute(
            "SELECT pg_create_logical_replication_slot($1, 'pgoutput')",
            slot,
        )
        .await?;
    begins_a_new_epoch(&rig, epoch).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_while_the_slot_was_gone_is_deleted_from_the_topics() -> Result<()> {
    let (rig, epoch) = down().await?;
    slot_is_free(&rig).await?;
    let slot = &[&rig.slot as &(dyn tokio_postgres::types::ToSql + Sync)];
    rig.db
        .execute("SELECT pg_drop_replication_slot($1)", slot)
        .await?;
    rig.run("DELETE FROM item; DELETE FROM part WHERE id < 6; UPDATE part SET code = 'other' WHERE id = 6")
        .await?;
    begins_a_new_epoch(&rig, epoch).await?;
    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await.ok();
    let deletes = journal.of(ITEM).into_iter().filter(|record| {
        record
            .value
            .as_ref()
            .is_some_and(|value| value["op"] == "d")
    });
    let deleted: Vec<_> = deletes
        .map(|record| record.value.as_ref().map(|v| v["before"].clone()))
        .collect();
    assert_eq!(deleted.len(), 7);
    assert!(deleted.contains(&Some(json!({"id": 1}))));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_no_checkpoint_before_every_table_is_read() -> Result<()> {
    let rig = Rig::new(&[ITEM, PART], DDL).await?;
    let connector = rig.connector().reads("chunk_rows = 1").start()?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    connector.kill().await;
    always(&journal, "all rows", |tables| {
        tables[ITEM].len() == 7 && tables[PART].len() == 7
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_added_is_read_and_one_that_is_taken_out_is_forgotten() -> Result<()> {
    let rig = Rig::new(&[ITEM, PART], DDL).await?;
    let one = rig.connector().tables(&[ITEM]).start()?;
    one.ready().await?;
    one.kill().await;
    let both = rig.connector().start()?;
    both.ready().await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    both.kill().await;
    let other = rig.connector().tables(&[PART]).start()?;
    other.ready().await?;
    let tables = other.status().await?["tables"].clone();
    assert_eq!(
        tables
            .as_object()
            .context("no tables")?
            .keys()
            .collect::<Vec<_>>(),
        [PART]
    );
    other.kill().await;
    Ok(())
}

/// What was deleted while nobody captured it stands in its topic still.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_returns_to_the_configuration_is_compared_with_its_topic() -> Result<()> {
    let (rig, epoch) = down().await?;
    let other = rig.connector().tables(&[PART]).start()?;
    other.ready().await?;
    rig.run("DELETE FROM item WHERE id < 4; UPDATE item SET n = 9 WHERE id = 5; INSERT INTO item VALUES (8, 8)")
        .await?;
    equals_source(&rig, &mut rig.journal()?, &[PART]).await?;
    other.kill().await;
    let both = rig.connector().start()?;
    // The last checkpoint of the other is whole, too, and says nothing of this table.
    both.ready().await?;
    rig.run("UPDATE item SET n = 10 WHERE id = 6").await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    let last = journal.checkpoints.last().context("no checkpoint")?;
    assert_eq!(last.epoch, epoch);
    both.kill().await;
    Ok(())
}

/// Each epoch reads the topics. What one of them deleted, or the log did, the next leaves alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_is_deleted_from_the_topics_once_however_many_epochs_begin() -> Result<()> {
    let (rig, epoch) = down().await?;
    rig.run("UPDATE item SET n = n + 1; DELETE FROM item WHERE id = 1")
        .await?;
    let connector = rig.connector().start()?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    connector.kill().await;
    for gone in [2, 3] {
        slot_is_free(&rig).await?;
        let sql = "SELECT pg_drop_replication_slot($1)";
        rig.db.execute(sql, &[&rig.slot]).await?;
        rig.run(&format!("DELETE FROM item WHERE id = {gone}"))
            .await?;
        begins_a_new_epoch(&rig, epoch).await?;
    }
    equals_source(&rig, &mut journal, &[ITEM, PART]).await?;
    let deletes: Vec<_> = (1..=7)
        .map(|id| journal.count(ITEM, &json!({"id": id}).to_string(), "d"))
        .collect();
    assert_eq!(deletes, [1, 1, 1, 0, 0, 0, 0]);
    Ok(())
}
