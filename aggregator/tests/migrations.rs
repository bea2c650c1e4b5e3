//! The view's schema, and who may read it.

use std::time::Duration;

use aggregator::config::{DiscrepanciesConfig, ViewConfig};
use aggregator::failure::Failure;
use aggregator::view::View;
use anyhow::{Context, Result};
use fixtures::postgres::TEST_PASSWORD;
use serde_json::json;

use crate::{Database, sources};

async fn open(config: &ViewConfig) -> Result<View, Failure> {
    View::open(
        config,
        &DiscrepanciesConfig::default(),
        &sources(),
        Duration::from_secs(5),
    )
    .await
}

/// A database with an owner of its own, and a reader's role.
async fn owned() -> Result<(Database, ViewConfig, String)> {
    let mut database = Database::new().await?;
    let server = fixtures::servers().view().await?;
    let (owner, reader) = (fixtures::unique("owner"), fixtures::unique("reader"));
    for role in [&owner, &reader] {
        let sql = format!("CREATE ROLE {role} LOGIN PASSWORD '{TEST_PASSWORD}'");
        database.client.batch_execute(&sql).await?;
    }
    let sql = format!("ALTER DATABASE {} OWNER TO {owner}", database.name);
    database.client.batch_execute(&sql).await?;
    let config = ViewConfig {
        url: server.url(&owner, &database.name).into(),
        readers: vec![reader.clone()],
        ..ViewConfig::default()
    };
    database.config = config.clone();
    Ok((database, config, reader))
}

fn refusal(opened: Result<View, Failure>) -> Result<String> {
    match opened {
        Err(Failure::Prerequisite(words)) => Ok(words),
        other => anyhow::bail!("{other:?}"),
    }
}

#[tokio::test]
async fn the_owner_migrates_once_and_a_reader_sees_the_unified_tables_alone() -> Result<()> {
    let (database, config, reader) = owned().await?;
    drop(open(&config).await?);
    let applied = "SELECT version, applied_at::text FROM aggregator.migrations";
    let first = database.rows(applied).await?;
    drop(open(&config).await?);
    assert_eq!(database.rows(applied).await?, first);

    let server = fixtures::servers().view().await?;
    let reader = fixtures::connect(&server.url(&reader, &database.name)).await?;
    reader.query("SELECT * FROM public.positions", &[]).await?;
    for private in ["aggregator.fence", "sales.sls_order", "warehouse.wh_item"] {
        let sql = format!("SELECT * FROM {private}");
        assert!(reader.query(&sql, &[]).await.is_err(), "{private}");
    }
    for write in [
        "DELETE FROM public.orders",
        "CREATE TABLE public.x (id int)",
    ] {
        assert!(reader.batch_execute(write).await.is_err(), "{write}");
    }
    Ok(())
}

#[tokio::test]
async fn the_publication_has_every_unified_table_with_its_whole_old_row() -> Result<()> {
    let (database, config, _) = owned().await?;
    drop(open(&config).await?);
    let published =
        "SELECT tablename FROM pg_publication_tables WHERE pubname = 'tributary' ORDER BY 1";
    let tables = "SELECT relname AS tablename FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relreplident = 'f'
        ORDER BY 1";
    let expected = json!([
        {"tablename": "customers"}, {"tablename": "daily_sales"}, {"tablename": "discrepancies"},
        {"tablename": "orders"}, {"tablename": "positions"}, {"tablename": "products"},
        {"tablename": "quarantine"}, {"tablename": "transactions"},
    ]);
    assert_eq!(database.rows(published).await?, expected);
    assert_eq!(database.rows(tables).await?, expected);
    Ok(())
}

#[tokio::test]
async fn each_missing_prerequisite_is_a_sentence_that_says_what_to_do() -> Result<()> {
    let (database, mut config, _) = owned().await?;
    config.readers = vec!["nobody's".to_owned()];
    let words = refusal(open(&config).await)?;
    assert!(
        words.contains(r#"CREATE ROLE "nobody's" LOGIN PASSWORD"#),
        "{words}"
    );

    let server = fixtures::servers().view().await?;
    let stranger = fixtures::unique("stranger");
    let sql = format!("CREATE ROLE {stranger} LOGIN PASSWORD '{TEST_PASSWORD}'");
    database.client.batch_execute(&sql).await?;
    let name = fixtures::servers::database(server, "view").await?;
    config.readers = Vec::new();
    config.url = server.url(&stranger, &name).into();
    let words = refusal(open(&config).await)?;
    assert!(words.contains("ALTER DATABASE view OWNER TO"), "{words}");

    config.url = server.url(&stranger, "no_such_database").into();
    let words = refusal(open(&config).await)?;
    assert!(words.contains("CREATE DATABASE view"), "{words}");

    config.url = server.url("no_such_role", &name).into();
    let words = refusal(open(&config).await)?;
    assert!(
        words.contains("set user and password in view.url"),
        "{words}"
    );

    config.url = "postgres//typo".to_owned().into();
    let words = refusal(open(&config).await)?;
    assert!(
        words.contains("view.url is no URL of PostgreSQL"),
        "{words}"
    );

    let old = fixtures::servers().legacy().await?;
    config.url = old.superuser_url("postgres").into();
    let words = refusal(open(&config).await)?;
    assert!(words.contains("PostgreSQL 15, older than 18"), "{words}");
    Ok(())
}

#[tokio::test]
async fn a_schema_of_another_version_is_refused() -> Result<()> {
    let database = Database::new().await?;
    drop(database.open().await?);
    database
        .client
        .batch_execute("UPDATE aggregator.migrations SET checksum = 'x' WHERE version = 1")
        .await?;
    let words = refusal(open(&database.config).await)?;
    assert!(
        words.contains("migration 1 of the view database is not this"),
        "{words}"
    );
    database
        .client
        .batch_execute("UPDATE aggregator.migrations SET version = version + 998")
        .await
        .context("renumber")?;
    let words = refusal(open(&database.config).await)?;
    assert!(words.contains("by a newer aggregator"), "{words}");
    Ok(())
}
