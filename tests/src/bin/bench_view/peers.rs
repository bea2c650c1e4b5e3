//! What others would do on the same server: bare batches into the mirrors, row triggers that do the
//! same joins, and a materialized view.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fixtures::Postgres;
use tests::machine;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::place::is_right;
use crate::shop;

/// The view's tables.
const TABLES: &str = include_str!("../../../../aggregator/migrations/0001_view.sql");
/// The joins of `public`, as row triggers of the mirrors.
const TRIGGERS: &str = include_str!("triggers.sql");
/// The same orders as a materialized view.
const MATERIALIZED: &str = include_str!("materialized.sql");
/// Orders of a batch: with lines 10 000 rows of sales, as large as a step of the aggregator's.
const BATCH_ORDERS: i64 = 2_500;

/// A database with the mirrors.
pub(crate) struct Peer {
    client: Client,
    next_order: i64,
}

impl Peer {
    /// Mirrors, and indexes as the aggregator's have them.
    pub(crate) async fn bulk(server: &Postgres) -> Result<Self> {
        let name = fixtures::servers::database(server, "peer").await?;
        let client = server.superuser(&name).await?;
        client.batch_execute("SET TimeZone = 'UTC'").await?;
        client.batch_execute("CREATE SCHEMA aggregator").await?;
        client.batch_execute(TABLES).await?;
        let items = format!(
            "INSERT INTO warehouse.wh_item SELECT n, 'item ' || n, 'of the benchmark', 'Chile'
                FROM generate_series(1, {0}) n;
            INSERT INTO warehouse.wh_price SELECT n, 3, n FROM generate_series(1, {0}) n;
            INSERT INTO warehouse.wh_quantity SELECT n, 100, n FROM generate_series(1, {0}) n;",
            shop::PRODUCTS
        );
        client.batch_execute(&items).await?;
        Ok(Self {
            client,
            next_order: 1,
        })
    }

    /// The unified tables as well, kept by row triggers.
    pub(crate) async fn triggers(server: &Postgres) -> Result<Self> {
        let peer = Self::bulk(server).await?;
        peer.client.batch_execute(TRIGGERS).await?;
        Ok(peer)
    }

    /// The orders as a materialized view.
    pub(crate) async fn materialized(server: &Postgres, orders: i64) -> Result<Self> {
        let mut peer = Self::bulk(server).await?;
        for (table, sql) in shop::rows_sql() {
            let sql = format!("INSERT INTO {table} {sql}");
            peer.client.execute(&sql, &[&1_i64, &orders]).await?;
        }
        peer.next_order += orders;
        peer.client.batch_execute("VACUUM ANALYZE").await?;
        peer.client.batch_execute(MATERIALIZED).await?;
        Ok(peer)
    }

    /// Processor time of the server for this peer so far.
    pub(crate) async fn cpu_time(&self) -> Result<Duration> {
        let sql = "SELECT pg_backend_pid()";
        machine::cpu_time(self.client.query_one(sql, &[]).await?.get(0))
    }

    /// Writes orders in batches, a transaction each; changes a second.
    pub(crate) async fn write(&mut self, orders: i64) -> Result<f64> {
        let statements = self.statements().await?;
        let begun = Instant::now();
        let end = self.next_order + orders;
        while self.next_order < end {
            let last = (self.next_order + BATCH_ORDERS).min(end) - 1;
            let batch = Batch::of(self.next_order, last);
            let transaction = self.client.transaction().await?;
            for (statement, arrays) in statements.iter().zip(batch.arrays()) {
                transaction.execute(statement, &arrays).await?;
            }
            transaction.commit().await?;
            self.next_order = last + 1;
        }
        Ok((orders * shop::ROWS) as f64 / begun.elapsed().as_secs_f64())
    }

    /// Writes orders with a statement, and a transaction, a change; changes a second.
    pub(crate) async fn write_one_by_one(&mut self, orders: i64) -> Result<f64> {
        let client = &self.client;
        let order = client
            .prepare(&upsert(
                "sales.sls_order",
                "VALUES ($1, $2, $3::text::timestamptz)",
            ))
            .await?;
        let line = client
            .prepare(&upsert(
                "sales.sls_orderdetail",
                "VALUES ($1, $2, $3::text::numeric, $4::bigint::int, $5)",
            ))
            .await?;
        let payment = client
            .prepare(&upsert("accounting.ac_transaction", "VALUES ($1, $2)"))
            .await?;
        let detail = client
            .prepare(&upsert(
                "accounting.ac_transactiondetail",
                "VALUES ($1, $2::text::numeric, $3::text::timestamptz, $4)",
            ))
            .await?;
        let begun = Instant::now();
        for id in self.next_order..self.next_order + orders {
            client
                .execute(&order, &[&id, &shop::customer(id), &shop::DATE])
                .await?;
            for place in 0..shop::LINES {
                let (line_id, product, quantity) = shop::line(id, place);
                client
                    .execute(
                        &line,
                        &[&line_id, &product, &shop::UNIT_PRICE, &quantity, &id],
                    )
                    .await?;
            }
            client.execute(&payment, &[&id, &id]).await?;
            client
                .execute(&detail, &[&id, &shop::PAID, &shop::DATE, &id])
                .await?;
        }
        self.next_order += orders;
        Ok((orders * shop::ROWS) as f64 / begun.elapsed().as_secs_f64())
    }

