//! A view that an older aggregator made, opened by this one: what is defined anew is filled from
//! the mirrors, and what is as it was stays untouched.

use anyhow::{Result, ensure};

use crate::Database;
use crate::oracle::unified_tables_equal_joins;
use crate::rules::{apply, begin, order};

/// As the version before daily sales left it.
const OLDER: &str = "
    DROP TABLE public.daily_sales;
    DROP TABLE aggregator.definitions;
    DELETE FROM aggregator.migrations WHERE version IN (5, 6)";

const REVISIONS: &str = "SELECT 'orders' AS of, id, revision FROM public.orders
    UNION ALL SELECT 'customers', id, revision FROM public.customers
    UNION ALL SELECT 'products', id, revision FROM public.products
    UNION ALL SELECT 'transactions', id, revision FROM public.transactions ORDER BY 1, 2";

#[tokio::test]
async fn a_table_that_is_new_is_filled_from_the_mirrors() -> Result<()> {
    let database = Database::new().await?;
    let (view, mut shop) = begin(&database).await?;
    drop(view);
    let before = database.rows(REVISIONS).await?;
    database.client.batch_execute(OLDER).await?;
    // A position that the older version reached is not lost, nor are rows touched that are right.
    let mut view = database.open().await?;
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    let days: i64 = database
        .one("SELECT count(*) FROM public.daily_sales")
        .await?;
    ensure!(days == 2, "{days} rows");
    assert_eq!(database.rows(REVISIONS).await?, before);
    order(&mut shop, 3, 3);
    apply(&mut view, &mut shop, "sales").await?;
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

/// Whoever reads meanwhile sees the rows of one definition, never some of each.
#[tokio::test]
async fn rows_of_another_definition_are_computed_anew_with_all_that_follow_from_them() -> Result<()>
{
    let database = Database::new().await?;
    let (view, _) = begin(&database).await?;
    drop(view);
    database
        .client
        .batch_execute(
            "UPDATE public.orders SET total = -total;
            UPDATE public.customers SET ordered = -ordered, balance = -ordered - paid;
            UPDATE aggregator.definitions SET checksum = 'another' WHERE resource = 'orders'",
        )
        .await?;
    ensure!(
        unified_tables_equal_joins(&database, &aggregator::SOURCES)
            .await
            .is_err()
    );
    let products = "SELECT id, revision FROM public.products ORDER BY 1";
    let before = database.rows(products).await?;
    let view = database.open().await?;
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    assert_eq!(database.rows(products).await?, before);
    // The next writer has nothing to do.
    let filled = view.revision().number;
    drop(view);
    let again = database.open().await?.revision().number;
    assert_eq!(again, filled + 1, "more than a takeover");
    Ok(())
}
