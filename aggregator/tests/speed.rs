//! What view transactions cost. `cargo test -p aggregator --release -- --ignored speed --nocapture`
//! prints the figures; as a test this only bounds how a small change's cost grows with the view.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::Database;
use crate::oracle::unified_tables_equal_joins;
use crate::rules::{begin, order};
use crate::shop::LINE;

#[tokio::test]
#[ignore = "measures; run it alone"]
async fn speed_of_small_and_large_view_transactions() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    let small_ms = small(&database, &mut view, &mut shop, 1000).await?;
    let (orders, lines) = (25_000, 4);
    let began = Instant::now();
    for id in 0..orders {
        let id = 100_000 + id;
        order(&mut shop, id, id % 500);
        for line in 0..lines {
            let row = json!({
                "id": id * 10 + line, "item_id": (id + line) % 200, "unit_price": "1.25",
                "quantity": 2, "order_id": id,
            });
            shop.sales.put(LINE, row);
        }
    }
    shop.sales.checkpoint_without_rows();
    let events = orders * (lines + 1);
    println!("{events} events made in {:?}", began.elapsed());
    let began = Instant::now();
    let part = shop.sales.part(&view.standing("sales"));
    println!("{events} events decoded in {:?}", began.elapsed());
    let began = Instant::now();
    let mut changes = part.changes.into_iter();
    loop {
        let step: Vec<_> = changes.by_ref().take(10_000).collect();
        if step.is_empty() {
            break;
        }
        view.step("sales", step).await?;
    }
    let part = aggregator::view::Part {
        moved: part.moved,
        changes: Vec::new(),
    };
    view.apply(vec![part]).await?;
    let took = began.elapsed();
    println!(
        "{events} events as one view transaction in {took:?}: {:.0} events/s",
        events as f64 / took.as_secs_f64()
    );
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    let later_ms = small(&database, &mut view, &mut shop, 1000).await?;
    println!("small view transactions: median {small_ms:.2} ms, later {later_ms:.2} ms");
    ensure!(later_ms < 3.0 * small_ms + 1.0);
    Ok(())
}

/// An order with two lines, each in a view transaction of its own; the median, milliseconds.
async fn small(
    database: &Database,
    view: &mut aggregator::view::View,
    shop: &mut crate::shop::Shop,
    count: i64,
) -> Result<f64> {
    let first: i64 = database
        .one("SELECT max(id) + 1 FROM public.orders")
        .await?;
    let mut took = Vec::new();
    for id in first..first + count {
        order(shop, id, id % 500);
        for line in 0..2 {
            let row = json!({
                "id": id * 10 + line, "item_id": (id + line) % 200, "unit_price": "1.25",
                "quantity": 2, "order_id": id,
            });
            shop.sales.put(LINE, row);
        }
        shop.sales.checkpoint_without_rows();
        let part = shop.sales.part(&view.standing("sales"));
        let began = Instant::now();
        view.apply(vec![part]).await?;
        took.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    took.sort_by(f64::total_cmp);
    Ok(took[took.len() / 2])
}

/// Steps that touch nothing of what is in quarantine, beside ever more of it.
#[tokio::test]
#[ignore = "measures; run it alone"]
async fn speed_of_steps_beside_quarantined_keys() -> Result<()> {
    let database = Database::new().await?;
    let (view, mut shop) = begin(&database).await?;
    drop(view);
    for keys in [0_i64, 1, 100, 10_000] {
        database
            .client
            .batch_execute(&format!(
                r#"DELETE FROM public.quarantine;
                INSERT INTO public.quarantine
                    (source, "table", key, reason, position, record, at, revision)
                SELECT 'sales', '{LINE}', '{{"id":' || n || '}}', 'r', '1:0/1', 'r', now(), ''
                FROM generate_series(9000001, 9000000 + {keys}) AS n;
                ANALYZE public.quarantine"#
            ))
            .await?;
        let mut view = database.open().await?.suspending_after(100_000);
        ensure!(view.quarantined() == keys);
        let mut took = Vec::new();
        for round in 0..7 {
            for id in 1000..6000 {
                order(&mut shop, id, (id + round) % 500);
            }
            shop.sales.checkpoint_without_rows();
            let part = shop.sales.part(&view.standing("sales"));
            let began = Instant::now();
            view.apply(vec![part]).await?;
            took.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        took.sort_by(f64::total_cmp);
        println!(
            "{keys} keys in quarantine: a step of 5000 orders {:.0} ms (best {:.0})",
            took[3], took[0]
        );
    }
    Ok(())
}

/// The unified tables compared with the mirrors, in large and in small ranges.
#[tokio::test]
#[ignore = "measures; run it alone"]
async fn speed_of_a_comparison() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, _) = begin(&database).await?;
    database
        .client
        .batch_execute(
            "INSERT INTO sales.sls_order (id, customer_id, date)
            SELECT n, n % 20000 + 1, '2024-01-01T00:00:00Z'::timestamptz + n * interval '10 s'
            FROM generate_series(10, 50000) AS n;
            INSERT INTO sales.sls_orderdetail (id, item_id, unit_price, quantity, order_id)
            SELECT n, (n::bigint * 7919 % 10000 + 1)::integer, (n % 9000 + 100) / 100.0, n % 5 + 1,
                n / 3 FROM generate_series(30, 150000) AS n",
        )
        .await?;
    view.recompute().await?;
    database.client.batch_execute("VACUUM ANALYZE").await?;
    for rows in [5000, 500] {
        let config = crate::compared::config(&database, &format!("chunk_rows = {rows}"))?;
        let began = Instant::now();
        let report = crate::compared::compared(&config).await?;
        ensure!(report.difference_count == 0, "{report:?}");
        let (all, seconds) = (
            report.rows.values().sum::<u64>(),
            began.elapsed().as_secs_f64(),
        );
        println!(
            "{all} rows in ranges of {rows}: {seconds:.1} s, {:.0} rows/s",
            all as f64 / seconds
        );
    }
    Ok(())
}
