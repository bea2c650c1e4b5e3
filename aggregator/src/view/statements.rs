//! Everything that the writer says to the database, prepared once.

use futures_util::future::maybe_done;
use futures_util::poll;
use service::fault;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row, Statement};

use super::discrepancies::is_looked_for;
use super::positions::Positions;
use super::resource::{Kept, Known, Resource, Rows};
use super::totals::{Of, Totals};
use super::touched::{Moves, Touched, Turned};
use super::unified::RESOURCES;
use crate::mirror::{Array, TABLES, Table};

/// The writing session's settings. Touched rows are found by index, one by one, however many
/// there are and whatever the planner knows of a table that was empty a minute ago: plans are
/// made once, without looking at parameters, and never read a whole table.
pub(crate) const SETTINGS: [&str; 10] = [
    "TimeZone = 'UTC'",
    "plan_cache_mode = force_generic_plan",
    "enable_seqscan = off",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "enable_bitmapscan = off",
    "enable_material = off",
    "enable_memoize = off",
    "jit = off",
    // The old and new rows that a statement of many orders reads its moves from fit into it; with the
    // server's 4 MB they were written to a file and read three times.
    "work_mem = '16MB'",
];

/// The opposite, for a transaction that computes all rows.
pub(super) const SETTINGS_FOR_ALL: &str = "
    SET LOCAL plan_cache_mode = force_custom_plan;
    SET LOCAL enable_seqscan = on;
    SET LOCAL enable_hashjoin = on;
    SET LOCAL enable_mergejoin = on;
    SET LOCAL enable_bitmapscan = on;
    SET LOCAL enable_material = on;
    SET LOCAL enable_memoize = on";

/// Rows of one table that one statement brings to what the mirrors say, at most.
const ROWS_AT_ONCE: usize = 10_000;

#[derive(Debug, Clone)]
pub(crate) struct Statements {
    pub positions: Positions,
    /// In the order in which they are computed.
    resources: Vec<Prepared>,
}

/// The statement for touched rows of a resource.
#[derive(Debug, Clone)]
struct Prepared {
    resource: &'static Resource,
    /// The totals of its rows: what it moves in them it returns.
    totals: Vec<&'static Resource>,
    statement: Statement,
}

type Parameters = Vec<Array>;

impl Statements {
    /// For the sources known now; when that changes they are prepared again.
    pub(crate) async fn prepare(client: &Client, known: &Known) -> Result<Self, Error> {
        let mut resources = Vec::with_capacity(RESOURCES.len());
        for resource in RESOURCES {
            let totals = totals_of(resource);
            let sql = resource.touched_sql(known, &totals, is_looked_for(resource));
            resources.push(Prepared {
                resource,
                totals,
                statement: client.prepare(&sql).await?,
            });
        }
        Ok(Self {
            positions: Positions::prepare(client).await?,
            resources,
        })
    }

    /// Computes every unified row from the mirrors of the known sources, in the open
    /// transaction; rows that are right already stay as they are. How many were not.
    pub(crate) async fn compute_all(
        client: &Client,
        known: &Known,
        revision: &str,
    ) -> Result<u64, Error> {
        Self::compute(client, known, revision, &RESOURCES).await
    }

    /// The same of these unified tables alone, which must be in their order.
    pub(super) async fn compute(
        client: &Client,
        known: &Known,
        revision: &str,
        resources: &[&Resource],
    ) -> Result<u64, Error> {
        client.batch_execute(SETTINGS_FOR_ALL).await?;
        for table in TABLES {
            client
                .batch_execute(&format!("ANALYZE {}", table.mirror))
                .await?;
        }
        let mut rows = 0;
        for resource in resources {
            let sql = resource.all_sql(known);
            if resource.is_private() {
                client.execute(&sql, &[]).await?;
            } else {
                rows += client.execute(&sql, &[&revision]).await?;
            }
        }
        Ok(rows)
    }

