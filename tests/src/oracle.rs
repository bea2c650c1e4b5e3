//! What must be true at rest, computed without any of the code under test: the source tables
//! are copied side by side into a database of the oracle's own, and one SQL join makes each
//! unified table from them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use fixtures::legacy::System;
use fixtures::postgres::connect;
use fixtures::servers::{database, servers};
use fixtures::stack::Stack;
use futures_util::{SinkExt, StreamExt, pin_mut};
use serde_json::Value;
use tokio_postgres::Client;

/// Rows by primary key.
pub type Rows = BTreeMap<Key, Value>;

/// The columns of a primary key, in the order of the API's lists.
pub type Key = Vec<Part>;

/// A value of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Number(i64),
    Text(String),
}

/// A unified table.
#[derive(Debug, Clone, Copy)]
pub struct Unified {
    /// In the view and in topics, without its schema.
    pub table: &'static str,
    pub key: &'static [&'static str],
    /// What makes it from the source tables: `row text` (JSON).
    sql: &'static str,
}

/// Every unified table.
pub const UNIFIED: [Unified; 6] = [
    Unified {
        table: "products",
        key: ID,
        sql: include_str!("../oracle/products.sql"),
    },
    Unified {
        table: "orders",
        key: ID,
        sql: include_str!("../oracle/orders.sql"),
    },
    Unified {
        table: "customers",
        key: ID,
        sql: include_str!("../oracle/customers.sql"),
    },
    Unified {
        table: "transactions",
        key: ID,
        sql: include_str!("../oracle/transactions.sql"),
    },
    Unified {
        table: "daily_sales",
        key: &["day", "product_id"],
        sql: include_str!("../oracle/daily_sales.sql"),
    },
    Unified {
        table: "discrepancies",
        key: ID,
        sql: include_str!("../oracle/discrepancies.sql"),
    },
];

/// The key of every table of a source, and of most unified ones.
pub const ID: &[&str] = &["id"];

impl Unified {
    /// As the API names it.
    #[must_use]
    pub fn path(&self) -> String {
        self.table.replace('_', "-")
    }
}

/// The key of a row.
///
/// # Errors
/// Where a column of it is missing.
pub fn key(row: &Value, columns: &[&str]) -> Result<Key> {
    let part = |name: &&str| match &row[*name] {
        Value::Number(number) => number.as_i64().map(Part::Number),
        Value::String(text) => Some(Part::Text(text.clone())),
        _ => None,
    };
    let parts = columns.iter().map(part).collect::<Option<_>>();
    parts.with_context(|| format!("a row without {}: {row}", columns.join(", ")))
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// As a path has it.
#[must_use]
pub fn in_path(key: &[Part]) -> String {
    let parts: Vec<_> = key.iter().map(ToString::to_string).collect();
    parts.join("/")
}

/// A table of a source and its columns, each as SQL that gives the value as an event has it.
#[derive(Debug, Clone, Copy)]
pub struct SourceTable {
    pub system: System,
    pub table: &'static str,
    columns: &'static [(&'static str, Encoding)],
}

#[derive(Debug, Clone, Copy)]
enum Encoding {
    Plain,
    /// `numeric`: a decimal string.
    Decimal,
    /// `timestamptz`: an ISO string in UTC with microseconds.
    Instant,
}

use Encoding::{Decimal, Instant, Plain};

/// Every captured table.
pub const SOURCE_TABLES: [SourceTable; 7] = [
    SourceTable {
        system: System::Warehouse,
        table: "wh_item",
        columns: &[
            ("id", Plain),
            ("name", Plain),
            ("description", Plain),
            ("country_of_origin", Plain),
        ],
    },
    SourceTable {
        system: System::Warehouse,
        table: "wh_price",
        columns: &[("id", Plain), ("price", Decimal), ("item_id", Plain)],
    },
    SourceTable {
        system: System::Warehouse,
        table: "wh_quantity",
        columns: &[("id", Plain), ("quantity", Plain), ("item_id", Plain)],
    },
    SourceTable {
        system: System::Accounting,
        table: "ac_transaction",
        columns: &[("id", Plain), ("order_id", Plain)],
    },
    SourceTable {
        system: System::Accounting,
        table: "ac_transactiondetail",
        columns: &[
            ("id", Plain),
            ("sum", Decimal),
            ("date", Instant),
            ("transaction_id", Plain),
        ],
    },
    SourceTable {
        system: System::Sales,
        table: "sls_order",
        columns: &[("id", Plain), ("customer_id", Plain), ("date", Instant)],
    },
    SourceTable {
        system: System::Sales,
        table: "sls_orderdetail",
        columns: &[
            ("id", Plain),
            ("item_id", Plain),
            ("unit_price", Decimal),
            ("quantity", Plain),
            ("order_id", Plain),
        ],
    },
];

