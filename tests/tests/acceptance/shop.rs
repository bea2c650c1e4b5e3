//! One scenario's shop: the names its story uses, and the SQL of the legacy applications.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use cucumber::World;
use fixtures::legacy::System;
use fixtures::stack::{Stack, current_lsn};
use serde_json::Value;
use tests::api::{Answer, Api};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

/// A line of an order as a story tells it.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) item: String,
    pub(crate) price: String,
    pub(crate) quantity: i32,
}

/// What a scenario knows.
#[derive(Debug, World)]
#[world(init = Self::new)]
pub(crate) struct Shop {
    pub(crate) stack: &'static Stack,
    pub(crate) api: Api,
    clients: BTreeMap<System, Client>,
    /// Where this scenario has written last, per system.
    positions: BTreeMap<System, String>,
    pub(crate) items: BTreeMap<String, i64>,
    pub(crate) orders: BTreeMap<String, i64>,
    pub(crate) customers_of: BTreeMap<String, i32>,
    pub(crate) customer: i32,
    pub(crate) transaction: i64,
    pub(crate) answer: Option<Answer>,
    pub(crate) waited: std::time::Duration,
}

impl Shop {
    async fn new() -> Result<Self> {
        let stack = crate::stack().await?;
        Ok(Self {
            stack,
            api: Api::new(stack.api_url())?,
            clients: BTreeMap::new(),
            positions: BTreeMap::new(),
            items: BTreeMap::new(),
            orders: BTreeMap::new(),
            customers_of: BTreeMap::new(),
            customer: 0,
            transaction: 0,
            answer: None,
            waited: std::time::Duration::ZERO,
        })
    }

    /// The scenario's connection to a system, as its application has one.
    async fn client(&mut self, system: System) -> Result<&mut Client> {
        if self.clients.get(&system).is_none_or(Client::is_closed) {
            let client = self.stack.source(system).await?;
            self.clients.insert(system, client);
        }
        self.clients.get_mut(&system).context("just connected")
    }

    /// Runs statements as one transaction and notes where it ended. Returns the first column of
    /// the last statement's first row, where it has one.
    pub(crate) async fn commit(
        &mut self,
        system: System,
        statements: &[(&str, &[&(dyn ToSql + Sync)])],
    ) -> Result<Option<i64>> {
        let client = self.client(system).await?;
        let transaction = client.transaction().await?;
        let mut returned = None;
        for (statement, parameters) in statements {
            let rows = transaction.query(*statement, parameters).await?;
            returned = rows.first().map(|row| row.get(0));
        }
        transaction.commit().await?;
        let position = current_lsn(client).await?;
        self.positions.insert(system, position);
        Ok(returned)
    }

    /// `Min-Position` that contains everything this scenario has written.
    pub(crate) fn min_position(&self) -> String {
        let positions: Vec<_> = self
            .positions
            .iter()
            .map(|(system, lsn)| format!("{}={lsn}", system.name()))
            .collect();
        positions.join(", ")
    }

