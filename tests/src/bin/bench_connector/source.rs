//! The server, and the WAL that everybody reads.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fixtures::postgres::{Postgres, TEST_PASSWORD, Version};
use fixtures::process::Process;
use kafka::Lsn;

pub(crate) const PUBLICATION: &str = "bench";
pub(crate) const TABLE: &str = "public.line";
/// Who reads; with the rights of a connector and no more.
const ROLE: &str = "connector";
/// Between two looks at a slot. A look costs the server some tenths of a millisecond.
const LOOK: Duration = Duration::from_millis(5);
/// Whatever is measured ends within this time.
const RUN_MAX: Duration = Duration::from_secs(600);

/// Rows in the WAL.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    /// A slot that stands before them and stays there.
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
            ("max_slot_wal_keep_size", "64GB"),
        ];
        let postgres = Postgres::start_with(Version::Legacy15, &settings).await?;
        let sql = postgres.superuser("postgres").await?;
        // 240 bytes of text a row, in the shape of the legacy tables.
        sql.batch_execute(&format!(
            "create role {ROLE} login replication password '{TEST_PASSWORD}';
             create table line (id bigserial primary key, item_id int not null,
               unit_price numeric(8, 2) not null, quantity int not null, at timestamptz not null,
               note text not null);
             grant select on line to {ROLE};
             create publication {PUBLICATION} for table line;
             create procedure write(total bigint, per_transaction bigint) language plpgsql as $$
             begin
               for done in 1 .. total / per_transaction loop
                 insert into line (item_id, unit_price, quantity, at, note)
                   select i % 1000, (i % 10000) / 100.0, i % 10,
                     timestamptz '2020-01-01' + i * interval '1 s', repeat('x', 180)
                   from generate_series(1, per_transaction) i;
                 commit;
               end loop;
             end $$;"
        ))
        .await?;
        Ok(Self { postgres, sql })
    }

    pub(crate) fn sql(&self) -> &tokio_postgres::Client {
        &self.sql
    }

    pub(crate) fn url(&self) -> String {
        fixtures::postgres::url(ROLE, TEST_PASSWORD, self.postgres.port(), "postgres")
    }

    /// Writes rows behind a new slot, and a last one in a commit of its own, which is waited for.
    pub(crate) async fn write(
        &self,
        name: &str,
        rows: u64,
        per_transaction: u64,
    ) -> Result<Written> {
        let slot = format!("base_{name}");
        self.sql.batch_execute("truncate line").await?;
        self.sql
            .execute(
                "select pg_create_logical_replication_slot($1, 'pgoutput')",
                &[&slot],
            )
            .await?;
        let rows = rows - rows % per_transaction;
        // One by one: a procedure that commits cannot stand among other statements.
        for statement in [
            "set synchronous_commit = off",
            &format!("call write({rows}, {per_transaction})"),
            "reset synchronous_commit",
            "call write(1, 1)",
        ] {
            self.sql.batch_execute(statement).await?;
        }
        Ok(Written {
            slot,
            end: self.wal_end().await?,
            rows: rows + 1,
        })
    }

    /// Where the last commit ends, if it was waited for.
    pub(crate) async fn wal_end(&self) -> Result<Lsn> {
        let row = self
            .sql
            .query_one("select pg_current_wal_lsn()::text", &[])
            .await?;
        Ok(row.get::<_, String>(0).parse()?)
    }

    /// In the table.
    pub(crate) async fn rows(&self) -> Result<u64> {
        let row = self.sql.query_one("select count(*) from line", &[]).await?;
        Ok(u64::try_from(row.get::<_, i64>(0))?)
    }

    /// Another slot at the same place, and the position that it has confirmed.
    pub(crate) async fn copy_slot(&self, written: &Written) -> Result<(String, Lsn)> {
        let slot = fixtures::unique("run");
        self.sql
            .execute(
                "select pg_copy_logical_replication_slot($1, $2)",
                &[&written.slot, &slot],
            )
            .await?;
        let row = self
            .sql
            .query_one(
                "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = $1",
                &[&slot],
            )
            .await?;
        Ok((slot, row.get::<_, String>(0).parse()?))
    }

    /// Drops a slot once its last user has left, if it is there.
    pub(crate) async fn drop_slot(&self, slot: &str) -> Result<()> {
        let free = "select active from pg_replication_slots where slot_name = $1";
        let deadline = Instant::now() + RUN_MAX;
        loop {
            match self.sql.query_opt(free, &[&slot]).await? {
                None => return Ok(()),
                Some(row) if !row.get::<_, bool>(0) => break,
                Some(_) => tokio::time::sleep(LOOK).await,
            }
            ensure!(Instant::now() < deadline, "the slot {slot} stays in use");
        }
        self.sql
            .execute("select pg_drop_replication_slot($1)", &[&slot])
            .await?;
        Ok(())
    }

    /// Waits until somebody uses the slot: when that was seen, and the process that serves it.
    pub(crate) async fn in_use(&self, slot: &str, user: &Process) -> Result<(Instant, i32)> {
        let statement = self
            .sql
            .prepare("select active_pid from pg_replication_slots where slot_name = $1")
            .await?;
        loop {
            if let Some(row) = self.sql.query_opt(&statement, &[&slot]).await?
                && let Some(pid) = row.get::<_, Option<i32>>(0)
            {
                return Ok((Instant::now(), pid));
            }
            running(user)?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the slot's user has confirmed `end`.
    pub(crate) async fn confirmed(&self, slot: &str, end: Lsn, user: &Process) -> Result<Instant> {
        let statement = self
            .sql
            .prepare(
                "select confirmed_flush_lsn >= $2::text::pg_lsn from pg_replication_slots
                 where slot_name = $1",
            )
            .await?;
        let deadline = Instant::now() + RUN_MAX;
        loop {
            let row = self
                .sql
                .query_opt(&statement, &[&slot, &end.to_string()])
                .await?;
            if row.context("the slot is gone")?.get::<_, bool>(0) {
                return Ok(Instant::now());
            }
            running(user)?;
            ensure!(Instant::now() < deadline, "{end} is not confirmed in time");
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn running(process: &Process) -> Result<()> {
    match process.status() {
        None => Ok(()),
        Some(status) => anyhow::bail!("what is measured has ended: {status}"),
    }
}