    /// Brings the materialized view to the mirrors; how long that takes.
    pub(crate) async fn refresh(&self) -> Result<Duration> {
        let begun = Instant::now();
        let sql = "REFRESH MATERIALIZED VIEW CONCURRENTLY public.order_view";
        self.client.batch_execute(sql).await?;
        let took = begun.elapsed();
        let sql = "SELECT count(*) FROM public.order_view";
        let orders: i64 = self.client.query_one(sql, &[]).await?.get(0);
        ensure!(
            orders == self.next_order - 1,
            "the view has {orders} orders"
        );
        Ok(took)
    }

    /// Do the unified tables show what was written?
    pub(crate) async fn is_right(&self) -> Result<()> {
        let orders = self.next_order - 1;
        is_right(&self.client, orders, orders).await
    }

    /// By table, for the arrays of a [`Batch`].
    async fn statements(&self) -> Result<Vec<tokio_postgres::Statement>> {
        let rows = [
            (
                "sales.sls_order",
                "unnest($1::bigint[], $2::bigint[], $3::text[]::timestamptz[])",
            ),
            (
                "sales.sls_orderdetail",
                "unnest($1::bigint[], $2::bigint[], $3::text[]::numeric[], $4::bigint[]::int[], $5::bigint[])",
            ),
            (
                "accounting.ac_transaction",
                "unnest($1::bigint[], $2::bigint[])",
            ),
            (
                "accounting.ac_transactiondetail",
                "unnest($1::bigint[], $2::text[]::numeric[], $3::text[]::timestamptz[], $4::bigint[])",
            ),
        ];
        let mut statements = Vec::new();
        for (table, rows) in rows {
            let sql = upsert(table, &format!("SELECT * FROM {rows}"));
            statements.push(self.client.prepare(&sql).await?);
        }
        Ok(statements)
    }
}

/// Orders and payments as arrays, a column each.
#[derive(Default)]
struct Batch {
    orders: Vec<i64>,
    customers: Vec<i64>,
    dates: Vec<&'static str>,
    lines: Vec<i64>,
    products: Vec<i64>,
    unit_prices: Vec<&'static str>,
    quantities: Vec<i64>,
    orders_of_lines: Vec<i64>,
    paid: Vec<&'static str>,
}

impl Batch {
    fn of(first: i64, last: i64) -> Self {
        let mut batch = Self::default();
        for order in first..=last {
            batch.orders.push(order);
            batch.customers.push(shop::customer(order));
            batch.dates.push(shop::DATE);
            batch.paid.push(shop::PAID);
            for place in 0..shop::LINES {
                let (id, product, quantity) = shop::line(order, place);
                batch.lines.push(id);
                batch.products.push(product);
                batch.unit_prices.push(shop::UNIT_PRICE);
                batch.quantities.push(quantity);
                batch.orders_of_lines.push(order);
            }
        }
        batch
    }

    /// As the statements take them.
    fn arrays(&self) -> [Vec<&(dyn ToSql + Sync)>; 4] {
        [
            vec![&self.orders, &self.customers, &self.dates],
            vec![
                &self.lines,
                &self.products,
                &self.unit_prices,
                &self.quantities,
                &self.orders_of_lines,
            ],
            vec![&self.orders, &self.orders],
            vec![&self.orders, &self.paid, &self.dates, &self.orders],
        ]
    }
}

fn upsert(table: &str, rows: &str) -> String {
    let columns: &[&str] = match table {
        "sales.sls_order" => &["customer_id", "date"],
        "sales.sls_orderdetail" => &["item_id", "unit_price", "quantity", "order_id"],
        "accounting.ac_transaction" => &["order_id"],
        _ => &["sum", "date", "transaction_id"],
    };
    let set: Vec<_> = columns
        .iter()
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    format!(
        "INSERT INTO {table} AS m (id, {}) {rows} ON CONFLICT (id) DO UPDATE SET {}",
        columns.join(", "),
        set.join(", ")
    )
}
