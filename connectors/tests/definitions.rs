//! What the log does not tell of a table: that it is another one, that the publication left it out
//! for a while, that every row was rewritten.

use anyhow::{Context, Result, ensure};
use fixtures::postgres::{Postgres, Version};
use kafka::TableState;

use crate::harness::{Connector, Journal, Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL UNIQUE); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 5) g";

/// Without anything else a look comes sooner than a test gives up.
const SOON: &str = "check_ms = 200";

async fn rig() -> Result<Rig> {
    Rig::new(&[ITEM], DDL).await
}

/// Read once, and down.
async fn down() -> Result<Rig> {
    let rig = rig().await?;
    rig.read_once().await?;
    Ok(rig)
}

/// Drops the table and makes it again, with fewer rows, in one transaction.
async fn remake(rig: &Rig) -> Result<()> {
    rig.run(&format!(
        "BEGIN; DROP TABLE item; CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
         INSERT INTO item VALUES (3, 33), (9, 9); GRANT SELECT ON item TO {}; \
         ALTER PUBLICATION tributary ADD TABLE item; COMMIT",
        rig.role
    ))
    .await
}

/// Takes the table out of the publication, changes rows, and puts it back.
async fn gap(rig: &Rig) -> Result<()> {
    rig.run(
        "ALTER PUBLICATION tributary DROP TABLE item; \
         UPDATE item SET n = 20 WHERE id = 2; DELETE FROM item WHERE id = 3; \
         ALTER PUBLICATION tributary ADD TABLE item",
    )
    .await
}

/// Waits for a whole checkpoint that knows the table so.
async fn known(journal: &mut Journal, what: &str, so: impl Fn(&TableState) -> bool) -> Result<()> {
    journal
        .until(what, |journal| {
            let last = journal.checkpoints.last();
            last.is_some_and(|last| last.is_whole() && so(&last.tables[ITEM]))
        })
        .await
}

/// Waits for a whole checkpoint with the table's definition of now.
async fn redefined(rig: &Rig, journal: &mut Journal) -> Result<()> {
    let sql = "SELECT c.oid, r.oid, c.relfilenode FROM pg_class c \
               JOIN pg_publication_rel r ON r.prrelid = c.oid WHERE c.oid = 'item'::regclass";
    let row = rig.db.query_one(sql, &[]).await?;
    let now: (u32, u32, u32) = (row.get(0), row.get(1), row.get(2));
    known(journal, "the table's definition", |state| {
        let then = state.definition.as_ref();
        then.is_some_and(|then| (then.oid, then.published, then.file_node) == now)
    })
    .await
}

/// The table's definition of now is known, and its rows are the source's.
async fn comes_right(rig: &Rig, connector: &Connector) -> Result<()> {
    let mut journal = rig.journal()?;
    redefined(rig, &mut journal).await?;
    equals_source(rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    Ok(())
}

/// It stops with exit code 2 and this sentence.
async fn stops(connector: &Connector, sentence: &str) -> Result<()> {
    let (code, log) = connector.ended().await?;
    assert_eq!(code, Some(2), "{log}");
    let said: Vec<_> = log
        .lines()
        .filter_map(|line| line.strip_prefix("error: "))
        .collect();
    assert_eq!(said, [sentence]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_again_has_no_keys_of_the_one_before() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("UPDATE item SET n = 10 WHERE id = 1").await?;
    remake(&rig).await?;
    rig.run("INSERT INTO item VALUES (10, 10)").await?;
    comes_right(&rig, &connector).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_again_is_noticed_without_any_change_of_it() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().postgres(SOON).start()?;
    connector.ready().await?;
    remake(&rig).await?;
    comes_right(&rig, &connector).await
}

/// The log still has changes of the older table, which come after the new one is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_again_while_nobody_looked_has_no_keys_of_the_one_before() -> Result<()> {
    let rig = down().await?;
    rig.run("INSERT INTO item VALUES (7, 7); UPDATE item SET n = 30 WHERE id = 3")
        .await?;
    remake(&rig).await?;
    rig.run("INSERT INTO item VALUES (10, 10)").await?;
    let connector = rig.connector().start()?;
    comes_right(&rig, &connector).await
}

/// What changed meanwhile is read, what was deleted is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_the_publication_lost_for_a_while_is_read_anew() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("UPDATE item SET n = 10 WHERE id = 1").await?;
    gap(&rig).await?;
    rig.run("UPDATE item SET n = 11 WHERE id = 1").await?;
    comes_right(&rig, &connector).await
}

