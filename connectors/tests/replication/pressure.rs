//! A consumer that stands still, a server that stands still, a connection that is cut.

use std::time::Duration;

use anyhow::{Result, bail};
use connectors::replication::{
    CommandError, ReplicationClient, ReplicationConfig, ReplicationError, ReplicationMessage,
};
use fixtures::postgres::{Postgres, Version};
use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

use super::{PATIENCE, Source, end_of, next, next_transaction};

/// The server's patience, and how long the consumer tries it.
const SENDER_TIMEOUT: Duration = Duration::from_secs(1);
const STANDSTILL: Duration = Duration::from_secs(4);

#[tokio::test]
async fn a_consumer_that_stands_still_keeps_its_connection_and_bounds_its_memory() -> Result<()> {
    let source = Source::new().await?;
    let config = ReplicationConfig {
        wal_sender_timeout: SENDER_TIMEOUT,
        status_interval: SENDER_TIMEOUT / 4,
        buffer_bytes_max: 64 << 10,
        ..source.config()?
    };
    // More than every buffer on the way: the server is stopped in the middle of it.
    let rows = 100_000;
    source
        .sql
        .batch_execute(&format!(
            "insert into item select i, repeat('x', 240) from generate_series(1, {rows}) i"
        ))
        .await?;
    let client = ReplicationClient::connect(&config).await?;
    let pid = client.backend_pid();
    let mut stream = client.start(&source.slot, "tributary").await?;
    let first = next(&mut stream).await?;
    // Time itself is what is tried here: the server would end a session that it does not hear.
    let mut most = 0;
    let still = tokio::time::Instant::now();
    while still.elapsed() < STANDSTILL {
        most = most.max(stream.buffered_bytes());
        sleep(SENDER_TIMEOUT / 10).await;
    }
    assert!(
        most > config.buffer_bytes_max / 2,
        "{most} bytes: no pressure"
    );
    assert!(most <= config.buffer_bytes_max, "{most} bytes");
    let row = source
        .sql
        .query_one(
            "select now() - reply_time < '1 second' and sent_lsn < pg_current_wal_lsn()
             from pg_stat_replication where pid = $1",
            &[&pid],
        )
        .await?;
    assert!(row.get::<_, bool>(0), "statuses go on, the rows do not");
    let mut inserts = u64::from(matches!(first.message, ReplicationMessage::Insert { .. }));
    loop {
        match next(&mut stream).await?.message {
            ReplicationMessage::Insert { .. } => inserts += 1,
            ReplicationMessage::Commit { .. } => break,
            _ => {}
        }
    }
    assert_eq!(inserts, rows);
    Ok(())
}

#[tokio::test]
async fn a_row_larger_than_the_buffer_passes() -> Result<()> {
    let source = Source::new().await?;
    let config = ReplicationConfig {
        buffer_bytes_max: 64 << 10,
        ..source.config()?
    };
    source
        .sql
        .batch_execute(
            "insert into item values
               (1, 'small'), (2, repeat('large', 1000000)), (3, 'small')",
        )
        .await?;
    let client = ReplicationClient::connect(&config).await?;
    let mut stream = client.start(&source.slot, "tributary").await?;
    let (changes, _) = next_transaction(&mut stream).await?;
    let mut sizes = Vec::new();
    for change in &changes {
        let ReplicationMessage::Insert { new, .. } = change else {
            bail!("{changes:?}");
        };
        sizes.push(super::texts(new)[1].map_or(0, str::len));
    }
    assert_eq!(sizes, [5, 5_000_000, 5]);
    Ok(())
}

#[tokio::test]
async fn a_row_above_the_limit_ends_the_stream_with_its_size() -> Result<()> {
    let source = Source::new().await?;
    let config = ReplicationConfig {
        message_bytes_max: 1 << 20,
        ..source.config()?
    };
    source
        .sql
        .batch_execute("insert into item values (1, repeat('large', 1000000))")
        .await?;
    let client = ReplicationClient::connect(&config).await?;
    let mut stream = client.start(&source.slot, "tributary").await?;
    let error = end_of(&mut stream).await;
    assert!(
        matches!(
            error,
            ReplicationError::Stream(CommandError::TooLarge {
                bytes: 5_000_000..,
                ..
            })
        ),
        "{error}"
    );
    assert!(!error.is_retriable());
    Ok(())
}

#[tokio::test]
async fn a_server_that_says_nothing_any_more_ends_the_stream() -> Result<()> {
    let server = Postgres::start(Version::Legacy15).await?;
    let source = Source::on(&server).await?;
    let config = ReplicationConfig {
        status_interval: Duration::from_millis(100),
        read_timeout: Duration::from_millis(800),
        ..source.config()?
    };
    let client = ReplicationClient::connect(&config).await?;
    let pid = nix::unistd::Pid::from_raw(client.backend_pid());
    let mut stream = client.start(&source.slot, "tributary").await?;
    // Idle is not silent: the server answers when it is asked.
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < 2 * config.read_timeout {
        next(&mut stream).await?;
    }
    nix::sys::signal::kill(pid, Signal::SIGSTOP)?;
    let error = end_of(&mut stream).await;
    nix::sys::signal::kill(pid, Signal::SIGCONT)?;
    assert!(
        matches!(error, ReplicationError::Stream(CommandError::Silent(_))),
        "{error}"
    );
    assert!(error.is_retriable());
    Ok(())
}

#[tokio::test]
async fn a_server_that_shuts_down_ends_the_stream() -> Result<()> {
    let mut server = Postgres::start(Version::Legacy15).await?;
    let source = Source::on(&server).await?;
    let mut stream = source.stream().await?;
    let feedback = stream.feedback();
    next(&mut stream).await?;
    // A server in shutdown waits until everything is confirmed, as the consumer does here.
    let consume = async {
        loop {
            match stream.next().await {
                Ok(event) => feedback.confirm(event.wal_end),
                Err(error) => return error,
            }
        }
    };
    let (error, ()) = timeout(PATIENCE, async { tokio::join!(consume, server.stop()) }).await?;
    assert!(matches!(error, ReplicationError::Stream(_)), "{error}");
    assert!(error.is_retriable(), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_stream_that_is_dropped_leaves_no_session() -> Result<()> {
    let source = Source::new().await?;
    source
        .sql
        .batch_execute(
            "insert into item select i, repeat('x', 240) from generate_series(1, 50000) i",
        )
        .await?;
    let config = ReplicationConfig {
        buffer_bytes_max: 64 << 10,
        ..source.config()?
    };
    let client = ReplicationClient::connect(&config).await?;
    let pid = client.backend_pid();
    let mut stream = client.start(&source.slot, "tributary").await?;
    let feedback = stream.feedback();
    next(&mut stream).await?;
    drop(stream);
    source
        .until(&format!(
            "select not exists (select from pg_stat_activity where pid = {pid})"
        ))
        .await?;
    // A handle that outlives its stream is harmless.
    feedback.confirm(source.wal_end().await?);
    feedback.request_keepalive();
    Ok(())
}
