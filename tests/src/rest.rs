//! At rest everything agrees: the mirrors with the sources; the view, the API and whoever
//! follows the topics with the oracle.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use fixtures::legacy::System;
use fixtures::stack::Stack;
use serde_json::{Map, Value};

use crate::api::Api;
use crate::oracle::{ID, Key, Oracle, Rows, SOURCE_TABLES, UNIFIED, Unified, in_path, key, rows};
use crate::topics::Reader;

/// What a row of the view says about itself rather than about the sources.
const ABOUT_ITSELF: [&str; 3] = ["unknown", "degraded", "revision"];

/// Waits until the stack has caught up, then compares everything with everything.
///
/// # Errors
/// With the first rows that differ, and the services' logs.
pub async fn agrees(stack: &Stack) -> Result<()> {
    let oracle = shown(stack).await?;
    let compared = topics_agree(stack, &oracle).await;
    compared.map_err(|error| stack.explain(error))
}

/// [`agrees`] without those who read the topics from their beginning. Returns what all should show.
///
/// # Errors
/// As there.
pub async fn shown(stack: &Stack) -> Result<Oracle> {
    stack.caught_up().await?;
    let oracle = Oracle::read(stack).await?;
    let compared = async {
        view_agrees(stack, &oracle).await?;
        api_agrees(stack, &oracle).await
    };
    compared.await.map_err(|error| stack.explain(error))?;
    Ok(oracle)
}

/// The view's mirrors equal the sources, its unified tables the oracle's.
///
/// # Errors
/// With the first rows that differ.
pub async fn view_agrees(stack: &Stack, oracle: &Oracle) -> Result<()> {
    let view = stack.view().await?;
    for table in SOURCE_TABLES {
        let mirror = table.rows(&view, table.system.name()).await?;
        let what = format!("the mirror {}.{}", table.system.name(), table.table);
        let expected = table.as_mirrored(&oracle.sources[&table.topic()]);
        same(&what, &mirror, &expected)?;
    }
    for (Unified { table, key, .. }, sql) in UNIFIED.iter().zip(VIEW_SQL) {
        let seen = rows(&view, sql, key)
            .await
            .with_context(|| format!("the view's {table}"))?;
        same(
            &format!("the view's public.{table}"),
            &seen,
            &oracle.unified[*table],
        )?;
    }
    Ok(())
}

/// Every list of the API, walked in small and large pages, equals the oracle.
///
/// # Errors
/// With the first rows that differ.
pub async fn api_agrees(stack: &Stack, oracle: &Oracle) -> Result<()> {
    let api = Api::new(stack.api_url())?;
    let least = api.view_stands_at().await?;
    for one in UNIFIED {
        let (path, expected) = (one.path(), &oracle.unified[one.table]);
        let walked = api.walk(&path, 211, None).await?;
        let keys = walked.iter().map(|row| key(row, one.key));
        let keys = keys.collect::<Result<Vec<Key>>>()?;
        ensure!(keys.is_sorted(), "/v1/{path} is not in the order of keys");
        let walked = walked.into_iter().map(without_itself);
        let walked = walked.collect::<Result<Vec<_>>>()?;
        let rows: Rows = keys.into_iter().zip(walked.iter().cloned()).collect();
        ensure!(rows.len() == walked.len(), "/v1/{path} has a row twice");
        same(&format!("/v1/{path}"), &rows, expected)?;
        // One by one as well: these go through the cache, which follows the view.
        for (key, expected) in sample(expected) {
            let path = format!("/v1/{path}/{}", in_path(key));
            let answer = api.at(&path, &least).await?;
            ensure!(answer.status.is_success(), "{path}: {}", answer.body);
            let seen = without_itself(answer.body)?;
            ensure!(
                seen == *expected,
                "{path} is {seen}\nbut should be {expected}"
            );
        }
    }
    let sold = api.walk("sold-items", 97, None).await?;
    let sold = sold
        .into_iter()
        .map(without_itself)
        .collect::<Result<Vec<_>>>()?;
    let expected = oracle.sold_items();
    ensure!(
        sold == expected,
        "/v1/sold-items has {} rows, and should have {}, or they are in another order",
        sold.len(),
        expected.len()
    );
    Ok(())
}