/// The log has an older value of a row that changed while it was not published. Were the row read
/// before that came, the older value would stay.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_from_a_look_waits_for_the_log_of_before() -> Result<()> {
    let rig = down().await?;
    rig.run("UPDATE item SET n = 10 WHERE id = 2").await?;
    gap(&rig).await?;
    let connector = rig.connector().start()?;
    comes_right(&rig, &connector).await
}

/// No slot passes what was logged meanwhile: a new epoch begins, by itself.
/// What a look at the catalog shows may never be flushed. A crash of the source takes it back, the
/// log is shorter then, and the epoch lasts all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_crashes_after_a_look_costs_no_epoch() -> Result<()> {
    let settings = [("wal_writer_delay", "10000ms"), ("autovacuum", "off")];
    let mut server = Postgres::start_with(Version::Legacy15, &settings).await?;
    let mut rig = Rig::on(&server, &[ITEM], DDL).await?;
    let plan = rig.connector().postgres(SOON).stream("heartbeat_ms = 100");
    let connector = plan.start()?;
    connector.ready().await?;
    rig.run("SET synchronous_commit = off; ALTER TABLE item ADD COLUMN later int")
        .await?;
    let mut journal = rig.journal()?;
    known(&mut journal, "the look is recorded", |item| {
        item.target.contains(&"later".to_owned())
    })
    .await?;
    let recorded = journal.checkpoints.last().context("no checkpoint")?.clone();
    server.crash().await;
    connector.kill().await;
    server.restart().await?;
    rig.moved_to(&server).await?;
    let sql = "SELECT count(*) FROM pg_attribute \
               WHERE attrelid = 'item'::regclass AND attname = 'later'";
    let columns: i64 = rig.db.query_one(sql, &[]).await?.get(0);
    ensure!(columns == 0, "the server had flushed what it was to lose");
    let next = rig.connector().start()?;
    // Nobody writes: the table is read nevertheless.
    known(&mut journal, "the table is as it was", |item| {
        item.columns == ["id", "n"] && item.target == ["id", "n"] && item.read.is_done()
    })
    .await?;
    let last = journal.checkpoints.last().context("no checkpoint")?;
    assert_eq!(last.epoch, recorded.epoch, "{}", next.log());
    rig.run("INSERT INTO item VALUES (6, 6)").await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    next.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_dropped_and_made_again_begins_an_epoch() -> Result<()> {
    // A newer server leaves the changes out without an error.
    let rig = Rig::on(fixtures::servers().legacy().await?, &[ITEM], DDL).await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let epoch = connector.status().await?["epoch"].as_u64();
    rig.run(
        "DROP PUBLICATION tributary; DELETE FROM item WHERE id = 2; INSERT INTO item VALUES (6, 6)",
    )
    .await?;
    rig.run("CREATE PUBLICATION tributary FOR TABLE item; INSERT INTO item VALUES (7, 7)")
        .await?;
    comes_right(&rig, &connector).await?;
    let last = connector.log();
    assert!(
        last.contains("a new epoch begins: the slot is gone"),
        "{last}"
    );
    let mut journal = rig.journal()?;
    known(&mut journal, "the next epoch", |_| true).await?;
    let now = journal.checkpoints.last().map(|last| last.epoch);
    assert!(now > epoch, "{now:?} {epoch:?}");
    Ok(())
}

