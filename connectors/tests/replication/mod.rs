//! The replication client against real servers.

mod pressure;
mod session;
mod streaming;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use connectors::replication::{
    Cell, ReplicationClient, ReplicationConfig, ReplicationEvent, ReplicationMessage,
    ReplicationStream, Tuple,
};
use fixtures::postgres::{Postgres, connect};
use kafka::Lsn;
use tokio::time::timeout;
use tokio_postgres::Client;

/// Longer than anything here takes on a busy machine; only a failing test waits it out.
const PATIENCE: Duration = Duration::from_secs(30);

/// A database of a test's own, with one published table, and a slot on it.
struct Source {
    url: String,
    slot: String,
    sql: Client,
}

impl Source {
    /// On the legacy cluster that the tests share.
    async fn new() -> Result<Self> {
        Self::on(fixtures::servers().source().await?).await
    }

    async fn on(server: &Postgres) -> Result<Self> {
        let database = fixtures::servers::database(server, "wire").await?;
        let url = server.superuser_url(&database);
        let sql = connect(&url).await?;
        sql.batch_execute(
            "create table item (id bigint primary key, name text, note text);
             alter table item alter column note set storage external;
             create table unpublished (id bigint);
             create publication tributary for table item;",
        )
        .await?;
        let slot = fixtures::unique("wire");
        let source = Self { url, slot, sql };
        source
            .client()
            .await?
            .create_slot(&source.slot, PATIENCE)
            .await?;
        Ok(source)
    }

    fn config(&self) -> Result<ReplicationConfig> {
        Ok(ReplicationConfig::from_url(&self.url)?)
    }

    async fn client(&self) -> Result<ReplicationClient> {
        Ok(ReplicationClient::connect(&self.config()?).await?)
    }

    async fn stream(&self) -> Result<ReplicationStream> {
        Ok(self.client().await?.start(&self.slot, "tributary").await?)
    }

    /// Where the source's WAL ends: what a client that has just committed may wait for.
    async fn wal_end(&self) -> Result<Lsn> {
        let row = self
            .sql
            .query_one("select pg_current_wal_lsn()::text", &[])
            .await?;
        Ok(row.get::<_, String>(0).parse()?)
    }

    /// Waits until a query of one truth value says yes.
    async fn until(&self, query: &str) -> Result<()> {
        timeout(PATIENCE, async {
            while !self.sql.query_one(query, &[]).await?.get::<_, bool>(0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        })
        .await
        .with_context(|| format!("never: {query}"))?
    }

    /// Waits until the server has heard what the stream's feedback has to say now.
    async fn is_told(&self, stream: &ReplicationStream) -> Result<()> {
        let row = self
            .sql
            .query_one("select clock_timestamp()::text", &[])
            .await?;
        stream.feedback().request_keepalive();
        self.until(&format!(
            "select reply_time > '{}' from pg_stat_replication r
             join pg_replication_slots s on s.active_pid = r.pid where slot_name = '{}'",
            row.get::<_, String>(0),
            self.slot
        ))
        .await
    }

    async fn slot_is_free(&self) -> Result<()> {
        self.until(&format!(
            "select not active from pg_replication_slots where slot_name = '{}'",
            self.slot
        ))
        .await
    }

    /// The slot's confirmed position.
    async fn confirmed(&self) -> Result<Lsn> {
        let row = self
            .sql
            .query_one(
                "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = $1",
                &[&self.slot],
            )
            .await?;
        Ok(row.get::<_, String>(0).parse()?)
    }
}

async fn next(stream: &mut ReplicationStream) -> Result<ReplicationEvent> {
    timeout(PATIENCE, stream.next())
        .await
        .context("the stream is silent")?
        .map_err(Into::into)
}

/// The next message that is no keepalive.
async fn next_change(stream: &mut ReplicationStream) -> Result<ReplicationEvent> {
    loop {
        let event = next(stream).await?;
        if !matches!(event.message, ReplicationMessage::Keepalive { .. }) {
            return Ok(event);
        }
    }
}

/// The changes of the next transaction, without its ends and what describes tables, and the
/// LSN where it ends.
async fn next_transaction(
    stream: &mut ReplicationStream,
) -> Result<(Vec<ReplicationMessage>, Lsn)> {
    let begin = next_change(stream).await?.message;
    let ReplicationMessage::Begin { final_lsn, .. } = begin else {
        bail!("{begin:?} instead of BEGIN");
    };
    let mut changes = Vec::new();
    loop {
        match next_change(stream).await?.message {
            ReplicationMessage::Commit {
                commit_lsn,
                end_lsn,
                ..
            } => {
                assert_eq!(commit_lsn, final_lsn);
                assert!(end_lsn > commit_lsn);
                return Ok((changes, end_lsn));
            }
            ReplicationMessage::Relation(_) | ReplicationMessage::Type { .. } => {}
            change => changes.push(change),
        }
    }
}

/// The error that ends a stream.
async fn end_of(stream: &mut ReplicationStream) -> connectors::replication::ReplicationError {
    let end = async {
        loop {
            if let Err(error) = stream.next().await {
                return error;
            }
        }
    };
    timeout(PATIENCE, end).await.expect("the stream goes on")
}

/// Cells as a test can write them.
fn texts(tuple: &Tuple) -> Vec<Option<&str>> {
    tuple
        .cells()
        .map(|cell| match cell {
            Cell::Null => None,
            Cell::Unchanged => Some("(unchanged)"),
            Cell::Text(text) => Some(std::str::from_utf8(text).expect("UTF-8")),
            Cell::Binary(_) => Some("(binary)"),
        })
        .collect()
}