    /// Brings the touched unified rows to what the mirrors say, with statements of bounded size; which
    /// of those that rules look for came or went.
    pub(crate) async fn unify(
        &self,
        client: &Client,
        source: &str,
        revision: &str,
        mut touched: Touched,
    ) -> Result<Turned, Error> {
        if touched.rows() <= ROWS_AT_ONCE {
            let all = |_: &Resource| true;
            return self.bring(client, source, revision, touched, all).await;
        }
        let contributions = touched.take_contributions();
        let all = |_: &Resource| true;
        let mut turned = self
            .bring(client, source, revision, contributions, all)
            .await?;
        // Every row of what another reads comes before the first row of that.
        for Prepared { resource, .. } in &self.resources {
            let Some(rows) = resource.rows() else {
                continue;
            };
            let inputs = std::iter::once(*resource).chain(rows.through.iter().copied());
            let inputs: Vec<_> = inputs.collect();
            for part in touched.parts(&inputs, ROWS_AT_ONCE) {
                let this = |one: &Resource| one.table == resource.table;
                let more = self.bring(client, source, revision, part, this).await?;
                for (name, ids) in more {
                    turned.entry(name).or_default().extend(ids);
                }
            }
        }
        Ok(turned)
    }

    /// [`Statements::unify`] for rows of the `wanted` tables and totals of mirrors, and for the totals
    /// of those rows.
    async fn bring(
        &self,
        client: &Client,
        source: &str,
        revision: &str,
        mut touched: Touched,
        wanted: impl Fn(&Resource) -> bool,
    ) -> Result<Turned, Error> {
        // Sent in this order without waiting in between: what another reads comes first.
        let first = self.resources.iter().filter_map(|prepared| {
            let Prepared { resource, .. } = prepared;
            if !wanted(resource) {
                return None;
            }
            let parameters = match &resource.kept {
                Kept::Rows(rows) => named(resource, rows, &touched),
                Kept::Totals(totals) => match totals.of {
                    Of::Mirror(table) => moved(table, totals, touched.take_moves(resource)),
                    Of::Rows(_) => None,
                },
            };
            Some((prepared, parameters?))
        });
        let changed = run(client, revision, first.collect()).await?;
        let mut second = Vec::new();
        let mut turned = Turned::new();
        for (of, rows) in &changed {
            for row in rows {
                let place: i32 = row.try_get(0)?;
                let place = usize::try_from(place).ok();
                let Some(total) = place.and_then(|place| of.totals.get(place)) else {
                    let ids: Vec<String> = row.try_get(1)?;
                    let ids = ids.iter().filter_map(|id| id.parse::<i64>().ok());
                    turned.entry(of.resource.name()).or_default().extend(ids);
                    continue;
                };
                let mut all = self.resources.iter();
                if let Some(prepared) = all.find(|one| one.resource.table == total.table) {
                    second.push((prepared, moves(total, row, source)?));
                }
            }
        }
        run(client, revision, second).await?;
        Ok(turned)
    }

    /// Empties a source's mirrors, standing and quarantine.
    pub(crate) async fn forget(&self, client: &Client, source: &str) -> Result<(), Error> {
        for table in TABLES.into_iter().filter(|table| table.source == source) {
            client
                .batch_execute(&format!("TRUNCATE {}", table.mirror))
                .await?;
        }
        for table in [
            "aggregator.standing",
            "aggregator.degraded",
            "public.quarantine",
        ] {
            client
                .execute(
                    &format!("DELETE FROM {table} WHERE source = $1"),
                    &[&source],
                )
                .await?;
        }
        Ok(())
    }
}

/// The totals of this resource's rows.
fn totals_of(of: &Resource) -> Vec<&'static Resource> {
    let is_of = |totals: &Totals| match totals.of {
        Of::Rows(resource) => resource.table == of.table,
        Of::Mirror(_) => false,
    };
    let all = RESOURCES.into_iter();
    all.filter(|total| total.totals().is_some_and(is_of))
        .collect()
}

/// What the statement for a total of changed rows takes: what the rows' own returned.
fn moves(total: &Resource, row: &Row, source: &str) -> Result<Parameters, Error> {
    let keys = total.key.iter().map(|(name, _)| *name);
    let sums = total.totals().map_or(&[][..], |totals| totals.sums);
    let columns = keys.chain(sums.iter().copied()).enumerate();
    let arrays = columns.map(|(place, name)| {
        let mut array: Vec<String> = row.try_get(1 + place)?;
        // Not the design: as if what sales changes concerned only what sales adds.
        if name == "paid" && source == "sales" && !fault::in_force("contributions") {
            array.fill("0".to_owned());
        }
        Ok(Box::new(array) as _)
    });
    arrays.collect()
}

/// What the statement for touched rows takes, if any are.
fn named(resource: &Resource, rows: &Rows, touched: &Touched) -> Option<Parameters> {
    let of = std::iter::once(resource).chain(rows.through.iter().copied());
    let ids: Vec<_> = of.map(|resource| touched.ids(resource)).collect();
    let is_any = ids.iter().any(|ids| !ids.is_empty());
    let boxed = ids.into_iter().map(|ids| Box::new(ids) as _);
    is_any.then(|| boxed.collect())
}

