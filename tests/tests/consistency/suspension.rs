//! A table of which much cannot be applied stands still, all that is made of it says so, and once it
//! is mended its connector reads it again.

use anyhow::{Context, Result, ensure};
use fixtures::legacy::System;
use fixtures::stack::{Options, Stack};
use serde_json::Value;
use tests::api::Api;
use tests::rest::agrees;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_floods_the_quarantine_stands_still_until_it_is_read_again() -> Result<()> {
    let bound = "quarantine.suspend_after".to_owned();
    let stack = Stack::start(Options {
        seed: true,
        settings: vec![("aggregator".to_owned(), bound, 20.into())],
        ..Options::default()
    })
    .await?;
    let checked = story(&stack).await;
    checked.map_err(|error| stack.explain(error))
}

async fn story(stack: &Stack) -> Result<()> {
    let warehouse = stack.source(System::Warehouse).await?;
    // From here on the API's cache has it.
    ensure!(product(stack, 100).await?["degraded"] == false);
    warehouse
        .batch_execute("update wh_price set price = 'NaN' where id <= 50")
        .await?;
    stack.caught_up().await?;
    // Product 100 has a good price, and nothing of it was touched.
    ensure!(product(stack, 100).await?["degraded"] == true);
    let api = Api::new(stack.api_url())?;
    for (list, is_degraded) in [("products", true), ("orders", false)] {
        let answer = api.patient(&format!("/v1/{list}?limit=100"), None).await?;
        let rows = answer.body["data"].as_array().context("no rows")?;
        let degraded = rows.iter().filter(|row| row["degraded"] == true).count();
        let expected = if is_degraded { rows.len() } else { 0 };
        ensure!(
            rows.len() == 100 && degraded == expected,
            "{degraded} of {list}"
        );
    }

    // Nothing of the table is applied, all else is.
    warehouse
        .batch_execute(
            "update wh_price set price = 'NaN' where id between 51 and 150;
             delete from wh_price where id = 160;
             update wh_price set price = 1.11 where id = 170;
             update wh_item set name = 'renamed' where id = 170",
        )
        .await?;
    stack.caught_up().await?;
    let renamed = product(stack, 170).await?;
    ensure!(
        renamed["name"] == "renamed" && renamed["price"] != "1.11",
        "{renamed}"
    );
    let aggregator = stack.service("aggregator");
    let listed = aggregator.command(&["quarantine", "list"]).await?;
    let listed = String::from_utf8(listed.stdout)?;
    ensure!(
        listed.contains("public.wh_price  *  more than 20 of its keys")
            && listed.ends_with("51 in quarantine\n"),
        "{listed}"
    );
    let verified = aggregator.command(&["verify", "--json"]).await?;
    let report: Value = serde_json::from_slice(&verified.stdout)?;
    ensure!(
        verified.status.code() == Some(2)
            && report["difference_count"] == 0
            && report["not_compared"][0]["what"] == "warehouse.wh_price"
            && report["not_compared"][1].is_null(),
        "{report:#}"
    );
    let status = aggregator.command(&["status"]).await?;
    let status = String::from_utf8(status.stdout)?;
    ensure!(status.contains("public.wh_price suspended"), "{status}");

    // In vain, since nobody mended it.
    let (code, said) = resume(stack).await?;
    ensure!(
        code == 1 && said.contains("suspended again: more than 20"),
        "{code}: {said}"
    );
    ensure!(product(stack, 100).await?["degraded"] == true);

    warehouse
        .batch_execute(
            "update wh_price set price = 5 where price = 'NaN'; delete from wh_price where id = 161",
        )
        .await?;
    // While it is read again it changes, and rows come and go.
    let busy = async {
        loop {
            warehouse
                .batch_execute(
                    "update wh_price set price = price + 0.01 where id % 3 = 0;
                     insert into wh_price (id, price, item_id) values (900001, 1, 1);
                     delete from wh_price where id = 900001",
                )
                .await?;
        }
    };
    let (code, said) = tokio::select! {
        never = busy => never,
        resumed = resume(stack) => resumed,
    }?;
    ensure!(code == 0 && said.contains("resumed"), "{code}: {said}");
    agrees(stack).await?;
    for id in [100, 170] {
        let product = product(stack, id).await?;
        ensure!(product["degraded"] == false, "{product}");
    }
    let verified = aggregator.command(&["verify"]).await?;
    ensure!(verified.status.success(), "{verified:?}");
    Ok(())
}

/// The exit code, and what was said.
async fn resume(stack: &Stack) -> Result<(i32, String)> {
    let aggregator = stack.service("aggregator");
    let which = ["--source", "warehouse", "--table", "public.wh_price"];
    let arguments: Vec<_> = ["quarantine", "resume"].into_iter().chain(which).collect();
    let output = aggregator.command(&arguments).await?;
    let said = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
    Ok((output.status.code().context("killed")?, said))
}

async fn product(stack: &Stack, id: i64) -> Result<Value> {
    let least = format!("warehouse={}", stack.wal_lsn(System::Warehouse).await?);
    let api = Api::new(stack.api_url())?;
    let answer = api
        .patient(&format!("/v1/products/{id}"), Some(&least))
        .await?;
    ensure!(answer.status.is_success(), "{}", answer.body);
    Ok(answer.body)
}