/// Readers of checkpoints, who start now from nothing, rebuild the source tables and the unified
/// tables from the topics.
///
/// # Errors
/// With the first rows that differ.
pub async fn topics_agree(stack: &Stack, oracle: &Oracle) -> Result<()> {
    for system in System::ALL {
        let mut reader = Reader::from_the_beginning(stack, system.name())?;
        reader.reach(&stack.wal_lsn(system).await?).await?;
        reader_agrees(&reader, oracle)?;
    }
    let mut reader = Reader::from_the_beginning(stack, "unified")?;
    let view = stack.view().await?;
    reader
        .reach(&fixtures::stack::current_lsn(&view).await?)
        .await?;
    reader_agrees(&reader, oracle)
}

/// The tables of one reader that has reached the end equal the source's, or the oracle's.
///
/// # Errors
/// With the first rows that differ.
pub fn reader_agrees(reader: &Reader, oracle: &Oracle) -> Result<()> {
    let source = reader.source();
    for table in SOURCE_TABLES
        .iter()
        .filter(|table| table.system.name() == source)
    {
        let seen = by_id(reader.table(&format!("public.{}", table.table)))?;
        let topic = table.topic();
        same(
            &format!("the topic {topic}"),
            &seen,
            &oracle.sources[&topic],
        )?;
    }
    if source == "unified" {
        for one in UNIFIED {
            let name = format!("public.{}", one.table);
            let seen = unified(one, reader.table(&name))?;
            let what = format!("the topic unified.{name}");
            same(&what, &seen, &oracle.unified[one.table])?;
        }
    }
    Ok(())
}

/// Rows of a unified table as events have them, in the API's shape.
///
/// # Errors
/// Where a row is not as the envelope says.
pub fn unified(table: Unified, events: &BTreeMap<String, Value>) -> Result<Rows> {
    events
        .values()
        .map(|event| {
            let mut row = event.clone();
            if let Some(days) = row["day"].as_i64() {
                row["day"] = day(days).into();
            }
            for (name, value) in row.as_object_mut().context("a row is no object")? {
                let text = value.as_str();
                match (name.as_str(), text) {
                    // An array comes as PostgreSQL's text.
                    ("unknown", Some("{}")) => *value = Value::Array(Vec::new()),
                    ("systems", Some(text)) => {
                        let names = text.trim_matches(['{', '}']).split(',');
                        *value = names.collect::<Vec<_>>().into();
                    }
                    ("lines" | "transactions" | "details" | "detail", Some(text)) => {
                        *value = serde_json::from_str(text)?;
                    }
                    (
                        "price" | "revenue" | "total" | "paid" | "balance" | "ordered" | "amount",
                        Some(text),
                    ) => *value = two_places(text)?.into(),
                    _ => {}
                }
            }
            Ok((key(&row, table.key)?, without_itself(row)?))
        })
        .collect()
}

/// A date as the API writes it, of days since 1970 as an event has them.
fn day(days: i64) -> String {
    let midnight = fixtures::legacy::time::Moment(days * 86_400_000_000);
    midnight.to_string().chars().take(10).collect()
}

/// Rows of a source table as events have them, by id.
fn by_id(events: &BTreeMap<String, Value>) -> Result<Rows> {
    events
        .values()
        .map(|row| Ok((key(row, ID)?, row.clone())))
        .collect()
}

/// A decimal with two places; it must not have more that matter.
fn two_places(text: &str) -> Result<String> {
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    let (kept, rest) = places.split_at(places.len().min(2));
    ensure!(
        rest.bytes().all(|digit| digit == b'0'),
        "{text} is no money"
    );
    Ok(format!("{whole}.{kept:0<2}"))
}