/// What the statement for a total takes that rows of this mirror move, if any do.
fn moved(of: &Table, totals: &Totals, moves: Moves) -> Option<Parameters> {
    (!moves.is_empty()).then(|| moves.parameters(of, totals.takes))
}

/// Sends all statements in their order, then waits for them; the rows that each returned.
async fn run<'a>(
    client: &Client,
    revision: &str,
    statements: Vec<(&'a Prepared, Parameters)>,
) -> Result<Vec<(&'a Prepared, Vec<Row>)>, Error> {
    let sent = statements.into_iter().map(|(prepared, parameters)| {
        let answered = async move {
            let mut all: Vec<&(dyn ToSql + Sync)> = Vec::with_capacity(parameters.len() + 1);
            if !prepared.resource.is_private() {
                all.push(&revision);
            }
            all.extend(
                parameters
                    .iter()
                    .map(|parameter| &**parameter as &(dyn ToSql + Sync)),
            );
            let rows = client.query(&prepared.statement, &all).await?;
            Ok((prepared, rows))
        };
        Box::pin(maybe_done(answered))
    });
    let mut sent: Vec<_> = sent.collect();
    for statement in &mut sent {
        // A statement is sent when its future is polled first.
        let _ = poll!(statement.as_mut());
    }
    let mut answers = Vec::with_capacity(sent.len());
    for mut statement in sent {
        statement.as_mut().await;
        answers.extend(statement.as_mut().take_output());
    }
    answers.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{DiscrepanciesConfig, ViewConfig};
    use crate::mirror::Side;
    use crate::view::View;
    use crate::view::discrepancies::judge::Judge;

    /// Plans are made once. One that suits tables of a row each would be read-everything, and
    /// would cost the square of what a large checkpoint touches when they have grown.
    #[tokio::test]
    async fn touched_rows_are_found_by_index_also_by_plans_made_for_tiny_tables()
    -> anyhow::Result<()> {
        let server = fixtures::servers().view().await?;
        let name = fixtures::servers::database(server, "plans").await?;
        let config = ViewConfig {
            url: server.superuser_url(&name).into(),
            ..ViewConfig::default()
        };
        let sources = crate::SOURCES.map(str::to_owned);
        drop(
            View::open(
                &config,
                &DiscrepanciesConfig::default(),
                &sources,
                Duration::from_secs(5),
            )
            .await?,
        );
        let client = server.superuser(&name).await?;
        for table in TABLES {
            let sql = format!("INSERT INTO {} (id) VALUES (1)", table.mirror);
            client.batch_execute(&sql).await?;
        }
        client
            .batch_execute("UPDATE public.positions SET epoch = 1, lsn = '0/1', current_at = now()")
            .await?;
        let known: Known = sources.into_iter().collect();
        Statements::compute_all(&client, &known, "revision").await?;
        Judge::judge_all(&client, &known, "revision").await?;
        client.batch_execute("ANALYZE").await?;
        for setting in SETTINGS {
            client.batch_execute(&format!("SET {setting}")).await?;
        }
        let resources = RESOURCES.into_iter();
        let mut statements: Vec<_> = resources
            .map(|resource| {
                let tells = is_looked_for(resource);
                resource.touched_sql(&known, &totals_of(resource), tells)
            })
            .collect();
        statements.extend(TABLES.map(|table| table.upsert_sql(Side::Served)));
        statements.extend(TABLES.map(|table| table.delete_sql(Side::Served)));
        statements.extend(TABLES.map(|table| table.there_sql(Side::Served)));
        statements.extend(crate::view::discrepancies::touched_sql(&known));
        statements.push(crate::view::discrepancies::part_paid::DUE.to_owned());
        for sql in statements {
            let explain = format!("EXPLAIN (GENERIC_PLAN) {sql}");
            let plan: Vec<String> = client
                .simple_query(&explain)
                .await?
                .iter()
                .filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None,
                })
                .collect();
            let plan = plan.join("\n");
            for slow in [
                "Seq Scan",
                "Materialize",
                "Hash Join",
                "Merge Join",
                "Join Filter",
            ] {
                assert!(!plan.contains(slow), "{slow} in {plan}\nof {sql}");
            }
        }
        Ok(())
    }
}
