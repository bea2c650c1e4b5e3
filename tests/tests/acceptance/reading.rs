//! Stories of who reads: positions, lists, status, and what is refused.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cucumber::{given, then, when};
use fixtures::legacy::System;
use serde_json::{Value, json};

use crate::shop::{Line, Shop};

/// The bound: a dead source is said to be stale within a minute.
const SAID_WITHIN: Duration = Duration::from_secs(60);

// -- positions -------------------------------------------------------------------------

#[then(expr = "{int} corrections of the order {string}, each read back at its position, all show")]
async fn read_your_writes(shop: &mut Shop, times: i32, name: String) -> Result<()> {
    let order = shop.order(&name)?;
    for quantity in 2..2 + times {
        shop.commit(
            System::Sales,
            &[(
                "update sls_orderdetail set quantity = $1 where order_id = $2",
                &[&quantity, &order],
            )],
        )
        .await?;
        let answer = shop.look(&format!("/v1/orders/{order}")).await?;
        ensure!(
            answer.body["lines"][0]["quantity"] == json!(quantity),
            "wrote {quantity}, asked at {}, and read {}",
            shop.min_position(),
            answer.body
        );
    }
    Ok(())
}

#[when(expr = "the product {string} is asked for at a position far in the future")]
async fn ask_in_the_future(shop: &mut Shop, name: String) -> Result<()> {
    let item = shop.item(&name)?;
    let asked = Instant::now();
    let path = format!("/v1/products/{item}?max_wait_ms=300");
    let answer = shop.api.get(&path, Some("warehouse=FFFFFFFF/0")).await?;
    shop.waited = asked.elapsed();
    shop.answer = Some(answer);
    Ok(())
}

#[then("it came before the time was up twice")]
fn bounded_wait(shop: &mut Shop) -> Result<()> {
    // 300 ms were asked for; a busy machine may double that and more, a forgotten bound (the
    // default of 2 s, or none) does not pass.
    let waited = shop.waited;
    ensure!(
        waited >= Duration::from_millis(250) && waited < Duration::from_millis(1900),
        "the answer took {waited:?}"
    );
    Ok(())
}

#[when(expr = "the product {string} is asked for")]
async fn ask_for_product(shop: &mut Shop, name: String) -> Result<()> {
    let item = shop.item(&name)?;
    shop.answer = Some(shop.look(&format!("/v1/products/{item}")).await?);
    Ok(())
}

#[then("the answer stands at a position of every source")]
fn stands_somewhere(shop: &mut Shop) -> Result<()> {
    let answer = shop.answer.as_ref().context("nothing was asked for")?;
    for system in System::ALL {
        let position = answer.positions.get(system.name());
        ensure!(
            matches!(position, Some(Some(_))),
            "no position of {} in {:?}",
            system.name(),
            answer.view_position
        );
    }
    Ok(())
}

// -- refusals --------------------------------------------------------------------------

#[when(expr = "the order {int} is asked for")]
async fn ask_for_order(shop: &mut Shop, id: i64) -> Result<()> {
    shop.answer = Some(shop.look(&format!("/v1/orders/{id}")).await?);
    Ok(())
}

#[when("a cursor of the orders is used for the products")]
async fn foreign_cursor(shop: &mut Shop) -> Result<()> {
    let page = shop.look("/v1/orders?limit=1").await?;
    let cursor = page.body["next_cursor"]
        .as_str()
        .with_context(|| format!("no cursor in {}", page.body))?;
    let path = format!("/v1/products?limit=1&cursor={cursor}");
    shop.answer = Some(shop.look(&path).await?);
    Ok(())
}

#[then(expr = "the answer is {int} with a code")]
fn refused(shop: &mut Shop, status: u16) -> Result<()> {
    let answer = shop.answer.as_ref().context("nothing was asked for")?;
    ensure!(
        answer.status == status && answer.body["code"].is_string(),
        "{}: {}",
        answer.status,
        answer.body
    );
    Ok(())
}

// -- lists -----------------------------------------------------------------------------

#[given(expr = "a new customer places {int} orders for 1 of {string}")]
async fn many_orders(shop: &mut Shop, count: usize, item: String) -> Result<()> {
    let customer = shop.new_customer().await?;
    for number in 1..=count {
        place_numbered(shop, customer, number, &item).await?;
    }
    Ok(())
}

async fn place_numbered(shop: &mut Shop, customer: i32, number: usize, item: &str) -> Result<()> {
    let line = Line {
        item: item.to_owned(),
        price: "150.00".to_owned(),
        quantity: 1,
    };
    shop.place(&format!("number {number}"), customer, &[line])
        .await?;
    Ok(())
}

