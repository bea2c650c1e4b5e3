//! What befalls the servers below: databases put back to yesterday, commits that wait for a
//! standby, a full disk. What follows is seen from the other end, through view, API and topics.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fixtures::disk::SmallDisk;
use fixtures::legacy::System;
use fixtures::stack::{Options, Stack};
use tests::api::{Answer, Api};
use tests::rest;
use tokio_util::sync::CancellationToken;

use crate::slot::{ends_equal, epoch, follower};

/// For a state that a busy machine reaches late.
const SEEN_WITHIN: Duration = Duration::from_secs(120);
/// Between two looks at a state.
const LOOK: Duration = Duration::from_millis(50);
/// Holds the view's cluster, and what it grows here.
const DISK_MIB: u32 = 600;
/// Less than the transaction's rows take; for the log there are segments to be used again.
const LEFT_MIB: u64 = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_back_or_not_shown_yet_is_followed() -> Result<()> {
    let stack = Stack::start(Options {
        seed: true,
        own_servers: true,
        ..Options::default()
    })
    .await?;
    let checked = async {
        commits_held(&stack).await.context("commits that wait")?;
        source_put_back(&stack).await.context("sales put back")?;
        source_copied_back(&stack)
            .await
            .context("accounting copied back")?;
        view_put_back(&stack).await.context("the view put back")
    };
    checked.await.map_err(|error| stack.explain(error))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_the_view_is_said_and_shows_no_half() -> Result<()> {
    let disk = SmallDisk::mount(DISK_MIB)?;
    let stack = Stack::start(Options {
        seed: true,
        view_folder: Some(disk.path().to_owned()),
        ..Options::default()
    })
    .await?;
    let checked = disk_full(&stack, &disk).await;
    checked.map_err(|error| stack.explain(error))
}

/// While its synchronous standby is away, a source has commits in its log that it does not show. The
/// view has them, and that is no difference.
async fn commits_held(stack: &Stack) -> Result<()> {
    let superuser = stack.source_superuser(System::Sales).await?;
    let names = "alter system set synchronous_standby_names = 'nobody'";
    superuser.execute(names, &[]).await?;
    superuser.execute("select pg_reload_conf()", &[]).await?;
    let sales = stack.source(System::Sales).await?;
    let held = CancellationToken::new();
    let until_held = held.clone();
    // The server takes a setting up when it pleases: one of these is the first that waits.
    let commits = tokio::spawn(async move {
        let sql = "update sls_order set customer_id = customer_id + 1 where id = 40";
        while !until_held.is_cancelled() {
            sales.execute(sql, &[]).await?;
        }
        Ok::<_, anyhow::Error>(())
    });
    let view = stack.view().await?;
    until("the mirror has what the source does not show", async || {
        let sql = "select customer_id::int from sales.sls_order where id = 40";
        let mirrored: i32 = view.query_one(sql, &[]).await?.get(0);
        let sql = "select customer_id from sls_order where id = 40";
        let shown: i32 = superuser.query_one(sql, &[]).await?.get(0);
        Ok(mirrored > shown)
    })
    .await?;
    held.cancel();
    let aggregator = stack.service("aggregator");
    let arguments = ["verify", "--json", "--source", "sales"];
    let mut verify = aggregator.spawn_command(aggregator.config(), &arguments)?;
    until("verify waits for the source to show it", async || {
        let ended = verify.try_wait()?;
        ensure!(ended.is_none(), "verify did not wait: {ended:?}");
        let sql = "select count(*) from pg_stat_activity
                   where application_name = 'tributary verify' and query like '%FROM pg_locks%'";
        let waiting: i64 = superuser.query_one(sql, &[]).await?.get(0);
        Ok(waiting > 0)
    })
    .await?;
    let reset = "alter system reset synchronous_standby_names";
    superuser.execute(reset, &[]).await?;
    superuser.execute("select pg_reload_conf()", &[]).await?;
    commits.await??;
    let output = verify.wait_with_output().await?;
    let report = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{:?}: {report}", output.status);
    Ok(())
}

/// A backup of yesterday: the orders since then are gone, those that were deleted are back. It is on
/// a timeline of its own, without the slot.
async fn source_put_back(stack: &Stack) -> Result<()> {
    let backup = stack.folder().join("sales-of-yesterday");
    stack
        .cluster(System::Sales)
        .lock()
        .await
        .base_backup(&backup)
        .await?;
    let mut reader = follower(stack, "sales").await?;
    let (before, position) = sell(stack).await?;

    let mut sales = stack.cluster(System::Sales).lock().await;
    sales.crash().await;
    sales.restore_base_backup(&backup)?;
    sales.restart().await?;
    drop(sales);
    put_back(stack, "sales", before, &position).await?;
    ends_equal(stack, &mut reader).await
}

/// Files of yesterday, copied by hand: the same timeline, and the slot as it was.
async fn source_copied_back(stack: &Stack) -> Result<()> {
    let backup = stack.folder().join("accounting-of-yesterday");
    let mut accounting = stack.cluster(System::Accounting).lock().await;
    accounting.stop().await;
    accounting.back_up(&backup)?;
    accounting.restart().await?;
    drop(accounting);
    let mut reader = follower(stack, "accounting").await?;
    let before = epoch(stack, "accounting").await?;
    let client = stack.source(System::Accounting).await?;
    client
        .batch_execute(
            "begin;
             delete from ac_transactiondetail where transaction_id between 200 and 240;
             delete from ac_transaction where id between 200 and 240;
             insert into ac_transaction (order_id) select n from generate_series(1, 3000) n;
             commit",
        )
        .await?;
    stack.caught_up().await?;
    let position = seen(stack, "transactions/300").await?.view_position;

    let mut accounting = stack.cluster(System::Accounting).lock().await;
    accounting.crash().await;
    accounting.restore(&backup)?;
    accounting.restart().await?;
    drop(accounting);
    put_back(stack, "accounting", before, &position).await?;
    ends_equal(stack, &mut reader).await
}

/// Sells, deletes and changes, and sees it. The epoch, and the position of whoever saw it.
async fn sell(stack: &Stack) -> Result<(u64, String)> {
    let before = epoch(stack, "sales").await?;
    let client = stack.source(System::Sales).await?;
    client
        .batch_execute(
            "begin;
             delete from sls_orderdetail where order_id between 500 and 540;
             delete from sls_order where id between 500 and 540;
             insert into sls_order (id, customer_id, date)
                 select 700000 + n, 9, now() from generate_series(1, 300) n;
             update sls_orderdetail set quantity = 77 where order_id between 541 and 560;
             commit",
        )
        .await?;
    stack.caught_up().await?;
    let order = seen(stack, "orders/700001").await?;
    ensure!(order.status.is_success(), "{}", order.body);
    Ok((before, order.view_position))
}

/// A new epoch shows what the source is now, and stands behind every position that was told before.
async fn put_back(stack: &Stack, source: &str, before: u64, position: &str) -> Result<()> {
    until(
        &format!("an epoch of {source} after {before}"),
        async || Ok(epoch(stack, source).await? > before),
    )
    .await?;
    let api = Api::new(stack.api_url())?;
    let answer = api.patient("/v1/orders/700001", Some(position)).await?;
    let gone = answer.status == reqwest::StatusCode::NOT_FOUND;
    ensure!(
        gone || source != "sales",
        "the order is back: {}",
        answer.body
    );
    rest::agrees(stack).await
}

/// What a client is shown of what the view has now, not what was cached before.
async fn seen(stack: &Stack, path: &str) -> Result<Answer> {
    let api = Api::new(stack.api_url())?;
    let least = api.view_stands_at().await?;
    api.at(&format!("/v1/{path}"), &least).await
}

/// The view is put back while the sources went on. The aggregator goes on from what is there then;
/// caches and readers of `unified` start over, and nobody who says where he has been goes back.
async fn view_put_back(stack: &Stack) -> Result<()> {
    let mut reader = follower(stack, "unified").await?;
    let backup = stack.folder().join("view-of-yesterday");
    stack
        .view_cluster()
        .lock()
        .await
        .base_backup(&backup)
        .await?;
    let sales = stack.source(System::Sales).await?;
    let change = |quantity: i32| {
        format!(
            "begin;
             update sls_orderdetail set quantity = {quantity} where order_id between 600 and 640;
             delete from sls_orderdetail where order_id = {quantity};
             delete from sls_order where id = {quantity};
             commit"
        )
    };
    sales.batch_execute(&change(55)).await?;
    stack.caught_up().await?;
    let before = seen(stack, "orders/600").await?;
    let is_gone = seen(stack, "orders/55").await?;
    ensure!(
        is_gone.status == reqwest::StatusCode::NOT_FOUND,
        "{}",
        is_gone.body
    );

    let mut view = stack.view_cluster().lock().await;
    view.crash().await;
    view.restore_base_backup(&backup)?;
    view.restart().await?;
    drop(view);
    let api = Api::new(stack.api_url())?;
    for (path, least) in [("/v1/orders/600", &before), ("/v1/orders/55", &is_gone)] {
        let after = api.patient(path, Some(&least.view_position)).await?;
        ensure!(after.status == least.status, "{path}: {}", after.body);
        ensure!(
            after.body["lines"] == least.body["lines"],
            "{path}: {}",
            after.body
        );
    }
    sales.batch_execute(&change(56)).await?;
    rest::agrees(stack).await?;
    ends_equal(stack, &mut reader).await?;
    // The view has it of another view transaction than before, which has a later name. A cache may
    // answer what it knew until its feed has begun anew.
    let revision = |answer: &Answer| answer.body["revision"].as_str().map(str::to_owned);
    until("the row has a later revision", async || {
        let after = revision(&seen(stack, "orders/600").await?);
        ensure!(
            after >= revision(&before),
            "the revision went back to {after:?}"
        );
        Ok(after > revision(&before))
    })
    .await
}

/// A source transaction that does not fit on the view's disk: it is not there in part, somebody is
/// told, and it is there once there is room.
async fn disk_full(stack: &Stack, disk: &SmallDisk) -> Result<()> {
    let view = stack.view().await?;
    // What the checkpointer would write later needs its room as well.
    view.batch_execute("checkpoint").await?;
    disk.fill_but(LEFT_MIB)?;
    let before = stack.service("aggregator").log().len();
    let sales = stack.source(System::Sales).await?;
    sales
        .batch_execute(
            "insert into sls_order (id, customer_id, date)
                 select 800000 + n, 10, now() from generate_series(1, 20000) n",
        )
        .await?;
    until("the aggregator says that the disk is full", async || {
        let log = stack.service("aggregator").log();
        let said = log.get(before..).unwrap_or_default();
        Ok(said.contains("No space left on device"))
    })
    .await?;
    let log = stack.service("aggregator").log();
    let said = log[before..].lines().find(|line| line.contains(" WARN "));
    println!("with a full disk: {}", said.unwrap_or("nothing"));
    disk.empty()?;
    let mut cluster = stack.view_cluster().lock().await;
    // PostgreSQL ends itself where its log does not fit; whoever runs it starts it again.
    let ended = cluster
        .process()
        .is_none_or(|process| process.status().is_some());
    println!("the view's server ended itself: {ended}");
    if ended {
        cluster.restart().await?;
    }
    drop(cluster);
    let sql = "select count(*) from public.orders where id > 800000";
    until("the transaction is there", async || {
        let Ok(view) = stack.view().await else {
            return Ok(false);
        };
        let Ok(row) = view.query_one(sql, &[]).await else {
            return Ok(false);
        };
        let rows: i64 = row.get(0);
        ensure!(
            rows == 0 || rows == 20_000,
            "{rows} rows of one transaction"
        );
        Ok(rows > 0)
    })
    .await?;
    rest::agrees(stack).await
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + SEEN_WITHIN;
    while !holds().await.with_context(|| what.to_owned())? {
        ensure!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
