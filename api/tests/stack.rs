//! The API behind the real aggregator and the real connector of the view: what the other tests
//! write as feed is what those write.

use anyhow::{Context, Result, ensure};
use fixtures::legacy::System;
use fixtures::stack::{Options, Stack};
use serde_json::Value;

use crate::harness::until;

const HITS: &str = "api_cache_looks_total{result=\"hit\"}";

async fn json(url: String) -> Result<Value> {
    Ok(serde_json::from_str(
        &reqwest::get(url).await?.text().await?,
    )?)
}

async fn metric(stack: &Stack, name: &str) -> Result<f64> {
    let url = format!("{}/metrics", stack.service("api").admin_url());
    let text = reqwest::get(url).await?.text().await?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.map_or(Ok(0.0), str::parse)?)
}

#[tokio::test]
async fn the_real_connector_of_the_view_feeds_the_cache() -> Result<()> {
    let options = Options {
        seed: true,
        ..Options::default()
    };
    let stack = Stack::start(options).await?;
    check(&stack).await.map_err(|error| stack.explain(error))
}

async fn check(stack: &Stack) -> Result<()> {
    let api = stack.api_url();
    until("the feed is live", async || {
        let status = json(format!("{api}/v1/status")).await?;
        let is_live = |source: &Value| source["state"] == "live";
        let sources = status["sources"].as_array().context("sources")?;
        Ok((status["feed"]["state"] == "live" && sources.iter().all(is_live)).then_some(()))
    })
    .await?;
    let item = format!("{api}/v1/products/1");
    until("a row is cached", async || {
        json(item.clone()).await?;
        Ok((metric(stack, HITS).await? > 0.0).then_some(()))
    })
    .await?;
    let warehouse = stack.source(System::Warehouse).await?;
    for name in ["renamed", "renamed again"] {
        warehouse
            .execute("UPDATE wh_item SET name = $1 WHERE id = 1", &[&name])
            .await?;
        // Without a Min-Position: only the feed's eviction makes this end.
        until("the new name is answered", async || {
            Ok((json(item.clone()).await?["name"] == name).then_some(()))
        })
        .await?;
    }
    let hits = metric(stack, HITS).await?;
    until("the new row is cached", async || {
        json(item.clone()).await?;
        Ok((metric(stack, HITS).await? > hits + 1.0).then_some(()))
    })
    .await?;
    let begun = metric(stack, "api_feed_start_overs_total{reason=\"gap\"}").await?;
    ensure!(begun <= 1.0, "the feed began {begun} times");
    Ok(())
}
