//! A view transaction of several steps: each unified row is computed once, whatever its size.

use aggregator::view::{Part, View};
use anyhow::Result;
use serde_json::json;

use crate::Database;
use crate::oracle::unified_tables_equal_joins;
use crate::rules::{begin, order};
use crate::shop::{DETAIL, LINE, Shop, TRANSACTION};

/// More rows than one statement takes.
const MANY: i64 = 10_500;

/// The newest checkpoint of a source, step by step.
async fn apply_in_steps(view: &mut View, shop: &mut Shop, step_events: usize) -> Result<()> {
    shop.sales.checkpoint();
    let part = shop.sales.part(&view.standing("sales"));
    let mut changes = part.changes.into_iter();
    loop {
        let step: Vec<_> = changes.by_ref().take(step_events).collect();
        if step.is_empty() {
            break;
        }
        view.step("sales", step).await?;
    }
    let moved = part.moved;
    let changes = Vec::new();
    Ok(view.apply(vec![Part { moved, changes }]).await?)
}

fn line(shop: &mut Shop, id: i64, order_id: i64) {
    let row = json!({
        "id": id, "item_id": id % 50, "unit_price": "1.25", "quantity": 2, "order_id": order_id,
    });
    shop.sales.put(LINE, row);
}

fn payment(shop: &mut Shop, id: i64, order_id: i64) {
    shop.accounting
        .put(TRANSACTION, json!({"id": id, "order_id": order_id}));
}

#[tokio::test]
async fn an_order_whose_lines_come_in_different_steps_is_written_once() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    database
        .client
        .batch_execute(
            "CREATE TABLE public.written (id bigint);
            CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN INSERT INTO public.written VALUES (new.id); RETURN NULL; END';
            CREATE TRIGGER note AFTER INSERT OR UPDATE ON public.orders
                FOR EACH ROW EXECUTE FUNCTION public.note()",
        )
        .await?;
    order(&mut shop, 10, 1);
    for id in 100..106 {
        line(&mut shop, id, 10);
    }
    apply_in_steps(&mut view, &mut shop, 2).await?;
    let written = "SELECT count(*) FROM public.written WHERE id = 10";
    assert_eq!(database.one::<i64>(written).await?, 1);
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

#[tokio::test]
async fn what_is_more_than_a_statement_takes_is_right_too() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    for id in 100..100 + MANY {
        order(&mut shop, id, id % 700);
        line(&mut shop, id, id);
        payment(&mut shop, id, id);
        let date = "2024-01-01T00:00:00.000000Z";
        let row = json!({"id": id, "sum": "1.00", "date": date, "transaction_id": id});
        shop.accounting.put(DETAIL, row);
    }
    both(&mut view, &mut shop).await?;
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    // Each payment is now for another order, far away, and each line in another one.
    for id in 100..100 + MANY {
        payment(&mut shop, id, 100 + (id + MANY / 2) % MANY);
        line(&mut shop, id, 100 + (id * 7) % MANY);
    }
    both(&mut view, &mut shop).await?;
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

/// The newest checkpoints of sales and accounting, in one view transaction.
async fn both(view: &mut View, shop: &mut Shop) -> Result<()> {
    shop.sales.checkpoint();
    shop.accounting.checkpoint();
    let sales = shop.sales.part(&view.standing("sales"));
    let accounting = shop.accounting.part(&view.standing("accounting"));
    Ok(view.apply(vec![sales, accounting]).await?)
}