/// RFC 3339 in UTC with microseconds, as the API and the events write it.
fn instant(expression: &str) -> String {
    format!("to_char({expression} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
}

impl SourceTable {
    /// `sales.public.sls_order`: its topic, but for the prefix.
    #[must_use]
    pub fn topic(&self) -> String {
        format!("{}.public.{}", self.system.name(), self.table)
    }

    /// Its rows in `schema`, each as an event's `after`, with whatever columns there are.
    ///
    /// # Errors
    /// Where the database refuses.
    pub async fn rows(&self, client: &Client, schema: &str) -> Result<Rows> {
        let known: Vec<_> = self.columns.iter().map(|(name, _)| *name).collect();
        let sql = "select column_name::text from information_schema.columns
                   where table_schema = $1::text and table_name = $2::text
                       and column_name <> all($3)";
        let added = client.query(sql, &[&schema, &self.table, &known]).await?;
        let added: Vec<String> = added.iter().map(|row| row.get(0)).collect();
        let added = added.iter().map(|name| (name.as_str(), Plain));
        let fields: Vec<String> = self
            .columns
            .iter()
            .copied()
            .chain(added)
            .map(|(name, encoding)| match encoding {
                Plain => format!("'{name}', \"{name}\""),
                Decimal => format!("'{name}', \"{name}\"::text"),
                Instant => format!("'{name}', {}", instant(&format!("\"{name}\""))),
            })
            .collect();
        let sql = format!(
            "select jsonb_build_object({})::text from {schema}.{}",
            fields.join(", "),
            self.table
        );
        rows(client, &sql, ID).await
    }
}

impl SourceTable {
    /// Rows of it with the columns that the view needs, and no others.
    #[must_use]
    pub fn as_mirrored(&self, rows: &Rows) -> Rows {
        let mirrored = |row: &Value| -> Value {
            let columns = self.columns.iter();
            columns
                .map(|(name, _)| ((*name).to_owned(), row[*name].clone()))
                .collect()
        };
        rows.iter()
            .map(|(key, row)| (key.clone(), mirrored(row)))
            .collect()
    }
}

/// Runs SQL whose last column is `row text` (JSON).
///
/// # Errors
/// Where the database refuses or a row is not JSON.
pub async fn rows(client: &Client, sql: &str, columns: &[&str]) -> Result<Rows> {
    let mut rows = Rows::new();
    for row in client.query(sql, &[]).await? {
        let json: Value = serde_json::from_str(row.get(row.len() - 1))?;
        let key = key(&json, columns)?;
        let name = in_path(&key);
        ensure!(rows.insert(key, json).is_none(), "two rows {name}");
    }
    Ok(rows)
}

/// The truth at rest.
#[derive(Debug)]
pub struct Oracle {
    /// The unified tables by name, rows in the API's shape.
    pub unified: BTreeMap<&'static str, Rows>,
    /// The source tables by topic (without prefix), rows as events have them.
    pub sources: BTreeMap<String, Rows>,
}

impl Oracle {
    /// Reads the sources, which must be at rest.
    ///
    /// # Errors
    /// Where a database refuses.
    pub async fn read(stack: &Stack) -> Result<Self> {
        let server = servers().view().await?;
        let name = database(server, "oracle").await?;
        let scratch = connect(&server.superuser_url(&name)).await?;
        scratch
            .batch_execute(include_str!("../oracle/sources.sql"))
            .await
            .context("cannot make the oracle's tables")?;
        let mut sources = BTreeMap::new();
        for table in SOURCE_TABLES {
            let source = stack.source(table.system).await?;
            copy(&source, &scratch, table).await?;
            sources.insert(table.topic(), table.rows(&source, "public").await?);
        }
        let mut unified = BTreeMap::new();
        for Unified { table, key, sql } in UNIFIED {
            let made = rows(&scratch, sql, key)
                .await
                .with_context(|| format!("the oracle's {table}"))?;
            unified.insert(table, made);
        }
        Ok(Self { unified, sources })
    }

    /// Products that were sold, most sold first, then by id.
    #[must_use]
    pub fn sold_items(&self) -> Vec<Value> {
        let units = |row: &Value| row["units_sold"].as_i64().unwrap_or_default();
        let mut sold: Vec<Value> = self.unified["products"]
            .values()
            .filter(|row| units(row) > 0)
            .cloned()
            .collect();
        sold.sort_by_key(|row| (-units(row), row["id"].as_i64()));
        sold
    }
}

async fn copy(source: &Client, scratch: &Client, table: SourceTable) -> Result<()> {
    let columns: Vec<_> = table
        .columns
        .iter()
        .map(|(name, _)| format!("\"{name}\""))
        .collect();
    let columns = columns.join(", ");
    let name = table.table;
    let out = source
        .copy_out(&format!("copy public.{name} ({columns}) to stdout"))
        .await?;
    let into = scratch
        .copy_in(&format!(
            "copy {}.{name} ({columns}) from stdin",
            table.system.name()
        ))
        .await?;
    pin_mut!(out);
    pin_mut!(into);
    while let Some(chunk) = out.next().await {
        into.send(chunk?).await?;
    }
    into.finish().await?;
    Ok(())
}
