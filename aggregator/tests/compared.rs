//! The unified tables compared with the mirrors.

use std::time::{Duration, Instant};

use aggregator::config::Config;
use aggregator::verify::{Options, Report, verify};
use anyhow::{Result, ensure};
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::Database;
use crate::rules::{apply, begin, order};
use crate::shop::{LINE, Shop};
use crate::topics::WITHIN;

const POLL: Duration = Duration::from_millis(5);

pub(crate) fn config(database: &Database, verify: &str) -> Result<Config> {
    let file = tempfile::NamedTempFile::new()?;
    let text = format!(
        "[view]\nurl = {:?}\n[kafka]\nbootstrap = \"127.0.0.1:1\"\n\
        [admin]\nlisten = \"127.0.0.1:1\"\n[verify]\n{verify}",
        database.config.url.expose_secret()
    );
    std::fs::write(file.path(), text)?;
    Ok(service::config::load(file.path())?)
}

pub(crate) async fn compared(config: &Config) -> Result<Report> {
    let options = Options {
        unified: true,
        ..Options::default()
    };
    let report = verify(config, &options, |_| ()).await?;
    ensure!(report.not_compared.is_empty(), "{report:?}");
    Ok(report)
}

fn line(shop: &mut Shop, id: i64, item_id: i64, order_id: i64) {
    let row = json!({
        "id": id, "item_id": item_id, "unit_price": "1.50", "quantity": 2, "order_id": order_id,
    });
    shop.sales.put(LINE, row);
}

/// Ranges of one row: each total is compared once, whatever its key is made of, and what is wrong at
/// the ends of ranges is found.
#[tokio::test]
async fn ranges_of_totals_leave_nothing_out() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    for id in 10..40 {
        order(&mut shop, id, id % 7);
        for item in 0..3 {
            line(&mut shop, id * 10 + item, (id + item) % 11, id);
        }
    }
    apply(&mut view, &mut shop, "sales").await?;
    let day = "UPDATE sales.sls_order SET date = '2024-02-01T00:00:00Z'::timestamptz
        + (id % 4) * interval '1 day' WHERE id >= 10";
    database.client.batch_execute(day).await?;
    view.recompute().await?;
    for rows in [1, 2, 5, 5000] {
        let config = config(&database, &format!("chunk_rows = {rows}"))?;
        let report = compared(&config).await?;
        ensure!(report.difference_count == 0, "{rows}: {report:?}");
        for table in [
            "public.customers",
            "public.daily_sales",
            "aggregator.product_totals",
        ] {
            let sql = format!("SELECT count(*) FROM {table}");
            let all: i64 = database.one(&sql).await?;
            ensure!(
                all > 5 && report.rows[table] == all.cast_unsigned(),
                "{rows}: {report:?}"
            );
        }
    }
    database
        .client
        .batch_execute(
            "DELETE FROM public.daily_sales WHERE (day, product_id) IN (
                SELECT day, min(product_id) FROM public.daily_sales GROUP BY 1
                UNION SELECT day, max(product_id) FROM public.daily_sales GROUP BY 1);
            INSERT INTO public.daily_sales VALUES ('1999-01-01', 1, 1, 1, 1, '{}', false, ''),
                ('2024-02-01', -1, 1, 1, 1, '{}', false, ''),
                ('2999-01-01', 1, 1, 1, 1, '{}', false, '');
            UPDATE public.customers SET ordered = ordered + 1
                WHERE id IN ((SELECT min(id) FROM public.customers), 4, 6);
            DELETE FROM aggregator.product_totals WHERE product_id IN (0, 10);
            INSERT INTO aggregator.product_totals VALUES (-1, 1, 1, 1);
            DELETE FROM public.discrepancies WHERE id IN (101, 901)",
        )
        .await?;
    let whole = compared(&config(&database, "")?).await?;
    for (table, count) in [
        ("public.daily_sales", 13),
        ("public.customers", 3),
        ("aggregator.product_totals", 3),
        // And two of products that nothing was sold of any more.
        ("public.discrepancies", 4),
    ] {
        let found = whole.differences.iter().filter(|one| one.table == table);
        let found = found.count();
        ensure!(found == count, "{found} of {table}: {whole:?}");
    }
    for rows in [1, 2, 5] {
        let report = compared(&config(&database, &format!("chunk_rows = {rows}"))?).await?;
        ensure!(
            report.differences == whole.differences,
            "{rows}: {report:?}"
        );
    }
    Ok(())
}

/// A source is served for the first time between two looks of one comparison.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_served_meanwhile_makes_no_row_differ() -> Result<()> {
    let database = Database::new().await?;
    let mut shop = Shop::new(0);
    let mut view = database.open().await?;
    order(&mut shop, 1, 1);
    line(&mut shop, 1, 1, 1);
    for source in ["sales", "warehouse"] {
        shop.source(source).checkpoint();
        let part = shop.source(source).part(&view.standing(source));
        view.serve(part).await?;
    }
    let server = fixtures::servers().view().await?;
    let writer = server.superuser(&database.name).await?;
    writer
        .batch_execute("BEGIN; LOCK TABLE public.orders")
        .await?;
    let config = config(&database, "")?;
    let comparison = tokio::spawn(async move { compared(&config).await });
    let waits = "SELECT count(*) > 0 FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
        WHERE NOT l.granted AND l.relation = 'public.orders'::regclass
            AND a.application_name = 'aggregator verify'";
    let deadline = Instant::now() + WITHIN;
    while !database.one::<bool>(waits).await? {
        ensure!(Instant::now() < deadline, "the comparison does not wait");
        tokio::time::sleep(POLL).await;
    }
    // What serving accounting does, which has no payments.
    writer
        .batch_execute(
            "UPDATE public.positions SET epoch = 1, lsn = '0/8' WHERE source = 'accounting';
            UPDATE public.orders SET transactions = '[]', paid = 0, balance = total,
                payment_status = 'unpaid', unknown = '{}';
            UPDATE public.customers SET paid = 0, balance = ordered, unknown = '{}';
            COMMIT",
        )
        .await?;
    let report = comparison.await??;
    ensure!(report.difference_count == 0, "{report:?}");
    ensure!(report.rows["public.orders"] == 1, "{report:?}");
    Ok(())
}
