//! One small test for each rule of the view, that fails when the rule is out of force.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aggregator::failure::Failure;
use aggregator::view::View;
use anyhow::{Result, ensure};
use serde_json::{Value as Json, json};

use crate::Database;
use crate::oracle::unified_tables_equal_joins;
use crate::shop::{DETAIL, LINE, ORDER, Shop, TRANSACTION};

/// Order 1 of customer 1 with two lines, 10.00 together, and transaction 1 that pays 4.00;
/// order 2 of customer 2 without lines. Every source is served.
pub(crate) async fn begin(database: &Database) -> Result<(View, Shop)> {
    let mut shop = Shop::new(0);
    order(&mut shop, 1, 1);
    order(&mut shop, 2, 2);
    line(&mut shop, 1, "6.00");
    line(&mut shop, 2, "4.00");
    shop.accounting
        .put(TRANSACTION, json!({"id": 1, "order_id": 1}));
    shop.accounting.put(
        DETAIL,
        json!({"id": 1, "sum": "4.00", "date": "2024-01-01T00:00:00.000000Z", "transaction_id": 1}),
    );
    let mut view = database.open().await?;
    for source in aggregator::SOURCES {
        shop.source(source).checkpoint();
        let part = shop.source(source).part(&view.standing(source));
        view.serve(part).await?;
    }
    Ok((view, shop))
}

/// Applies the source's newest checkpoint.
pub(crate) async fn apply(view: &mut View, shop: &mut Shop, source: &str) -> Result<(), Failure> {
    shop.source(source).checkpoint();
    let part = shop.source(source).part(&view.standing(source));
    view.apply(vec![part]).await
}

pub(crate) fn order(shop: &mut Shop, id: i64, customer_id: i64) {
    let date = "2024-01-01T00:00:00.000000Z";
    let row = json!({"id": id, "customer_id": customer_id, "date": date});
    shop.sales.put(ORDER, row);
}

fn line(shop: &mut Shop, id: i64, unit_price: &str) {
    let row = json!({
        "id": id, "item_id": id, "unit_price": unit_price, "quantity": 1, "order_id": 1,
    });
    shop.sales.put(LINE, row);
}

async fn paid(database: &Database, table: &str) -> Result<Json> {
    let sql = format!("SELECT id, paid::text, balance::text FROM public.{table} ORDER BY id");
    database.rows(&sql).await
}

#[tokio::test]
async fn view_fence_a_writer_that_was_overtaken_fails() -> Result<()> {
    let database = Database::new().await?;
    let (mut first, mut shop) = begin(&database).await?;
    let mut second = database.open().await?;
    order(&mut shop, 3, 3);
    apply(&mut second, &mut shop, "sales").await?;
    let late = apply(&mut first, &mut shop, "sales").await;
    ensure!(matches!(late, Err(Failure::Fenced)), "{late:?}");
    Ok(())
}

#[tokio::test]
async fn fence_on_revision_a_writer_fails_although_nobody_moved_its_source() -> Result<()> {
    let database = Database::new().await?;
    let (mut first, mut shop) = begin(&database).await?;
    let mut second = database.open().await?;
    shop.accounting
        .put(TRANSACTION, json!({"id": 2, "order_id": 2}));
    apply(&mut second, &mut shop, "accounting").await?;
    order(&mut shop, 3, 3);
    let late = apply(&mut first, &mut shop, "sales").await;
    ensure!(matches!(late, Err(Failure::Fenced)), "{late:?}");
    Ok(())
}

/// Money moves between two lines of an order; the topics' partitions hold one line each.
#[tokio::test]
async fn one_view_transaction_nobody_sees_half_a_checkpoint() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    let done = Arc::new(AtomicBool::new(false));
    let server = fixtures::servers().view().await?;
    let reader = server.superuser(&database.name).await?;
    let watched = tokio::spawn({
        let done = Arc::clone(&done);
        async move {
            let mut totals = std::collections::BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                let sql = "SELECT total::text FROM public.orders WHERE id = 1";
                totals.insert(reader.query_one(sql, &[]).await?.get::<_, String>(0));
            }
            Ok::<_, tokio_postgres::Error>(totals)
        }
    });
    for round in 0..50 {
        line(&mut shop, 1, &format!("{}.00", round % 10));
        line(&mut shop, 2, &format!("{}.00", 10 - round % 10));
        let before = view.revision().number;
        apply(&mut view, &mut shop, "sales").await?;
        ensure!(view.revision().number == before + 1);
    }
    done.store(true, Ordering::Relaxed);
    let totals: Vec<_> = watched.await??.into_iter().collect();
    ensure!(totals == ["10.00"], "{totals:?}");
    Ok(())
}

