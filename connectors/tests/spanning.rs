//! Transactions of the source that span several of Kafka's: half sent when their sender dies, they
//! go on behind what was sent, and who reads what is committed sees nothing twice.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kafka::Checkpoint;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::harness::{Journal, Plan, Rig, always, equals_source, sum};

const ITEM: &str = "public.item";
/// A value of `body` is not resent by an update that leaves it as it is.
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL, body text NOT NULL); \
                   ALTER TABLE item ALTER body SET STORAGE EXTERNAL; \
                   INSERT INTO item SELECT g, 0, repeat('x', 4000) FROM generate_series(1, 4) g";

/// 30 changes of every kind: 10 rows come, 10 change (7 of them lack a value), 4 get another key,
/// 2 change again, 4 go. They leave 10 rows whose `n` is 26 in sum.
const LARGE: &str = "BEGIN; \
    INSERT INTO item SELECT g, 1, repeat('y', 3000) FROM generate_series(11, 20) g; \
    UPDATE item SET n = n + 1, body = body || 'z' WHERE id <= 3; \
    UPDATE item SET n = n + 1 WHERE id = 4 OR id BETWEEN 11 AND 16; \
    UPDATE item SET id = id + 100 WHERE id BETWEEN 11 AND 14; \
    UPDATE item SET n = n + 5 WHERE id IN (111, 112); \
    DELETE FROM item WHERE id BETWEEN 17 AND 20; COMMIT";
/// A change of key is a delete and a create. Four updates that lack a value are of rows that are
/// gone when it is looked for: their deletes come.
const EVENTS: usize = 10 + (10 - 4) + 2 * 4 + 2 + 4;

async fn items() -> Result<Rig> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    rig.read_once().await?;
    Ok(rig)
}

/// One whose Kafka transactions have some five events.
fn small(rig: &Rig) -> Plan<'_> {
    rig.connector().stream("kafka_transaction_events_max = 5")
}

/// How often each event of the log is there: by key, kind and LSN.
fn events(journal: &Journal) -> BTreeMap<(String, String, String), usize> {
    let mut events = BTreeMap::new();
    for record in journal.of(ITEM) {
        let Some(value) = record.value.as_ref().filter(|value| value["op"] != "r") else {
            continue;
        };
        let event = (
            record.key.clone(),
            value["op"].to_string(),
            value["source"]["lsn"].to_string(),
        );
        *events.entry(event).or_default() += 1;
    }
    events
}

