//! What the stories' people and applications do, and what is then shown.

use anyhow::{Context, Result, ensure};
use cucumber::gherkin::Step;
use cucumber::{given, then, when};
use fixtures::legacy::System;
use reqwest::StatusCode;
use serde_json::json;

use crate::shop::{Line, Shop, shows};

// -- the warehouse ---------------------------------------------------------------------

#[given(expr = "the item {string} from {string} at {word} with {int} in stock")]
async fn an_item(
    shop: &mut Shop,
    name: String,
    country: String,
    price: String,
    quantity: i32,
) -> Result<()> {
    let item = shop.make_item(&name, &country).await?;
    shop.set_price(item, &price).await?;
    shop.set_quantity(item, quantity).await
}

#[given(expr = "an item {string} from {string} whose price and quantity are still missing")]
async fn a_half_made_item(shop: &mut Shop, name: String, country: String) -> Result<()> {
    let item = shop.make_item(&name, &country).await?;
    rename_to(shop, item, &name).await
}

#[when(expr = "the item {string} gets the price {word}")]
async fn reprice(shop: &mut Shop, name: String, price: String) -> Result<()> {
    let item = shop.item(&name)?;
    shop.set_price(item, &price).await
}

#[when(expr = "the first price of the item {string} is changed to {word}")]
async fn change_first_price(shop: &mut Shop, name: String, price: String) -> Result<()> {
    let item = shop.item(&name)?;
    shop.commit(
        System::Warehouse,
        &[(
            "update wh_price set price = $1::text::numeric
             where id = (select min(id) from wh_price where item_id = $2)",
            &[&price, &item],
        )],
    )
    .await?;
    Ok(())
}

#[when(expr = "the last price of the item {string} is deleted")]
async fn delete_last_price(shop: &mut Shop, name: String) -> Result<()> {
    let item = shop.item(&name)?;
    shop.commit(
        System::Warehouse,
        &[(
            "delete from wh_price where id = (select max(id) from wh_price where item_id = $1)",
            &[&item],
        )],
    )
    .await?;
    Ok(())
}

#[when(expr = "the item {string} gets the quantity {int}")]
async fn first_quantity(shop: &mut Shop, name: String, quantity: i32) -> Result<()> {
    let item = shop.item(&name)?;
    shop.set_quantity(item, quantity).await
}

#[when(expr = "the item {string} is restocked to {int}")]
async fn restock(shop: &mut Shop, name: String, quantity: i32) -> Result<()> {
    let item = shop.item(&name)?;
    shop.commit(
        System::Warehouse,
        &[(
            "update wh_quantity set quantity = $1 where item_id = $2",
            &[&quantity, &item],
        )],
    )
    .await?;
    Ok(())
}

#[when(expr = "the item {string} is renamed to {string}")]
async fn rename(shop: &mut Shop, name: String, new: String) -> Result<()> {
    let item = shop.item(&name)?;
    rename_to(shop, item, &new).await
}

#[when(expr = "the item {string} is renamed to")]
async fn rename_to_text(shop: &mut Shop, step: &Step, name: String) -> Result<()> {
    let item = shop.item(&name)?;
    rename_to(shop, item, text(step)?).await
}

async fn rename_to(shop: &mut Shop, item: i64, name: &str) -> Result<()> {
    shop.commit(
        System::Warehouse,
        &[(
            "update wh_item set name = $1 where id = $2",
            &[&name, &item],
        )],
    )
    .await?;
    Ok(())
}

#[given(expr = "the item {string} has a description of 100 KiB")]
async fn describe(shop: &mut Shop, name: String) -> Result<()> {
    let item = shop.item(&name)?;
    shop.commit(
        System::Warehouse,
        &[(
            "update wh_item set description = $1 where id = $2",
            &[&long_description(item), &item],
        )],
    )
    .await?;
    Ok(())
}

#[then(expr = "the product {string} still has its description of 100 KiB")]
async fn described(shop: &mut Shop, name: String) -> Result<()> {
    let item = shop.item(&name)?;
    let answer = shop.look(&format!("/v1/products/{item}")).await?;
    let seen = answer.body["description"].as_str().unwrap_or_default();
    ensure!(
        seen == long_description(item),
        "the description has {} bytes: {:.80}",
        seen.len(),
        seen
    );
    Ok(())
}

