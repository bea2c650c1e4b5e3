//! Who is let in, and what the commands answer.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use connectors::replication::{
    CommandError, ReplicationClient, ReplicationConfig, ReplicationError,
};
use fixtures::postgres::{Postgres, TEST_PASSWORD, Version, connect};
use kafka::Lsn;
use tokio::time::timeout;

use super::{PATIENCE, Source, next, next_transaction};

async fn refusal(url: &str) -> Result<ReplicationError> {
    match ReplicationClient::connect(&ReplicationConfig::from_url(url)?).await {
        Ok(_) => bail!("connected"),
        Err(error) => Ok(error),
    }
}

fn state(error: &ReplicationError) -> Option<&str> {
    error.sql_state().map(|state| state.code())
}

#[tokio::test]
async fn scram_md5_cleartext_and_trust_are_all_ways_in() -> Result<()> {
    let server = Postgres::start(Version::Legacy15).await?;
    let admin = server.superuser("postgres").await?;
    let hba_file: String = admin.query_one("show hba_file", &[]).await?.get(0);
    admin
        .batch_execute(&format!(
            "create role by_scram login replication password '{TEST_PASSWORD}';
             create role by_cleartext login replication password '{TEST_PASSWORD}';
             create role by_trust login replication;
             set password_encryption = md5;
             create role by_md5 login replication password '{TEST_PASSWORD}';"
        ))
        .await?;
    let mut lines: Vec<String> = [
        ("by_scram", "scram-sha-256"),
        ("by_md5", "md5"),
        ("by_cleartext", "password"),
        ("by_trust", "trust"),
    ]
    .iter()
    .flat_map(|(role, method)| {
        [
            format!("host all {role} 127.0.0.1/32 {method}"),
            format!("local all {role} {method}"),
        ]
    })
    .collect();
    lines.push(std::fs::read_to_string(&hba_file)?);
    std::fs::write(&hba_file, lines.join("\n"))?;
    admin.batch_execute("select pg_reload_conf()").await?;
    // The postmaster takes the new file when it gets to it; from then on trust lets in.
    timeout(PATIENCE, async {
        let url = format!("postgres://by_trust@127.0.0.1:{}/postgres", server.port());
        while refusal(&url).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await?;
    let folder = server.socket_folder().context("no socket")?.display();
    for role in ["by_scram", "by_md5", "by_cleartext"] {
        let mut client = ReplicationClient::connect(&ReplicationConfig::from_url(
            &server.url(role, "postgres"),
        )?)
        .await
        .with_context(|| role)?;
        assert_eq!(client.identify_system().await?.timeline, 1);
        let wrong = server.url(role, "postgres").replace(TEST_PASSWORD, "wrong");
        let error = refusal(&wrong).await?;
        assert_eq!(state(&error), Some("28P01"), "{error}");
        assert!(!error.is_retriable());
        let none = format!("postgres://{role}@127.0.0.1:{}/postgres", server.port());
        assert!(matches!(
            refusal(&none).await?,
            ReplicationError::PasswordMissing { .. }
        ));
        let unix = format!(
            "host={folder} port={} user={role} password={TEST_PASSWORD} dbname=postgres",
            server.port()
        );
        ReplicationClient::connect(&ReplicationConfig::from_url(&unix)?).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_session_that_the_server_refuses_says_why() -> Result<()> {
    let server = fixtures::servers().source().await?;
    let (plain, nobody) = (fixtures::unique("plain"), fixtures::unique("nobody"));
    server
        .superuser("postgres")
        .await?
        .batch_execute(&format!(
            "create role {plain} login password '{TEST_PASSWORD}'"
        ))
        .await?;
    let error = refusal(&server.url(&plain, "postgres")).await?;
    assert_eq!(state(&error), Some("42501"), "no REPLICATION: {error}");
    assert!(!error.is_retriable());
    let error = refusal(&server.url(&nobody, "postgres")).await?;
    assert_eq!(state(&error), Some("28P01"), "no such role: {error}");
    let error = refusal(&server.superuser_url(&nobody)).await?;
    assert_eq!(state(&error), Some("3D000"), "no such database: {error}");
    let closed = format!("postgres://u@127.0.0.1:{}/d", free_port()?);
    let error = refusal(&closed).await?;
    assert!(matches!(error, ReplicationError::Connect { .. }), "{error}");
    assert!(error.is_retriable());
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}

#[tokio::test]
async fn hosts_are_tried_in_order() -> Result<()> {
    let server = fixtures::servers().source().await?;
    let two = format!(
        "postgres://postgres:{TEST_PASSWORD}@127.0.0.1:{},127.0.0.1:{}/postgres",
        free_port()?,
        server.port()
    );
    ReplicationClient::connect(&ReplicationConfig::from_url(&two)?).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_does_not_speak_is_given_up() -> Result<()> {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let config = ReplicationConfig {
        connect_timeout: Duration::from_millis(200),
        ..ReplicationConfig::from_url(&format!(
            "postgres://u@127.0.0.1:{}/d",
            silent.local_addr()?.port()
        ))?
    };
    let error = ReplicationClient::connect(&config).await.unwrap_err();
    assert!(
        matches!(
            error,
            ReplicationError::Startup {
                source: CommandError::Timeout(_),
                ..
            }
        ),
        "{error}"
    );
    assert!(error.is_retriable());
    Ok(())
}

#[tokio::test]
async fn the_system_is_identified() -> Result<()> {
    for server in [
        fixtures::servers().legacy().await?,
        fixtures::servers().view().await?,
    ] {
        let source = Source::on(server).await?;
        let mut client = source.client().await?;
        let identity = client.identify_system().await?;
        let row = source
            .sql
            .query_one(
                "select system_identifier::text, timeline_id, pg_current_wal_flush_lsn()::text
                 from pg_control_system(), pg_control_checkpoint()",
                &[],
            )
            .await?;
        assert_eq!(identity.system_identifier, row.get::<_, String>(0));
        assert_eq!(
            i64::from(identity.timeline),
            i64::from(row.get::<_, i32>(1))
        );
        assert!(identity.flushed <= row.get::<_, String>(2).parse()?);
        assert!(client.timeline_history(1).await?.is_empty());
        let error = client.timeline_history(99).await.unwrap_err();
        assert!(state(&error).is_some(), "{error}");
        // A refused command leaves the session usable.
        client.identify_system().await?;
        let version: String = source
            .sql
            .query_one("show server_version", &[])
            .await?
            .get(0);
        assert_eq!(client.server_version(), version);
        // Slots and streams work on both versions.
        let mut stream = client.start(&source.slot, "tributary").await?;
        source
            .sql
            .batch_execute("insert into item values (1)")
            .await?;
        next_transaction(&mut stream).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_history_of_a_promoted_server_names_where_each_timeline_ended() -> Result<()> {
    let mut server = Postgres::start(Version::Legacy15).await?;
    let sql = server.superuser("postgres").await?;
    let data: String = sql.query_one("show data_directory", &[]).await?.get(0);
    drop(sql);
    server.stop().await;
    // Recovery to the end of the WAL that is there, then a timeline of its own.
    std::fs::write(std::path::Path::new(&data).join("recovery.signal"), "")?;
    let settings = std::path::Path::new(&data).join("postgresql.auto.conf");
    let mut text = std::fs::read_to_string(&settings)?;
    text.push_str("restore_command = 'false'\n");
    std::fs::write(&settings, text)?;
    server.restart().await?;
    let sql = server.superuser("postgres").await?;
    timeout(PATIENCE, async {
        let recovering = "select pg_is_in_recovery()";
        while sql.query_one(recovering, &[]).await?.get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    })
    .await??;
    let config = ReplicationConfig::from_url(&server.superuser_url("postgres"))?;
    let mut client = ReplicationClient::connect(&config).await?;
    let timeline = client.identify_system().await?.timeline;
    assert_eq!(timeline, 2);
    let history = client.timeline_history(timeline).await?;
    let [switch] = history[..] else {
        bail!("{history:?}");
    };
    assert_eq!(switch.timeline, 1);
    assert!(switch.switched_at > Lsn::ZERO);
    Ok(())
}

#[tokio::test]
async fn a_slot_is_made_once_taken_once_and_dropped_once() -> Result<()> {
    let source = Source::new().await?;
    let error = source
        .client()
        .await?
        .create_slot(&source.slot, PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(state(&error), Some("42710"), "there is one: {error}");
    let mut holder = source.stream().await?;
    next(&mut holder).await?;
    let error = source
        .client()
        .await?
        .start(&source.slot, "tributary")
        .await
        .unwrap_err();
    assert_eq!(state(&error), Some("55006"), "it is taken: {error}");
    assert!(error.is_retriable(), "its holder may leave");
    let error = source
        .client()
        .await?
        .drop_slot(&source.slot)
        .await
        .unwrap_err();
    assert_eq!(state(&error), Some("55006"), "{error}");
    holder.close().await?;
    source.client().await?.drop_slot(&source.slot).await?;
    let error = source.stream().await.unwrap_err();
    let error = error.downcast::<ReplicationError>()?;
    assert_eq!(state(&error), Some("42704"), "it is gone: {error}");
    assert!(!error.is_retriable());
    let error = source
        .client()
        .await?
        .drop_slot(&source.slot)
        .await
        .unwrap_err();
    assert_eq!(state(&error), Some("42704"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_slot_that_waits_for_a_transaction_is_given_up_in_time_and_leaves_nothing() -> Result<()>
{
    let source = Source::new().await?;
    let other = connect(&source.url).await?;
    other
        .batch_execute("begin; insert into item values (1)")
        .await?;
    let slot = fixtures::unique("late");
    let mut client = source.client().await?;
    let error = client
        .create_slot(&slot, Duration::from_millis(300))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ReplicationError::CreateSlot {
                source: CommandError::Timeout(_),
                ..
            }
        ),
        "{error}"
    );
    assert!(error.is_retriable());
    source
        .until(&format!(
            "select not exists (select from pg_replication_slots where slot_name = '{slot}')"
        ))
        .await?;
    // The session is in step again, and the same slot can be made once nobody is in the way.
    other.batch_execute("commit").await?;
    client.create_slot(&slot, PATIENCE).await?;
    client.drop_slot(&slot).await?;
    Ok(())
}

#[tokio::test]
async fn without_logical_wal_the_server_says_what_is_missing() -> Result<()> {
    let server = Postgres::start_with(Version::Legacy15, &[("wal_level", "replica")]).await?;
    let config = ReplicationConfig::from_url(&server.superuser_url("postgres"))?;
    let mut client = ReplicationClient::connect(&config).await?;
    let error = client.create_slot("tributary", PATIENCE).await.unwrap_err();
    assert_eq!(state(&error), Some("55000"), "{error}");
    assert!(error.to_string().contains("wal_level"), "{error}");
    assert!(!error.is_retriable());
    Ok(())
}
