//! TRUNCATE, keys that change, columns that come and go.

use anyhow::Result;
use serde_json::json;

use crate::harness::{Rig, equals_source};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 5) g";

async fn rig() -> Result<Rig> {
    Rig::new(&[ITEM], DDL).await
}

/// Read once, and down.
async fn down() -> Result<Rig> {
    let rig = rig().await?;
    rig.read_once().await?;
    Ok(rig)
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_deletes_every_key() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().reads("reconcile_keys = 2").start()?;
    connector.ready().await?;
    rig.run("TRUNCATE item; INSERT INTO item VALUES (3, 33), (9, 9)")
        .await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    Ok(())
}

/// Not each time that the topic has a key, and not what was gone before.
#[tokio::test(flavor = "multi_thread")]
async fn truncate_deletes_each_row_that_there_is_once() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().reads("reconcile_keys = 2").start()?;
    connector.ready().await?;
    rig.run("UPDATE item SET n = n + 10; UPDATE item SET n = n + 10")
        .await?;
    rig.run("DELETE FROM item WHERE id IN (1, 2)").await?;
    rig.run("INSERT INTO item VALUES (2, 2), (6, 6)").await?;
    rig.run("TRUNCATE item").await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    let deletes: Vec<_> = (1..=6)
        .map(|id| journal.count(ITEM, &json!({"id": id}).to_string(), "d"))
        .collect();
    assert_eq!(deletes, [1, 2, 1, 1, 1, 1]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_deletes_also_what_the_same_kafka_transaction_had_sent() -> Result<()> {
    let rig = down().await?;
    rig.run("INSERT INTO item VALUES (6, 6)").await?;
    rig.run("BEGIN; INSERT INTO item VALUES (7, 7); TRUNCATE item; INSERT INTO item VALUES (8, 8); COMMIT")
        .await?;
    // A backlog comes without pauses: one Kafka transaction, if TRUNCATE did not end it.
    let connector = rig.connector().stream("record_ms = 5000").start()?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_is_a_delete_and_a_create_that_name_each_other() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("UPDATE item SET id = 50, n = 51 WHERE id = 5")
        .await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    let (old, new) = (r#"{"id":5}"#, r#"{"id":50}"#);
    let of = |key: &str| -> Vec<_> {
        let records = journal
            .of(ITEM)
            .into_iter()
            .filter(|record| record.key == key);
        records
            .map(|r| (r.value.clone(), r.headers.clone()))
            .collect()
    };
    let (olds, news) = (of(old), of(new));
    let header = |name: &str, key: &str| vec![(format!("__debezium.{name}"), key.to_owned())];
    let [(read, _), (delete, on_delete), (None, on_tombstone)] = &olds[..] else {
        panic!("{olds:?}");
    };
    let (read, delete) = (read.as_ref().unwrap(), delete.as_ref().unwrap());
    assert_eq!((&read["op"], &delete["op"]), (&json!("r"), &json!("d")));
    assert_eq!(delete["before"], json!({"id": 5}));
    assert_eq!(on_delete, &header("newkey", new));
    assert_eq!(on_tombstone, &header("newkey", new));
    let [(Some(create), on_create)] = &news[..] else {
        panic!("{news:?}");
    };
    assert_eq!(create["op"], "c");
    assert_eq!(create["after"], json!({"id": 50, "n": 51}));
    assert_eq!(on_create, &header("oldkey", old));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_column_is_read_for_every_row() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().reads("chunk_rows = 2").start()?;
    connector.ready().await?;
    rig.run("ALTER TABLE item ADD COLUMN color text NOT NULL DEFAULT 'red'")
        .await?;
    rig.run("UPDATE item SET n = 0 WHERE id = 1").await?;
    let mut journal = rig.journal()?;
    let known = |columns: &[&str]| -> Vec<String> {
        columns.iter().map(|&column| column.to_owned()).collect()
    };
    journal
        .until("the column is known", |journal| {
            let last = journal.checkpoints.last();
            last.is_some_and(|last| last.tables[ITEM].columns == known(&["id", "n", "color"]))
        })
        .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    rig.run("ALTER TABLE item DROP COLUMN n; UPDATE item SET color = 'blue' WHERE id = 2")
        .await?;
    journal
        .until("the column is gone", |journal| {
            let last = journal.checkpoints.last();
            last.is_some_and(|last| last.tables[ITEM].columns == known(&["id", "color"]))
        })
        .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_column_comes_again_under_its_new_name_for_every_row() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().postgres("check_ms = 200").start()?;
    connector.ready().await?;
    rig.run("ALTER TABLE item RENAME COLUMN n TO amount")
        .await?;
    let mut journal = rig.journal()?;
    let known = ["id", "amount"];
    journal
        .until("the new name is known, without any change", |journal| {
            let last = journal.checkpoints.last();
            last.is_some_and(|last| last.tables[ITEM].columns == known)
        })
        .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    // While it is down, too; of the key it makes other keys.
    rig.run("ALTER TABLE item RENAME COLUMN id TO number; DELETE FROM item WHERE number = 2")
        .await?;
    let next = rig.connector().start()?;
    journal
        .until("the new keys are known", |journal| {
            let last = journal.checkpoints.last();
            last.is_some_and(|last| {
                last.is_whole() && last.tables[ITEM].columns == ["number", "amount"]
            })
        })
        .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    let keys: Vec<_> = journal.tables()[ITEM].keys().cloned().collect();
    assert_eq!(
        keys,
        [1, 3, 4, 5].map(|id| json!({ "number": id }).to_string())
    );
    next.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_identity_full_before_is_the_whole_row() -> Result<()> {
    let rig = rig().await?;
    rig.run("ALTER TABLE item REPLICA IDENTITY FULL").await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("UPDATE item SET n = 20 WHERE id = 2; DELETE FROM item WHERE id = 3")
        .await?;
    rig.run("UPDATE item SET id = 40 WHERE id = 4").await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    let before = |id: i64, op: &str| {
        let key = json!({ "id": id }).to_string();
        let mut values = journal
            .of(ITEM)
            .into_iter()
            .filter(|record| record.key == key);
        let value = values.find_map(|record| record.value.as_ref().filter(|v| v["op"] == op));
        value.map(|value| value["before"].clone())
    };
    assert_eq!(before(2, "u"), Some(json!({"id": 2, "n": 2})));
    assert_eq!(before(3, "d"), Some(json!({"id": 3, "n": 3})));
    assert_eq!(before(4, "d"), Some(json!({"id": 4, "n": 4})));
    assert_eq!(before(40, "c"), Some(json!(null)));
    Ok(())
}

/// The log leaves them out, so a read does.
#[tokio::test(flavor = "multi_thread")]
async fn computed_columns_are_in_no_event() -> Result<()> {
    let ddl = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL, \
                   twice int GENERATED ALWAYS AS (n * 2) STORED); \
               INSERT INTO item SELECT g, g FROM generate_series(1, 5) g";
    let rig = Rig::new(&[ITEM], ddl).await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("UPDATE item SET n = 20 WHERE id = 2").await?;
    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await?;
    let rows = journal.tables().remove(ITEM).unwrap_or_default();
    assert_eq!(rows[r#"{"id":1}"#], json!({"id": 1, "n": 1}));
    assert_eq!(rows[r#"{"id":2}"#], json!({"id": 2, "n": 20}));
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_older_columns_after_the_read_starts_it_over() -> Result<()> {
    let rig = rig().await?;
    // Between the slot and the first chunk a row changes with the old columns.
    let connector = rig
        .connector()
        .faults("connector.after_create:sleep:1:3000")
        .start()?;
    connector.logged("it waits for every transaction").await?;
    let sql = "SELECT 1 FROM pg_replication_slots WHERE slot_name = $1 AND confirmed_flush_lsn IS NOT NULL";
    crate::harness::eventually("the slot", || async {
        Ok(rig.db.query_opt(sql, &[&rig.slot]).await?.map(|_| ()))
    })
    .await?;
    rig.run("UPDATE item SET n = 0 WHERE id = 1").await?;
    rig.run("ALTER TABLE item ADD COLUMN color text NOT NULL DEFAULT 'red'")
        .await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    assert!(
        journal.count(ITEM, r#"{"id":1}"#, "u") > 0,
        "the older event came"
    );
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_knows_which_columns_the_topics_have() -> Result<()> {
    let rig = down().await?;
    rig.run("ALTER TABLE item ADD COLUMN color text NOT NULL DEFAULT 'red'")
        .await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("UPDATE item SET n = 0 WHERE id = 1").await?;
    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await?;
    journal
        .until("the table is read", |journal| {
            let last = journal.checkpoints.last();
            last.is_some_and(|last| last.tables[ITEM].columns.len() == 3)
        })
        .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_another_type_is_read_anew_with_the_next_change() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("UPDATE item SET n = 2 WHERE id = 1").await?;
    rig.run("ALTER TABLE item ALTER COLUMN n TYPE text USING 'n' || n")
        .await?;
    rig.run("UPDATE item SET n = 'x' WHERE id = 1").await?;
    let mut journal = rig.journal()?;
    journal
        .until("the rows come anew", |journal| {
            journal.count(ITEM, r#"{"id":5}"#, "r") == 2
        })
        .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    Ok(())
}