/// 100 KiB that do not compress well, so that PostgreSQL stores them out of line.
fn long_description(item: i64) -> String {
    let mut state = u64::try_from(item).unwrap_or_default() | 1;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b'!' + u8::try_from(state >> 33 & 63).unwrap_or_default())
    })
    .take(100 << 10)
    .collect()
}

#[when(expr = "the item {string} is deleted")]
async fn delete_item(shop: &mut Shop, name: String) -> Result<()> {
    let item = shop.item(&name)?;
    shop.commit(
        System::Warehouse,
        &[
            ("delete from wh_price where item_id = $1", &[&item]),
            ("delete from wh_quantity where item_id = $1", &[&item]),
            ("delete from wh_item where id = $1", &[&item]),
        ],
    )
    .await?;
    Ok(())
}

// -- sales -----------------------------------------------------------------------------

#[given(expr = "a new customer places the order {string} for")]
#[when(expr = "a new customer places the order {string} for")]
async fn place_as_new(shop: &mut Shop, step: &Step, name: String) -> Result<()> {
    let customer = shop.new_customer().await?;
    shop.place(&name, customer, &lines(step)?).await?;
    Ok(())
}

#[given(expr = "another customer places the order {string} for")]
async fn place_as_another(shop: &mut Shop, step: &Step, name: String) -> Result<()> {
    place_as_new(shop, step, name).await
}

#[given(expr = "the customer places the order {string} for")]
#[when(expr = "the customer places the order {string} for")]
async fn place_again(shop: &mut Shop, step: &Step, name: String) -> Result<()> {
    let customer = shop.customer;
    shop.place(&name, customer, &lines(step)?).await?;
    Ok(())
}

#[given(expr = "a new customer places the order {string} for nothing")]
#[when(expr = "a new customer places the order {string} for nothing")]
async fn place_nothing_as_new(shop: &mut Shop, name: String) -> Result<()> {
    let customer = shop.new_customer().await?;
    shop.place(&name, customer, &[]).await?;
    Ok(())
}

#[given(expr = "the customer places the order {string} for nothing")]
async fn place_nothing(shop: &mut Shop, name: String) -> Result<()> {
    let customer = shop.customer;
    shop.place(&name, customer, &[]).await?;
    Ok(())
}

#[when(expr = "the order {string} is cancelled")]
async fn cancel(shop: &mut Shop, name: String) -> Result<()> {
    let order = shop.order(&name)?;
    shop.commit(
        System::Sales,
        &[
            ("delete from sls_orderdetail where order_id = $1", &[&order]),
            ("delete from sls_order where id = $1", &[&order]),
        ],
    )
    .await?;
    Ok(())
}

#[when(expr = "the line of {string} is moved from the order {string} to the order {string}")]
async fn move_line(shop: &mut Shop, item: String, from: String, to: String) -> Result<()> {
    let (item, from, to) = (
        i32::try_from(shop.item(&item)?)?,
        shop.order(&from)?,
        shop.order(&to)?,
    );
    shop.commit(
        System::Sales,
        &[(
            "update sls_orderdetail set order_id = $1 where order_id = $2 and item_id = $3",
            &[&to, &from, &item],
        )],
    )
    .await?;
    Ok(())
}

#[when(expr = "the line of {string} in the order {string} is corrected to {int} at {word}")]
async fn correct(
    shop: &mut Shop,
    item: String,
    order: String,
    quantity: i32,
    price: String,
) -> Result<()> {
    let (item, order) = (i32::try_from(shop.item(&item)?)?, shop.order(&order)?);
    shop.commit(
        System::Sales,
        &[(
            "update sls_orderdetail set quantity = $1, unit_price = $2::text::numeric
             where order_id = $3 and item_id = $4",
            &[&quantity, &price, &order, &item],
        )],
    )
    .await?;
    Ok(())
}

