//! Everything that the writer says to the database, prepared once.

use tokio_postgres::{Client, Error, Row, Statement};

use super::customers::{self, CUSTOMERS, Contribution};
use super::orders::ORDERS;
use super::positions::Positions;
use super::products::{ALL_TOTALS, MOVE_TOTALS, PRODUCTS};
use super::resource::Known;
use super::touched::LineMoves;
use super::transactions::TRANSACTIONS;
use crate::mirror::TABLES;

/// The writing session's settings. Touched rows are found by index, one by one, however many
/// there are and whatever the planner knows of a table that was empty a minute ago: plans are
/// made once, without looking at parameters, and never read a whole table.
pub(crate) const SETTINGS: [&str; 9] = [
    "TimeZone = 'UTC'",
    "plan_cache_mode = force_generic_plan",
    "enable_seqscan = off",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "enable_bitmapscan = off",
    "enable_material = off",
    "enable_memoize = off",
    "jit = off",
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

#[derive(Debug, Clone)]
pub(crate) struct Statements {
    pub positions: Positions,
    move_totals: Statement,
    products: Statement,
    transactions: Statement,
    orders: Statement,
    customers: Statement,
}

impl Statements {
    /// For the sources known now; when that changes they are prepared again.
    pub(crate) async fn prepare(client: &Client, known: &Known) -> Result<Self, Error> {
        Ok(Self {
            positions: Positions::prepare(client).await?,
            move_totals: client.prepare(MOVE_TOTALS).await?,
            products: client.prepare(&PRODUCTS.touched_sql(known)).await?,
            transactions: client.prepare(&TRANSACTIONS.touched_sql(known)).await?,
            orders: client.prepare(&ORDERS.touched_sql(known)).await?,
            customers: client.prepare(&customers::move_sql(known)).await?,
        })
    }

    /// Computes every unified row from the mirrors of the known sources, in the open
    /// transaction; rows that are right already stay as they are. How many were not.
    pub(crate) async fn compute_all(
        client: &Client,
        known: &Known,
        revision: &str,
    ) -> Result<u64, Error> {
        client.batch_execute(SETTINGS_FOR_ALL).await?;
        for table in TABLES {
            client
                .batch_execute(&format!("ANALYZE {}", table.mirror))
                .await?;
        }
        client.batch_execute(ALL_TOTALS).await?;
        let mut rows = 0;
        for resource in [&PRODUCTS, &TRANSACTIONS, &ORDERS, &CUSTOMERS] {
            rows += client
                .execute(&resource.all_sql(known), &[&revision])
                .await?;
        }
        Ok(rows)
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

    pub(crate) async fn move_totals(
        &self,
        client: &Client,
        lines: &LineMoves,
    ) -> Result<(), Error> {
        if !lines.products.is_empty() {
            client
                .execute(
                    &self.move_totals,
                    &[
                        &lines.products,
                        &lines.signs,
                        &lines.quantities,
                        &lines.unit_prices,
                    ],
                )
                .await?;
        }
        Ok(())
    }

    pub(crate) async fn products(
        &self,
        client: &Client,
        revision: &str,
        ids: &[i64],
    ) -> Result<(), Error> {
        if !ids.is_empty() {
            client.execute(&self.products, &[&revision, &ids]).await?;
        }
        Ok(())
    }

    pub(crate) async fn transactions(
        &self,
        client: &Client,
        revision: &str,
        ids: &[i64],
    ) -> Result<(), Error> {
        if !ids.is_empty() {
            client
                .execute(&self.transactions, &[&revision, &ids])
                .await?;
        }
        Ok(())
    }

    /// The orders named and those of the transactions named; what changed, old and new.
    pub(crate) async fn orders(
        &self,
        client: &Client,
        revision: &str,
        ids: &[i64],
        transactions: &[i64],
    ) -> Result<Vec<Row>, Error> {
        if ids.is_empty() && transactions.is_empty() {
            return Ok(Vec::new());
        }
        client
            .query(&self.orders, &[&revision, &ids, &transactions])
            .await
    }

    pub(crate) async fn customers(
        &self,
        client: &Client,
        revision: &str,
        contributions: &[Contribution],
    ) -> Result<(), Error> {
        if contributions.is_empty() {
            return Ok(());
        }
        let each = || contributions.iter();
        let customers: Vec<_> = each().map(|part| part.customer_id).collect();
        let signs: Vec<_> = each().map(|part| part.sign).collect();
        let totals: Vec<_> = each().map(|part| part.total.as_deref()).collect();
        let paid: Vec<_> = each().map(|part| part.paid.as_deref()).collect();
        client
            .execute(
                &self.customers,
                &[&revision, &customers, &signs, &totals, &paid],
            )
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::ViewConfig;
    use crate::mirror::Side;
    use crate::view::View;

    /// Plans are made once. One that suits tables of a row each would be read-everything, and
    /// would cost the square of what a large checkpoint touches when they have grown.
    #[tokio::test]
    async fn touched_rows_are_found_by_index_also_by_plans_made_for_tiny_tables()
    -> anyhow::Result<()> {
        let server = fixtures::servers().view().await?;
        let name = fixtures::servers::database(server, "plans").await?;
        let config = ViewConfig {
            url: server.superuser_url(&name).into(),
            readers: Vec::new(),
            replicators: Vec::new(),
        };
        let sources = crate::SOURCES.map(str::to_owned);
        drop(View::open(&config, &sources, Duration::from_secs(5)).await?);
        let client = server.superuser(&name).await?;
        for table in TABLES {
            let sql = format!("INSERT INTO {} (id) VALUES (1)", table.mirror);
            client.batch_execute(&sql).await?;
        }
        let known: Known = sources.into_iter().collect();
        for resource in [&PRODUCTS, &TRANSACTIONS, &ORDERS, &CUSTOMERS] {
            client
                .execute(&resource.all_sql(&known), &[&"revision"])
                .await?;
        }
        client.batch_execute("ANALYZE").await?;
        for setting in SETTINGS {
            client.batch_execute(&format!("SET {setting}")).await?;
        }
        let mut statements = vec![MOVE_TOTALS.to_owned(), customers::move_sql(&known)];
        let resources = [&PRODUCTS, &TRANSACTIONS, &ORDERS];
        statements.extend(resources.map(|resource| resource.touched_sql(&known)));
        statements.extend(TABLES.map(|table| table.apply_sql(Side::Served)));
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
