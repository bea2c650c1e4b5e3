//! The straight path: what is in the source comes to be in the topics.

use anyhow::Result;
use serde_json::json;

use crate::harness::Rig;

const ITEMS: &str =
    "CREATE TABLE item (id bigserial PRIMARY KEY, name text NOT NULL, n int NOT NULL)";

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_and_stream_equal_the_table() -> Result<()> {
    let rig = Rig::new(&["public.item"], ITEMS).await?;
    rig.run("INSERT INTO item (name, n) SELECT 'item ' || g, g FROM generate_series(1, 25) g")
        .await?;
    let connector = rig.connector().reads("chunk_rows = 10").start()?;
    connector.ready().await?;
    rig.run("UPDATE item SET n = -n WHERE id % 2 = 0; DELETE FROM item WHERE id = 7; INSERT INTO item (name, n) VALUES ('new \"one\"', 0)")
        .await?;
    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await?;
    let rows = &journal.tables()["public.item"];
    assert_eq!(rows.len(), 25);
    assert_eq!(
        rows[r#"{"id":2}"#],
        json!({"id": 2, "name": "item 2", "n": -2})
    );
    assert_eq!(
        rows[r#"{"id":26}"#],
        json!({"id": 26, "name": "new \"one\"", "n": 0})
    );
    assert!(!rows.contains_key(r#"{"id":7}"#));
    Ok(())
}
