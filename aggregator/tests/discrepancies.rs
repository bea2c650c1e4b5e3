//! What does not fit between the systems: each rule opens and closes, is claimed only where it is
//! known, and a rule of time is judged by the positions.

use std::time::{Duration, Instant};

use aggregator::config::DiscrepanciesConfig;
use aggregator::view::{Part, RULES, View};
use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};

use crate::oracle::unified_tables_equal_joins;
use crate::rules::{apply, begin, order};
use crate::shop::{DETAIL, ITEM, LINE, QUANTITY, Shop, TRANSACTION};
use crate::source::envelope;
use crate::{Database, sources};

const WITHIN: Duration = Duration::from_secs(30);
const DAY_US: i64 = 24 * 3600 * 1_000_000;

/// The ids of what is open, by id.
async fn open(database: &Database) -> Result<Json> {
    database
        .one("SELECT coalesce(jsonb_agg(id ORDER BY id), '[]') FROM public.discrepancies")
        .await
}

async fn since(database: &Database, id: i64) -> Result<String> {
    let sql = "SELECT aggregator.iso_time(since) FROM public.discrepancies WHERE id =";
    database.one(&format!("{sql} {id}")).await
}

fn pay(shop: &mut Shop, id: i64, order_id: i64, sum: &str, date: &str) {
    let row = json!({"id": id, "order_id": order_id});
    shop.accounting.put(TRANSACTION, row);
    let row = json!({"id": id, "sum": sum, "date": date, "transaction_id": id});
    shop.accounting.put(DETAIL, row);
}

fn item(shop: &mut Shop, id: i64) {
    let row = json!({"id": id, "name": "n", "description": "d", "country_of_origin": "c"});
    shop.warehouse.put(ITEM, row);
}

/// As [`begin`] leaves it: items 1 and 2 are missing, order 1 is paid in part since long ago.
const AT_FIRST: [i64; 3] = [101, 103, 201];

#[tokio::test]
async fn each_rule_opens_and_leaves_when_it_is_mended() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    assert_eq!(open(&database).await?, json!(AT_FIRST));
    let row = "SELECT id, rule, systems, resource, key, detail, unknown, degraded
        FROM public.discrepancies WHERE id = 201";
    assert_eq!(
        database.rows(row).await?,
        json!([{
            "id": 201, "rule": "item_missing", "systems": ["sales", "warehouse"],
            "resource": "products", "key": 2, "detail": {"order_lines": 1}, "unknown": [],
            "degraded": false,
        }])
    );
    item(&mut shop, 1);
    item(&mut shop, 2);
    let negative = json!({"id": 1, "quantity": -2, "item_id": 2});
    shop.warehouse.put(QUANTITY, negative);
    apply(&mut view, &mut shop, "warehouse").await?;
    assert_eq!(open(&database).await?, json!([103, 205]));
    shop.warehouse.delete(QUANTITY, 1, false);
    apply(&mut view, &mut shop, "warehouse").await?;
    // More than it costs, and a payment for an order that is not there.
    pay(&mut shop, 2, 1, "7.00", "2024-02-01T00:00:00.000000Z");
    pay(&mut shop, 3, 77, "5.00", "2024-02-01T00:00:00.000000Z");
    apply(&mut view, &mut shop, "accounting").await?;
    assert_eq!(open(&database).await?, json!([104, 302]));
    assert_eq!(view.discrepancies()["overpaid"], 1);
    assert_eq!(view.discrepancies()["item_missing"], 0);
    shop.accounting.delete(DETAIL, 2, false);
    pay(&mut shop, 3, 1, "6.00", "2024-02-01T00:00:00.000000Z");
    apply(&mut view, &mut shop, "accounting").await?;
    assert_eq!(open(&database).await?, json!([]));
    assert!(view.discrepancies().values().all(|open| *open == 0));
    assert_eq!(view.discrepancies().len(), RULES.len());
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

