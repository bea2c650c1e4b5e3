//! The straight path: what is in the source comes to be in the topics.

use anyhow::Result;
use serde_json::json;

use crate::harness::{Rig, equals_source, eventually};

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

const TYPES: &str = "
    CREATE TYPE mood AS ENUM ('fine', 'so \"so\"');
    CREATE DOMAIN price AS numeric(8,2) CHECK (value >= 0);
    CREATE DOMAIN moment AS timestamp(3);
    CREATE TABLE thing (
        id bigint PRIMARY KEY,
        b bool, i2 smallint, i4 int, i8 bigint, f4 real, f8 float8, n numeric, n2 numeric(8,2),
        v varchar(200), c char(5), t text, u uuid, j json, jb jsonb, x bytea,
        d date, ts timestamp, ts3 timestamp(3), tz timestamptz, iv interval, ti time,
        m mood, p price, mo moment, mny money, net inet, a int[], texts text[], ch \"char\", nm name,
        odd_date date, odd_moment timestamptz, odd_number numeric, odd_float float8, nothing text
    )";

fn thing(id: i32) -> String {
    format!(
        "INSERT INTO thing VALUES ({id},
            true, -32768, 2147483647, -9223372036854775808, 1.1, 1e-300, 12345678901234567890.000100, 2.50,
            'quote \" back\\slash', 'ab', E'line\\ntab\\t\u{1F600} \u{5E9}\u{5DC}\u{5D5}\u{5DD}', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11',
            '{{\"a\": 1}}', '{{\"b\":2,\"a\":[1, null]}}', '\\x00ff10',
            '1969-12-31', '2020-01-01 00:00:00.000001', '2020-01-01 00:00:00.5', '1960-02-29 12:00:00.25+02',
            '1 year 2 days 03:04:05', '23:59:59.999999', 'so \"so\"', 2.5, '2020-01-01 00:00:00.1234', '1.5', '10.0.0.1',
            '{{1,NULL,3}}', '{{\"a,b\",\"c\"}}', 'q', 'some_name',
            'infinity', '0044-03-15 12:00:00+00 BC', 'NaN', '-Infinity', NULL)"
    )
}

