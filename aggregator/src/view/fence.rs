//! The fence: the view's one revision, which each view transaction moves from the value that
//! its writer read or made last.
//!
//! The lock alone does not suffice: who lost it may not know yet. The fence is data, so a
//! transaction of a writer that was overtaken finds no row to move, and fails.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use service::fault;
use tokio_postgres::{Client, Error, Statement};

use super::positions::Revision;

#[derive(Debug)]
pub(crate) struct Fence {
    writer: i64,
    last: Revision,
    /// By source the revision that moved it last; used only with a rule out of force.
    moved: BTreeMap<String, Revision>,
    statement: Statement,
}

/// The design: nobody has written since.
const MOVE: &str = "UPDATE aggregator.fence SET writer = $1, number = $2
    WHERE writer = $3 AND number = $4";
/// Not the design: anybody may write.
const MOVE_ALWAYS: &str = "UPDATE aggregator.fence SET writer = $1, number = $2
    WHERE $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL";
/// Not the design: nobody has written *this source* since.
const MOVE_BY_SOURCE: &str = "UPDATE aggregator.fence SET writer = $1, number = $2
    WHERE $3::bigint IS NOT NULL AND $4::bigint IS NOT NULL AND EXISTS (
        SELECT FROM public.positions WHERE source = $5 AND writer = $6 AND number = $7)";

/// Ends sessions that are within a view transaction. The caller has the lock, so they are those of
/// predecessors; one that is paused while it sends rows or takes them the server would wait for without end.
const END_OTHERS: &str = "
    SELECT pg_terminate_backend(l.pid)
    FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
    WHERE l.locktype = 'relation' AND l.relation = 'aggregator.fence'::regclass
        AND a.datname = current_database() AND l.mode = 'RowExclusiveLock'
        AND l.pid <> pg_backend_pid() AND a.usename = current_user";

impl Fence {
    /// Takes over from whoever wrote last, in a transaction of its own: from its commit on
    /// nobody else passes. Makes a row of positions for each source that has none.
    pub(crate) async fn claim(client: &Client, sources: &[String]) -> Result<Self, Error> {
        client.batch_execute(END_OTHERS).await?;
        client.batch_execute("BEGIN").await?;
        let row = client
            .query_one(
                "SELECT writer, number FROM aggregator.fence FOR UPDATE",
                &[],
            )
            .await?;
        let (last_writer, last_number): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let last = Revision {
            writer: now.max(last_writer + 1),
            number: last_number + 1,
        };
        client
            .execute(
                "UPDATE aggregator.fence SET writer = $1, number = $2",
                &[&last.writer, &last.number],
            )
            .await?;
        client
            .execute(
                "INSERT INTO public.positions (source, writer, number, revision)
                SELECT source, $2, $3, $4 FROM unnest($1::text[]) AS s (source)
                ON CONFLICT DO NOTHING",
                &[&sources, &last.writer, &last.number, &last.to_string()],
            )
            .await?;
        client.batch_execute("COMMIT").await?;
        let moved = client
            .query("SELECT source, writer, number FROM public.positions", &[])
            .await?
            .iter()
            .map(|row| {
                let (writer, number) = (row.try_get(1)?, row.try_get(2)?);
                Ok((row.try_get(0)?, Revision { writer, number }))
            })
            .collect::<Result<_, Error>>()?;
        let sql = if !fault::in_force("view_fence") {
            MOVE_ALWAYS
        } else if fault::in_force("fence_on_revision") {
            MOVE
        } else {
            MOVE_BY_SOURCE
        };
        tracing::info!(revision = %last, "takes the view over as writer {}", last.writer);
        Ok(Self {
            writer: last.writer,
            last,
            moved,
            statement: client.prepare(sql).await?,
        })
    }

    /// The view transaction read or made last.
    pub(crate) fn last(&self) -> Revision {
        self.last
    }

    /// The view transaction that is being made.
    pub(crate) fn next(&self) -> Revision {
        Revision {
            writer: self.writer,
            number: self.last.number + 1,
        }
    }

    /// Moves it, within the open transaction; false where somebody else has.
    pub(crate) async fn move_on(&self, client: &Client, source: &str) -> Result<bool, Error> {
        let (next, last) = (self.next(), self.last);
        let moved = if fault::in_force("fence_on_revision") || !fault::in_force("view_fence") {
            client
                .execute(
                    &self.statement,
                    &[&next.writer, &next.number, &last.writer, &last.number],
                )
                .await?
        } else {
            let own = self.moved.get(source).copied().unwrap_or(last);
            client
                .execute(
                    &self.statement,
                    &[
                        &next.writer,
                        &next.number,
                        &last.writer,
                        &last.number,
                        &source,
                        &own.writer,
                        &own.number,
                    ],
                )
                .await?
        };
        Ok(moved == 1)
    }

    pub(crate) fn committed(&mut self) {
        self.last = self.next();
    }

    pub(crate) fn moved(&mut self, source: &str) {
        self.moved.insert(source.to_owned(), self.last);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use crate::config::{DiscrepanciesConfig, ViewConfig};
    use crate::view::View;

    #[tokio::test]
    async fn a_writer_that_stopped_while_it_sends_rows_does_not_keep_the_next_one_waiting()
    -> anyhow::Result<()> {
        let server = fixtures::servers().view().await?;
        let name = fixtures::servers::database(server, "fence").await?;
        let config = ViewConfig {
            url: server.superuser_url(&name).into(),
            ..ViewConfig::default()
        };
        let (terms, sources) = (DiscrepanciesConfig::default(), crate::SOURCES);
        let sources = sources.map(str::to_owned);
        let minute = Duration::from_secs(60);
        drop(View::open(&config, &terms, &sources, minute).await?);

        let stopped = server.superuser(&name).await?;
        let begun = "BEGIN; UPDATE aggregator.fence SET number = number + 1";
        stopped.batch_execute(begun).await?;
        let sql = "COPY warehouse.wh_item FROM STDIN";
        let _sends = stopped.copy_in::<_, Bytes>(sql).await?;
        tokio::time::timeout(minute, View::open(&config, &terms, &sources, minute)).await??;
        assert!(stopped.batch_execute("COMMIT").await.is_err());
        Ok(())
    }
}