fn each_is_there_once(journal: &Journal, expected: usize) -> Result<()> {
    let events = events(journal);
    let twice: Vec<_> = events.iter().filter(|(_, times)| **times > 1).collect();
    ensure!(twice.is_empty(), "twice: {twice:#?}");
    ensure!(events.len() == expected, "{} events", events.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_within_a_transaction_its_successor_goes_on_where_it_stopped() -> Result<()> {
    for points in [
        ["before_commit:kill:3", "after_commit:kill:2"],
        ["after_commit:kill:3", "after_commit:kill:1"],
        ["after_confirm:kill:4", "before_send:kill:1"],
        ["after_send:kill:12", "after_send:kill:9"],
        ["after_commit:kill:2", "before_commit:kill:5"],
    ] {
        let rig = items().await?;
        rig.run(LARGE).await?;
        for point in points {
            let killed = small(&rig).faults(&format!("connector.{point}")).start()?;
            let (_, log) = killed.ended().await?;
            ensure!(log.contains("fault point"), "{point}: {log}");
        }
        let next = small(&rig).start()?;
        let mut journal = rig.journal()?;
        equals_source(&rig, &mut journal, &[ITEM]).await?;
        each_is_there_once(&journal, EVENTS).with_context(|| format!("{points:?}"))?;
        always(&journal, "the sum", |tables| {
            [0, 26].contains(&sum(tables, ITEM, "n"))
        })?;
        ensure!(
            next.log().contains("goes on behind its first"),
            "{points:?}"
        );
        // The next large one is counted from its beginning.
        rig.run("UPDATE item SET n = n + 1, body = body || 'u'")
            .await?;
        equals_source(&rig, &mut journal, &[ITEM]).await?;
        each_is_there_once(&journal, EVENTS + 10)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_altered_meanwhile_has_each_change_once() -> Result<()> {
    let rig = items().await?;
    rig.run(LARGE).await?;
    let killed = small(&rig)
        .faults("connector.after_commit:kill:4")
        .start()?;
    killed.ended().await?;
    rig.run("ALTER TABLE item ADD COLUMN color text NOT NULL DEFAULT 'blue'")
        .await?;
    rig.run("UPDATE item SET color = 'red' WHERE id = 111")
        .await?;
    let next = small(&rig).start()?;
    next.ready().await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    each_is_there_once(&journal, EVENTS + 1)
}

/// A TRUNCATE is done again, and deletes what its predecessor had not come to.
#[tokio::test(flavor = "multi_thread")]
async fn killed_within_a_truncate_its_successor_deletes_the_rest() -> Result<()> {
    for point in [
        "after_commit:kill:4",
        "after_commit:kill:5",
        "after_send:kill:21",
    ] {
        let rig = items().await?;
        rig.run(
            "BEGIN; INSERT INTO item SELECT g, 1, '' FROM generate_series(11, 18) g; TRUNCATE item; \
             INSERT INTO item SELECT g, 1, '' FROM generate_series(21, 28) g; COMMIT",
        )
        .await?;
        let plan = small(&rig).reads("reconcile_keys = 2");
        let killed = plan.clone().faults(&format!("connector.{point}")).start()?;
        killed.ended().await?;
        let mut journal = rig.journal()?;
        journal
            .until("part of the TRUNCATE", |journal| {
                let ops = events(journal).into_keys().map(|(_, op, _)| op);
                (1..12).contains(&ops.filter(|op| op == "\"d\"").count())
            })
            .await?;
        let next = plan.start()?;
        equals_source(&rig, &mut journal, &[ITEM]).await?;
        next.kill().await;
        // 16 rows came; 4 of before and 8 of them went.
        each_is_there_once(&journal, 16 + 12).context(point)?;
    }
    Ok(())
}

/// A record that the log contradicts is not followed: rather twice than never.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_the_log_does_not_have_is_sent_again() -> Result<()> {
    let rig = items().await?;
    rig.run(LARGE).await?;
    let killed = small(&rig)
        .faults("connector.after_commit:kill:3")
        .start()?;
    killed.ended().await?;
    let mut journal = rig.journal()?;
    let half_sent = |journal: &Journal| journal.checkpoints.last().and_then(|last| last.half_sent);
    journal
        .until("a record within the transaction", |journal| {
            half_sent(journal).is_some_and(|part| part.changes >= 10)
        })
        .await?;
    let mut last = journal.checkpoints.last().context("no record")?.clone();
    let part = last.half_sent.as_mut().context("no part")?;
    part.changes -= 1;
    write(&rig, &last).await?;
    let next = small(&rig).start()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    next.logged("it is sent again from its beginning").await?;
    let events = events(&journal);
    ensure!(events.len() == EVENTS, "{} events", events.len());
    ensure!(events.values().any(|times| *times == 2), "{events:#?}");
    Ok(())
}

/// A record that no connector wrote.
async fn write(rig: &Rig, record: &Checkpoint) -> Result<()> {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &rig.bootstrap)
        .create()?;
    let (topic, value) = (rig.topic("checkpoint"), serde_json::to_vec(record)?);
    let record = FutureRecord::to(&topic)
        .key(kafka::checkpoint::KEY)
        .payload(&value);
    let sent = producer.send(record, Duration::from_secs(30)).await;
    sent.map_err(|(error, _)| error)?;
    Ok(())
}
