//! What is wrong at the start is said in one sentence that says what to do.

use anyhow::{Context, Result};
use connectors::replication::{ReplicationClient, ReplicationConfig};
use fixtures::postgres::{Postgres, Version};

use crate::harness::{Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL)";

async fn rig() -> Result<Rig> {
    Rig::new(&[ITEM], DDL).await
}

/// The one sentence, with what is unique to this run taken out.
fn sentence(rig: &Rig, output: &str) -> String {
    let lines: Vec<_> = output
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(lines.len(), 1, "{output}");
    lines[0]
        .replace(&rig.role, "capture")
        .replace(&rig.database, "shop")
        .replace(&rig.slot, "tributary_shop")
}

/// Both commands stop with exit code 2 and the same sentence.
macro_rules! stops_with {
    ($rig:expr, $plan:expr, @$expected:literal) => {{
        let (code, output) = $plan.check().await?;
        assert_eq!(code, Some(2), "{output}");
        let said = sentence($rig, &output);
        let (code, output) = $plan.start()?.ended().await?;
        assert_eq!(code, Some(2), "{output}");
        assert_eq!(sentence($rig, &output), said);
        insta::assert_snapshot!(said, @$expected);
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_as_it_should_be_passes_the_check() -> Result<()> {
    let rig = rig().await?;
    let (code, output) = rig.connector().check().await?;
    assert_eq!(code, Some(0), "{output}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials() -> Result<()> {
    let rig = rig().await?;
    let port = fixtures::servers().source().await?.port();
    let url = fixtures::postgres::url(&rig.role, "wrong", port, &rig.database);
    stops_with!(&rig, rig.connector().url(&url), @r#"error: the source refuses the password of user capture; correct postgres.password, its file, or postgres.url, or let the owner run: ALTER ROLE "capture" WITH LOGIN PASSWORD '…'; (CREATE ROLE … LOGIN REPLICATION where there is no such role: the source does not tell)"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_such_database() -> Result<()> {
    let rig = rig().await?;
    let server = fixtures::servers().source().await?;
    let url = server.url(&rig.role, "nowhere");
    stops_with!(&rig, rig.connector().url(&url), @r#"error: the source has no database nowhere; correct postgres.url, or let the owner run: CREATE DATABASE "nowhere";"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_replication_privilege() -> Result<()> {
    let rig = rig().await?;
    rig.run(&format!("ALTER ROLE {} NOREPLICATION", rig.role))
        .await?;
    stops_with!(&rig, rig.connector(), @r#"error: user capture may not replicate; let the owner run: ALTER ROLE "capture" REPLICATION;"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_select_privilege() -> Result<()> {
    let rig = rig().await?;
    rig.run(&format!("REVOKE SELECT ON item FROM {}", rig.role))
        .await?;
    stops_with!(&rig, rig.connector(), @r#"error: user capture may not read the table public.item; let the owner run: GRANT SELECT ON "public"."item" TO "capture";"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_publication() -> Result<()> {
    let rig = rig().await?;
    stops_with!(&rig, rig.connector().publication("missing"), @r#"error: the source has no publication missing; let the owner run: CREATE PUBLICATION "missing" FOR TABLE "public"."item";"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_lacks_a_table() -> Result<()> {
    let rig = rig().await?;
    rig.run("ALTER PUBLICATION tributary DROP TABLE item")
        .await?;
    stops_with!(&rig, rig.connector(), @r#"error: the publication tributary lacks the table public.item; let the owner run: ALTER PUBLICATION "tributary" ADD TABLE "public"."item";"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_leaves_out_truncate() -> Result<()> {
    let rig = rig().await?;
    rig.run("ALTER PUBLICATION tributary SET (publish = 'insert, update, delete')")
        .await?;
    stops_with!(&rig, rig.connector(), @r#"error: the publication tributary leaves out some kinds of changes; let the owner run: ALTER PUBLICATION "tributary" SET (publish = 'insert, update, delete, truncate');"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_filters_rows() -> Result<()> {
    let rig = rig().await?;
    rig.run("ALTER PUBLICATION tributary SET TABLE item WHERE (id > 3)")
        .await?;
    stops_with!(&rig, rig.connector(), @r#"error: the publication tributary filters the rows of public.item; let the owner run: ALTER PUBLICATION "tributary" DROP TABLE "public"."item"; ALTER PUBLICATION "tributary" ADD TABLE "public"."item";"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_leaves_out_columns() -> Result<()> {
    let rig = rig().await?;
    rig.run("ALTER PUBLICATION tributary SET TABLE item (id)")
        .await?;
    stops_with!(&rig, rig.connector(), @r#"error: the publication tributary leaves out columns of public.item; let the owner run: ALTER PUBLICATION "tributary" DROP TABLE "public"."item"; ALTER PUBLICATION "tributary" ADD TABLE "public"."item";"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_for_all_tables() -> Result<()> {
    let rig = rig().await?;
    rig.run("CREATE PUBLICATION everything FOR ALL TABLES")
        .await?;
    stops_with!(&rig, rig.connector().publication("everything"), @r#"error: the publication everything is FOR ALL TABLES, so a table without a primary key would refuse its owner's UPDATEs; let the owner run: DROP PUBLICATION "everything"; CREATE PUBLICATION "everything" FOR TABLE "public"."item";"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_does_not_exist() -> Result<()> {
    let rig = rig().await?;
    stops_with!(&rig, rig.connector().tables(&[ITEM, "public.nothing"]), @r#"error: the source has no table public.nothing; correct the key tables"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_primary_key() -> Result<()> {
    let rig = rig().await?;
    rig.run("ALTER TABLE item DROP CONSTRAINT item_pkey")
        .await?;
    stops_with!(&rig, rig.connector(), @r#"error: the table public.item has no primary key, so its rows cannot be told apart; let the owner run: ALTER TABLE "public"."item" ADD PRIMARY KEY (…); or, with a unique index over columns that are not null, ALTER TABLE "public"."item" REPLICA IDENTITY USING INDEX …;"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_key_that_cannot_be_read_back() -> Result<()> {
    let rig = rig().await?;
    rig.run("ALTER TABLE item ALTER id TYPE float8").await?;
    stops_with!(&rig, rig.connector(), @r#"error: the primary key column id of public.item is of type double precision, which cannot be captured: a float is no exact value; take the table out of the key tables"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_hidden_by_row_security() -> Result<()> {
    let rig = rig().await?;
    rig.run("ALTER TABLE item ENABLE ROW LEVEL SECURITY")
        .await?;
    stops_with!(&rig, rig.connector(), @r#"error: row security hides rows of public.item from user capture; let the owner run: ALTER ROLE "capture" BYPASSRLS;"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_somebody_else() -> Result<()> {
    let rig = rig().await?;
    let sql = "SELECT pg_create_physical_replication_slot($1)";
    rig.db.execute(sql, &[&rig.slot]).await?;
    stops_with!(&rig, rig.connector(), @r#"error: the replication slot tributary_shop belongs to something else (physical); set another name in postgres.slot, or if nobody needs it let the owner run: SELECT pg_drop_replication_slot('tributary_shop');"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wal_level_that_is_not_logical() -> Result<()> {
    let server = Postgres::start_with(Version::Legacy15, &[("wal_level", "replica")]).await?;
    let rig = Rig::on(&server, &[ITEM], DDL).await?;
    stops_with!(&rig, rig.connector(), @r#"error: the source's wal_level is replica, not logical; let the owner run: ALTER SYSTEM SET wal_level = 'logical'; and restart the server"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_could_fill_the_disk() -> Result<()> {
    let server =
        Postgres::start_with(Version::Legacy15, &[("max_slot_wal_keep_size", "-1")]).await?;
    let rig = Rig::on(&server, &[ITEM], DDL).await?;
    stops_with!(&rig, rig.connector(), @r#"error: the source would keep WAL for a slot without limit and could fill its disk; let the owner run: ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'; SELECT pg_reload_conf(); with what the disk can spare"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_with_a_misspelt_key() -> Result<()> {
    let rig = rig().await?;
    let (code, output) = rig
        .connector()
        .stream("hartbeat_ms = 5")
        .start()?
        .ended()
        .await?;
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("hartbeat_ms"), "{output}");
    Ok(())
}

/// A stranger is left alone; it may be the owner's own look at the slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_use_is_said_once_and_waited_for() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    connector.kill().await;
    let server = fixtures::servers().source().await?;
    let url = server.superuser_url(&rig.database);
    let config = ReplicationConfig::from_url(&url)?;
    let stranger = eventually("a stranger streams from the slot", || async {
        let client = ReplicationClient::connect(&config).await?;
        Ok(client.start(&rig.slot, "tributary").await.ok())
    })
    .await?;
    let waiting = rig.connector().start()?;
    let said = eventually("it says that the slot is in use", || async {
        let reason = waiting.status().await?["reason"].clone();
        Ok(reason
            .as_str()
            .filter(|reason| reason.contains("in use"))
            .map(str::to_owned))
    })
    .await
    .with_context(|| waiting.log())?;
    let pid: i32 = rig
        .db
        .query_one(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1",
            &[&rig.slot],
        )
        .await?
        .get(0);
    let said = said
        .replace(&pid.to_string(), "4711")
        .replace(&rig.slot, "tributary_shop");
    insta::assert_snapshot!(said, @r#"the replication slot tributary_shop is in use by process 4711 of the source, maybe a connector that has just ended; if it stays so, stop what uses it, or let the owner run: SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'tributary_shop';"#);
    assert_eq!(waiting.readiness().await?.0, 503);
    stranger.close().await?;
    waiting.ready().await?;
    assert_eq!(waiting.log().matches("is in use").count(), 1);
    rig.run("INSERT INTO item VALUES (1, 1)").await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_away_is_waited_for_and_readyz_says_so() -> Result<()> {
    let mut server = Postgres::start(Version::Legacy15).await?;
    let rig = Rig::on(&server, &[ITEM], DDL).await?;
    server.stop().await;
    let connector = rig.connector().start()?;
    eventually("it says that the source is away", || async {
        connector.status().await?;
        let (code, reason) = connector.readiness().await?;
        Ok((code == 503 && reason.contains("cannot connect to the source")).then_some(()))
    })
    .await
    .with_context(|| connector.log())?;
    server.restart().await?;
    connector.ready().await?;
    server.restart().await?;
    connector.ready().await
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_stop_it_records_what_it_has_and_ends_with_0() -> Result<()> {
    let rig = rig().await?;
    let connector = rig.connector().start()?;
    connector.ready().await?;
    connector.signal(nix::sys::signal::Signal::SIGTERM);
    let (code, log) = connector.ended().await?;
    assert_eq!(code, Some(0), "{log}");
    Ok(())
}
