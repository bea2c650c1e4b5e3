//! What cannot be applied stands aside with its reason, and hurts nothing else.

use anyhow::Result;
use serde_json::{Value as Json, json};

use crate::Database;
use crate::oracle::unified_tables_equal_joins;
use crate::rules::{apply, begin, order};
use crate::shop::{DETAIL, LINE, ORDER};
use crate::source::envelope;

const QUARANTINE: &str = r#"SELECT source, "table", key, reason, position IS NOT NULL AS placed
    FROM public.quarantine ORDER BY 1, 2, 3"#;

async fn degraded(database: &Database) -> Result<Json> {
    database
        .rows(
            "SELECT 'customer' AS row, id FROM public.customers WHERE degraded
            UNION ALL SELECT 'day', product_id FROM public.daily_sales WHERE degraded
            UNION ALL SELECT 'order', id FROM public.orders WHERE degraded
            UNION ALL SELECT 'product', id FROM public.products WHERE degraded
            UNION ALL SELECT 'transaction', id FROM public.transactions WHERE degraded
            ORDER BY 1, 2",
        )
        .await
}

fn line(unit_price: &str, order_id: i64) -> String {
    let row = json!({
        "id": 1, "item_id": 1, "unit_price": unit_price, "quantity": 1, "order_id": order_id,
    });
    envelope("u", None, Some(row))
}

#[tokio::test]
async fn a_price_that_is_no_number_degrades_its_rows_until_a_good_one_comes() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    // The line was in order 1; the event that cannot be applied moves it to order 2.
    shop.sales.send(LINE, 1, Some(line("NaN", 2)));
    order(&mut shop, 3, 3);
    apply(&mut view, &mut shop, "sales").await?;
    assert_eq!(
        database.rows(QUARANTINE).await?,
        json!([{
            "source": "sales", "table": LINE, "key": r#"{"id":1}"#, "placed": true,
            "reason": "column unit_price is no finite number, so no sum can contain it",
        }])
    );
    let all = json!([
        {"row": "customer", "id": 1}, {"row": "customer", "id": 2},
        {"row": "day", "id": 1}, {"row": "day", "id": 2},
        {"row": "order", "id": 1}, {"row": "order", "id": 2}, {"row": "product", "id": 1},
    ]);
    assert_eq!(degraded(&database).await?, all);
    // The last state is kept, and the rest of the checkpoint is there.
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    let total: String = database
        .one("SELECT string_agg(total::text, ' ' ORDER BY id) FROM public.orders")
        .await?;
    assert_eq!(total, "10.00 0.00 0.00");
    // A successor knows; the same again changes nothing but where it stands.
    drop(view);
    let mut view = database.open().await?;
    assert_eq!(view.quarantined(), 1);
    shop.sales.send(LINE, 1, Some(line("Infinity", 2)));
    apply(&mut view, &mut shop, "sales").await?;
    assert_eq!(degraded(&database).await?, all);
    shop.sales.send(LINE, 1, Some(line("7.00", 2)));
    apply(&mut view, &mut shop, "sales").await?;
    assert_eq!(database.rows(QUARANTINE).await?, json!([]));
    assert_eq!(degraded(&database).await?, json!([]));
    assert_eq!(view.quarantined(), 0);
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    let total: String = database
        .one("SELECT string_agg(total::text, ' ' ORDER BY id) FROM public.orders")
        .await?;
    assert_eq!(total, "4.00 7.00 0.00");
    Ok(())
}

#[tokio::test]
async fn an_infinite_booking_degrades_transaction_order_and_customer() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    let row = json!({"id": 1, "sum": "9.00", "date": "infinity", "transaction_id": 1});
    shop.accounting
        .send(DETAIL, 1, Some(envelope("u", None, Some(row))));
    apply(&mut view, &mut shop, "accounting").await?;
    assert_eq!(
        degraded(&database).await?,
        json!([
            {"row": "customer", "id": 1}, {"row": "day", "id": 1}, {"row": "day", "id": 2},
            {"row": "order", "id": 1}, {"row": "transaction", "id": 1},
        ])
    );
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    shop.accounting.delete(DETAIL, 1, false);
    apply(&mut view, &mut shop, "accounting").await?;
    assert_eq!(degraded(&database).await?, json!([]));
    assert_eq!(database.rows(QUARANTINE).await?, json!([]));
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

#[tokio::test]
async fn what_is_no_event_at_all_is_set_aside_and_the_rest_goes_on() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    shop.sales.send(ORDER, 1, Some("{".to_owned()));
    shop.sales.send(ORDER, 40, Some("[]".to_owned()));
    order(&mut shop, 4, 4);
    // A good state before poison of the same key counts.
    order(&mut shop, 5, 5);
    shop.sales.send(ORDER, 5, Some("?".to_owned()));
    apply(&mut view, &mut shop, "sales").await?;
    let keys = database
        .rows(r#"SELECT key FROM public.quarantine ORDER BY 1"#)
        .await?;
    assert_eq!(
        keys,
        json!([{"key": r#"{"id":1}"#}, {"key": r#"{"id":40}"#}, {"key": r#"{"id":5}"#}])
    );
    assert_eq!(
        degraded(&database).await?,
        json!([
            {"row": "customer", "id": 1}, {"row": "customer", "id": 5},
            {"row": "day", "id": 1}, {"row": "day", "id": 2},
            {"row": "order", "id": 1}, {"row": "order", "id": 5},
        ])
    );
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

#[tokio::test]
async fn poison_of_a_source_that_loads_is_placed_once_it_is_served() -> Result<()> {
    let database = Database::new().await?;
    let mut shop = crate::shop::Shop::new(0);
    order(&mut shop, 1, 1);
    shop.sales.send(LINE, 1, Some(line("NaN", 1)));
    shop.sales.checkpoint();
    let mut view = database.open().await?;
    let mut standing = view.standing("sales");
    let changes = shop.sales.events(&standing);
    crate::source::advance(&mut standing, &changes);
    view.load("sales", changes, standing).await?;
    let placed = |rows: Json| rows[0]["placed"].clone();
    assert_eq!(placed(database.rows(QUARANTINE).await?), json!(false));
    let part = shop.sales.part(&view.standing("sales"));
    view.serve(part).await?;
    assert_eq!(placed(database.rows(QUARANTINE).await?), json!(true));
    assert_eq!(
        degraded(&database).await?,
        json!([{"row": "customer", "id": 1}, {"row": "order", "id": 1}])
    );
    Ok(())
}