/// A row is the same whether a read or the log brought it, down to the byte.
#[tokio::test(flavor = "multi_thread")]
async fn read_and_stream_agree_on_every_type() -> Result<()> {
    let rig = Rig::new(&["public.thing"], TYPES).await?;
    rig.run("SET bytea_output = escape; SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'")
        .await?;
    rig.run(&thing(1)).await?;
    // The role's own settings must not show either.
    rig.run(&format!(
        "ALTER ROLE {} SET DateStyle = 'SQL, DMY'; ALTER ROLE {0} SET TimeZone = 'Asia/Tokyo'; \
         ALTER ROLE {0} SET IntervalStyle = 'iso_8601'; ALTER ROLE {0} SET extra_float_digits = -15",
        rig.role
    ))
    .await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run(&thing(2)).await?;
    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await?;
    let records = journal.of("public.thing");
    let after = |key: &str| -> Option<String> {
        let record = records.iter().find(|record| record.key == key)?;
        let text = record.text.as_deref()?;
        let (_, after) = text.split_once("\"after\":{\"id\":")?;
        let (_, after) = after.split_once(',')?;
        after
            .split_once(",\"source\":")
            .map(|(after, _)| after.to_owned())
    };
    let (read, streamed) = (after(r#"{"id":1}"#), after(r#"{"id":2}"#));
    assert!(read.is_some());
    assert_eq!(read, streamed);
    let value = records[0].value.as_ref().map(|value| &value["after"]);
    insta::assert_json_snapshot!(value);
    Ok(())
}

/// The whole event and the whole checkpoint, but for what differs from run to run.
#[tokio::test(flavor = "multi_thread")]
async fn events_and_checkpoints_have_their_shape() -> Result<()> {
    let rig = Rig::new(&["public.item"], ITEMS).await?;
    rig.run("INSERT INTO item (name, n) VALUES ('read', 1)")
        .await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("INSERT INTO item (name, n) VALUES ('created', 2); UPDATE item SET n = 3 WHERE id = 2")
        .await?;
    rig.run("DELETE FROM item WHERE id = 2").await?;
    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await?;
    // The source's first pulse may come after its first records.
    journal
        .until("a checkpoint that was known current", |journal| {
            let last = journal.checkpoints.last();
            last.is_some_and(|last| last.is_whole() && last.current_at_us.is_some())
        })
        .await?;
    let varies =
        |name: &str| name.starts_with("ts_") || ["lsn", "txId", "sequence", "db"].contains(&name);
    fn blank(value: &mut serde_json::Value, varies: &impl Fn(&str) -> bool) {
        let serde_json::Value::Object(map) = value else {
            return;
        };
        for (name, value) in map {
            if varies(name) && !value.is_null() {
                *value = json!(format!("<{name}>"));
            } else {
                blank(value, varies);
            }
        }
    }
    let events: Vec<_> = journal
        .of("public.item")
        .into_iter()
        .map(|record| {
            let mut value = record.value.clone();
            if let Some(value) = &mut value {
                blank(value, &varies);
            }
            json!({"key": record.key, "value": value})
        })
        .collect();
    insta::assert_json_snapshot!("events", events);
    let mut last = journal
        .checkpoints
        .last()
        .map(serde_json::to_value)
        .transpose()?;
    let varies = |name: &str| {
        name.ends_with("_us")
            || [
                "epoch",
                "system_identifier",
                "position",
                "reach",
                "wal_end",
                "offsets",
                "definition",
            ]
            .contains(&name)
    };
    if let Some(last) = &mut last {
        blank(last, &varies);
    }
    insta::assert_json_snapshot!("checkpoint", last);
    Ok(())
}

/// What was sent in a transaction that was never committed is not counted.
#[tokio::test(flavor = "multi_thread")]
async fn rows_and_bytes_are_counted_once_they_are_committed() -> Result<()> {
    let rig = Rig::new(&["public.item"], ITEMS).await?;
    rig.run("INSERT INTO item (name, n) SELECT 'read', g FROM generate_series(1, 3) g")
        .await?;
    rig.read_once().await?;
    let folder = tempfile::tempdir()?;
    let go_on = folder.path().join("go-on");
    let hold = format!("connector.after_send:hold:2:{}", go_on.display());
    let connector = rig.connector().faults(&hold).start()?;
    connector.ready().await?;
    rig.run(
        "BEGIN; INSERT INTO item (name, n) VALUES ('created', 2), ('created', 3); \
         UPDATE item SET n = 3 WHERE id = 1; DELETE FROM item WHERE id = 2; COMMIT",
    )
    .await?;
    connector.logged("after_send: holds").await?;
    rig.run(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}'",
        rig.role
    ))
    .await?;
    eventually("another life holds", || async {
        Ok((connector.log().matches("after_send: holds").count() == 2).then_some(()))
    })
    .await?;
    std::fs::write(&go_on, "")?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &["public.item"]).await?;
    for (op, rows) in [("c", 2.0), ("u", 1.0), ("d", 1.0)] {
        let metric = format!("connector_rows_total{{table=\"public.item\",op=\"{op}\"}}");
        assert_eq!(connector.metric(&metric).await?, Some(rows), "{op}");
    }
    let mut bytes = 0;
    for record in journal.of("public.item") {
        if record.value.as_ref().is_none_or(|value| value["op"] != "r") {
            bytes += record.key.len() + record.text.as_ref().map_or(0, String::len);
        }
    }
    let metric = "connector_bytes_total{table=\"public.item\"}";
    let counted = connector.metric(metric).await?;
    assert_eq!(counted, Some(f64::from(u32::try_from(bytes)?)));
    let queue = connector.metric("connector_unacknowledged_events").await?;
    assert!(queue.is_some(), "the queue's depth is not told");
    connector.kill().await;
    Ok(())
}