/// PostgreSQL 18 leaves the changes out without an error, and says no RELATION after it.
#[tokio::test(flavor = "multi_thread")]
async fn on_18_a_table_is_read_anew_after_its_publication_was_made_again() -> Result<()> {
    let server = fixtures::servers().view().await?;
    let rig = Rig::on(server, &[ITEM], DDL).await?;
    let connector = rig.connector().postgres(SOON).start()?;
    connector.ready().await?;
    // In one transaction: no look finds it missing.
    rig.run(
        "BEGIN; DROP PUBLICATION tributary; DELETE FROM item WHERE id = 2; \
         INSERT INTO item VALUES (6, 6); CREATE PUBLICATION tributary FOR TABLE item; COMMIT",
    )
    .await?;
    comes_right(&rig, &connector).await
}

/// The rest of what only the catalog tells is the same on 18.
#[tokio::test(flavor = "multi_thread")]
async fn on_18_a_table_made_again_and_rewritten_is_read_anew() -> Result<()> {
    let server = fixtures::servers().view().await?;
    let rig = Rig::on(server, &[ITEM], DDL).await?;
    let connector = rig.connector().postgres(SOON).start()?;
    connector.ready().await?;
    remake(&rig).await?;
    let mut journal = rig.journal()?;
    redefined(&rig, &mut journal).await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    rig.run("ALTER TABLE item ALTER n TYPE int USING n * 100")
        .await?;
    redefined(&rig, &mut journal).await?;
    known(&mut journal, "its values are known", |state| {
        state.columns.len() == 2
    })
    .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_filter_that_comes_while_it_runs_stops_it() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().postgres(SOON).start()?;
    connector.ready().await?;
    rig.run("ALTER PUBLICATION tributary SET TABLE item WHERE (id > 3)")
        .await?;
    stops(&connector, r#"the publication tributary filters the rows of public.item; let the owner run: ALTER PUBLICATION "tributary" DROP TABLE "public"."item"; ALTER PUBLICATION "tributary" ADD TABLE "public"."item";"#).await?;
    // Mended, it goes on and misses nothing.
    rig.run("UPDATE item SET n = 10 WHERE id = 1; DELETE FROM item WHERE id = 2; ALTER PUBLICATION tributary SET TABLE item")
        .await?;
    let connector = rig.connector().start()?;
    comes_right(&rig, &connector).await
}

/// The first change without the columns tells; it is not sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_taken_out_of_the_publication_stops_it() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().postgres(SOON).start()?;
    connector.ready().await?;
    rig.run("ALTER PUBLICATION tributary DROP TABLE item")
        .await?;
    stops(&connector, r#"the publication tributary lacks the table public.item; let the owner run: ALTER PUBLICATION "tributary" ADD TABLE "public"."item";"#).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_list_that_comes_while_it_runs_stops_it_at_once() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("UPDATE item SET n = 10 WHERE id = 1").await?;
    rig.run("ALTER PUBLICATION tributary SET TABLE item (id)")
        .await?;
    rig.run("INSERT INTO item VALUES (6, 6)").await?;
    stops(&connector, r#"the publication tributary leaves out columns of public.item; let the owner run: ALTER PUBLICATION "tributary" DROP TABLE "public"."item"; ALTER PUBLICATION "tributary" ADD TABLE "public"."item";"#).await?;
    rig.run("ALTER PUBLICATION tributary SET TABLE item")
        .await?;
    let connector = rig.connector().start()?;
    comes_right(&rig, &connector).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_stops_it() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().postgres(SOON).start()?;
    connector.ready().await?;
    rig.run("DROP TABLE item").await?;
    stops(
        &connector,
        "the source has no table public.item; correct the key tables",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_renamed_stops_it_with_its_next_change() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    rig.run("ALTER TABLE item RENAME TO article; INSERT INTO article VALUES (6, 6)")
        .await?;
    stops(
        &connector,
        "the source has no table public.item; correct the key tables",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_got_another_type_while_nobody_looked_is_read_anew() -> Result<()> {
    let rig = down().await?;
    rig.run(
        "UPDATE item SET n = 10 WHERE id = 1; ALTER TABLE item ALTER n TYPE text USING 'n' || n",
    )
    .await?;
    let connector = rig.connector().start()?;
    let mut journal = rig.journal()?;
    known(&mut journal, "the type is known", |state| {
        state.types == [(20, -1), (25, -1)] && state.columns.len() == 2
    })
    .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    Ok(())
}

/// PostgreSQL rewrites no row for it, and yet each has another form in the topic.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_got_another_form_without_a_rewrite_is_read_anew() -> Result<()> {
    let rig = Rig::new(
        &[ITEM],
        "CREATE TABLE item (id bigint PRIMARY KEY, at timestamp NOT NULL); \
         INSERT INTO item SELECT g, '2020-01-01' FROM generate_series(1, 3) g",
    )
    .await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    connector.kill().await;
    let mut journal = rig.journal()?;
    known(&mut journal, "the table", |_| true).await?;
    rig.run("SET TimeZone = 'UTC'; ALTER TABLE item ALTER at TYPE timestamptz")
        .await?;
    redefined(&rig, &mut journal)
        .await
        .context("it was rewritten")?;
    let connector = rig.connector().start()?;
    known(&mut journal, "the type is known", |state| {
        state.types == [(20, -1), (1184, -1)] && state.columns.len() == 2
    })
    .await?;
    let rows = &journal.tables()[ITEM];
    let moment = "2020-01-01T00:00:00.000000Z";
    assert!(
        rows.len() == 3 && rows.values().all(|row| row["at"] == moment),
        "{rows:?}"
    );
    connector.kill().await;
    Ok(())
}

/// Neither its columns nor their types change: only the catalog tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_rewritten_table_is_read_anew_and_one_that_was_only_vacuumed_is_not() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().postgres(SOON).start()?;
    connector.ready().await?;
    rig.run("ALTER TABLE item ALTER n TYPE int USING n * 100")
        .await?;
    let mut journal = rig.journal()?;
    redefined(&rig, &mut journal).await?;
    known(&mut journal, "its values are known", |state| {
        state.columns.len() == 2
    })
    .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    rig.run("VACUUM FULL item").await?;
    redefined(&rig, &mut journal).await?;
    rig.run("ALTER TABLE item ALTER n SET DEFAULT 5").await?;
    let looks = || connector.log().matches("the catalog was looked at").count();
    let before = looks();
    eventually("two more looks", || async {
        Ok((looks() >= before + 2).then_some(()))
    })
    .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    assert_eq!(
        journal.count(ITEM, r#"{"id":5}"#, "r"),
        2,
        "{}",
        connector.log()
    );
    connector.kill().await;
    Ok(())
}

/// Changes of before the new key do not tell it; the read that comes after them does.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_another_primary_key_has_none_of_the_older_keys() -> Result<()> {
    let rig = down().await?;
    rig.run(
        "INSERT INTO item VALUES (6, 6), (7, 7); DELETE FROM item WHERE id IN (2, 6); \
         UPDATE item SET n = 10 WHERE id = 1; \
         ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (n); \
         DELETE FROM item WHERE id = 3; UPDATE item SET n = 40 WHERE id = 4",
    )
    .await?;
    let connector = rig.connector().start()?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    let keys: Vec<_> = journal.tables()[ITEM].keys().cloned().collect();
    assert_eq!(keys, [10, 40, 5, 7].map(|n| format!("{{\"n\":{n}}}")));
    // Back again, while it runs.
    rig.run("ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (id); DELETE FROM item WHERE id = 5")
        .await?;
    journal
        .until("the older keys", |journal| {
            journal.tables()[ITEM].contains_key(r#"{"id":7}"#)
        })
        .await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    connector.kill().await;
    Ok(())
}

/// The log tells these columns of a row that is gone, so they are its key.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_identity_of_another_index_is_the_key() -> Result<()> {
    let rig = rig().await?;
    rig.run("ALTER TABLE item REPLICA IDENTITY USING INDEX item_n_key")
        .await?;
    let connector = rig.connector().start()?;
    connector.ready().await.with_context(|| connector.log())?;
    rig.run("UPDATE item SET id = 50 WHERE id = 5; UPDATE item SET n = 40 WHERE id = 4; DELETE FROM item WHERE id = 3")
        .await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    let keys: Vec<_> = journal.tables()[ITEM].keys().cloned().collect();
    assert_eq!(keys, [1, 2, 40, 5].map(|n| format!("{{\"n\":{n}}}")));
    connector.kill().await;
    Ok(())
}
