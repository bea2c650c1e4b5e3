//! What others build on: the shape of events and checkpoints, locked by snapshots, and a consumer
//! in another language who rebuilds the tables from the topics.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fixtures::legacy::System;
use fixtures::place::downloads;
use fixtures::stack::{Options, Stack};
use serde_json::{Map, Value, json};
use tests::oracle::{ID, Oracle, Rows, UNIFIED, key};
use tests::raw::{Isolation, records};
use tests::rest;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_and_checkpoints_keep_their_shape() -> Result<()> {
    let stack = Stack::start(Options {
        stopped: true,
        ..Options::default()
    })
    .await?;
    // What is there before the connector is read from the table.
    let warehouse = stack.source(System::Warehouse).await?;
    warehouse
        .batch_execute(
            "insert into wh_item (name, description, country_of_origin)
             values ('read', 'by a table read', 'Sweden')",
        )
        .await?;
    stack.run().await?;
    let accounting = stack.source(System::Accounting).await?;
    for statement in [
        "insert into wh_item (name, description, country_of_origin)
         values ('it''s \"new\" 🍵', E'two\\nlines', 'Iran ایران')",
        "update wh_item set description = 'changed' where id = 2",
        "update wh_item set id = 20 where id = 2",
        "delete from wh_item where id = 20",
    ] {
        warehouse.batch_execute(statement).await?;
    }
    accounting
        .batch_execute(
            "begin;
             insert into ac_transaction (order_id) values (5);
             insert into ac_transactiondetail (sum, date, transaction_id)
                 values (-0.50, '1969-07-20 20:17:40.123456+00', 1);
             commit",
        )
        .await?;
    stack.caught_up().await?;
    for topic in [
        "warehouse.public.wh_item",
        "accounting.public.ac_transactiondetail",
    ] {
        let mut by_key: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for record in records(&stack, topic, Isolation::Committed).await? {
            let headers: Map<String, Value> = record
                .headers
                .into_iter()
                .map(|(name, value)| (name, value.into()))
                .collect();
            by_key.entry(record.key).or_default().push(json!({
                "headers": headers,
                "value": record.value.map(volatile),
            }));
        }
        insta::assert_json_snapshot!(topic, by_key);
    }
    let checkpoints = records(&stack, "accounting.checkpoint", Isolation::Committed).await?;
    let last = checkpoints.last().context("no checkpoint")?;
    ensure!(
        last.key == "checkpoint",
        "a checkpoint with the key {}",
        last.key
    );
    let prefix = stack.topic_prefix();
    let text = last.value.clone().context("a tombstone")?.to_string();
    let value: Value = serde_json::from_str(&text.replace(prefix, "PREFIX."))?;
    insta::assert_json_snapshot!("accounting.checkpoint", volatile(value));
    Ok(())
}

/// Replaces what differs from run to run by its kind; what is null stays null.
fn volatile(mut value: Value) -> Value {
    const VOLATILE: [&str; 21] = [
        "version",
        "ts_ms",
        "ts_us",
        "ts_ns",
        "lsn",
        "txId",
        "xmin",
        "sequence",
        "db",
        "epoch",
        "system_identifier",
        "position",
        "reach",
        "committed_at_us",
        "current_at_us",
        "wal_end",
        "offsets",
        "oid",
        "file_node",
        "published",
        "attributes",
    ];
    fn kind(value: &mut Value) {
        match value {
            Value::Null => {}
            Value::Number(_) => *value = "a number".into(),
            Value::String(text) if text.contains('/') => *value = "an LSN".into(),
            Value::String(_) => *value = "a string".into(),
            Value::Bool(_) | Value::Array(_) => *value = "another".into(),
            Value::Object(fields) => fields.values_mut().for_each(kind),
        }
    }
    if let Value::Object(fields) = &mut value {
        for (name, field) in fields {
            if VOLATILE.contains(&name.as_str()) {
                kind(field);
            } else {
                *field = volatile(field.take());
            }
        }
    }
    value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_in_another_language_rebuilds_every_table() -> Result<()> {
    let stack = Stack::start(Options {
        seed: true,
        ..Options::default()
    })
    .await?;
    let sales = stack.source(System::Sales).await?;
    sales
        .batch_execute(
            "begin;
             delete from sls_orderdetail where order_id between 10 and 60;
             delete from sls_order where id between 10 and 60;
             commit;
             update sls_orderdetail set id = id + 100000 where order_id between 70 and 80;
             update sls_orderdetail set unit_price = unit_price + 1 where order_id = 90",
        )
        .await?;
    rest::agrees(&stack).await?;
    let oracle = Oracle::read(&stack).await?;
    let rebuilt = foreign(&stack)
        .await
        .map_err(|error| stack.explain(error))?;
    for (topic, expected) in &oracle.sources {
        let seen = rebuilt[topic]
            .values()
            .map(|row| Ok((key(row, ID)?, row.clone())))
            .collect::<Result<Rows>>()?;
        rest::same(&format!("the foreign {topic}"), &seen, expected)?;
    }
    for one in UNIFIED {
        let topic = format!("unified.public.{}", one.table);
        let seen = rest::unified(one, &rebuilt[&topic])?;
        let what = format!("the foreign {topic}");
        rest::same(&what, &seen, &oracle.unified[one.table])?;
    }
    for source in ["warehouse", "accounting", "sales", "unified"] {
        let checkpoint = rebuilt[&format!("{source}.checkpoint")].get("checkpoint");
        ensure!(
            checkpoint.is_some_and(|record| record["position"].is_string()),
            "the foreign checkpoint of {source} is {checkpoint:?}"
        );
    }
    Ok(())
}

type Rebuilt = BTreeMap<String, BTreeMap<String, Value>>;

/// Runs the Python consumer over the stack's topics.
async fn foreign(stack: &Stack) -> Result<Rebuilt> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/foreign");
    let (bootstrap, prefix) = (
        stack.bootstrap().to_owned(),
        stack.topic_prefix().to_owned(),
    );
    tokio::task::spawn_blocking(move || {
        let client = output(
            Command::new(format!("{folder}/install.sh")).arg(downloads()),
            "installing the foreign client",
        )?;
        let rebuilt = output(
            Command::new("python3")
                .arg(format!("{folder}/rebuild.py"))
                .args([bootstrap, prefix])
                .env("PYTHONPATH", client.trim()),
            "the foreign consumer",
        )?;
        serde_json::from_str(&rebuilt).context("the foreign consumer's output")
    })
    .await?
}

fn output(command: &mut Command, what: &str) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {what}"))?;
    ensure!(
        output.status.success(),
        "{what} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