#[when(expr = "the order {string} is handed over to a new customer")]
async fn hand_over(shop: &mut Shop, name: String) -> Result<()> {
    let (order, customer) = (shop.order(&name)?, shop.new_customer().await?);
    shop.commit(
        System::Sales,
        &[(
            "update sls_order set customer_id = $1 where id = $2",
            &[&customer, &order],
        )],
    )
    .await?;
    shop.customers_of.insert(name, customer);
    Ok(())
}

// -- accounting ------------------------------------------------------------------------

#[given(expr = "{word} is paid for the order {string}")]
#[when(expr = "{word} is paid for the order {string}")]
async fn pay(shop: &mut Shop, sum: String, order: String) -> Result<()> {
    let order = shop.order(&order)?;
    shop.pay(order, &sum).await
}

#[given(expr = "{word} is paid for an order {string} that sales has not written yet")]
#[when(expr = "{word} is paid for an order {string} that sales has not written yet")]
async fn pay_early(shop: &mut Shop, sum: String, order: String) -> Result<()> {
    let id = shop.next_order().await?;
    shop.orders.insert(order, id);
    shop.pay(id, &sum).await
}

#[when(expr = "{word} is added to the last transaction")]
async fn add_detail(shop: &mut Shop, sum: String) -> Result<()> {
    let transaction = shop.transaction;
    shop.commit(
        System::Accounting,
        &[(
            "insert into ac_transactiondetail (sum, date, transaction_id)
             values ($1::text::numeric, now(), $2)",
            &[&sum, &transaction],
        )],
    )
    .await?;
    Ok(())
}

#[when(expr = "the last transaction is moved to the order {string}")]
async fn move_payment(shop: &mut Shop, order: String) -> Result<()> {
    let (order, transaction) = (i32::try_from(shop.order(&order)?)?, shop.transaction);
    shop.commit(
        System::Accounting,
        &[(
            "update ac_transaction set order_id = $1 where id = $2",
            &[&order, &transaction],
        )],
    )
    .await?;
    Ok(())
}

#[when("the last transaction is deleted")]
async fn delete_payment(shop: &mut Shop) -> Result<()> {
    let transaction = shop.transaction;
    shop.commit(
        System::Accounting,
        &[
            (
                "delete from ac_transactiondetail where transaction_id = $1",
                &[&transaction],
            ),
            ("delete from ac_transaction where id = $1", &[&transaction]),
        ],
    )
    .await?;
    Ok(())
}

// -- what is shown ---------------------------------------------------------------------

#[given(expr = "the order {string} shows")]
#[then(expr = "the order {string} shows")]
async fn order_shows(shop: &mut Shop, step: &Step, name: String) -> Result<()> {
    let order = shop.order(&name)?;
    row_shows(shop, step, &format!("/v1/orders/{order}")).await
}

#[given(expr = "the product {string} shows")]
#[then(expr = "the product {string} shows")]
async fn product_shows(shop: &mut Shop, step: &Step, name: String) -> Result<()> {
    let item = shop.item(&name)?;
    row_shows(shop, step, &format!("/v1/products/{item}")).await
}

#[given("the customer shows")]
#[then("the customer shows")]
async fn customer_shows(shop: &mut Shop, step: &Step) -> Result<()> {
    let customer = shop.customer;
    row_shows(shop, step, &format!("/v1/customers/{customer}")).await
}

#[then(expr = "the customer of the order {string} shows")]
async fn customer_of_shows(shop: &mut Shop, step: &Step, order: String) -> Result<()> {
    let customer = shop.customers_of[&order];
    row_shows(shop, step, &format!("/v1/customers/{customer}")).await
}

#[given("the last transaction shows")]
#[then("the last transaction shows")]
async fn transaction_shows(shop: &mut Shop, step: &Step) -> Result<()> {
    let transaction = shop.transaction;
    row_shows(shop, step, &format!("/v1/transactions/{transaction}")).await
}

async fn row_shows(shop: &mut Shop, step: &Step, path: &str) -> Result<()> {
    let answer = shop.look(path).await?;
    ensure!(answer.status == StatusCode::OK, "{path}: {}", answer.body);
    shows(&answer.body, table(step)?)
}

