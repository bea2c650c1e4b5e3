//! What happens to a source behind the connector's back: its slot is moved, dropped, made again,
//! while rows go. What the log no longer tells is read from the tables, in a new epoch.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fixtures::legacy::System;
use fixtures::stack::{Options, Stack};
use tests::api::Api;
use tests::oracle::Oracle;
use tests::rest;
use tests::topics::Reader;
use tokio_postgres::Client;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_lost_something_begins_an_epoch_and_everything_ends_equal() -> Result<()> {
    let stack = Stack::start(Options {
        seed: true,
        ..Options::default()
    })
    .await?;
    let checked = async {
        advanced(&stack).await.context("advanced by hand")?;
        dropped(&stack).await.context("dropped")?;
        made_again(&stack).await.context("dropped and made again")?;
        of_unified(&stack).await.context("of the view")
    };
    checked.await.map_err(|error| stack.explain(error))
}

/// Somebody moves the slot over changes that nobody has read.
async fn advanced(stack: &Stack) -> Result<()> {
    let before = epoch(stack, "sales").await?;
    let mut follower = follower(stack, "sales").await?;
    stack.service("connector-sales").terminate().await?;
    let sales = stack.source(System::Sales).await?;
    sales
        .batch_execute(
            "begin;
             delete from sls_orderdetail where order_id between 100 and 180;
             delete from sls_order where id between 100 and 180;
             update sls_orderdetail set quantity = quantity + 1 where order_id between 300 and 320;
             insert into sls_order (customer_id, date) values (77, now());
             commit;
             begin;
             delete from sls_orderdetail where order_id = 200;
             update sls_order set customer_id = 78 where id = 200;
             commit;",
        )
        .await?;
    let superuser = stack.source_superuser(System::Sales).await?;
    inactive(&superuser, stack.slot("sales")).await?;
    superuser
        .execute(
            "select pg_replication_slot_advance($1::text::name, pg_current_wal_lsn())",
            &[&stack.slot("sales")],
        )
        .await?;
    // Nothing of this may be lost either: it comes after.
    sales
        .batch_execute(
            "begin;
             delete from sls_orderdetail where order_id = 201;
             delete from sls_order where id = 201;
             commit",
        )
        .await?;
    stack.service("connector-sales").start()?;
    rest::agrees(stack).await?;
    grew(stack, "sales", before).await?;
    ends_equal(stack, &mut follower).await
}

/// The slot is gone, as after a failover without it.
async fn dropped(stack: &Stack) -> Result<()> {
    let before = epoch(stack, "warehouse").await?;
    let mut follower = follower(stack, "warehouse").await?;
    stack.service("connector-warehouse").halt().await?;
    let warehouse = stack.source(System::Warehouse).await?;
    delete_items(&warehouse, 10, 30).await?;
    let superuser = stack.source_superuser(System::Warehouse).await?;
    drop_slot(&superuser, stack.slot("warehouse")).await?;
    delete_items(&warehouse, 31, 40).await?;
    stack.service("connector-warehouse").start()?;
    rest::agrees(stack).await?;
    grew(stack, "warehouse", before).await?;
    ends_equal(stack, &mut follower).await
}

/// The slot has the same name but another place: PostgreSQL would start there without a word.
async fn made_again(stack: &Stack) -> Result<()> {
    let before = epoch(stack, "accounting").await?;
    let mut follower = follower(stack, "accounting").await?;
    stack.service("connector-accounting").halt().await?;
    let accounting = stack.source(System::Accounting).await?;
    let delete = |low: i64, high: i64| {
        format!(
            "begin;
             delete from ac_transactiondetail where transaction_id between {low} and {high};
             delete from ac_transaction where id between {low} and {high};
             commit"
        )
    };
    accounting.batch_execute(&delete(50, 90)).await?;
    let superuser = stack.source_superuser(System::Accounting).await?;
    drop_slot(&superuser, stack.slot("accounting")).await?;
    accounting.batch_execute(&delete(91, 99)).await?;
    superuser
        .execute(
            "select pg_create_logical_replication_slot($1::text::name, 'pgoutput')",
            &[&stack.slot("accounting")],
        )
        .await?;
    accounting.batch_execute(&delete(100, 110)).await?;
    stack.service("connector-accounting").start()?;
    rest::agrees(stack).await?;
    grew(stack, "accounting", before).await?;
    ends_equal(stack, &mut follower).await
}

