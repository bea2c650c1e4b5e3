//! What the owners of the sources do to their tables, besides their applications: they alter them,
//! write what no view can apply, and mend it.

use anyhow::{Context, Result};
use fixtures::legacy::System;
use fixtures::stack::Stack;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// What is done to a column that the view does not need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alteration {
    /// With this default; one that is there is dropped before, in the same transaction.
    Add(i32),
    /// Where there is none, one is added.
    Rename,
    Drop,
}

/// Tables that are altered.
pub(super) const ALTERED: [(System, &str); 3] = [
    (System::Accounting, "ac_transaction"),
    (System::Sales, "sls_order"),
    (System::Warehouse, "wh_item"),
];

/// The names of the column that comes and goes.
const NOTES: [&str; 2] = ["note", "remark"];

/// A column whose values a sum or a date cannot contain, for some rows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spoilt {
    pub(super) system: System,
    pub(super) table: &'static str,
    pub(super) column: &'static str,
    value: &'static str,
    sound: &'static str,
    /// Of which rows: none of those that somebody guards, or reads again.
    rows: &'static str,
    /// The unified table that shows it, and the column that has its key.
    pub(super) shown_in: (&'static str, &'static str),
}

/// What is spoilt. All kinds of it in one table come to fewer keys than suspend it, but for prices.
pub(super) const SPOILT: [Spoilt; 5] = [
    Spoilt {
        system: System::Warehouse,
        table: "wh_price",
        column: "price",
        value: "NaN",
        sound: "5.00",
        rows: "true",
        shown_in: ("products", "item_id"),
    },
    Spoilt {
        system: System::Accounting,
        table: "ac_transactiondetail",
        column: "sum",
        value: "NaN",
        sound: "7.00",
        rows: SEEDED_TRANSACTIONS,
        shown_in: ("transactions", "transaction_id"),
    },
    Spoilt {
        system: System::Accounting,
        table: "ac_transactiondetail",
        column: "date",
        value: "infinity",
        sound: "2020-02-02",
        rows: SEEDED_TRANSACTIONS,
        shown_in: ("transactions", "transaction_id"),
    },
    Spoilt {
        system: System::Sales,
        table: "sls_order",
        column: "date",
        value: "-infinity",
        sound: "2021-03-04",
        rows: "id <= 2000",
        shown_in: ("orders", "id"),
    },
    Spoilt {
        system: System::Sales,
        table: "sls_orderdetail",
        column: "unit_price",
        value: "NaN",
        sound: "1.25",
        rows: "order_id <= 2000",
        shown_in: ("orders", "order_id"),
    },
];

const SEEDED_TRANSACTIONS: &str =
    "transaction_id in (select id from ac_transaction where order_id <= 2000)";

/// How many of a table's rows are spoilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// Those whose id leaves this when divided by 97.
    Few(u32),
    /// Every third: more than the quarantine takes.
    Third,
}

/// More keys of a table than this suspend it; fewer are spoilt of all but prices.
pub(super) const SUSPEND_AFTER: i64 = 150;

