//! `connector check` tells everything at once, and what it says to do mends it.

use anyhow::{Context, Result, ensure};
use fixtures::postgres::{Postgres, Version};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;

use crate::harness::{Plan, Rig};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL)";

async fn json(plan: &Plan<'_>) -> Result<(Option<i32>, Value)> {
    let (code, output) = plan.command(&["check", "--json"]).await?;
    let value = serde_json::from_str(&output).with_context(|| output)?;
    Ok((code, value))
}

fn codes(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().into_iter().flatten();
    let mut codes: Vec<_> = findings.filter_map(|one| one["code"].as_str()).collect();
    codes.sort_unstable();
    codes
}

fn finding<'a>(report: &'a Value, code: &str) -> Result<&'a Value> {
    let mut findings = report["findings"].as_array().into_iter().flatten();
    findings
        .find(|one| one["code"] == code)
        .with_context(|| format!("no finding {code} in {report:#}"))
}

/// A table for each way of being wrong, and all that a role can lack.
async fn a_mess() -> Result<(Rig, Vec<String>)> {
    let tables = ["item", "keyless", "nothing", "later", "secret", "partial"];
    let qualified: Vec<String> = tables.iter().map(|t| format!("public.{t}")).collect();
    let rig = Rig::new(
        &qualified.iter().map(String::as_str).collect::<Vec<_>>(),
        "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
         CREATE TABLE keyless (n int); \
         CREATE TABLE nothing (id int PRIMARY KEY); \
         CREATE TABLE later (id int PRIMARY KEY DEFERRABLE); \
         CREATE TABLE secret (id int PRIMARY KEY); \
         CREATE TABLE partial (id int PRIMARY KEY, n int); \
         CREATE TABLE stray (id int PRIMARY KEY)",
    )
    .await?;
    rig.run(&format!(
        "ALTER ROLE {role} NOREPLICATION; REVOKE SELECT ON item FROM {role}; \
         ALTER TABLE nothing REPLICA IDENTITY NOTHING; \
         ALTER TABLE secret ENABLE ROW LEVEL SECURITY; \
         ALTER PUBLICATION tributary DROP TABLE nothing, partial; \
         ALTER PUBLICATION tributary ADD TABLE partial (id), stray; \
         ALTER PUBLICATION tributary SET (publish = 'insert')",
        role = rig.role
    ))
    .await?;
    Ok((rig, qualified))
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_wrong_is_told_at_once_and_its_sql_mends_it() -> Result<()> {
    let (rig, mut tables) = a_mess().await?;
    tables.push("public.nowhere".to_owned());
    let names: Vec<_> = tables.iter().map(String::as_str).collect();
    let dead = format!("127.0.0.1:{}", fixtures::place::free_port()?);
    let plan = rig.connector().tables(&names).bootstrap(&dead);
    let (code, report) = json(&plan).await?;
    assert_eq!(code, Some(2), "{report:#}");
    assert_eq!(report["verdict"], "wrong");
    assert_eq!(
        codes(&report),
        [
            "column_list",
            "deferrable_key",
            "kafka_unreachable",
            "no_primary_key",
            "no_table",
            "not_published",
            "operations",
            "replica_identity",
            "replication_right",
            "row_security",
            "select_right",
            "table_not_listed",
        ]
    );
    for one in report["findings"].as_array().into_iter().flatten() {
        for part in ["place", "cause", "remedy"] {
            ensure!(
                one[part].as_str().is_some_and(|text| !text.is_empty()),
                "{one}"
            );
        }
        let mends = one["sql"].is_string() || one["setting"].is_string();
        ensure!(mends, "neither SQL nor a setting: {one}");
    }

    // As the owner does it, with what the report cannot know.
    for one in report["findings"].as_array().into_iter().flatten() {
        if let Some(sql) = one["sql"].as_str() {
            rig.run(&sql.replace('…', "n")).await?;
        }
    }
    let (code, report) = json(&rig.connector()).await?;
    assert_eq!((code, codes(&report)), (Some(0), vec![]), "{report:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_servers_are_named_by_their_addresses() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let (source, broker) = (fixtures::place::free_port()?, fixtures::place::free_port()?);
    let plan = rig
        .connector()
        .url(&fixtures::postgres::url("u", "p", source, "d"))
        .bootstrap(&format!("127.0.0.1:{broker}"));
    let (code, output) = plan.check().await?;
    assert_eq!(code, Some(2), "{output}");
    for port in [source, broker] {
        let address = format!("127.0.0.1:{port}");
        let line = output.lines().find(|line| line.contains(&address));
        let line = line.with_context(|| format!("{address} is not named: {output}"))?;
        assert!(
            line.starts_with("error: ") && line.contains("refused"),
            "{line}"
        );
    }
    // One that answers is enough to go on, and the other is said.
    let plan = rig
        .connector()
        .bootstrap(&format!("127.0.0.1:{broker},{}", rig.bootstrap));
    let (code, report) = json(&plan).await?;
    assert_eq!((code, codes(&report)), (Some(1), vec!["kafka_bootstrap"]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_alone_is_exit_code_1_and_the_connector_runs() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    rig.run("CREATE TABLE stray (id int PRIMARY KEY); ALTER PUBLICATION tributary ADD TABLE stray")
        .await?;
    let plan = rig.connector();
    let (code, output) = plan.check().await?;
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("warning: the publication tributary has the table public.stray"));
    let connector = plan.start()?;
    connector.ready().await?;
    connector.logged("has the table public.stray").await?;
    // A slot in use, topics made and all: there is nothing more to say.
    let (code, report) = json(&rig.connector()).await?;
    assert_eq!((code, codes(&report)), (Some(1), vec!["table_not_listed"]));
    Ok(())
}

/// A table that nobody captures: its owner is harmed, and that the connector stopped would not help.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_makes_the_source_refuse_updates_is_wrong() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    rig.run(
        "CREATE TABLE keyless (n int); INSERT INTO keyless VALUES (1); \
         CREATE TABLE full_row (n int); ALTER TABLE full_row REPLICA IDENTITY FULL; \
         ALTER PUBLICATION tributary ADD TABLE keyless",
    )
    .await?;
    let update = "UPDATE keyless SET n = n + 1";
    ensure!(rig.run(update).await.is_err(), "the source refuses nothing");
    let (code, report) = json(&rig.connector()).await?;
    assert_eq!((code, codes(&report)), (Some(2), vec!["updates_refused"]));
    let connector = rig.connector().start()?;
    connector.ready().await?;
    connector
        .logged("refuses its owner's UPDATE and DELETE of public.keyless")
        .await?;
    let mends = |report: &Value, code: &str| -> Result<String> {
        let sql = finding(report, code)?["sql"].as_str();
        Ok(sql.context("no SQL")?.to_owned())
    };
    rig.run(&mends(&report, "updates_refused")?).await?;
    rig.run(update).await?;
    let (code, report) = json(&rig.connector()).await?;
    assert_eq!((code, codes(&report)), (Some(0), vec![]), "{report:#}");

    rig.run("DROP PUBLICATION tributary; CREATE PUBLICATION tributary FOR TABLES IN SCHEMA public")
        .await?;
    ensure!(rig.run(update).await.is_err(), "the source refuses nothing");
    let (code, report) = json(&rig.connector()).await?;
    assert_eq!(code, Some(2));
    assert_eq!(codes(&report), ["published_schema", "updates_refused"]);
    rig.run(&mends(&report, "published_schema")?).await?;
    rig.run(update).await?;
    let (code, report) = json(&rig.connector()).await?;
    assert_eq!((code, codes(&report)), (Some(0), vec![]), "{report:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_queue_cannot_take_is_warned_of() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let plan = rig.connector().kafka("record_bytes_max = 67108864");
    let (code, report) = json(&plan).await?;
    assert_eq!((code, codes(&report)), (Some(1), vec!["send_queue"]));
    let finding = finding(&report, "send_queue")?;
    assert_eq!(finding["setting"], "kafka.send_queue_kib");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn check_and_plan_change_nothing() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    for command in ["check", "plan"] {
        let (code, output) = rig.connector().command(&[command]).await?;
        assert_eq!(code, Some(0), "{output}");
    }
    assert_eq!(rig.confirmed().await?, None);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &rig.bootstrap)
        .create()?;
    let metadata = consumer.fetch_metadata(None, std::time::Duration::from_secs(10))?;
    let made = metadata.topics().iter().map(|topic| topic.name());
    let made: Vec<_> = made.filter(|name| name.starts_with(&rig.prefix)).collect();
    assert_eq!(made, Vec::<&str>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_other_settings_is_found_before_the_start() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &rig.bootstrap)
        .create()?;
    let topic = format!("{}shop.public.item", rig.prefix);
    let new = NewTopic::new(&topic, 2, TopicReplication::Fixed(1)).set("cleanup.policy", "delete");
    admin.create_topics([&new], &AdminOptions::new()).await?;
    let (code, report) = json(&rig.connector()).await?;
    assert_eq!(code, Some(2), "{report:#}");
    let finding = finding(&report, "kafka_topic")?;
    assert_eq!(finding["place"], format!("topic {topic}"));
    let remedy = finding["remedy"].as_str().unwrap_or_default();
    assert!(
        remedy.contains("--add-config cleanup.policy=compact"),
        "{finding}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_of_slots_is_found_before_the_start() -> Result<()> {
    let server = Postgres::start_with(
        Version::Legacy15,
        &[
            ("max_replication_slots", "1"),
            ("max_slot_wal_keep_size", "64MB"),
        ],
    )
    .await?;
    let rig = Rig::on(&server, &[ITEM], DDL).await?;
    rig.run("SELECT pg_create_physical_replication_slot('other')")
        .await?;
    let (code, report) = json(&rig.connector()).await?;
    assert_eq!(code, Some(2), "{report:#}");
    assert_eq!(codes(&report), ["no_free_slot", "slot_wal_small"]);
    // It may pass, so the connector does not give up.
    let connector = rig.connector().start()?;
    connector
        .logged("replication slots of the source are taken")
        .await?;
    rig.run("SELECT pg_drop_replication_slot('other')").await?;
    connector.ready().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_be_read_is_a_finding_too() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let plan = rig
        .connector()
        .stream("hartbeat_ms = 5\nrecord_ms = \"hush\"")
        .reads("workers = 2");
    let (code, report) = json(&plan).await?;
    assert_eq!((code, codes(&report)), (Some(2), vec!["configuration"; 3]));
    let findings = report["findings"].as_array().context("no findings")?;
    let settings: Vec<_> = findings.iter().map(|one| one["setting"].as_str()).collect();
    let keys = ["reads.workers", "stream.hartbeat_ms", "stream.record_ms"];
    assert_eq!(settings, keys.map(Some));
    assert!(!report.to_string().contains("hush"), "{report:#}");
    let plan = rig
        .connector()
        .stream("record_ms = 0")
        .reads("read_workers = 99");
    let (_, report) = json(&plan).await?;
    assert_eq!(codes(&report), ["configuration"; 2], "{report:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_shows_topics_keys_and_types() -> Result<()> {
    let tables = ["public.item", "public.line", "public.keyless"];
    let rig = Rig::new(
        &tables,
        "CREATE TABLE item (id bigint PRIMARY KEY, name varchar(200) NOT NULL, \
             price numeric(8,2), at timestamptz NOT NULL, doc jsonb); \
         CREATE TABLE line (a int, b uuid, n int, PRIMARY KEY (b, a)); \
         ALTER TABLE line REPLICA IDENTITY FULL; \
         CREATE TABLE keyless (n int); \
         INSERT INTO item SELECT n, 'x', 1, now() FROM generate_series(1, 100) n; ANALYZE item",
    )
    .await?;
    let (code, text) = rig.connector().command(&["plan"]).await?;
    assert_eq!(code, Some(2), "a table is left out: {text}");
    let text = text
        .replace(&rig.prefix, "")
        .replace(&rig.slot, "tributary_shop");
    let after_version = text.split_once('\n').map_or("", |(_, rest)| rest);
    insta::assert_snapshot!(after_version);

    let connector = rig.connector().tables(&tables[..2]).start()?;
    connector.ready().await?;
    let plan = rig.connector().tables(&tables[..2]);
    let (code, text) = plan.command(&["plan", "--json"]).await?;
    assert_eq!(code, Some(0), "{text}");
    let plan: Value = serde_json::from_str(&text)?;
    assert_eq!(plan["slot"]["exists"], true);
    assert_eq!(plan["tables"][0]["topic"]["exists"], true);
    assert_eq!(plan["tables"][1]["key"][0]["type"], "uuid");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn help_names_every_command_and_exit_code() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let (code, text) = rig.connector().command(&["--help"]).await?;
    assert_eq!(code, Some(0), "{text}");
    for word in [
        "run",
        "check",
        "plan",
        "TRIBUTARY_",
        "CREATE PUBLICATION",
        "Exit code",
    ] {
        assert!(text.contains(word), "{word} is missing: {text}");
    }
    Ok(())
}

/// The log leaves generated columns out, so that of a row that is gone it would tell no key.
#[tokio::test(flavor = "multi_thread")]
async fn a_generated_column_in_a_key_is_found_and_what_is_said_mends_it() -> Result<()> {
    const GENERATED: &str = "CREATE TABLE item (id bigint NOT NULL, \
         code bigint GENERATED ALWAYS AS (id * 2) STORED PRIMARY KEY)";
    for version in [Version::Legacy15, Version::View18] {
        let server = Postgres::start(version).await?;
        let rig = Rig::on(&server, &[ITEM], GENERATED).await?;
        rig.run("CREATE UNIQUE INDEX other ON item (id)").await?;
        let (code, report) = json(&rig.connector()).await?;
        assert_eq!((code, codes(&report)), (Some(2), vec!["generated_key"]));
        let found = finding(&report, "generated_key")?;
        let cause = found["cause"].as_str().unwrap_or_default();
        ensure!(
            cause.contains("public.item") && cause.contains("(code)"),
            "{cause}"
        );
        let (code, output) = rig.connector().start()?.ended().await?;
        ensure!(code == Some(2) && output.contains(cause), "{output}");

        let sql = found["sql"].as_str().context("no SQL")?;
        rig.run(&sql.replace('…', "other")).await?;
        let (code, report) = json(&rig.connector()).await?;
        assert_eq!((code, codes(&report)), (Some(0), vec![]), "{report:#}");
        let connector = rig.connector().start()?;
        connector.ready().await?;
        rig.run(
            "INSERT INTO item SELECT generate_series(1, 3); DELETE FROM item WHERE id = 2; \
                 UPDATE item SET id = 7 WHERE id = 3",
        )
        .await?;
        let mut journal = rig.journal()?;
        journal.until_position(rig.wal_lsn().await?).await?;
        assert_eq!(journal.tables()[ITEM].len(), 2, "{:?}", journal.tables());
        connector.kill().await;
    }
    Ok(())
}
