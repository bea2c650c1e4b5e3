//! Rows that every source transaction of the workload leaves with the same totals. Whoever sees
//! another total has seen part of a transaction.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tests::topics::Reader;
use tokio_postgres::{Client, Transaction};

/// What each guarded order, customer and transaction always comes to, in cents.
pub(super) const TOTAL: i64 = 100_000;

/// The ids of what is guarded.
#[derive(Debug, Clone, Default)]
pub(super) struct Guarded {
    /// Orders of three lines; money moves between the lines.
    pub(super) orders: Vec<i64>,
    /// Customers of two orders; lines move between the orders, and money between the lines of
    /// both. What the customer ordered stays.
    pub(super) customers: Vec<i32>,
    /// Transactions of two details, for an order that sales does not have: money moves between
    /// the details.
    pub(super) transactions: Vec<i64>,
    /// The customers' payments: transactions that move between their two orders. What the
    /// customer paid stays.
    pub(super) payments: Vec<i64>,
    orders_of: BTreeMap<i32, [i64; 2]>,
    /// Lines that a large transaction touches: no money depends on them.
    pub(super) filler: Vec<i64>,
}

impl Guarded {
    /// Writes them, one transaction a system.
    pub(super) async fn write(sales: &mut Client, accounting: &mut Client) -> Result<Self> {
        let mut guarded = Self::default();
        let writing = sales.transaction().await?;
        for number in 0..4 {
            let customer = 910_001 + number;
            let order = insert_order(&writing, customer).await?;
            for (item, price) in [(1, "500.00"), (2, "300.00"), (3, "200.00")] {
                insert_line(&writing, order, item, price).await?;
            }
            guarded.orders.push(order);
        }
        for number in 0..3 {
            let customer = 920_001 + number;
            let first = insert_order(&writing, customer).await?;
            let second = insert_order(&writing, customer).await?;
            for (item, price) in [(4, "400.00"), (5, "350.00"), (6, "250.00")] {
                insert_line(&writing, first, item, price).await?;
            }
            guarded.customers.push(customer);
            guarded.orders_of.insert(customer, [first, second]);
        }
        for _ in 0..30 {
            let order = insert_order(&writing, 930_001).await?;
            writing
                .execute(
                    "insert into sls_orderdetail (item_id, unit_price, quantity, order_id)
                     select item, 1.00, 1, $1 from generate_series(1, 60) item",
                    &[&order],
                )
                .await?;
            guarded.filler.push(order);
        }
        writing.commit().await?;
        let writing = accounting.transaction().await?;
        for number in 0..3 {
            let id = insert_payment(&writing, 99_000_001 + number, &["600.00", "400.00"]).await?;
            guarded.transactions.push(id);
        }
        for orders in guarded.orders_of.values() {
            let id = insert_payment(&writing, i32::try_from(orders[0])?, &["1000.00"]).await?;
            guarded.payments.push(id);
        }
        writing.commit().await?;
        Ok(guarded)
    }

    /// One source transaction in sales that leaves every total as it is. `large` puts thousands
    /// of other changes between its halves.
    pub(super) async fn move_in_sales(
        &self,
        random: &mut ChaCha8Rng,
        sales: &mut Client,
        large: bool,
    ) -> Result<()> {
        let by_order = random.random_bool(0.5);
        let orders: Vec<i64> = if by_order {
            vec![self.orders[random.random_range(0..self.orders.len())]]
        } else {
            let customer = self.customers[random.random_range(0..self.customers.len())];
            self.orders_of[&customer].to_vec()
        };
        let writing = sales.transaction().await?;
        let lines: Vec<(i64, i64)> = writing
            .query(
                "select id, order_id from sls_orderdetail where order_id = any($1) order by id",
                &[&orders],
            )
            .await?
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        let from = random.random_range(0..lines.len());
        let to = (from + random.random_range(1..lines.len())) % lines.len();
        let cents = random.random_range(1..5_000_i64);
        add(&writing, lines[from].0, -cents).await?;
        if large {
            self.touch_filler(&writing).await?;
        }
        add(&writing, lines[to].0, cents).await?;
        if !by_order && random.random_bool(0.7) {
            let (line, order) = lines[random.random_range(0..lines.len())];
            let other = if order == orders[0] {
                orders[1]
            } else {
                orders[0]
            };
            writing
                .execute(
                    "update sls_orderdetail set order_id = $1 where id = $2",
                    &[&other, &line],
                )
                .await?;
        }
        writing.commit().await?;
        Ok(())
    }

    async fn touch_filler(&self, writing: &Transaction<'_>) -> Result<()> {
        writing
            .execute(
                "update sls_orderdetail set quantity = quantity % 9 + 1 where order_id = any($1)",
                &[&self.filler],
            )
            .await?;
        Ok(())
    }

    /// One source transaction in accounting that leaves every total as it is.
    pub(super) async fn move_in_accounting(
        &self,
        random: &mut ChaCha8Rng,
        accounting: &mut Client,
    ) -> Result<()> {
        let writing = accounting.transaction().await?;
        if random.random_bool(0.5) {
            let id = self.transactions[random.random_range(0..self.transactions.len())];
            let cents = random.random_range(1..5_000_i64);
            let (less, more) = if random.random_bool(0.5) {
                ("min", "max")
            } else {
                ("max", "min")
            };
            for (which, cents) in [(less, -cents), (more, cents)] {
                let statement = format!(
                    "update ac_transactiondetail set sum = sum + $1::bigint::numeric / 100
                     where id = (select {which}(id) from ac_transactiondetail
                                 where transaction_id = $2)"
                );
                writing.execute(&statement, &[&cents, &id]).await?;
            }
        } else {
            let number = random.random_range(0..self.payments.len());
            let [first, second] = self.orders_of[&self.customers[number]];
            writing
                .execute(
                    "update ac_transaction set order_id = case order_id
                         when $1::bigint::int then $2::bigint::int else $1::bigint::int end
                     where id = $3",
                    &[&first, &second, &self.payments[number]],
                )
                .await?;
        }
        writing.commit().await?;
        Ok(())
    }

