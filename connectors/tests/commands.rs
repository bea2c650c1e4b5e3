//! `connector read`, `epoch` and `status`: asked of the one that runs.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::{Connector, Journal, Rig, always, equals_source, eventually, sum};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO item SELECT g, 10 FROM generate_series(1, 40) g";
/// Ranges, three read at once, two rows each.
const RANGES: &str = "read_workers = 3\nchunk_rows = 6";

async fn rig() -> Result<Rig> {
    Rig::new(&[ITEM], DDL).await
}

async fn streaming(rig: &Rig) -> Result<Connector> {
    let connector = rig.connector().reads(RANGES).start()?;
    connector.ready().await?;
    Ok(connector)
}

/// `read` with `--wait`: it is complete.
async fn read(connector: &Connector, words: &[&str]) -> Result<String> {
    let words = [&["read", "--table", ITEM, "--wait"], words].concat();
    let (code, output) = connector.command(&words).await?;
    ensure!(code == Some(0), "{words:?}: {output}\n{}", connector.log());
    ensure!(output.contains("is complete"), "{output}");
    Ok(output)
}

async fn refused(connector: &Connector, words: &[&str]) -> Result<String> {
    let words = [&["read"], words].concat();
    let (code, output) = connector.command(&words).await?;
    ensure!(code == Some(2), "{words:?}: {code:?} {output}");
    Ok(output)
}

/// Rows that the source has no more and whose deletion nobody told us.
async fn delete_unseen(rig: &Rig, condition: &str) -> Result<()> {
    rig.run(&format!(
        "ALTER PUBLICATION tributary SET (publish = 'insert, update, truncate'); \
         DELETE FROM item WHERE {condition}; \
         ALTER PUBLICATION tributary SET (publish = 'insert, update, delete, truncate')"
    ))
    .await
}

fn reads_of(journal: &Journal, id: i64) -> usize {
    journal.count(ITEM, &format!("{{\"id\":{id}}}"), "r")
}

