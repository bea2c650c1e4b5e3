//! Unified rows that are computed again by command.

use aggregator::view::{Keys, View};
use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};

use crate::Database;
use crate::oracle::unified_tables_equal_joins;
use crate::rules::{apply, begin, order};
use crate::topics::Place;
#[cfg(feature = "faults")]
use crate::topics::wait;

fn keys(named: &[(&str, &[&[&str]])]) -> Keys {
    let owned = |key: &&[&str]| key.iter().map(|part| (*part).to_owned()).collect();
    let named = named.iter();
    named
        .map(|(table, keys)| ((*table).to_owned(), keys.iter().map(owned).collect()))
        .collect()
}

async fn recompute(view: &mut View, named: &[(&str, &[&[&str]])]) -> Result<u64> {
    let named = view.named(&keys(named)).await??;
    Ok(view.recompute_rows(named).await?)
}

#[tokio::test]
async fn named_rows_alone_are_computed() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    let damage = "UPDATE public.orders SET total = total + 1 WHERE id IN (1, 2)";
    database.client.batch_execute(damage).await?;
    let rows = recompute(&mut view, &[("public.orders", &[&["1"], &["1"], &["77"]])]).await?;
    assert_eq!(rows, 1);
    let totals = "SELECT id, total::text FROM public.orders ORDER BY id";
    let of_two = json!([{"id": 1, "total": "10.00"}, {"id": 2, "total": "1.00"}]);
    assert_eq!(database.rows(totals).await?, of_two);
    let rows = recompute(&mut view, &[("public.orders", &[&["2"]])]).await?;
    assert_eq!(rows, 1);
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    // What comes next moves totals from where they are.
    order(&mut shop, 2, 1);
    apply(&mut view, &mut shop, "sales").await?;
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}

/// In every table a row is changed, one deleted and one inserted.
#[tokio::test]
async fn rows_of_every_table_are_brought_to_what_the_mirrors_say() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, _) = begin(&database).await?;
    let mut named: Vec<(&str, &[&[&str]])> = Vec::new();
    for (table, change) in [
        ("public.products", "revenue = revenue + 1"),
        ("public.transactions", "amount = amount + 1"),
        ("public.orders", "total = total + 1"),
        ("public.customers", "ordered = ordered + 1"),
    ] {
        let damage = format!(
            "UPDATE {table} SET {change} WHERE id = 1; DELETE FROM {table} WHERE id = 2;
            INSERT INTO {table} (id, unknown, degraded, revision) VALUES (-7, '{{}}', false, '')"
        );
        database.client.batch_execute(&damage).await?;
        named.push((table, &[&["1"], &["2"], &["-7"]]));
    }
    database
        .client
        .batch_execute(
            "UPDATE public.daily_sales SET units = units + 1 WHERE product_id = 1;
            DELETE FROM public.daily_sales WHERE product_id = 2;
            INSERT INTO public.daily_sales VALUES ('1999-01-01', 1, 1, 1, 1, '{}', false, '');
            UPDATE aggregator.product_totals SET units_sold = 9 WHERE product_id = 1;
            DELETE FROM aggregator.product_totals WHERE product_id = 2;
            INSERT INTO aggregator.part_paid VALUES (2, now(), now());
            DELETE FROM aggregator.part_paid WHERE order_id = 1",
        )
        .await?;
    named.push((
        "public.daily_sales",
        &[
            &["2024-01-01", "1"],
            &["2024-01-01", "2"],
            &["1999-01-01", "1"],
        ],
    ));
    named.push(("aggregator.product_totals", &[&["1"], &["2"]]));
    named.push(("aggregator.part_paid", &[&["1"], &["2"]]));
    recompute(&mut view, &named).await?;
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await?;
    let part_paid = "SELECT order_id FROM aggregator.part_paid";
    assert_eq!(database.rows(part_paid).await?, json!([{"order_id": 1}]));
    let discrepancies = "SELECT id FROM public.discrepancies ORDER BY id";
    let all = database.rows(discrepancies).await?;
    let damage = "DELETE FROM public.discrepancies";
    database.client.batch_execute(damage).await?;
    let ids = all.as_array().context("no list")?;
    ensure!(!ids.is_empty(), "nothing is discrepant");
    let count = i64::try_from(ids.len())?;
    let ids: Vec<_> = ids.iter().map(|row| vec![row["id"].to_string()]).collect();
    let keys = Keys::from([("public.discrepancies".to_owned(), ids)]);
    let named = view.named(&keys).await??;
    view.recompute_rows(named).await?;
    assert_eq!(database.rows(discrepancies).await?, all);
    let open: i64 = view.discrepancies().values().sum();
    assert_eq!(open, count);
    Ok(())
}