/// One transaction that changes rows, alters the table, and changes rows again. Who waits for a lock
/// on the table has none on another.
pub(super) async fn alter(client: &mut Client, table: &str, alteration: Alteration) -> Result<()> {
    let writing = client.transaction().await?;
    let lock = format!("lock table {table} in access exclusive mode");
    writing.batch_execute(&lock).await?;
    let sql = "select column_name::text from information_schema.columns
               where table_schema = 'public' and table_name = $1::text
                   and column_name::text = any($2)";
    let found = writing
        .query_opt(sql, &[&table, &NOTES.as_slice()])
        .await?
        .map(|row| row.get::<_, String>(0));
    let add = |name: &str, default: i32| {
        format!("alter table {table} add column {name} int not null default {default}")
    };
    let drop = |name: &str| format!("alter table {table} drop column {name}");
    let (statements, left) = match (alteration, found) {
        (Alteration::Add(default), None) => (vec![add(NOTES[0], default)], Some(NOTES[0])),
        (Alteration::Add(default), Some(name)) => {
            (vec![drop(&name), add(NOTES[0], default)], Some(NOTES[0]))
        }
        (Alteration::Drop, Some(name)) => (vec![drop(&name)], None),
        (Alteration::Rename | Alteration::Drop, None) => (vec![add(NOTES[1], 1)], Some(NOTES[1])),
        (Alteration::Rename, Some(name)) => {
            let other = if name == NOTES[0] { NOTES[1] } else { NOTES[0] };
            let rename = format!("alter table {table} rename column {name} to {other}");
            (vec![rename], Some(other))
        }
    };
    let before = format!("update {table} set id = id where id % 7 = 3");
    writing.batch_execute(&before).await?;
    for statement in statements {
        writing.batch_execute(&statement).await?;
    }
    let after = match left {
        Some(name) => {
            format!("update {table} set {name} = {name} + (id % 5)::int where id % 7 in (3, 4)")
        }
        None => format!("update {table} set id = id where id % 7 = 4"),
    };
    writing.batch_execute(&after).await?;
    writing.commit().await?;
    Ok(())
}

/// A column that the view needs gets another name, or its own back.
pub(super) async fn rename_item_name(stack: &Stack, is_renamed: bool) -> Result<()> {
    let names = if is_renamed {
        ("name", "label")
    } else {
        ("label", "name")
    };
    let sql = format!(
        "alter table wh_item rename column {} to {}",
        names.0, names.1
    );
    let client = stack.source(System::Warehouse).await?;
    client.batch_execute(&sql).await?;
    Ok(())
}

/// Has an application been told that a column has another name just now?
pub(super) fn is_of_renaming(error: &anyhow::Error) -> bool {
    let mut of_postgres = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    of_postgres.any(|error| error.code() == Some(&SqlState::UNDEFINED_COLUMN))
}

impl Spoilt {
    /// What was spoilt of it before is mended, and some rows are spoilt.
    pub(super) async fn spoil(&self, stack: &Stack, share: Share) -> Result<()> {
        let mut client = stack.source(self.system).await?;
        let Self {
            table,
            column,
            value,
            rows,
            ..
        } = self;
        let share = match share {
            Share::Few(rest) => format!("id % 97 = {rest}"),
            Share::Third => "id % 3 = 0".to_owned(),
        };
        let writing = client.transaction().await?;
        let lock = format!("lock table {table} in share row exclusive mode");
        writing.batch_execute(&lock).await?;
        writing.batch_execute(&self.mending()).await?;
        let sql = format!("update {table} set {column} = '{value}' where {rows} and {share}");
        writing.batch_execute(&sql).await?;
        writing.commit().await?;
        Ok(())
    }

    fn mending(&self) -> String {
        let Self {
            table,
            column,
            value,
            sound,
            ..
        } = self;
        format!("update {table} set {column} = '{sound}' where {column} = '{value}'")
    }

    /// The ids of the rows that are spoilt, and the keys of the unified rows that show them.
    pub(super) async fn found(&self, stack: &Stack) -> Result<Vec<(i64, i64)>> {
        let client = stack.source(self.system).await?;
        let Self {
            table,
            column,
            value,
            shown_in: (_, key),
            ..
        } = self;
        let sql =
            format!("select id, {key}::bigint from {table} where {column} = '{value}' order by id");
        let rows = client.query(&sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

/// All that is spoilt gets values again.
pub(super) async fn mend(stack: &Stack) -> Result<()> {
    for spoilt in &SPOILT {
        let mut client = stack.source(spoilt.system).await?;
        let writing = client.transaction().await?;
        let lock = format!("lock table {} in share row exclusive mode", spoilt.table);
        writing.batch_execute(&lock).await?;
        writing.batch_execute(&spoilt.mending()).await?;
        writing
            .commit()
            .await
            .with_context(|| format!("cannot mend {}", spoilt.table))?;
    }
    Ok(())
}