    /// Checks whichever of the guarded rows stand in `orders`, `customers`, `transactions` (rows
    /// as the API gives them, by id): all of one moment.
    pub(super) fn check(&self, seen: &Seen) -> Result<()> {
        for id in &self.orders {
            if let Some(order) = seen.orders.get(id) {
                is_total(&order["total"], || format!("order {order}"))?;
                let lines = order["lines"]
                    .as_array()
                    .context("an order without lines")?;
                let sum = lines
                    .iter()
                    .map(|line| cents(&line["amount"]))
                    .sum::<Result<i64>>()?;
                ensure!(sum == TOTAL, "the lines of {order} come to {sum} cents");
            }
        }
        for id in &self.customers {
            if let Some(customer) = seen.customers.get(&i64::from(*id)) {
                is_total(&customer["ordered"], || format!("customer {customer}"))?;
                // Accounting travels on its own: its payment is there or not there yet.
                let paid = cents(&customer["paid"])?;
                ensure!(paid == TOTAL || paid == 0, "customer {customer}");
            }
            let both = self.orders_of[id].map(|id| seen.orders.get(&id));
            if let [Some(first), Some(second)] = both {
                let sum = cents(&first["total"])? + cents(&second["total"])?;
                ensure!(sum == TOTAL, "{sum} cents in {first} and {second}");
            }
        }
        for id in self.transactions.iter().chain(&self.payments) {
            if let Some(transaction) = seen.transactions.get(id) {
                is_total(&transaction["amount"], || {
                    format!("transaction {transaction}")
                })?;
            }
        }
        Ok(())
    }

    /// Checks the topics of sales at a checkpoint.
    pub(super) fn check_sales_topics(&self, reader: &Reader) -> Result<()> {
        let guarded = self.all_orders();
        let mut totals: BTreeMap<i64, i64> = BTreeMap::new();
        for line in reader.table("public.sls_orderdetail").values() {
            let order = line["order_id"].as_i64().context("no order_id")?;
            // A line of another order may have a price that is no number.
            if !guarded.contains(&order) {
                continue;
            }
            let quantity = line["quantity"].as_i64().context("no quantity")?;
            *totals.entry(order).or_default() += cents(&line["unit_price"])? * quantity;
        }
        let total = |order: &i64| totals.get(order).copied().unwrap_or_default();
        let known = |order: &i64| {
            let key = format!("{{\"id\":{order}}}");
            reader.table("public.sls_order").contains_key(&key)
        };
        for order in self.orders.iter().filter(|order| known(order)) {
            ensure!(
                total(order) == TOTAL,
                "order {order} comes to {}",
                total(order)
            );
        }
        for [first, second] in self.orders_of.values().filter(|orders| known(&orders[0])) {
            let sum = total(first) + total(second);
            ensure!(sum == TOTAL, "orders {first} and {second} come to {sum}");
        }
        Ok(())
    }

    /// Every guarded order.
    pub(super) fn all_orders(&self) -> Vec<i64> {
        let of_customers = self.orders_of.values().flatten();
        self.orders.iter().chain(of_customers).copied().collect()
    }
}

/// Rows of one moment, as the API gives them.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) orders: BTreeMap<i64, Value>,
    pub(super) customers: BTreeMap<i64, Value>,
    pub(super) transactions: BTreeMap<i64, Value>,
}

fn is_total(money: &Value, what: impl Fn() -> String) -> Result<()> {
    let seen = cents(money)?;
    ensure!(seen == TOTAL, "{seen} cents in {}", what());
    Ok(())
}

/// `"12.34"` as 1234.
pub(super) fn cents(money: &Value) -> Result<i64> {
    let Some(text) = money.as_str() else {
        bail!("{money} is no money");
    };
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    ensure!(places.len() <= 2, "{text} has too many places");
    Ok(format!("{whole}{places:0<2}").parse()?)
}

async fn insert_order(writing: &Transaction<'_>, customer: i32) -> Result<i64> {
    let row = writing
        .query_one(
            "insert into sls_order (customer_id, date) values ($1, now()) returning id",
            &[&customer],
        )
        .await?;
    Ok(row.get(0))
}

async fn insert_line(writing: &Transaction<'_>, order: i64, item: i32, price: &str) -> Result<()> {
    writing
        .execute(
            "insert into sls_orderdetail (item_id, unit_price, quantity, order_id)
             values ($1, $2::text::numeric, 1, $3)",
            &[&item, &price, &order],
        )
        .await?;
    Ok(())
}

async fn insert_payment(writing: &Transaction<'_>, order: i32, sums: &[&str]) -> Result<i64> {
    let id: i64 = writing
        .query_one(
            "insert into ac_transaction (order_id) values ($1) returning id",
            &[&order],
        )
        .await?
        .get(0);
    for sum in sums {
        writing
            .execute(
                "insert into ac_transactiondetail (sum, date, transaction_id)
                 values ($1::text::numeric, now(), $2)",
                &[sum, &id],
            )
            .await?;
    }
    Ok(id)
}

async fn add(writing: &Transaction<'_>, line: i64, cents: i64) -> Result<()> {
    writing
        .execute(
            "update sls_orderdetail set unit_price = unit_price + $1::bigint::numeric / 100
             where id = $2",
            &[&cents, &line],
        )
        .await?;
    Ok(())
}
