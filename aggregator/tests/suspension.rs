//! A table that floods the quarantine stands still, costs no more than that, and comes back whole.

use aggregator::mirror::Table;
use aggregator::view::View;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value as Json, json};

use crate::Database;
use crate::oracle::{mirrors_equal_source, unified_tables_equal_joins};
use crate::rules::{apply, begin, order};
use crate::shop::{ITEM, LINE, Shop};
use crate::source::envelope;
use crate::topics::Place;

const BOUND: u32 = 3;
const DEGRADED: &str = "SELECT source, degraded FROM public.positions ORDER BY source";
const MIRRORED: &str = "SELECT id, unit_price::text FROM sales.sls_orderdetail ORDER BY id";

fn lines() -> Result<&'static Table> {
    Table::find("sales", LINE).context("not mirrored")
}

/// Lines that cannot be applied, in order 1.
fn flood(shop: &mut Shop, ids: std::ops::RangeInclusive<i64>) {
    for id in ids {
        let row = json!({
            "id": id, "item_id": id, "unit_price": "NaN", "quantity": 1, "order_id": 1,
        });
        shop.sales
            .send(LINE, id, Some(envelope("c", None, Some(row))));
    }
}

fn line(shop: &mut Shop, id: i64, unit_price: &str) {
    let row = json!({
        "id": id, "item_id": id, "unit_price": unit_price, "quantity": 1, "order_id": 1,
    });
    shop.sales.put(LINE, row);
}

/// A table of sales is suspended: lines 1 and 2 stay as they were.
async fn flooded(database: &Database) -> Result<(View, Shop)> {
    let (view, mut shop) = begin(database).await?;
    let mut view = view.suspending_after(BOUND);
    flood(&mut shop, 101..=103);
    apply(&mut view, &mut shop, "sales").await?;
    ensure!(view.suspended().count() == 0, "three are no flood");
    flood(&mut shop, 104..=104);
    apply(&mut view, &mut shop, "sales").await?;
    Ok((view, shop))
}

async fn in_quarantine(database: &Database) -> Result<Json> {
    let sql = "SELECT key, suspended FROM public.quarantine ORDER BY suspended, key LIMIT 20";
    database.rows(sql).await
}