/// Drops what a row says about itself, which must be that it is whole; and since when there is a
/// discrepancy, which no join tells.
fn without_itself(mut row: Value) -> Result<Value> {
    let fields: &mut Map<String, Value> = row.as_object_mut().context("a row is no object")?;
    if fields.contains_key("rule") {
        let since = fields.remove("since");
        ensure!(
            since.as_ref().is_some_and(Value::is_string),
            "a discrepancy since {since:?}: {row}"
        );
    }
    let [unknown, degraded, revision] = ABOUT_ITSELF.map(|name| fields.remove(name));
    ensure!(
        unknown == Some(Value::Array(Vec::new())) && degraded == Some(Value::Bool(false)),
        "a row at rest with unknown {unknown:?}, degraded {degraded:?}: {row}"
    );
    ensure!(
        revision.as_ref().is_some_and(Value::is_string),
        "a row with revision {revision:?}: {row}"
    );
    Ok(row)
}

/// Some rows from everywhere in a table, the last ones (with the oddities) among them.
fn sample(rows: &Rows) -> impl Iterator<Item = (&Key, &Value)> {
    let every = (rows.len() / 25).max(1);
    let last = rows.len().saturating_sub(12);
    rows.iter()
        .enumerate()
        .filter(move |(n, _)| n % every == 0 || *n >= last)
        .map(|(_, row)| row)
}

/// Compares two tables and shows the first few differences.
///
/// # Errors
/// Where they differ.
pub fn same(what: &str, seen: &Rows, expected: &Rows) -> Result<()> {
    if seen == expected {
        return Ok(());
    }
    let ids: BTreeSet<&Key> = seen.keys().chain(expected.keys()).collect();
    let differing: Vec<_> = ids
        .into_iter()
        .filter(|id| seen.get(*id) != expected.get(*id))
        .collect();
    let mut report = format!("{what} differs in {} rows", differing.len());
    for id in differing.iter().take(5) {
        let show = |rows: &Rows| rows.get(*id).map_or("nothing".to_owned(), Value::to_string);
        write!(
            report,
            "\n{}: it has   {:.600}\n    it should {:.600}",
            in_path(id),
            show(seen),
            show(expected)
        )?;
    }
    bail!(report)
}

/// The view's unified tables in the API's shape, in the order of [`UNIFIED`].
const VIEW_SQL: [&str; 6] = [
    "select id, jsonb_build_object('id', id, 'name', name, 'description', description,
            'country_of_origin', country_of_origin, 'price', price::numeric(40, 2)::text,
            'quantity_in_stock', quantity_in_stock, 'units_sold', units_sold,
            'revenue', revenue::numeric(40, 2)::text, 'status', status)::text from public.products",
    "select id, jsonb_build_object('id', id, 'customer_id', customer_id, 'ordered_at',
            to_char(ordered_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
            'lines', lines, 'total', total::numeric(40, 2)::text, 'transactions', transactions,
            'paid', paid::numeric(40, 2)::text, 'balance', balance::numeric(40, 2)::text,
            'payment_status', payment_status)::text from public.orders",
    "select id, jsonb_build_object('id', id, 'order_count', order_count,
            'ordered', ordered::numeric(40, 2)::text, 'paid', paid::numeric(40, 2)::text,
            'balance', balance::numeric(40, 2)::text)::text from public.customers",
    "select id, jsonb_build_object('id', id, 'order_id', order_id,
            'amount', amount::numeric(40, 2)::text, 'details', details)::text
            from public.transactions",
    "select jsonb_build_object('day', to_char(day, 'YYYY-MM-DD'), 'product_id', product_id,
        'orders', orders, 'units', units, 'revenue', revenue::numeric(40, 2)::text)::text
        from public.daily_sales",
    "select id, jsonb_build_object('id', id, 'rule', rule, 'systems', systems,
        'resource', resource, 'key', key, 'detail', detail)::text from public.discrepancies",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::oracle::Part;

    #[test]
    fn money_is_compared_with_two_places() {
        for (text, expected) in [("5", "5.00"), ("5.5", "5.50"), ("-0.25000", "-0.25")] {
            assert_eq!(two_places(text).unwrap(), expected);
        }
        assert!(two_places("1.234").is_err());
    }

    #[test]
    fn a_missing_row_is_shown() {
        let expected = Rows::from([(vec![Part::Number(7)], json!({"id": 7}))]);
        let error = same("a table", &Rows::new(), &expected).unwrap_err();
        assert!(error.to_string().contains("7: it has   nothing"));
    }
}