#[then(expr = "the last transaction names the order {string}")]
async fn names_order(shop: &mut Shop, order: String) -> Result<()> {
    let (order, transaction) = (shop.order(&order)?, shop.transaction);
    let answer = shop
        .look(&format!("/v1/transactions/{transaction}"))
        .await?;
    ensure!(answer.body["order_id"] == json!(order), "{}", answer.body);
    Ok(())
}

#[then(expr = "the name of the product {string} is")]
async fn name_is(shop: &mut Shop, step: &Step, name: String) -> Result<()> {
    let item = shop.item(&name)?;
    let answer = shop.look(&format!("/v1/products/{item}")).await?;
    let expected = text(step)?;
    ensure!(
        answer.body["name"] == json!(expected),
        "the name is {}, and should be {expected}",
        answer.body["name"]
    );
    Ok(())
}

#[then(expr = "the order {string} has the lines")]
async fn has_lines(shop: &mut Shop, step: &Step, name: String) -> Result<()> {
    let order = shop.order(&name)?;
    let answer = shop.look(&format!("/v1/orders/{order}")).await?;
    let seen = answer.body["lines"]
        .as_array()
        .with_context(|| format!("an order without lines: {}", answer.body))?;
    let expected = table(step)?.iter().skip(1).collect::<Vec<_>>();
    ensure!(
        seen.len() == expected.len(),
        "{} lines: {seen:?}",
        seen.len()
    );
    for (line, expected) in seen.iter().zip(expected) {
        let [item, price, quantity, amount] = expected.as_slice() else {
            anyhow::bail!("a line has item, price, quantity and amount");
        };
        let fields = [
            ("product_id", shop.item(item)?.to_string()),
            ("unit_price", price.clone()),
            ("quantity", quantity.clone()),
            ("amount", amount.clone()),
        ];
        let fields: Vec<_> = fields
            .map(|(field, value)| vec![field.into(), value])
            .into();
        shows(line, &fields)?;
    }
    Ok(())
}

#[given(expr = "there is no order {string}")]
#[then(expr = "there is no order {string}")]
async fn no_order(shop: &mut Shop, name: String) -> Result<()> {
    let order = shop.order(&name)?;
    absent(shop, &format!("/v1/orders/{order}")).await
}

#[then(expr = "there is no product {string}")]
async fn no_product(shop: &mut Shop, name: String) -> Result<()> {
    let item = shop.item(&name)?;
    absent(shop, &format!("/v1/products/{item}")).await
}

#[then("there is no such customer")]
async fn no_customer(shop: &mut Shop) -> Result<()> {
    let customer = shop.customer;
    absent(shop, &format!("/v1/customers/{customer}")).await
}

#[then("there is no such transaction")]
async fn no_transaction(shop: &mut Shop) -> Result<()> {
    let transaction = shop.transaction;
    absent(shop, &format!("/v1/transactions/{transaction}")).await
}

async fn absent(shop: &mut Shop, path: &str) -> Result<()> {
    let answer = shop.look(path).await?;
    ensure!(
        answer.status == StatusCode::NOT_FOUND && answer.body["code"] == json!("not_found"),
        "{path}: {} {}",
        answer.status,
        answer.body
    );
    Ok(())
}

// -- the stories' tables ---------------------------------------------------------------

fn table(step: &Step) -> Result<&[Vec<String>]> {
    let table = step.table.as_ref().context("the step has no table")?;
    Ok(&table.rows)
}

fn text(step: &Step) -> Result<&str> {
    let text = step.docstring.as_ref().context("the step has no text")?;
    Ok(text.trim_matches('\n'))
}

fn lines(step: &Step) -> Result<Vec<Line>> {
    table(step)?
        .iter()
        .skip(1)
        .map(|row| match row.as_slice() {
            [item, price, quantity] => Ok(Line {
                item: item.clone(),
                price: price.clone(),
                quantity: quantity.parse()?,
            }),
            _ => anyhow::bail!("a line has item, price and quantity"),
        })
        .collect()
}