#[when("the orders are walked 2 at a time while new ones are placed")]
async fn walk_while_placing(shop: &mut Shop) -> Result<()> {
    let mine = shop.customer;
    let other = shop.new_customer().await?;
    shop.customer = mine;
    let mut met: BTreeMap<i64, u32> = BTreeMap::new();
    let mut path = "/v1/orders?limit=2".to_owned();
    let mut number = 1000;
    loop {
        let page = shop.look(&path).await?;
        for order in page.body["data"].as_array().context("no data")? {
            if order["customer_id"] == json!(mine) {
                *met.entry(order["id"].as_i64().context("no id")?)
                    .or_default() += 1;
            }
        }
        // Between two pages somebody orders, and somebody corrects what was on the last page.
        number += 1;
        if number <= 1020 {
            place_numbered(shop, other, number, "chair").await?;
        }
        match page.body["next_cursor"].as_str() {
            None => break,
            Some(cursor) => path = format!("/v1/orders?limit=2&cursor={cursor}"),
        }
    }
    let body = json!(met);
    shop.answer = Some(tests::api::Answer {
        status: reqwest::StatusCode::OK,
        positions: BTreeMap::new(),
        view_position: String::new(),
        body,
    });
    Ok(())
}

#[then(expr = "each of the customer's {int} orders is met once")]
fn each_once(shop: &mut Shop, count: usize) -> Result<()> {
    let met = &shop.answer.as_ref().context("no walk")?.body;
    let met: BTreeMap<i64, u32> = serde_json::from_value(met.clone())?;
    ensure!(
        met.len() == count && met.values().all(|times| *times == 1),
        "{count} orders, but met {met:?}"
    );
    Ok(())
}

#[then(expr = "{string} comes before {string} among the sold items")]
async fn sells_more(shop: &mut Shop, first: String, second: String) -> Result<()> {
    let (first, second) = (shop.item(&first)?, shop.item(&second)?);
    let minimum = shop.min_position();
    let rows = shop.api.walk("sold-items", 100, Some(&minimum)).await?;
    let place = |id: i64| {
        rows.iter()
            .position(|row| row["id"] == json!(id))
            .with_context(|| format!("{id} is not among the {} sold items", rows.len()))
    };
    ensure!(
        place(first)? < place(second)?,
        "{first} stands after {second}"
    );
    Ok(())
}

// -- a source stops --------------------------------------------------------------------

fn system(name: &str) -> Result<System> {
    System::ALL
        .into_iter()
        .find(|system| system.name() == name)
        .with_context(|| format!("there is no system {name}"))
}

#[when(expr = "the database of {word} stops")]
async fn database_stops(shop: &mut Shop, name: String) -> Result<()> {
    shop.stack.cluster(system(&name)?).lock().await.stop().await;
    Ok(())
}

#[when(expr = "the database of {word} starts again")]
async fn database_starts(shop: &mut Shop, name: String) -> Result<()> {
    let mut cluster = shop.stack.cluster(system(&name)?).lock().await;
    cluster.restart().await
}

#[then(expr = "the status of {word} soon says that it is not current")]
async fn soon_stale(shop: &mut Shop, name: String) -> Result<()> {
    soon(shop, &name, |state| state != "live").await
}

#[then(expr = "the status of {word} soon says that it is current")]
async fn soon_current(shop: &mut Shop, name: String) -> Result<()> {
    soon(shop, &name, |state| state == "live").await
}

#[then(expr = "the status of {word} says that it is current")]
async fn is_current(shop: &mut Shop, name: String) -> Result<()> {
    let state = state(shop, &name).await?;
    ensure!(state == "live", "{name} is {state}");
    Ok(())
}

async fn soon(shop: &mut Shop, name: &str, is: impl Fn(&str) -> bool) -> Result<()> {
    let deadline = Instant::now() + SAID_WITHIN;
    loop {
        let state = state(shop, name).await?;
        if is(&state) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{name} is said to be {state} for {SAID_WITHIN:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn state(shop: &mut Shop, name: &str) -> Result<String> {
    let status = shop.api.patient("/v1/status", None).await?.body;
    let entry = status["sources"]
        .as_array()
        .and_then(|sources| sources.iter().find(|entry| entry["source"] == json!(name)))
        .with_context(|| format!("the status does not name {name}: {status}"))?;
    for field in ["lag_ms", "lag_bytes", "position", "current_at"] {
        ensure!(entry.get(field).is_some(), "no {field} in {entry}");
    }
    match &entry["state"] {
        Value::String(state) => Ok(state.clone()),
        other => bail!("the state of {name} is {other}"),
    }
}