fn ids(journal: &Journal) -> Vec<i64> {
    let tables = journal.tables();
    let mut ids: Vec<_> = tables[ITEM]
        .values()
        .filter_map(|row| row["id"].as_i64())
        .collect();
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_read_again_and_what_is_gone_is_deleted() -> Result<()> {
    let rig = rig().await?;
    let connector = streaming(&rig).await?;
    delete_unseen(&rig, "id IN (3, 30)").await?;
    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await?;
    ensure!(ids(&journal).contains(&3), "its deletion was not told");
    read(&connector, &[]).await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    for id in [1, 2, 4, 40] {
        assert_eq!(reads_of(&journal, id), 2, "row {id}");
    }
    assert_eq!(connector.metric("connector_lives_total").await?, Some(1.0));
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_over_the_key_reads_and_compares_its_range_only() -> Result<()> {
    let rig = rig().await?;
    let connector = streaming(&rig).await?;
    delete_unseen(&rig, "id IN (3, 30)").await?;
    read(&connector, &["--where", "id BETWEEN 21 AND 35"]).await?;
    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await?;
    let times: Vec<_> = (1..=40).map(|id| reads_of(&journal, id)).collect();
    let expected: Vec<_> = (1..=40)
        .map(|id| {
            if (21..=35).contains(&id) && id != 30 {
                2
            } else {
                1
            }
        })
        .collect();
    assert_eq!(times, expected);
    ensure!(ids(&journal).contains(&3) && !ids(&journal).contains(&30));
    let output = read(&connector, &["--where", "item.id < 10", "--no-reconcile"]).await?;
    ensure!(!output.contains("left as they are"), "{output}");
    journal.until_position(rig.wal_lsn().await?).await?;
    ensure!(ids(&journal).contains(&3));
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_over_other_columns_reads_only_the_rows_that_fulfil_it() -> Result<()> {
    let rig = rig().await?;
    let connector = streaming(&rig).await?;
    rig.run("UPDATE item SET n = 99 WHERE id IN (5, 33)")
        .await?;
    delete_unseen(&rig, "id = 3").await?;
    let output = read(&connector, &["--where", "n = 99"]).await?;
    ensure!(output.contains("left as they are"), "{output}");
    let output = refused(
        &connector,
        &["--table", ITEM, "--where", "n = 99", "--reconcile"],
    )
    .await?;
    ensure!(output.contains("not of the primary key"), "{output}");
    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await?;
    let twice: Vec<_> = (1..=40).filter(|id| reads_of(&journal, *id) == 2).collect();
    assert_eq!(twice, [5, 33]);
    ensure!(ids(&journal).contains(&3));
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_read_survives_a_crash_and_one_that_is_not_is_forgotten() -> Result<()> {
    let rig = rig().await?;
    streaming(&rig).await?.kill().await;
    let plan = rig.connector().reads(RANGES);
    let faulty = plan
        .clone()
        .faults("connector.before_request:kill")
        .start()?;
    faulty.ready().await?;
    let (code, output) = faulty.command(&["read", "--table", ITEM]).await?;
    ensure!(code == Some(1), "{output}");
    faulty.ended().await?;
    // The record is committed, the answer is not given, and no chunk is read.
    let faulty = plan
        .clone()
        .faults("connector.after_request:kill")
        .start()?;
    faulty.ready().await?;
    let (code, output) = faulty.command(&["read", "--table", ITEM]).await?;
    ensure!(code == Some(1), "{output}");
    faulty.ended().await?;
    for point in ["in_read:kill:2", "after_chunk:kill:2"] {
        let killed = plan.clone().faults(&format!("connector.{point}")).start()?;
        killed.ended().await?;
    }
    let next = plan.start()?;
    next.ready().await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    for id in 1..=40 {
        assert_eq!(reads_of(&journal, id), 2, "row {id}");
    }
    next.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_the_source_at_every_checkpoint_of_a_read_by_command() -> Result<()> {
    let rig = rig().await?;
    let connector = rig
        .connector()
        .reads(RANGES)
        .stream("record_ms = 1")
        .start()?;
    connector.ready().await?;
    let session = rig.session().await?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writer = tokio::spawn(async move {
        for step in 0_i64.. {
            if *stopped.borrow() {
                break;
            }
            let (from, to) = (step * 7 % 40 + 1, step * 11 % 40 + 1);
            let sql = format!(
                "BEGIN; UPDATE item SET n = n - 1 WHERE id = {from}; \
                 UPDATE item SET n = n + 1 WHERE id = {to}; COMMIT"
            );
            session.batch_execute(&sql).await?;
        }
        anyhow::Ok(())
    });
    for _ in 0..3 {
        read(&connector, &[]).await?;
    }
    stop.send(true)?;
    writer.await??;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    let whole_while_read = journal
        .checkpoints
        .iter()
        .filter(|record| record.is_whole() && !record.tables[ITEM].requests.is_empty());
    ensure!(whole_while_read.count() > 5, "readers go on meanwhile");
    always(&journal, "the sum", |tables| sum(tables, ITEM, "n") == 400)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_with_its_reason() -> Result<()> {
    let rig = rig().await?;
    let connector = streaming(&rig).await?;
    let mut said = Vec::new();
    for words in [
        &["--table", "public.other"][..],
        &["--table", ITEM, "--where", "no_such_column = 1"],
        &["--table", ITEM, "--where", "id >"],
        &["--table", ITEM, "--where", "true) OR (true"],
        &["--table", ITEM, "--where", "true; DROP TABLE item"],
        &["--table", ITEM, "--where", "'oops"],
    ] {
        said.push(refused(&connector, words).await?);
    }
    insta::assert_snapshot!(said.concat(), @r#"
    error: public.other is none of the tables that this connector captures
    error: the condition cannot be used: column "no_such_column" does not exist (42703)
    error: the condition cannot be used: syntax error at or near ")" (42601)
    error: the condition cannot be used: it closes a bracket that it does not open
    error: the condition cannot be used: it has a semicolon
    error: the condition cannot be used: a quote is not closed
    "#);
    assert_eq!(connector.metric("connector_lives_total").await?, Some(1.0));
    connector.kill().await;
    Ok(())
}

/// A condition that parses and fails over some row must not stop the stream, and not be tried
/// for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_fails_is_given_up() -> Result<()> {
    let rig = rig().await?;
    let connector = streaming(&rig).await?;
    rig.run("UPDATE item SET n = 0 WHERE id = 20").await?;
    let words = ["read", "--table", ITEM, "--where", "100 / n > 5", "--wait"];
    let (code, output) = connector.command(&words).await?;
    ensure!(code == Some(2), "{output}");
    ensure!(output.contains("division by zero"), "{output}");
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    assert_eq!(connector.metric("connector_lives_total").await?, Some(1.0));
    let failed = "connector_read_requests_failed_total";
    assert_eq!(connector.metric(failed).await?, Some(1.0));
    let (_, status) = connector.command(&["status"]).await?;
    ensure!(status.contains("was given up: "), "{status}");
    connector.kill().await;
    // Nor does a successor find it.
    let next = streaming(&rig).await?;
    journal.until_position(rig.wal_lsn().await?).await?;
    let last = journal.checkpoints.last().context("no checkpoint")?;
    ensure!(last.tables[ITEM].requests.is_empty());
    next.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_has_a_bound_of_its_own() -> Result<()> {
    let rig = rig().await?;
    let connector = streaming(&rig).await?;
    let words = ["read", "--table", ITEM, "--rows-per-second", "40"];
    let (code, output) = connector.command(&words).await?;
    ensure!(code == Some(0), "{output}");
    let running = eventually("the read is under way", || async {
        let status = connector.status().await?;
        let request = status["tables"][ITEM]["requests"][0].clone();
        Ok((request["read"] == "running").then_some(request))
    })
    .await?;
    assert_eq!(running["rows_per_second_max"], 40);
    let left = connector
        .metric(&format!("connector_read_rows_left{{table=\"{ITEM}\"}}"))
        .await?;
    ensure!(left.is_some_and(|left| left > 0.0), "{left:?}");
    let (code, text) = connector.command(&["status"]).await?;
    assert_eq!(code, Some(0));
    ensure!(text.contains("reading, "), "{text}");
    ensure!(text.contains("of about 40 rows"), "{text}");
    let mut journal = rig.journal()?;
    journal
        .until("all rows again", |journal| {
            (1..=40).all(|id| reads_of(journal, id) == 2)
        })
        .await?;
    let again = journal.of(ITEM).into_iter().skip(40);
    let sent: Vec<_> = again
        .filter_map(|record| record.value.as_ref()?["ts_ms"].as_i64())
        .collect();
    let took_ms = sent.iter().max().zip(sent.iter().min()).map(|(a, b)| a - b);
    ensure!(took_ms >= Some(600), "40 rows came within {took_ms:?} ms");
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_leader_takes_commands_and_only_from_this_machine() -> Result<()> {
    let rig = rig().await?;
    let leader = streaming(&rig).await?;
    let standby = rig.connector().start()?;
    eventually("it stands by", || async {
        let status = standby.status().await?;
        Ok((status["state"] == "waiting for lock").then_some(()))
    })
    .await?;
    let output = refused(&standby, &["--table", ITEM]).await?;
    ensure!(output.contains("does not lead now"), "{output}");
    let (code, output) = standby.command(&["status"]).await?;
    ensure!(
        code == Some(0) && output.contains("waiting for lock"),
        "{output}"
    );
    // A web page that a browser on this machine shows calls us by the page's name.
    let answer = reqwest::Client::new()
        .post(format!("http://127.0.0.1:{}/reads", leader.port))
        .header("host", "rebound.example")
        .json(&serde_json::json!({ "table": ITEM }))
        .send()
        .await?;
    assert_eq!(answer.status().as_u16(), 403);
    let body: Value = answer.json().await?;
    ensure!(
        body["error"]
            .as_str()
            .is_some_and(|e| e.contains("this machine only"))
    );
    standby.kill().await;
    let (code, output) = standby.command(&["status"]).await?;
    ensure!(
        code == Some(1) && output.contains("no connector answers"),
        "{output}"
    );
    leader.kill().await;
    Ok(())
}

/// Who waits for a connector that is not started again is told so, and not left waiting.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_connector_that_is_gone_is_told() -> Result<()> {
    let rig = rig().await?;
    let connector = streaming(&rig).await?;
    let slow = ["read", "--table", ITEM, "--rows-per-second", "1", "--wait"];
    let begun = async {
        connector.logged("is asked for").await?;
        connector.kill().await;
        Ok(())
    };
    let (ended, ()) = tokio::try_join!(connector.command(&slow), begun)?;
    let (code, output) = ended;
    ensure!(
        code == Some(1) && output.contains("no connector answers"),
        "{code:?}: {output}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_told_to_people_and_to_programs() -> Result<()> {
    let rig = rig().await?;
    let connector = streaming(&rig).await?;
    // The slot is looked at beside the stream, which does not wait for it.
    let text = eventually("a look at the slot", || async {
        let (code, text) = connector.command(&["status"]).await?;
        ensure!(code == Some(0), "{code:?}: {text}");
        Ok((text.contains("  slot: ") && text.contains(" of WAL kept")).then_some(text))
    })
    .await?;
    ensure!(text.starts_with("shop: streaming\n"), "{text}");
    ensure!(text.contains("public.item: read\n"), "{text}");
    let (code, json) = connector.command(&["status", "--json"]).await?;
    assert_eq!(code, Some(0));
    let json: Value = serde_json::from_str(&json)?;
    assert_eq!(json["state"], "streaming");
    assert_eq!(json["tables"][ITEM]["read"], "done");
    assert_eq!(
        json["tables"][ITEM]["columns"],
        serde_json::json!(["id", "n"])
    );
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_by_command_reads_everything_and_deletes_what_is_gone() -> Result<()> {
    let rig = rig().await?;
    let connector = streaming(&rig).await?;
    delete_unseen(&rig, "id IN (3, 30)").await?;
    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await?;
    ensure!(ids(&journal).contains(&3), "its deletion was not told");
    let (code, output) = connector.command(&["epoch"]).await?;
    ensure!(code == Some(0), "{output}\n{}", connector.log());
    let epochs = journal.checkpoints.last().map(|last| last.epoch);
    let before = epochs.context("no checkpoint")?;
    ensure!(output.contains(&format!("epoch {before} ends")), "{output}");
    journal
        .until("a whole checkpoint of the next epoch", |journal| {
            let last = journal.checkpoints.last();
            last.is_some_and(|last| last.epoch > before && last.is_whole())
        })
        .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    ensure!(!ids(&journal).contains(&3));
    let log = connector.log();
    ensure!(
        log.contains("a new epoch begins: the slot was given up by command"),
        "{log}"
    );
    ensure!(
        !log.contains("ERROR"),
        "what was asked for is no error: {log}"
    );
    let given_up = connector.metric("connector_slots_given_up_total").await?;
    ensure!(
        given_up.unwrap_or(0.0) == 0.0,
        "it kept little: {given_up:?}"
    );
    connector.kill().await;
    let (code, output) = connector.command(&["epoch"]).await?;
    ensure!(code == Some(1), "{output}");
    Ok(())
}