#[tokio::test]
async fn what_is_no_key_is_refused() -> Result<()> {
    let database = Database::new().await?;
    let (view, _) = begin(&database).await?;
    for (named, why) in [
        (keys(&[("sales.sls_order", &[&["1"]])]), "no unified table"),
        (
            keys(&[("public.orders", &[&["one"]])]),
            "one is no key of public.orders",
        ),
        (
            keys(&[("public.daily_sales", &[&["2024-01-01"]])]),
            "no key",
        ),
        (
            keys(&[("public.daily_sales", &[&["2024-02-30", "1"]])]),
            "2024-02-30/1 is no key",
        ),
        (
            Keys::from([("public.orders".to_owned(), vec![vec!["1".to_owned()]; 1001])]),
            "more than 1000",
        ),
    ] {
        let refused = view.named(&named).await?.err().context("is taken")?;
        ensure!(refused.to_string().contains(why), "{refused}");
    }
    Ok(())
}

/// The command, to whose sources nothing leads here: it repairs what the mirrors say.
#[tokio::test]
async fn a_repair_has_the_rows_computed_that_differ_and_what_follows_from_them() -> Result<()> {
    let mut place = Place::new(41).await?;
    for _ in 0..10 {
        place.work().await?;
    }
    let aggregator = place.start("", &[])?;
    place.caught_up(&[&aggregator]).await?;
    // A total that is wrong, and a product that was computed from it: that differs only from what
    // the total should be.
    let damage = "
        UPDATE aggregator.product_totals SET units_sold = units_sold + 7
            WHERE product_id = (SELECT min(product_id) FROM aggregator.product_totals);
        UPDATE public.products SET units_sold = units_sold + 7
            WHERE id = (SELECT min(product_id) FROM aggregator.product_totals)";
    place.database.client.batch_execute(damage).await?;
    let command = aggregator.command(&["verify", "--repair"]).await?;
    let said = String::from_utf8(command.stderr)?;
    for step in [
        "computes 1 rows of aggregator.product_totals again",
        "computes 1 rows of public.products again",
    ] {
        ensure!(said.contains(step), "{step}: {said}");
    }
    place.is_right().await?;
    // That the sources are not compared is said.
    assert_eq!(command.status.code(), Some(2), "{said}");
    Ok(())
}

/// Computing all takes as long as it takes: who asked need not hold a connection for that, and who
/// asks again has it done once.
#[cfg(feature = "faults")]
#[tokio::test]
async fn a_slow_computation_of_all_rows_is_no_failure() -> Result<()> {
    let mut place = Place::new(42).await?;
    for _ in 0..5 {
        place.work().await?;
    }
    let gate = place.folder().join("gate");
    std::fs::write(&gate, "")?;
    let faults = format!("aggregator.before_commit:hold:1:{}", gate.display());
    let aggregator = place.start("", &[("FAULT_POINTS", &faults)])?;
    place.caught_up(&[&aggregator]).await?;
    let damage = "UPDATE public.products SET units_sold = -1";
    place.database.client.batch_execute(damage).await?;
    std::fs::remove_file(&gate)?;
    let (code, first) = aggregator.ask("POST", "/recompute").await?;
    assert_eq!(code, 202, "{first}");
    aggregator.says("before_commit: holds").await?;
    let (code, second) = aggregator.ask("POST", "/recompute").await?;
    assert_eq!((code, &second), (202, &first));
    let going_on = async || -> Result<Json> {
        let (_, status) = aggregator.ask("GET", "/status").await?;
        let status: Json = serde_json::from_str(&status)?;
        Ok(status["recompute"].clone())
    };
    assert_eq!(going_on().await?, serde_json::from_str::<Json>(&first)?);
    std::fs::write(&gate, "")?;
    wait("computed", &aggregator, || {
        aggregator.log().contains("computed all unified rows")
    })
    .await?;
    place.work().await?;
    place.caught_up(&[&aggregator]).await?;
    ensure!(going_on().await?["rows"].as_u64() > Some(0), "no rows");
    place.is_right().await
}
