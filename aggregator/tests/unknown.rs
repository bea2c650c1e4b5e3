//! Before a source has been read, its fields are null and named.

use anyhow::Result;
use serde_json::json;

use crate::Database;
use crate::oracle::unified_tables_equal_joins;
use crate::rules::order;
use crate::shop::{DETAIL, ITEM, LINE, PRICE, QUANTITY, Shop, TRANSACTION};
use crate::source::advance;

fn shop() -> Shop {
    let mut shop = Shop::new(0);
    let item = json!({"id": 1, "name": "n", "description": "d", "country_of_origin": "c"});
    shop.warehouse.put(ITEM, item);
    shop.warehouse
        .put(PRICE, json!({"id": 1, "price": "2.50", "item_id": 1}));
    shop.warehouse
        .put(QUANTITY, json!({"id": 1, "quantity": 3, "item_id": 1}));
    order(&mut shop, 1, 1);
    for item in 1..3 {
        let row = json!({
            "id": item, "item_id": item, "unit_price": "2.50", "quantity": 2, "order_id": 1,
        });
        shop.sales.put(LINE, row);
    }
    shop.accounting
        .put(TRANSACTION, json!({"id": 1, "order_id": 1}));
    let date = "1969-01-01T00:00:00.000001Z";
    let row = json!({"id": 1, "sum": "4.00", "date": date, "transaction_id": 1});
    shop.accounting.put(DETAIL, row);
    for source in aggregator::SOURCES {
        shop.source(source).checkpoint();
    }
    shop
}

