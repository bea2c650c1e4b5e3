//! A process that was paused, lost its place to another, and goes on as if nothing had happened.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fixtures::legacy::System;
use fixtures::stack::{Options, Service, Stack};
use tests::raw::{Isolation, ends, records};
use tests::rest;

const LINES: &str = "sales.public.sls_orderdetail";

/// So many orders with so many lines in one source transaction that it takes a while to send them.
const ORDERS: i64 = 600;
const LINES_OF_EACH: i64 = 50;

/// Where the connector is paused: so many events are sent to its queue, the others are to come.
const HOLDS_AT: &str = "connector.after_send:hold:15000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_connector_that_goes_on_writes_nothing() -> Result<()> {
    let stack = Stack::start(Options::default()).await?;
    let checked = paused_connector(&stack).await;
    checked.map_err(|error| stack.explain(error))
}

async fn paused_connector(stack: &Stack) -> Result<()> {
    let zombie = stack.service("connector-sales");
    zombie.terminate().await?;
    zombie.supervise(false);
    let gate = stack.folder().join("zombie-goes-on");
    let holds = format!("{HOLDS_AT}:{}", gate.display());
    zombie.environment(&[("FAULT_POINTS", &holds)]);
    zombie.start()?;
    zombie.ready().await?;
    let at_first = ends(stack, LINES).await?;

    // One transaction of the shop, which no reader may see a part of.
    let sales = stack.source(System::Sales).await?;
    sales
        .batch_execute(&format!(
            "begin;
             insert into sls_order (id, customer_id, date)
                 select 500000 + number, 7, now() from generate_series(1, {ORDERS}) number;
             insert into sls_orderdetail (item_id, unit_price, quantity, order_id)
                 select item, 1.00, 1, 500000 + number from generate_series(1, {ORDERS}) number,
                     generate_series(1, {LINES_OF_EACH}) item;
             commit"
        ))
        .await?;
    // Some of what it sent has reached the broker; the rest of the transaction is not sent.
    let deadline = Instant::now() + Duration::from_secs(60);
    while ends(stack, LINES).await? == at_first {
        ensure!(Instant::now() < deadline, "the connector sends nothing");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    zombie.stop();
    zombie.stopped().await?;
    std::fs::write(&gate, "")?;

    let successor = stack.standby("connector-sales")?;
    successor.start()?;
    stack.caught_up().await.context("with the successor")?;
    let before = ends(stack, LINES).await?;

    zombie.cont();
    lost(zombie).await?;
    let after = ends(stack, LINES).await?;
    ensure!(
        after == before,
        "the zombie wrote: the topic ended at {before:?}, and ends at {after:?}"
    );
    sent_is_aborted(stack).await?;
    rest::agrees(stack).await?;

    // It stands by now as if it had been started anew, and takes over in its turn.
    successor.halt().await?;
    sales
        .batch_execute(
            "begin;
             update sls_orderdetail set quantity = 2 where order_id = 500001 and item_id <= 10;
             commit",
        )
        .await?;
    if !zombie.is_running() {
        zombie.environment(&[("FAULT_POINTS", "")]);
        zombie.start()?;
    }
    rest::agrees(stack)
        .await
        .context("with the zombie as the leader")
}

/// What the zombie had sent lies in the topic, and nobody who reads committed sees it: each line
/// came once.
async fn sent_is_aborted(stack: &Stack) -> Result<()> {
    let committed = records(stack, LINES, Isolation::Committed).await?;
    let mut times: BTreeMap<&str, u32> = BTreeMap::new();
    for record in &committed {
        *times.entry(&record.key).or_default() += 1;
    }
    ensure!(
        times.len() == usize::try_from(ORDERS * LINES_OF_EACH)?
            && times.values().all(|times| *times == 1),
        "{} lines in {} committed events",
        times.len(),
        committed.len()
    );
    let places = |records: &[tests::raw::Record]| -> BTreeSet<(i32, i64)> {
        records
            .iter()
            .map(|record| (record.partition, record.offset))
            .collect()
    };
    let all = records(stack, LINES, Isolation::Uncommitted).await?;
    let aborted = places(&all).difference(&places(&committed)).count();
    println!("{} events committed, {aborted} aborted", committed.len());
    ensure!(aborted > 0, "the zombie had sent nothing: this was no test");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_aggregator_that_goes_on_writes_nothing() -> Result<()> {
    let stack = Stack::start(Options {
        seed: true,
        ..Options::default()
    })
    .await?;
    let checked = paused_aggregator(&stack).await;
    checked.map_err(|error| stack.explain(error))
}

async fn paused_aggregator(stack: &Stack) -> Result<()> {
    let zombie = stack.service("aggregator");
    zombie.terminate().await?;
    zombie.supervise(false);
    let gate = stack.folder().join("zombie-goes-on");
    std::fs::write(&gate, "")?;
    let holds = format!("aggregator.before_commit:hold:1:{}", gate.display());
    zombie.environment(&[("FAULT_POINTS", &holds)]);
    zombie.start()?;
    zombie.ready().await?;
    // In the middle of a view transaction: everything is written, nothing committed.
    std::fs::remove_file(&gate)?;
    let sales = stack.source(System::Sales).await?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !zombie.log().contains("before_commit: holds") {
        ensure!(Instant::now() < deadline, "the aggregator does not hold");
        sales
            .execute(
                "update sls_orderdetail set quantity = quantity + 1 where order_id = 1",
                &[],
            )
            .await?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    zombie.stop();
    zombie.stopped().await?;
    std::fs::write(&gate, "")?;
    let successor = stack.standby("aggregator")?;
    successor.start()?;
    stack.caught_up().await.context("with the successor")?;
    sales
        .batch_execute(
            "update sls_orderdetail set quantity = 1, unit_price = 2.00 where order_id = 1",
        )
        .await?;
    stack.caught_up().await?;
    let view = stack.view().await?;
    let writers = "select count(distinct writer) from public.positions";
    let revision = "select max((writer, number)::text) from public.positions";
    let before: String = view.query_one(revision, &[]).await?.get(0);
    zombie.cont();
    lost(zombie).await?;
    let after: String = view.query_one(revision, &[]).await?.get(0);
    let writers: i64 = view.query_one(writers, &[]).await?.get(0);
    ensure!(writers >= 1, "no positions");
    println!("the view stood at {before}, and stands at {after}");
    rest::agrees(stack).await?;

    successor.halt().await?;
    sales
        .execute(
            "update sls_orderdetail set quantity = 5 where order_id = 2",
            &[],
        )
        .await?;
    if !zombie.is_running() {
        zombie.environment(&[("FAULT_POINTS", "")]);
        zombie.start()?;
    }
    rest::agrees(stack)
        .await
        .context("with the zombie as the writer")
}

/// Waits until the process has noticed that it has lost its place: it is not ready any more, or
/// has ended.
async fn lost(zombie: &Service) -> Result<()> {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(2))
        .build()?;
    let url = format!("{}/readyz", zombie.admin_url());
    let deadline = Instant::now() + Duration::from_secs(60);
    while zombie.is_running() {
        if let Ok(answer) = client.get(&url).send().await
            && !answer.status().is_success()
        {
            println!(
                "the zombie says: {}",
                answer.text().await.unwrap_or_default().trim()
            );
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the zombie believes it leads\n{}", zombie.log_tail());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