    /// Asks for one row at the position of the last write.
    pub(crate) async fn look(&mut self, path: &str) -> Result<Answer> {
        let minimum = self.min_position();
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}max_wait_ms=10000");
        let minimum = (!minimum.is_empty()).then_some(minimum.as_str());
        self.api.patient(&path, minimum).await
    }

    pub(crate) fn item(&self, name: &str) -> Result<i64> {
        let id = self.items.get(name).copied();
        id.with_context(|| format!("the story has no item {name:?}"))
    }

    pub(crate) fn order(&self, name: &str) -> Result<i64> {
        let id = self.orders.get(name).copied();
        id.with_context(|| format!("the story has no order {name:?}"))
    }

    /// A customer that no other scenario has.
    pub(crate) async fn new_customer(&mut self) -> Result<i32> {
        // Customers live in another system yet; any number of their own does.
        let number = self
            .client(System::Sales)
            .await?
            .query_one("select nextval('sls_order_id_seq')", &[])
            .await?
            .get::<_, i64>(0);
        self.customer = i32::try_from(number)? + 1_000_000;
        Ok(self.customer)
    }

    /// As the warehouse's application does it: the item, its price and its quantity are three
    /// transactions.
    pub(crate) async fn make_item(&mut self, name: &str, country: &str) -> Result<i64> {
        let id = self
            .commit(
                System::Warehouse,
                &[(
                    "insert into wh_item (name, description, country_of_origin)
                     values ($1 || ' ' || gen_random_uuid()::text, '', $2) returning id",
                    &[&name, &country],
                )],
            )
            .await?
            .context("an id")?;
        // The uuid kept two scenarios' items apart until they had an id.
        self.items.insert(name.to_owned(), id);
        Ok(id)
    }

    pub(crate) async fn set_price(&mut self, item: i64, price: &str) -> Result<()> {
        self.commit(
            System::Warehouse,
            &[(
                "insert into wh_price (price, item_id) values ($1::text::numeric, $2)",
                &[&price, &item],
            )],
        )
        .await?;
        Ok(())
    }

    pub(crate) async fn set_quantity(&mut self, item: i64, quantity: i32) -> Result<()> {
        self.commit(
            System::Warehouse,
            &[(
                "insert into wh_quantity (quantity, item_id) values ($1, $2)",
                &[&quantity, &item],
            )],
        )
        .await?;
        Ok(())
    }

    /// Writes an order and its lines in one transaction, under an id of its own or a given one.
    pub(crate) async fn place(&mut self, name: &str, customer: i32, lines: &[Line]) -> Result<i64> {
        let id = match self.orders.get(name) {
            Some(id) => *id,
            None => self.next_order().await?,
        };
        let rows = lines
            .iter()
            .map(|line| Ok((i32::try_from(self.item(&line.item)?)?, line)))
            .collect::<Result<Vec<_>>>()?;
        let client = self.client(System::Sales).await?;
        let transaction = client.transaction().await?;
        transaction
            .execute(
                "insert into sls_order (id, customer_id, date) values ($1, $2, now())",
                &[&id, &customer],
            )
            .await?;
        for (item, line) in rows {
            transaction
                .execute(
                    "insert into sls_orderdetail (item_id, unit_price, quantity, order_id)
                     values ($1, $2::text::numeric, $3, $4)",
                    &[&item, &line.price, &line.quantity, &id],
                )
                .await?;
        }
        transaction.commit().await?;
        let position = current_lsn(client).await?;
        self.positions.insert(System::Sales, position);
        self.orders.insert(name.to_owned(), id);
        self.customers_of.insert(name.to_owned(), customer);
        Ok(id)
    }

    /// The id that sales will give to an order.
    pub(crate) async fn next_order(&mut self) -> Result<i64> {
        let client = self.client(System::Sales).await?;
        let row = client
            .query_one("select nextval('sls_order_id_seq')", &[])
            .await?;
        Ok(row.get(0))
    }

    pub(crate) async fn pay(&mut self, order: i64, sum: &str) -> Result<()> {
        let order = i32::try_from(order)?;
        let client = self.client(System::Accounting).await?;
        let transaction = client.transaction().await?;
        let id: i64 = transaction
            .query_one(
                "insert into ac_transaction (order_id) values ($1) returning id",
                &[&order],
            )
            .await?
            .get(0);
        transaction
            .execute(
                "insert into ac_transactiondetail (sum, date, transaction_id)
                 values ($1::text::numeric, now(), $2)",
                &[&sum, &id],
            )
            .await?;
        transaction.commit().await?;
        let position = current_lsn(client).await?;
        self.positions.insert(System::Accounting, position);
        self.transaction = id;
        Ok(())
    }
}

/// Compares fields of a row with a story's table. `null` is null, the rest is compared as text.
pub(crate) fn shows(row: &Value, expected: &[Vec<String>]) -> Result<()> {
    for pair in expected {
        let [field, value] = pair.as_slice() else {
            anyhow::bail!("a row of the table is not field and value: {pair:?}");
        };
        let seen = row
            .get(field)
            .with_context(|| format!("there is no field {field} in {row}"))?;
        let seen = match seen {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        ensure!(
            seen == *value,
            "{field} is {seen}, and should be {value}, in {row}"
        );
    }
    Ok(())
}