/// The view is a source as well: the API's feed and all who subscribe start over.
async fn of_unified(stack: &Stack) -> Result<()> {
    let mut follower = follower(stack, "unified").await?;
    let before = follower.taken().map(|taken| taken.epoch);
    // The API has these rows in its cache.
    let api = Api::new(stack.api_url())?;
    for order in 400..440 {
        api.patient(&format!("/v1/orders/{order}"), None).await?;
    }
    stack.service("connector-unified").halt().await?;
    let sales = stack.source(System::Sales).await?;
    sales
        .batch_execute(
            "begin;
             delete from sls_orderdetail where order_id between 400 and 419;
             delete from sls_order where id between 400 and 419;
             update sls_orderdetail set quantity = quantity + 3 where order_id between 420 and 439;
             commit",
        )
        .await?;
    stack.caught_up().await?;
    drop_slot(&stack.view().await?, stack.slot("unified")).await?;
    stack.service("connector-unified").start()?;
    ends_equal(stack, &mut follower).await?;
    let after = follower.taken().map(|taken| taken.epoch);
    ensure!(
        after > before,
        "unified went from epoch {before:?} to {after:?}"
    );
    rest::agrees(stack).await
}

/// A reader of checkpoints who was there before, and stays.
pub(crate) async fn follower(stack: &Stack, source: &str) -> Result<Reader> {
    let mut reader = Reader::from_the_beginning(stack, source)?;
    reader.reach(&end(stack, source).await?).await?;
    Ok(reader)
}

/// It ends with what the source has, the deletions that nobody saw among it.
pub(crate) async fn ends_equal(stack: &Stack, reader: &mut Reader) -> Result<()> {
    let source = reader.source().to_owned();
    let before = reader.taken().map(|taken| taken.epoch);
    let deadline = Instant::now() + Duration::from_secs(120);
    // Positions compare by epoch first, so the last epoch's records do not count as reached.
    while reader.taken().map(|taken| taken.epoch) == before {
        ensure!(
            Instant::now() < deadline,
            "no epoch of {source} after {before:?}"
        );
        let step = tokio::time::timeout(Duration::from_secs(120), reader.step()).await;
        step.with_context(|| format!("no epoch of {source} after {before:?}"))??;
    }
    reader.reach(&end(stack, &source).await?).await?;
    rest::reader_agrees(reader, &Oracle::read(stack).await?)
}

async fn end(stack: &Stack, source: &str) -> Result<String> {
    match System::ALL
        .into_iter()
        .find(|system| system.name() == source)
    {
        Some(system) => stack.wal_lsn(system).await,
        None => fixtures::stack::current_lsn(&stack.view().await?).await,
    }
}

/// The epoch that the API's answers stand in.
pub(crate) async fn epoch(stack: &Stack, source: &str) -> Result<u64> {
    let answer = Api::new(stack.api_url())?
        .patient("/v1/products?limit=1", None)
        .await?;
    let position = answer.positions.get(source).copied().flatten();
    Ok(position.context("the view has not read it")?.epoch)
}

async fn grew(stack: &Stack, source: &str, before: u64) -> Result<()> {
    let after = epoch(stack, source).await?;
    ensure!(
        after > before,
        "{source} went from epoch {before} to {after}"
    );
    Ok(())
}

async fn delete_items(warehouse: &Client, low: i64, high: i64) -> Result<()> {
    warehouse
        .batch_execute(&format!(
            "begin;
             delete from wh_price where item_id between {low} and {high};
             delete from wh_quantity where item_id between {low} and {high};
             delete from wh_item where id between {low} and {high};
             commit"
        ))
        .await?;
    Ok(())
}

async fn drop_slot(superuser: &Client, slot: &str) -> Result<()> {
    inactive(superuser, slot).await?;
    superuser
        .execute("select pg_drop_replication_slot($1::text::name)", &[&slot])
        .await?;
    Ok(())
}

/// Waits until the server has noticed that the slot's client is gone.
async fn inactive(superuser: &Client, slot: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let active: bool = superuser
            .query_one(
                "select active from pg_replication_slots where slot_name = $1::text::name",
                &[&slot],
            )
            .await?
            .get(0);
        if !active {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{slot} is still active");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
