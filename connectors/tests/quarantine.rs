//! What cannot be encoded, or is larger than a record, is put aside; the rest goes on.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kafka::event::Op;
use kafka::quarantine::{Quarantined, Reason, Sent};
use serde_json::json;

use crate::harness::{Journal, Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, note text NOT NULL)";

/// PostgreSQL checks text where it comes in, but damaged and very old databases hold some that
/// is none. The cast makes one.
const NO_TEXT: &str = "CREATE CAST (bytea AS text) WITHOUT FUNCTION; \
     INSERT INTO item VALUES (1, 'a'); INSERT INTO item VALUES (2, '\\xc8'::bytea::text)";

/// A record takes 16 MiB; this is a value's length.
const LARGE: usize = 17 << 20;

async fn rig() -> Result<Rig> {
    Rig::new(&[ITEM], DDL).await
}

/// The rows that are in quarantine, their parts put together: the first record of each, and the
/// row as `TupleData`.
fn rows(journal: &Journal) -> Result<Vec<(Quarantined, Vec<u8>)>> {
    let mut rows: Vec<(Quarantined, Vec<u8>)> = Vec::new();
    for record in &journal.quarantined {
        if record.part == 0 {
            rows.push((record.clone(), Vec::new()));
        }
        let (_, raw) = rows.last_mut().context("a part without its first")?;
        raw.extend(BASE64.decode(&record.raw)?);
    }
    Ok(rows)
}

async fn at_rest(rig: &Rig, journal: &mut Journal) -> Result<()> {
    journal.until_position(rig.wal_lsn().await?).await
}