#[tokio::test]
async fn flood_is_suspended_and_the_rest_goes_on() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = flooded(&database).await?;
    let all = json!([
        {"key": r#"{"id":101}"#, "suspended": false}, {"key": r#"{"id":102}"#, "suspended": false},
        {"key": r#"{"id":103}"#, "suspended": false}, {"key": r#"{"id":104}"#, "suspended": false},
        {"key": "*", "suspended": true},
    ]);
    assert_eq!(in_quarantine(&database).await?, all);
    let degraded = json!([
        {"source": "accounting", "degraded": []},
        {
            "source": "sales",
            "degraded": ["customers", "daily_sales", "discrepancies", "orders", "products"],
        },
        {"source": "warehouse", "degraded": []},
    ]);
    assert_eq!(database.rows(DEGRADED).await?, degraded);

    // What comes now costs nothing and changes nothing, be it poison or not; a successor knows.
    let kept = database.rows(MIRRORED).await?;
    for successor in [false, true] {
        if successor {
            drop(view);
            view = database.open().await?.suspending_after(BOUND);
        }
        flood(&mut shop, 200..=300);
        line(&mut shop, 1, "7.00");
        shop.sales.delete(LINE, 2, false);
        order(&mut shop, 7, 7);
        apply(&mut view, &mut shop, "sales").await?;
        assert_eq!(in_quarantine(&database).await?, all);
        assert_eq!(database.rows(MIRRORED).await?, kept);
        assert_eq!(database.rows(DEGRADED).await?, degraded);
        line(&mut shop, 2, "4.00");
    }
    let others: i64 = database
        .one("SELECT count(*) FROM public.orders WHERE id = 7")
        .await?;
    assert_eq!(others, 1);
    shop.warehouse.put(
        ITEM,
        json!({"id": 5, "name": "five", "description": "", "country_of_origin": "PT"}),
    );
    apply(&mut view, &mut shop, "warehouse").await?;
    let names: Option<String> = database
        .one("SELECT name FROM public.products WHERE id = 5")
        .await?;
    assert_eq!(names.as_deref(), Some("five"));
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

/// The source is mended: every row of the table is good, and some that were are gone.
fn mend(shop: &mut Shop) {
    for id in 101..=104 {
        line(shop, id, "1.00");
    }
    line(shop, 1, "8.00");
    shop.sales.delete(LINE, 2, false);
}

#[tokio::test]
async fn resumption_is_covered_and_until_then_the_table_stands_still() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = flooded(&database).await?;
    let kept = database.rows(MIRRORED).await?;
    // Deleted while nobody looks, so that no event after the resumption says so.
    shop.sales.delete(LINE, 2, false);
    apply(&mut view, &mut shop, "sales").await?;
    ensure!(view.begin_resumption(lines()?).await?, "was not suspended");
    for id in 101..=104 {
        line(&mut shop, id, "1.00");
    }
    apply(&mut view, &mut shop, "sales").await?;
    // A crash in between costs nothing of it.
    drop(view);
    let mut view = database.open().await?.suspending_after(BOUND);
    assert_eq!(database.rows(MIRRORED).await?, kept);
    assert_eq!(view.suspended().collect::<Vec<_>>(), vec![(lines()?, true)]);
    shop.sales.read_again(LINE, 1);
    // The next checkpoint but one covers it.
    let seen = view.standing("sales").seen;
    ensure!(view.cover_resumption(lines()?, seen + 1).await?);
    apply(&mut view, &mut shop, "sales").await?;
    assert_eq!(database.rows(MIRRORED).await?, kept);
    order(&mut shop, 7, 7);
    apply(&mut view, &mut shop, "sales").await?;
    assert_eq!(in_quarantine(&database).await?, json!([]));
    assert_eq!(view.suspended().count(), 0);
    assert_eq!(view.quarantined(), 0);
    mirrors_equal_source(&database, &mut shop, "sales").await?;
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    let degraded: bool = database
        .one(
            "SELECT EXISTS (SELECT FROM public.positions WHERE degraded <> '{}')
                OR EXISTS (SELECT FROM public.orders WHERE degraded)
                OR EXISTS (SELECT FROM aggregator.degraded)
                OR EXISTS (SELECT FROM rebuild.sls_orderdetail)",
        )
        .await?;
    ensure!(!degraded, "something is degraded, or left");
    // From here on it is a table like any other.
    mend(&mut shop);
    apply(&mut view, &mut shop, "sales").await?;
    mirrors_equal_source(&database, &mut shop, "sales").await?;
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

#[tokio::test]
async fn resumption_deletes_what_went_while_the_table_stood_still() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = flooded(&database).await?;
    mend(&mut shop);
    apply(&mut view, &mut shop, "sales").await?;
    ensure!(view.begin_resumption(lines()?).await?);
    for id in [1, 101, 102, 103, 104] {
        shop.sales.read_again(LINE, id);
    }
    let seen = view.standing("sales").seen;
    ensure!(view.cover_resumption(lines()?, seen).await?);
    apply(&mut view, &mut shop, "sales").await?;
    assert_eq!(view.suspended().count(), 0);
    mirrors_equal_source(&database, &mut shop, "sales").await?;
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

#[tokio::test]
async fn a_table_that_floods_again_stays_suspended_and_a_rebuild_ends_it_once_it_is_mended()
-> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = flooded(&database).await?;
    let kept = database.rows(MIRRORED).await?;
    ensure!(view.begin_resumption(lines()?).await?);
    flood(&mut shop, 101..=200);
    apply(&mut view, &mut shop, "sales").await?;
    let seen = view.standing("sales").seen;
    ensure!(view.cover_resumption(lines()?, seen).await?);
    apply(&mut view, &mut shop, "sales").await?;
    assert_eq!(
        view.suspended().collect::<Vec<_>>(),
        vec![(lines()?, false)]
    );
    assert_eq!(database.rows(MIRRORED).await?, kept);
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    ensure!(!view.cover_resumption(lines()?, 0).await?, "it had ended");

    // A rebuild of a source that still floods leaves the table where it is, ...
    let rebuild = async |view: &mut View, shop: &mut Shop| -> Result<()> {
        shop.sales.checkpoint();
        view.begin_rebuild("sales", Default::default()).await?;
        let part = shop.sales.part(&Default::default());
        view.finish_rebuild(part).await?;
        Ok(())
    };
    rebuild(&mut view, &mut shop).await?;
    assert_eq!(
        view.suspended().collect::<Vec<_>>(),
        vec![(lines()?, false)]
    );
    assert_eq!(database.rows(MIRRORED).await?, kept);
    // ... and one of a source that is mended ends it.
    mend(&mut shop);
    for id in 105..=200 {
        line(&mut shop, id, "2.00");
    }
    ensure!(view.begin_resumption(lines()?).await?);
    rebuild(&mut view, &mut shop).await?;
    assert_eq!(view.suspended().count(), 0);
    assert_eq!(in_quarantine(&database).await?, json!([]));
    mirrors_equal_source(&database, &mut shop, "sales").await?;
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

/// What a source's tables are no input of is not computed when they are brought to their copies.
#[tokio::test]
async fn fed_tables_alone_are_computed() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = flooded(&database).await?;
    mend(&mut shop);
    apply(&mut view, &mut shop, "sales").await?;
    let damage = "UPDATE public.transactions SET amount = 77;
        UPDATE public.products SET units_sold = 77";
    database.client.batch_execute(damage).await?;
    ensure!(view.begin_resumption(lines()?).await?);
    for id in [1, 101, 102, 103, 104] {
        shop.sales.read_again(LINE, id);
    }
    let seen = view.standing("sales").seen;
    ensure!(view.cover_resumption(lines()?, seen).await?);
    apply(&mut view, &mut shop, "sales").await?;
    let damaged = "SELECT (SELECT count(*) FROM public.transactions WHERE amount = 77),
        (SELECT count(*) FROM public.products WHERE units_sold = 77)";
    let of_both = async || -> Result<(i64, i64)> {
        let row = database.client.query_one(damaged, &[]).await?;
        Ok((row.get(0), row.get(1)))
    };
    assert_eq!(of_both().await?, (1, 0));
    // Likewise a rebuild; the payments' own mends them.
    for (source, left) in [("sales", 1), ("accounting", 0)] {
        shop.source(source).checkpoint();
        view.begin_rebuild(source, Default::default()).await?;
        let part = shop.source(source).part(&Default::default());
        view.finish_rebuild(part).await?;
        assert_eq!(of_both().await?, (left, 0), "{source}");
    }
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

/// The process, with a broker: suspended over a kill, asked by its admin port, mended.
#[tokio::test]
async fn a_process_keeps_a_table_suspended_until_its_re_read_is_covered() -> Result<()> {
    let mut place = Place::new(70).await?;
    place.work().await?;
    let settings = "[quarantine]\nsuspend_after = 3";
    let aggregator = place.start(settings, &[])?;
    place.caught_up(&[&aggregator]).await?;
    flood(&mut place.shop, 1001..=1010);
    place.commit("sales").await?;
    aggregator.says("is suspended").await?;
    place.caught_up(&[&aggregator]).await?;
    aggregator.process.signal(Signal::SIGKILL);
    aggregator.process.exited().await;
    flood(&mut place.shop, 2001..=2100);
    place.commit("sales").await?;
    let aggregator = place.start(settings, &[])?;
    place.caught_up(&[&aggregator]).await?;
    let rows: i64 = place
        .database
        .one("SELECT count(*) FROM public.quarantine")
        .await?;
    assert_eq!(rows, 11);
    let status = aggregator.ask("GET", "/status").await?.1;
    ensure!(
        status.contains(r#""suspended":[{"table":"public.sls_orderdetail","is_resumed":false}]"#),
        "{status}"
    );
    let metrics = aggregator.ask("GET", "/metrics").await?.1;
    ensure!(
        metrics.contains("aggregator_suspended_tables 1"),
        "{metrics}"
    );

    let resume = async |covered_by: Option<i64>| -> Result<u16> {
        let body = json!({"source": "sales", "table": LINE, "covered_by": covered_by});
        let url = format!("{}/quarantine/resume", aggregator.url());
        let answer = reqwest::Client::builder().no_proxy().build()?;
        Ok(answer.post(url).json(&body).send().await?.status().as_u16())
    };
    assert_eq!(resume(Some(0)).await?, 404);
    assert_eq!(resume(None).await?, 204);
    let ids: Vec<i64> = place.shop.sales.tables[LINE].keys().copied().collect();
    for id in ids {
        place.shop.sales.read_again(LINE, id);
    }
    for id in (1001..=1010).chain(2001..=2100) {
        place.shop.sales.delete(LINE, id, false);
    }
    place.commit("sales").await?;
    let covered_by = kafka::follower::last_offset(&place.kafka, "sales").await?;
    assert_eq!(resume(covered_by).await?, 204);
    order(&mut place.shop, 1, 1);
    place.commit("sales").await?;
    aggregator.says("suspended no more").await?;
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await
}