#[tokio::test]
async fn sources_become_known_in_any_order() -> Result<()> {
    for first in aggregator::SOURCES {
        for second in aggregator::SOURCES {
            if first == second {
                continue;
            }
            let third = aggregator::SOURCES;
            let third = third
                .into_iter()
                .find(|name| ![first, second].contains(name));
            let (database, mut shop) = (Database::new().await?, shop());
            let mut view = database.open().await?;
            let mut known = Vec::new();
            // Half of each is in the mirrors from the start, and must not show.
            for source in aggregator::SOURCES {
                let mut standing = view.standing(source);
                let mut changes = shop.source(source).events(&standing);
                changes.truncate(changes.len() / 2 + 1);
                advance(&mut standing, &changes);
                view.load(source, changes, standing).await?;
            }
            unified_tables_equal_joins(&database, &known).await?;
            for source in [Some(first), Some(second), third].into_iter().flatten() {
                let part = shop.source(source).part(&view.standing(source));
                view.serve(part).await?;
                known.push(source);
                unified_tables_equal_joins(&database, &known).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn fields_of_a_source_not_read_are_null_and_named() -> Result<()> {
    let (database, mut shop) = (Database::new().await?, shop());
    let mut view = database.open().await?;
    let positions = "SELECT source, epoch, lsn FROM public.positions ORDER BY source";
    assert_eq!(
        database.rows(positions).await?,
        json!([
            {"source": "accounting", "epoch": null, "lsn": null},
            {"source": "sales", "epoch": null, "lsn": null},
            {"source": "warehouse", "epoch": null, "lsn": null},
        ])
    );
    let part = shop.sales.part(&view.standing("sales"));
    view.serve(part).await?;
    let orders =
        "SELECT total::text, transactions, paid, balance, payment_status, unknown, degraded
        FROM public.orders";
    assert_eq!(
        database.rows(orders).await?,
        json!([{
            "total": "10.00", "transactions": null, "paid": null, "balance": null,
            "payment_status": null, "degraded": false,
            "unknown": ["balance", "paid", "payment_status", "transactions"],
        }])
    );
    let products = "SELECT id, name, price, quantity_in_stock, units_sold, revenue::text, status,
        unknown FROM public.products WHERE id = 1";
    assert_eq!(
        database.rows(products).await?,
        json!([{
            "id": 1, "name": null, "price": null, "quantity_in_stock": null, "units_sold": 2,
            "revenue": "5.00", "status": null,
            "unknown": ["country_of_origin", "description", "name", "price", "quantity_in_stock",
                "status"],
        }])
    );
    for source in ["warehouse", "accounting"] {
        let part = shop.source(source).part(&view.standing(source));
        view.serve(part).await?;
    }
    let orders = "SELECT customer_id, ordered_at, lines, total::text, transactions, paid::text,
        balance::text, payment_status, unknown FROM public.orders";
    assert_eq!(
        database.rows(orders).await?,
        json!([{
            "customer_id": 1, "ordered_at": "2024-01-01T00:00:00+00:00",
            "lines": [
                {"id": 1, "product_id": 1, "unit_price": "2.50", "quantity": 2, "amount": "5.00"},
                {"id": 2, "product_id": 2, "unit_price": "2.50", "quantity": 2, "amount": "5.00"},
            ],
            "total": "10.00",
            "transactions": [{
                "id": 1, "amount": "4.00",
                "details": [{"id": 1, "amount": "4.00", "booked_at": "1969-01-01T00:00:00.000001Z"}],
            }],
            "paid": "4.00", "balance": "6.00", "payment_status": "part_paid", "unknown": [],
        }])
    );
    let products = "SELECT id, name, price::text, quantity_in_stock, units_sold, revenue::text,
        status, unknown FROM public.products ORDER BY id";
    assert_eq!(
        database.rows(products).await?,
        json!([
            {"id": 1, "name": "n", "price": "2.50", "quantity_in_stock": 3, "units_sold": 2,
                "revenue": "5.00", "status": "listed", "unknown": []},
            {"id": 2, "name": null, "price": null, "quantity_in_stock": null, "units_sold": 2,
                "revenue": "5.00", "status": "delisted", "unknown": []},
        ])
    );
    Ok(())
}

#[tokio::test]
async fn a_load_can_be_begun_anew() -> Result<()> {
    let (database, shop) = (Database::new().await?, shop());
    let mut view = database.open().await?;
    let mut standing = view.standing("sales");
    let changes = shop.sales.events(&standing);
    advance(&mut standing, &changes);
    view.load("sales", changes, standing).await?;
    view.forget("sales").await?;
    assert_eq!(view.standing("sales"), kafka::follower::Standing::default());
    let left: i64 = database
        .one(
            "SELECT (SELECT count(*) FROM sales.sls_order)
            + (SELECT count(*) FROM aggregator.standing)",
        )
        .await?;
    assert_eq!(left, 0);
    let part = shop.sales.part(&view.standing("sales"));
    view.serve(part).await?;
    unified_tables_equal_joins(&database, &["sales"]).await
}

#[tokio::test]
async fn times_outside_the_years_of_rfc_3339_are_written_as_iso_8601_does() -> Result<()> {
    let (database, mut shop) = (Database::new().await?, shop());
    let mut view = database.open().await?;
    for (date, written) in [
        (
            "-0043-03-15T12:00:00.000000Z",
            "-0043-03-15T12:00:00.000000Z",
        ),
        ("0000-12-31T23:59:59.999999Z", "0000-12-31T23:59:59.999999Z"),
        ("0001-01-01T00:00:00.000000Z", "0001-01-01T00:00:00.000000Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        (
            "+20021-01-01T00:00:00.000000Z",
            "+20021-01-01T00:00:00.000000Z",
        ),
    ] {
        let row = json!({"id": 1, "sum": "4.00", "date": date, "transaction_id": 1});
        shop.accounting.put(DETAIL, row);
        shop.accounting.checkpoint();
        let part = shop.accounting.part(&view.standing("accounting"));
        if view.serves("accounting") {
            view.apply(vec![part]).await?;
        } else {
            view.serve(part).await?;
        }
        let found: String = database
            .one("SELECT details->0->>'booked_at' FROM public.transactions")
            .await?;
        assert_eq!(found, written);
    }
    Ok(())
}