#[tokio::test]
async fn contributions_a_paid_order_takes_its_payments_to_its_new_customer() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    order(&mut shop, 1, 2);
    apply(&mut view, &mut shop, "sales").await?;
    let expected = json!([{"id": 2, "paid": "4.00", "balance": "6.00"}]);
    assert_eq!(paid(&database, "customers").await?, expected);
    Ok(())
}

/// An order moves to another day, and a line to an order of a third; nothing stays behind, and
/// what is undone leaves nothing.
#[tokio::test]
async fn old_contributions_an_order_that_moves_to_another_day_takes_its_sales_along() -> Result<()>
{
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    let sold = async || {
        let sql = "SELECT day::text || ' ' || product_id AS row, orders, units, revenue::text
            FROM public.daily_sales ORDER BY day, product_id";
        database.rows(sql).await
    };
    let row =
        |row: &str, revenue: &str| json!({"row": row, "orders": 1, "units": 1, "revenue": revenue});
    let first = json!([row("2024-01-01 1", "6.00"), row("2024-01-01 2", "4.00")]);
    assert_eq!(sold().await?, first);
    let dated = |shop: &mut Shop, id: i64, date: &str| {
        let row = json!({"id": id, "customer_id": id, "date": date});
        shop.sales.put(ORDER, row);
    };
    dated(&mut shop, 1, "2024-01-31T23:59:59.999999Z");
    apply(&mut view, &mut shop, "sales").await?;
    let moved = json!([row("2024-01-31 1", "6.00"), row("2024-01-31 2", "4.00")]);
    assert_eq!(sold().await?, moved);
    dated(&mut shop, 2, "2024-02-01T00:00:00.000000Z");
    let line = json!({"id": 2, "item_id": 2, "unit_price": "4.00", "quantity": 1, "order_id": 2});
    shop.sales.put(LINE, line);
    apply(&mut view, &mut shop, "sales").await?;
    let apart = json!([row("2024-01-31 1", "6.00"), row("2024-02-01 2", "4.00")]);
    assert_eq!(sold().await?, apart);
    // A line whose order is gone has no day, until its order comes (back).
    shop.sales.delete(ORDER, 2, false);
    apply(&mut view, &mut shop, "sales").await?;
    assert_eq!(sold().await?, json!([row("2024-01-31 1", "6.00")]));
    dated(&mut shop, 2, "2024-02-01T00:00:00.000000Z");
    apply(&mut view, &mut shop, "sales").await?;
    assert_eq!(sold().await?, apart);
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

/// Two lines of one product in an order, which its source forbids and a mirror does not: one order.
#[tokio::test]
async fn an_order_counts_once_a_day_and_product_however_many_lines_it_has() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    let line = json!({"id": 3, "item_id": 1, "unit_price": "6.00", "quantity": 2, "order_id": 1});
    shop.sales.put(LINE, line);
    apply(&mut view, &mut shop, "sales").await?;
    let sold = "SELECT orders, units, revenue::text FROM public.daily_sales WHERE product_id = 1";
    let expected = json!([{"orders": 1, "units": 3, "revenue": "18.00"}]);
    assert_eq!(database.rows(sold).await?, expected);
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

#[tokio::test]
async fn both_orders_touched_a_payment_leaves_the_order_that_it_was_for() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    shop.accounting
        .put(TRANSACTION, json!({"id": 1, "order_id": 2}));
    apply(&mut view, &mut shop, "accounting").await?;
    let expected = json!([
        {"id": 1, "paid": "0.00", "balance": "10.00"},
        {"id": 2, "paid": "4.00", "balance": "-4.00"},
    ]);
    assert_eq!(paid(&database, "orders").await?, expected);
    Ok(())
}

#[tokio::test]
async fn lone_tombstone_is_a_delete() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    shop.sales.delete(LINE, 1, true);
    apply(&mut view, &mut shop, "sales").await?;
    let total: String = database
        .one("SELECT total::text FROM public.orders WHERE id = 1")
        .await?;
    assert_eq!(total, "4.00");
    Ok(())
}

/// What an event leaves as it was has no new revision.
#[tokio::test]
async fn events_that_come_again_change_nothing() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    let all =
        "SELECT id, revision FROM public.orders UNION ALL SELECT id, revision FROM public.products
        UNION ALL SELECT id, revision FROM public.customers
        UNION ALL SELECT id, revision FROM public.transactions ORDER BY 1, 2";
    let before = database.rows(all).await?;
    shop.sales.read_again(ORDER, 1);
    shop.sales.read_again(LINE, 2);
    shop.sales.delete(LINE, 77, true);
    apply(&mut view, &mut shop, "sales").await?;
    shop.accounting.read_again(DETAIL, 1);
    apply(&mut view, &mut shop, "accounting").await?;
    assert_eq!(database.rows(all).await?, before);
    Ok(())
}
