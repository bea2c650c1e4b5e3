//! A change that its connector cannot send: the view says which rows are not what their source
//! says, and why, in the same view transaction as the changes around it.

use anyhow::{Result, ensure};
use fixtures::legacy::System;
use fixtures::stack::{Options, Stack};
use serde_json::{Value, json};
use tests::api::Api;

/// A description whose event is larger than a record may be.
const LARGE: &str = "repeat('x', 17 * 1024 * 1024)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_connector_cannot_send_degrades_its_rows_until_it_can() -> Result<()> {
    let stack = Stack::start(Options {
        seed: true,
        ..Options::default()
    })
    .await?;
    let checked = story(&stack).await;
    checked.map_err(|error| stack.explain(error))
}

async fn story(stack: &Stack) -> Result<()> {
    stack.caught_up().await?;
    let warehouse = stack.source(System::Warehouse).await?;
    warehouse
        .batch_execute(&format!(
            "begin;
             update wh_item set description = {LARGE} where id = 1;
             update wh_item set name = 'two' where id = 2;
             update wh_item set name = 'two again', description = {LARGE} where id = 2;
             update wh_item set description = {LARGE} where id = 3;
             update wh_item set name = 'three', description = 'short' where id = 3;
             update wh_item set name = 'four' where id = 4;
             insert into wh_item (id, name, description, country_of_origin)
                values (700001, 'new', {LARGE}, 'Italy');
             commit"
        ))
        .await?;
    stack.caught_up().await?;
    expect(stack, &[1, 2, 700_001], &[1, 2]).await?;
    for (id, name) in [(2, "two"), (3, "three"), (4, "four")] {
        let product = product(stack, id).await?;
        ensure!(product["name"] == name, "{name}: {product}");
    }
    let view = stack.view().await?;
    let row = view
        .query_one(
            "SELECT reason, position IS NOT NULL FROM public.quarantine WHERE key = '{\"id\":1}'",
            &[],
        )
        .await?;
    let (reason, placed): (String, bool) = (row.get(0), row.get(1));
    ensure!(reason.contains("too_large") && placed, "{reason}");

    // A rebuild finds the same, and a comparison with the source does not call it a difference.
    let aggregator = stack.service("aggregator");
    let rebuilt = aggregator
        .command(&["rebuild", "--source", "warehouse"])
        .await?;
    ensure!(rebuilt.status.success(), "{rebuilt:?}");
    expect(stack, &[1, 2, 700_001], &[1, 2]).await?;
    let verified = aggregator.command(&["verify", "--json"]).await?;
    let report: Value = serde_json::from_slice(&verified.stdout)?;
    ensure!(
        report["difference_count"] == 0 && report["quarantined"] == 3,
        "{report:#}"
    );

    by_command(stack).await?;
    warehouse
        .batch_execute(
            "update wh_item set description = 'short' where id in (1, 2);
             delete from wh_item where id = 700001",
        )
        .await?;
    stack.caught_up().await?;
    expect(stack, &[], &[]).await?;
    let product = product(stack, 2).await?;
    ensure!(product["name"] == "two again", "{product}");
    Ok(())
}

/// An operator looks, has one row read again, in vain, and accepts another as it is.
async fn by_command(stack: &Stack) -> Result<()> {
    let aggregator = stack.service("aggregator");
    let run = async |words: &str, id: i64| -> Result<(bool, String)> {
        let key = json!({ "id": id }).to_string();
        let which = [
            "--source",
            "warehouse",
            "--table",
            "public.wh_item",
            "--key",
            &key,
        ];
        let arguments: Vec<_> = ["quarantine", words].into_iter().chain(which).collect();
        let output = aggregator.command(&arguments).await?;
        let said = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
        Ok((output.status.success(), said))
    };
    let listed = aggregator.command(&["quarantine", "list"]).await?;
    let listed = String::from_utf8(listed.stdout)?;
    ensure!(
        listed.contains("{\"id\":700001}") && listed.ends_with("3 in quarantine\n"),
        "{listed}"
    );
    let (shown, said) = run("show", 1).await?;
    ensure!(
        shown && said.contains("degraded: products 1") && said.contains("record: {\"table\""),
        "{said}"
    );
    let (applied, said) = run("retry", 1).await?;
    ensure!(!applied && said.contains("in quarantine again"), "{said}");
    let (discarded, said) = run("discard", 2).await?;
    ensure!(discarded, "{said}");
    expect(stack, &[1, 700_001], &[1]).await?;
    let (known, said) = run("discard", 2).await?;
    ensure!(!known && said.contains("is not in quarantine"), "{said}");
    Ok(())
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

/// The items in quarantine, and the products that say they are degraded.
async fn expect(stack: &Stack, items: &[i64], degraded: &[i64]) -> Result<()> {
    let view = stack.view().await?;
    let rows = view
        .query("SELECT key FROM public.quarantine ORDER BY key", &[])
        .await?;
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let keys: Vec<String> = items
        .iter()
        .map(|id| json!({ "id": id }).to_string())
        .collect();
    ensure!(found == keys, "in quarantine: {found:?}, not {keys:?}");
    let rows = view
        .query(
            "SELECT id FROM public.products WHERE degraded ORDER BY id",
            &[],
        )
        .await?;
    let found: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(found == degraded, "degraded: {found:?}, not {degraded:?}");
    for id in degraded {
        let product = product(stack, *id).await?;
        ensure!(product["degraded"] == true, "{product}");
    }
    Ok(())
}