#[tokio::test]
async fn payments_of_touched_orders_a_late_order_ends_the_discrepancy_of_its_payment() -> Result<()>
{
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    pay(&mut shop, 3, 77, "5.00", "2024-02-01T00:00:00.000000Z");
    apply(&mut view, &mut shop, "accounting").await?;
    ensure!(open(&database).await? == json!([101, 103, 201, 302]));
    order(&mut shop, 77, 7);
    apply(&mut view, &mut shop, "sales").await?;
    // It has no lines yet.
    ensure!(open(&database).await? == json!([101, 103, 201, 7704]));
    Ok(())
}

/// Rows that the writers of this database have read, but for what a new one counts.
async fn rows_read(database: &Database) -> Result<i64> {
    // A session tells what it did, at the latest, when it ends.
    let writers = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'aggregator'";
    let deadline = Instant::now() + WITHIN;
    while database.one::<i64>(writers).await? > 0 {
        ensure!(Instant::now() < deadline, "a writer does not end");
    }
    database
        .one(
            "SELECT (
                SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname <> 'discrepancies'
            )::bigint + (
                SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname <> 'discrepancies'
            )::bigint",
        )
        .await
}

/// A source that writes 0 where there is no order, and a transaction that is not there.
#[tokio::test]
async fn payments_of_turned_orders_a_payment_costs_the_same_whatever_names_the_missing_order()
-> Result<()> {
    const HISTORY: i64 = 3000;
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    let sql = format!(
        "INSERT INTO accounting.ac_transaction SELECT n, 0 FROM generate_series(10, {HISTORY} + 9) AS n;
        INSERT INTO accounting.ac_transactiondetail
            SELECT n, 1.00, '2024-01-01', n FROM generate_series(10, {HISTORY} + 9) AS n;
        INSERT INTO accounting.ac_transactiondetail
            SELECT n, 1.00, '2024-01-01', 0 FROM generate_series({HISTORY} + 10, 2 * {HISTORY} + 9) AS n;
        INSERT INTO sales.sls_orderdetail
            SELECT n, 1, 1.00, 1, 0 FROM generate_series(10, {HISTORY} + 9) AS n"
    );
    database.client.batch_execute(&sql).await?;
    view.recompute().await?;
    assert_eq!(view.discrepancies()["payment_without_order"], HISTORY);
    drop(view);
    let before = rows_read(&database).await?;
    view = database.open().await?;
    let (next, late) = (2 * HISTORY + 10, "2024-02-01T00:00:00.000000Z");
    pay(&mut shop, next, 0, "5.00", late);
    let detail = json!({"id": next + 1, "sum": "1.00", "date": late, "transaction_id": 0});
    shop.accounting.put(DETAIL, detail);
    apply(&mut view, &mut shop, "accounting").await?;
    let line = json!({
        "id": next, "item_id": 1, "unit_price": "1.00", "quantity": 1, "order_id": 0,
    });
    shop.sales.put(LINE, line);
    apply(&mut view, &mut shop, "sales").await?;
    assert_eq!(view.discrepancies()["payment_without_order"], HISTORY + 1);
    drop(view);
    let read = rows_read(&database).await? - before;
    ensure!(read < HISTORY / 10, "{read} rows read for three changes");
    // It comes, and all of them are for it.
    view = database.open().await?;
    order(&mut shop, 0, 1);
    apply(&mut view, &mut shop, "sales").await?;
    assert_eq!(view.discrepancies()["payment_without_order"], 0);
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

#[tokio::test]
async fn claims_of_known_sources_nothing_is_claimed_of_what_was_not_read() -> Result<()> {
    let database = Database::new().await?;
    let (view, mut shop) = begin(&Database::new().await?).await?;
    drop(view);
    pay(&mut shop, 3, 77, "5.00", "2024-02-01T00:00:00.000000Z");
    let negative = json!({"id": 1, "quantity": -2, "item_id": 3});
    shop.warehouse.put(QUANTITY, negative);
    item(&mut shop, 3);
    let mut view = database.open().await?;
    for (source, opened) in [
        ("accounting", json!([])),
        ("warehouse", json!([305])),
        ("sales", json!([101, 103, 201, 302, 305])),
    ] {
        shop.source(source).checkpoint();
        let part = shop.source(source).part(&view.standing(source));
        view.serve(part).await?;
        let found = open(&database).await?;
        ensure!(found == opened, "{found} after {source}");
    }
    Ok(())
}

#[tokio::test]
async fn due_by_position_sources_at_rest_that_are_known_until_later_make_orders_due() -> Result<()>
{
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    // Paid in part since the first of January.
    let due_us = 1_704_067_200_000_000 + 30 * DAY_US;
    for (accounting, sales, is_due) in [
        (due_us - 1, due_us - 1, false),
        // Not while one of them may still show that it was paid.
        (due_us, due_us - 1, false),
        (due_us - 1, due_us + 5 * DAY_US, false),
        (due_us, due_us + 5 * DAY_US, true),
        (due_us + DAY_US, due_us, true),
        // A source that was restored does not know it any more.
        (due_us - DAY_US, due_us, false),
    ] {
        for (source, until) in [("accounting", accounting), ("sales", sales)] {
            shop.source(source).known_until_us = until;
            apply(&mut view, &mut shop, source).await?;
        }
        let found = open(&database).await?;
        let expected = if is_due {
            json!(AT_FIRST)
        } else {
            json!([101, 201])
        };
        ensure!(found == expected, "{found} with {accounting} and {sales}");
        unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
        if is_due {
            assert_eq!(since(&database, 103).await?, "2024-01-31T00:00:00.000000Z");
        }
        drop(view);
        view = database.open().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_belongs_to_an_input_in_quarantine_is_not_claimed() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    pay(&mut shop, 3, 77, "5.00", "2024-02-01T00:00:00.000000Z");
    apply(&mut view, &mut shop, "accounting").await?;
    ensure!(open(&database).await? == json!([101, 103, 201, 302]));
    // An order that there is, but which cannot be applied.
    let row = json!({"id": 77, "customer_id": 1, "date": "infinity"});
    let event = envelope("c", None, Some(row));
    shop.sales.send(crate::shop::ORDER, 77, Some(event));
    let row = json!({"id": 1, "item_id": 1, "unit_price": "NaN", "quantity": 1, "order_id": 1});
    let event = envelope("u", None, Some(row));
    shop.sales.send(LINE, 1, Some(event));
    apply(&mut view, &mut shop, "sales").await?;
    ensure!(open(&database).await? == json!([201]));
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    ensure!(
        view.discard("sales", crate::shop::ORDER, r#"{"id":77}"#)
            .await?
    );
    ensure!(open(&database).await? == json!([201, 302]));
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

#[tokio::test]
async fn since_is_when_it_opened_and_stays_while_it_is_open() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    pay(&mut shop, 2, 1, "7.00", "2024-02-01T00:00:00.000000Z");
    shop.accounting.known_until_us = 1_800_000_000_000_000;
    apply(&mut view, &mut shop, "accounting").await?;
    let opened = "2027-01-15T08:00:00.000000Z";
    assert_eq!(since(&database, 104).await?, opened);
    // It changes, and in the middle of a view transaction of two steps it is not there.
    shop.accounting.known_until_us += DAY_US;
    shop.accounting.delete(DETAIL, 2, false);
    let part = {
        shop.accounting.checkpoint();
        shop.accounting.part(&view.standing("accounting"))
    };
    view.step("accounting", part.changes).await?;
    let before = part.moved.standing;
    let row = json!({
        "id": 9, "sum": "8.00", "date": "2024-02-01T00:00:00.000000Z", "transaction_id": 2,
    });
    shop.accounting.put(DETAIL, row);
    shop.accounting.checkpoint();
    let part = shop.accounting.part(&before);
    view.apply(vec![part]).await?;
    assert_eq!(since(&database, 104).await?, opened);
    let paid: String = database
        .one("SELECT detail->>'paid' FROM public.discrepancies WHERE id = 104")
        .await?;
    assert_eq!(paid, "12.00");
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

#[tokio::test]
async fn another_bound_is_applied_to_what_is_there() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    drop(view);
    let silence_max = Duration::from_secs(5);
    let bound = |part_paid_max_s| DiscrepanciesConfig { part_paid_max_s };
    let ten_years = bound(315_360_000);
    view = View::open(&database.config, &ten_years, &sources(), silence_max).await?;
    assert_eq!(open(&database).await?, json!([101, 201]));
    order(&mut shop, 9, 9);
    apply(&mut view, &mut shop, "sales").await?;
    drop(view);
    let second = bound(1);
    view = View::open(&database.config, &second, &sources(), silence_max).await?;
    assert_eq!(open(&database).await?, json!(AT_FIRST));
    assert_eq!(since(&database, 103).await?, "2024-01-01T00:00:01.000000Z");
    let revision = view.revision();
    drop(view);
    // The same again computes nothing.
    view = View::open(&database.config, &second, &sources(), silence_max).await?;
    assert_eq!(view.revision().number, revision.number + 1);
    Ok(())
}

/// More rows than are judged at once: touched by a view transaction of many steps, and due at once.
#[tokio::test]
async fn what_is_more_than_a_step_is_judged_in_steps() -> Result<()> {
    const ORDERS: i64 = 10_500;
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    let date = "2030-01-01T00:00:00.000000Z";
    for id in 10..10 + ORDERS {
        order(&mut shop, id, id % 100);
        let row = json!({
            "id": id, "item_id": 1, "unit_price": "3.00", "quantity": 1, "order_id": id,
        });
        shop.sales.put(LINE, row);
        pay(&mut shop, id, id, "1.00", date);
    }
    // All payments come before the first order.
    for source in ["accounting", "sales"] {
        shop.source(source).checkpoint_without_rows();
        let Part { moved, changes } = shop.source(source).part(&view.standing(source));
        let mut changes = changes.into_iter();
        loop {
            let step: Vec<_> = changes.by_ref().take(6000).collect();
            if step.is_empty() {
                break;
            }
            view.step(source, step).await?;
        }
        let changes = Vec::new();
        view.apply(vec![Part { moved, changes }]).await?;
        let left: i64 = database
            .one("SELECT count(*) FROM aggregator.judged_later")
            .await?;
        ensure!(left == 0, "{left} rows are still to be judged");
        let expected = if source == "accounting" { ORDERS } else { 0 };
        assert_eq!(view.discrepancies()["payment_without_order"], expected);
    }
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    // 2030-01-30 and the day after.
    for (until_us, due) in [
        (1_895_961_600_000_000, 1),
        (1_896_134_400_000_000, ORDERS + 1),
    ] {
        for source in ["accounting", "sales"] {
            shop.source(source).known_until_us = until_us;
            apply(&mut view, &mut shop, source).await?;
        }
        assert_eq!(view.discrepancies()["part_paid_too_long"], due);
        let open: i64 = database
            .one("SELECT count(*) FROM public.discrepancies WHERE rule = 'part_paid_too_long'")
            .await?;
        assert_eq!(open, due);
    }
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

#[test]
fn rules_have_names_and_numbers_of_their_own() -> Result<()> {
    for (place, rule) in RULES.iter().enumerate() {
        ensure!((1..100).contains(&rule.number), "{rule:?}");
        let others = RULES.iter().skip(place + 1);
        for other in others {
            ensure!(rule.number != other.number && rule.name != other.name);
        }
        ensure!(rule.systems.is_sorted(), "{rule:?}");
        let known = rule.systems.iter();
        for system in known {
            let source = aggregator::SOURCES.iter().find(|source| *source == system);
            source.with_context(|| format!("{system} is no source"))?;
        }
    }
    Ok(())
}
