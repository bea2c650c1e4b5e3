//! The server, and the WAL that every client reads.

use anyhow::{Context, Result};
use fixtures::postgres::{Postgres, Version};
use kafka::Lsn;

/// Name of the publication.
pub(crate) const PUBLICATION: &str = "bench";

/// Rows, and how many of them are a transaction.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) rows: u64,
    transaction_rows: u64,
}

impl Workload {
    pub(crate) fn new(name: &'static str, rows: u64, transaction_rows: u64) -> Self {
        Self {
            name,
            // Whole transactions only.
            rows: rows - rows % transaction_rows.max(1),
            transaction_rows,
        }
    }
}

/// A workload in the WAL.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    /// A slot that stands before it and stays there.
    pub(crate) slot: String,
    /// Where the last commit ends.
    pub(crate) end: Lsn,
    pub(crate) rows: u64,
}

/// A cluster of its own, and one table.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) postgres: Postgres,
    sql: tokio_postgres::Client,
}

impl Source {
    pub(crate) async fn start() -> Result<Self> {
        let settings = [
            // No checkpoint and no vacuum of its own accord beside the runs.
            ("max_wal_size", "32GB"),
            ("checkpoint_timeout", "1h"),
            ("autovacuum", "off"),
            ("max_slot_wal_keep_size", "-1"),
        ];
        let postgres = Postgres::start_with(Version::Legacy15, &settings).await?;
        let sql = postgres.superuser("postgres").await?;
        // 240 bytes of text a row, in the shape of the legacy tables.
        sql.batch_execute(&format!(
            "create table line (id bigserial primary key, item_id int not null,
               unit_price numeric(8, 2) not null, quantity int not null, at timestamptz not null,
               note text not null);
             create publication {PUBLICATION} for table line;
             create procedure write(total bigint, per_transaction bigint) language plpgsql as $$
             begin
               for done in 1 .. total / per_transaction loop
                 insert into line (item_id, unit_price, quantity, at, note)
                   select i % 1000, (i % 10000) / 100.0, i % 10, timestamptz '2020-01-01' + i * interval '1 s',
                     repeat('x', 180)
                   from generate_series(1, per_transaction) i;
                 commit;
               end loop;
             end $$;"
        ))
        .await?;
        Ok(Self { postgres, sql })
    }

    /// Writes a workload behind a new slot.
    pub(crate) async fn write(&self, workload: &Workload) -> Result<Written> {
        let slot = format!("base_{}", workload.name);
        self.sql.batch_execute("truncate line").await?;
        self.sql
            .execute(
                "select pg_create_logical_replication_slot($1, 'pgoutput')",
                &[&slot],
            )
            .await?;
        // One by one: a procedure that commits cannot stand among other statements.
        let call = format!(
            "call write({}, {})",
            workload.rows, workload.transaction_rows
        );
        for statement in [
            "set synchronous_commit = off",
            &call,
            "reset synchronous_commit",
        ] {
            self.sql.batch_execute(statement).await?;
        }
        // A commit that is waited for: until then the end of the WAL may not be flushed.
        self.sql.batch_execute("truncate line").await?;
        let row = self
            .sql
            .query_one("select pg_current_wal_lsn()::text", &[])
            .await?;
        Ok(Written {
            slot,
            end: row.get::<_, String>(0).parse()?,
            rows: workload.rows,
        })
    }

    /// Another slot at the same place.
    pub(crate) async fn copy_slot(&self, written: &Written) -> Result<String> {
        let slot = fixtures::unique("run");
        self.sql
            .execute(
                "select pg_copy_logical_replication_slot($1, $2)",
                &[&written.slot, &slot],
            )
            .await?;
        Ok(slot)
    }

    /// Drops a slot once its last user has left.
    pub(crate) async fn drop_slot(&self, slot: &str) -> Result<()> {
        let free = "select not active from pg_replication_slots where slot_name = $1";
        while !self.sql.query_one(free, &[&slot]).await?.get::<_, bool>(0) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        self.sql
            .execute("select pg_drop_replication_slot($1)", &[&slot])
            .await?;
        Ok(())
    }

    pub(crate) fn socket_folder(&self) -> Result<String> {
        let folder = self.postgres.socket_folder().context("no Unix socket")?;
        Ok(folder.display().to_string())
    }
}
