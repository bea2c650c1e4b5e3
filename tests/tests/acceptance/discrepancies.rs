//! What the stories say of discrepancies.

use anyhow::{Context, Result, ensure};
use cucumber::gherkin::Step;
use cucumber::{given, then, when};
use fixtures::legacy::System;
use reqwest::StatusCode;
use serde_json::json;

use crate::shop::{Shop, shows};

/// A rule's number, and the resource that it judges rows of.
fn rule(name: &str) -> Result<(i64, &'static str)> {
    let rules = [
        ("item_missing", 1, "products"),
        ("payment_without_order", 2, "transactions"),
        ("part_paid_too_long", 3, "orders"),
        ("overpaid", 4, "orders"),
        ("negative_stock", 5, "products"),
    ];
    let found = rules.into_iter().find(|(rule, ..)| *rule == name);
    let (_, number, resource) = found.with_context(|| format!("no rule {name}"))?;
    Ok((number, resource))
}

/// It is there by its id, and in the lists of its rule and of each of its systems.
async fn present(shop: &mut Shop, step: &Step, key: i64, name: &str) -> Result<()> {
    let (number, resource) = rule(name)?;
    let id = key * 100 + number;
    let answer = shop.look(&format!("/v1/discrepancies/{id}")).await?;
    ensure!(answer.status == StatusCode::OK, "{id}: {}", answer.body);
    let row = answer.body;
    ensure!(row["rule"] == json!(name) && row["resource"] == json!(resource));
    ensure!(row["key"] == json!(key), "{row}");
    let table = step.table.as_ref().context("the step has no table")?;
    shows(&row["detail"], &table.rows)?;
    let systems = row["systems"].as_array().context("no systems")?;
    let mut lists = vec![format!("rule={name}")];
    for system in systems {
        lists.push(format!("system={}", system.as_str().context("a name")?));
    }
    for list in lists {
        let path = format!("/v1/discrepancies?limit=1000&{list}");
        let answer = shop.look(&path).await?;
        let rows = answer.body["data"].as_array().context("no rows")?;
        ensure!(rows.contains(&row), "{path} has no {row}");
    }
    Ok(())
}

async fn absent(shop: &mut Shop, key: i64, name: &str) -> Result<()> {
    let id = key * 100 + rule(name)?.0;
    let answer = shop.look(&format!("/v1/discrepancies/{id}")).await?;
    ensure!(
        answer.status == StatusCode::NOT_FOUND,
        "{id}: {}",
        answer.body
    );
    Ok(())
}

#[then(expr = "the item {string} has a discrepancy {string} with")]
async fn of_item(shop: &mut Shop, step: &Step, item: String, rule: String) -> Result<()> {
    let key = shop.item(&item)?;
    present(shop, step, key, &rule).await
}

#[then(expr = "the order {string} has a discrepancy {string} with")]
async fn of_order(shop: &mut Shop, step: &Step, order: String, rule: String) -> Result<()> {
    let key = shop.order(&order)?;
    present(shop, step, key, &rule).await
}

#[then(expr = "the last transaction has a discrepancy {string} with")]
async fn of_transaction(shop: &mut Shop, step: &Step, rule: String) -> Result<()> {
    let key = shop.transaction;
    present(shop, step, key, &rule).await
}

#[given(expr = "the item {string} has no discrepancy {string}")]
#[then(expr = "the item {string} has no discrepancy {string}")]
async fn none_of_item(shop: &mut Shop, item: String, rule: String) -> Result<()> {
    let key = shop.item(&item)?;
    absent(shop, key, &rule).await
}

#[then(expr = "the order {string} has no discrepancy {string}")]
async fn none_of_order(shop: &mut Shop, order: String, rule: String) -> Result<()> {
    let key = shop.order(&order)?;
    absent(shop, key, &rule).await
}

#[then(expr = "the last transaction has no discrepancy {string}")]
async fn none_of_transaction(shop: &mut Shop, rule: String) -> Result<()> {
    let key = shop.transaction;
    absent(shop, key, &rule).await
}

#[when(expr = "the last transaction is dated {int} days back")]
async fn date_back(shop: &mut Shop, days: i32) -> Result<()> {
    let transaction = shop.transaction;
    shop.commit(
        System::Accounting,
        &[(
            "update ac_transactiondetail set date = date - $1 * interval '1 day'
             where transaction_id = $2",
            &[&f64::from(days), &transaction],
        )],
    )
    .await?;
    Ok(())
}