/// In the log, in a read, and read again by a successor: always once, in between the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_larger_than_a_record_goes_to_quarantine_and_the_rest_goes_on() -> Result<()> {
    let rig = rig().await?;
    rig.run(&format!(
        "INSERT INTO item VALUES (1, 'a'), (2, repeat('x', {LARGE})), (3, 'c')"
    ))
    .await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run(&format!(
        "BEGIN; INSERT INTO item VALUES (4, 'd'); UPDATE item SET note = repeat('y', {LARGE}) WHERE id = 1; \
         INSERT INTO item VALUES (5, 'e'); COMMIT"
    ))
    .await?;
    let mut journal = rig.journal()?;
    at_rest(&rig, &mut journal).await?;
    let keys: Vec<_> = journal.tables()[ITEM].keys().cloned().collect();
    let json = |id: i64| json!({"id": id}).to_string();
    assert_eq!(keys, [json(1), json(3), json(4), json(5)]);
    assert_eq!(
        journal.tables()[ITEM][&json(1)]["note"],
        "a",
        "its last state"
    );
    let quarantined = rows(&journal)?;
    let [(read, _), (update, raw)] = &quarantined[..] else {
        panic!("{} rows", quarantined.len());
    };
    assert_eq!((read.op, &read.key), (Op::Read, &Some(json!({"id": 2}))));
    assert_eq!(
        (update.op, &update.key),
        (Op::Update, &Some(json!({"id": 1})))
    );
    assert_eq!(
        (update.reason, update.sent),
        (Reason::TooLarge, Sent::Nothing)
    );
    assert_eq!((update.table.as_str(), update.parts), (ITEM, 5));
    assert_eq!(update.columns, ["id", "note"]);
    assert!(update.xid.is_some() && !update.cut);
    let mut expected = b"\x00\x02t\x00\x00\x00\x011t".to_vec();
    expected.extend(u32::try_from(LARGE)?.to_be_bytes());
    expected.extend(std::iter::repeat_n(b'y', LARGE));
    assert!(*raw == expected, "the row's bytes");
    let last = journal.checkpoints.last().context("no checkpoint")?;
    let ends: Vec<_> = last.quarantine.iter().collect();
    let all = i64::try_from(journal.quarantined.len())?;
    assert!(
        matches!(ends[..], [(0, end)] if *end >= all),
        "{ends:?} for {all}"
    );
    let status = connector.status().await?;
    assert_eq!(status["quarantined"], 2, "{status}");
    let metric = "connector_quarantined_total{table=\"public.item\",reason=\"too_large\"}";
    assert_eq!(connector.metric(metric).await?, Some(2.0));

    rig.run("UPDATE item SET note = 'small' WHERE note LIKE 'xx%'; UPDATE item SET note = 'b' WHERE id = 1")
        .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    assert_eq!(rows(&journal)?.len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_quarantined_stands_there_once_after_a_crash() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    connector.kill().await;
    rig.run(NO_TEXT).await?;
    // The first record of a life is of no event.
    let killed = rig
        .connector()
        .faults("connector.before_commit:kill:2")
        .start()?;
    killed.ended().await?;
    let successor = rig.connector().start()?;
    successor.ready().await?;
    let mut journal = rig.journal()?;
    at_rest(&rig, &mut journal).await?;
    assert_eq!(rows(&journal)?.len(), 1);
    successor.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_no_text_goes_to_quarantine() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run(NO_TEXT).await?;
    let mut journal = rig.journal()?;
    at_rest(&rig, &mut journal).await?;
    let keys: Vec<_> = journal.tables()[ITEM].keys().cloned().collect();
    assert_eq!(keys, [r#"{"id":1}"#]);
    let quarantined = rows(&journal)?;
    let (record, raw) = quarantined.first().context("nothing in quarantine")?;
    assert_eq!((record.op, record.reason), (Op::Create, Reason::NotUtf8));
    assert_eq!(record.detail, "its value of column note is not valid UTF-8");
    assert_eq!(raw, b"\x00\x02t\x00\x00\x00\x012t\x00\x00\x00\x01\xc8");
    assert!(!connector.log().contains("\u{fffd}"));
    rig.run("UPDATE item SET note = 'b' WHERE id = 2").await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    Ok(())
}

/// A statement of a read cannot begin behind such a key: more of them than a chunk has rows, in the
/// middle and at the end, are passed once.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_no_text_do_not_hold_a_read_up() -> Result<()> {
    const NAMED: &str = "public.named";
    let ddl = "CREATE TABLE named (name text COLLATE \"C\" PRIMARY KEY); \
         CREATE CAST (bytea AS text) WITHOUT FUNCTION; \
         INSERT INTO named SELECT first || lpad(g::text, 3, '0') \
             FROM generate_series(1, 30) g, unnest('{a,z}'::text[]) first; \
         INSERT INTO named SELECT (convert_to(first || lpad(g::text, 3, '0'), 'UTF8') || '\\xc8')::text \
             FROM generate_series(1, 90) g, unnest('{m,zz}'::text[]) first";
    let rig = Rig::new(&[NAMED], ddl).await?;
    let small = "chunk_rows = 20\nread_workers = 1";
    let connector = rig.connector().reads(small).start()?;
    connector.ready().await?;
    let mut journal = rig.journal()?;
    at_rest(&rig, &mut journal).await?;
    assert_eq!(journal.tables()[NAMED].len(), 60);
    let aside: BTreeSet<_> = rows(&journal)?.into_iter().map(|(_, raw)| raw).collect();
    assert_eq!((rows(&journal)?.len(), aside.len()), (180, 180));

    let (table, condition) = ("--table=public.named", "--where=name >= 'm'");
    let (code, said) = connector
        .command(&["read", table, condition, "--wait"])
        .await?;
    ensure!(code == Some(0), "{said}\n{}", connector.log());
    at_rest(&rig, &mut journal).await?;
    assert_eq!(rows(&journal)?.len(), 360);
    assert_eq!(journal.tables()[NAMED].len(), 60);
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_goes_out_whatever_its_old_row_is() -> Result<()> {
    let rig = rig().await?;
    rig.run("ALTER TABLE item REPLICA IDENTITY FULL").await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run(&format!(
        "INSERT INTO item VALUES (1, 'a'); UPDATE item SET note = repeat('x', {LARGE}) WHERE id = 1"
    ))
    .await?;
    rig.run("DELETE FROM item WHERE id = 1").await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    let quarantined = rows(&journal)?;
    let sent: Vec<_> = quarantined
        .iter()
        .map(|(row, _)| (row.op, row.sent))
        .collect();
    assert_eq!(
        sent,
        [
            (Op::Update, Sent::Nothing),
            (Op::Delete, Sent::WithoutBefore)
        ]
    );
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_prefer_to_stop() -> Result<()> {
    let rig = rig().await?;
    let stopping = rig.connector().top("on_undecodable = \"stop\"");
    let connector = stopping.start()?;
    connector.ready().await?;
    rig.run(NO_TEXT).await?;
    let (code, log) = connector.ended().await?;
    assert_eq!(code, Some(2), "{log}");
    let sentence = log
        .lines()
        .find(|line| line.starts_with("error: the change of public.item at "))
        .with_context(|| log.clone())?;
    assert!(
        sentence.ends_with(
            " with the key {\"id\":2} cannot be sent: its value of column note is not valid UTF-8; \
             on_undecodable is \"stop\": with \"quarantine\" such a change goes to the quarantine \
             topic, and the rest goes on"
        ),
        "{sentence}"
    );
    let mut journal = rig.journal()?;
    let other = rig.connector().start()?;
    at_rest(&rig, &mut journal).await?;
    assert_eq!(rows(&journal)?.len(), 1);
    other.kill().await;
    Ok(())
}

/// Topics that are made take what a record may have; an older topic that takes less is refused.
#[tokio::test(flavor = "multi_thread")]
async fn how_large_a_record_may_be_is_configured_and_topics_must_take_it() -> Result<()> {
    let rig = rig().await?;
    let small = rig.connector().kafka("record_bytes_max = 65536");
    let connector = small.start()?;
    connector.ready().await?;
    rig.run("INSERT INTO item VALUES (1, repeat('x', 50000)), (2, repeat('y', 70000))")
        .await?;
    let mut journal = rig.journal()?;
    at_rest(&rig, &mut journal).await?;
    let keys: Vec<_> = journal.tables()[ITEM].keys().cloned().collect();
    assert_eq!(keys, [r#"{"id":1}"#]);
    let quarantined = rows(&journal)?;
    let [(row, raw)] = &quarantined[..] else {
        panic!("{} rows", quarantined.len());
    };
    assert_eq!((row.reason, row.parts), (Reason::TooLarge, 2));
    assert_eq!(raw.len(), 70_013);
    connector.kill().await;

    let (code, report) = rig.connector().command(&["check", "--json"]).await?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let findings = report["findings"].as_array().context("no findings")?;
    let places: Vec<_> = findings.iter().map(|one| one["place"].as_str()).collect();
    let topics = ["public.item", "quarantine"].map(|of| format!("topic {}", rig.topic(of)));
    assert_eq!(code, Some(2), "{report:#}");
    assert_eq!(places, topics.each_ref().map(|topic| Some(topic.as_str())));
    for finding in findings {
        assert_eq!(finding["code"], "kafka_topic");
        assert_eq!(finding["setting"], "kafka.record_bytes_max");
        let remedy = finding["remedy"].as_str().unwrap_or_default();
        assert!(remedy.contains("--add-config max.message.bytes=16777216`"));
    }
    let (code, log) = rig.connector().start()?.ended().await?;
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("max.message.bytes is 65536, must be at least 16777216"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_higher_limit_larger_rows_go_to_their_topic() -> Result<()> {
    let rig = rig().await?;
    rig.run(&format!(
        "INSERT INTO item VALUES (1, repeat('x', {LARGE}))"
    ))
    .await?;
    let large = "record_bytes_max = 33554432\nsend_queue_kib = 65536";
    let connector = rig.connector().kafka(large).start()?;
    connector.ready().await?;
    rig.run(&format!(
        "INSERT INTO item VALUES (2, repeat('y', {LARGE}))"
    ))
    .await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    assert_eq!(rows(&journal)?.len(), 0);
    connector.kill().await;
    Ok(())
}

/// A record holds the other key as well, in a header: what fits without it may not fit with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_counts_with_its_event() -> Result<()> {
    const KEY: usize = 2000;
    let ddl = "CREATE TABLE item (id text PRIMARY KEY, body text)";
    let rig = Rig::new(&[ITEM], ddl).await?;
    let small = rig.connector().kafka("record_bytes_max = 65536");
    let connector = small.start()?;
    connector.ready().await?;
    let mut sizes = Vec::new();
    // From what fits to what does not, in steps that are smaller than a key.
    for (number, bytes) in (56_000..66_000).step_by(KEY / 4).enumerate() {
        rig.run(&format!(
            "INSERT INTO item SELECT '{number} ' || string_agg(md5(g::text), ''), \
                 repeat('x', {bytes}) FROM generate_series(1, {KEY} / 32) g; \
             UPDATE item SET id = 'new ' || id WHERE starts_with(id, '{number} ')"
        ))
        .await?;
        sizes.push(bytes);
    }
    let mut journal = rig.journal()?;
    at_rest(&rig, &mut journal).await?;
    assert_eq!(connector.metric("connector_lives_total").await?, Some(1.0));
    let there = journal.tables()[ITEM].len();
    let quarantined = rows(&journal)?.len();
    assert!(there > 0 && quarantined > 0, "{there} {quarantined}");
    connector.kill().await;
    Ok(())
}

/// A life that ends before its record is committed sends again, and counts once.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_to_quarantine_is_counted_once_it_is_committed() -> Result<()> {
    let rig = rig().await?;
    rig.read_once().await?;
    let folder = tempfile::tempdir()?;
    let go_on = folder.path().join("go-on");
    let hold = format!("connector.after_send:hold:2:{}", go_on.display());
    let connector = rig.connector().faults(&hold).start()?;
    connector.ready().await?;
    rig.run(&format!(
        "BEGIN; {NO_TEXT}; INSERT INTO item VALUES (3, 'c'); COMMIT"
    ))
    .await?;
    for times in 1..=2 {
        eventually("a life holds", || async {
            let holds = connector.log().matches("after_send: holds").count();
            Ok((holds >= times).then_some(()))
        })
        .await?;
        if times == 1 {
            let sessions = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}'",
                rig.role
            );
            rig.run(&sessions).await?;
        }
    }
    std::fs::write(&go_on, "")?;
    let mut journal = rig.journal()?;
    at_rest(&rig, &mut journal).await?;
    assert_eq!(rows(&journal)?.len(), 1);
    let metric = "connector_quarantined_total{table=\"public.item\",reason=\"not_utf8\"}";
    assert_eq!(connector.metric(metric).await?, Some(1.0));
    assert_eq!(connector.status().await?["quarantined"], 1);
    connector.kill().await;
    Ok(())
}
