//! The comparison in the background: nobody asks for it, it finds what somebody did to a row, and it
//! touches nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fixtures::legacy::System;
use fixtures::stack::{Options, Stack};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_changed_by_hand_is_reported_without_any_command() -> Result<()> {
    let settings: [(&str, toml::Value); 6] = [
        ("sweep.enabled", true.into()),
        ("sweep.round_min_s", 1.into()),
        ("sweep.slice_rows", 500.into()),
        ("sweep.rows_per_second", 20_000.into()),
        // A source at rest says every five seconds that it is current.
        ("sweep.stale_after_ms", 12_000.into()),
        ("verify.wait_max_ms", 3000.into()),
    ];
    let settings = settings.map(|(key, value)| ("aggregator".to_owned(), key.to_owned(), value));
    let stack = Stack::start(Options {
        seed: true,
        settings: settings.into(),
        ..Options::default()
    })
    .await?;
    let checked = async {
        stack.caught_up().await?;
        busy(&stack).await.context("while the shop is open")?;
        damaged(&stack).await.context("with rows that differ")?;
        killed(&stack).await.context("killed within a round")?;
        away(&stack).await.context("with a source that is behind")
    };
    checked.await.map_err(|error| stack.explain(error))
}

/// What the running aggregator says of the sweep.
async fn sweep(stack: &Stack) -> Result<Value> {
    let url = format!("{}/status", stack.service("aggregator").admin_url());
    // It may just be starting.
    let Ok(answer) = reqwest::get(url).await else {
        return Ok(Value::Null);
    };
    let mut status: Value = answer.json().await?;
    Ok(status["sweep"].take())
}

async fn until(stack: &Stack, what: &str, here: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + WITHIN;
    loop {
        let sweep = sweep(stack).await?;
        if here(&sweep) {
            return Ok(sweep);
        }
        ensure!(
            Instant::now() < deadline,
            "waited in vain: {what}: {sweep:#}"
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Waits for a whole round that begins from now on.
async fn round(stack: &Stack) -> Result<Value> {
    let now = sweep(stack).await?["began_at_ms"].as_i64();
    let sweep = until(stack, "a round", |sweep| {
        sweep["last"]["began_at_ms"].as_i64() > now
    });
    Ok(sweep.await?["last"].take())
}

/// Rows change in the ranges that are being compared: nothing is found.
async fn busy(stack: &Stack) -> Result<()> {
    let sales = stack.source(System::Sales).await?;
    let work = async {
        loop {
            sales
                .batch_execute(
                    "update sls_orderdetail set quantity = quantity + 1 where order_id % 40 = 0",
                )
                .await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        never = work => never,
        round = round(stack) => {
            let round = round?;
            ensure!(
                round["differences"] == 0 && round["not_compared"] == 0
                    && round["rows"].as_u64() > Some(1000),
                "{round:#}"
            );
            Ok(())
        }
    }
}

async fn damaged(stack: &Stack) -> Result<()> {
    let view = stack.view().await?;
    view.batch_execute(
        "update sales.sls_orderdetail set quantity = quantity + 1000 where id = 17;
         delete from warehouse.wh_item where id = 5;
         update public.customers set paid = paid + 1 where id = 12",
    )
    .await?;
    let names = [
        "sales.sls_orderdetail 17: quantity",
        "warehouse.wh_item 5: missing",
        "public.customers 12: paid, balance",
    ];
    let expected = |found: &Value| {
        let found = found.as_array().into_iter().flatten();
        let found: Vec<_> = found.filter_map(Value::as_str).collect();
        names[..2].iter().all(|name| found.contains(name))
            && found
                .iter()
                .any(|name| name.starts_with("public.customers 12: paid"))
    };
    let whole = round(stack).await?;
    ensure!(expected(&whole["found"]), "{whole:#}");
    let aggregator = stack.service("aggregator");
    ensure!(
        aggregator.log().contains(names[0]),
        "the log does not say it"
    );
    let metrics = format!("{}/metrics", aggregator.admin_url());
    let metrics = reqwest::get(metrics).await?.text().await?;
    let differences = format!("aggregator_sweep_differences {}", whole["differences"]);
    ensure!(
        metrics.contains(&differences)
            && metrics.contains("aggregator_sweep_found_total{table=\"sales.sls_orderdetail\"}"),
        "{differences}\n{metrics}"
    );
    let status = aggregator.command(&["status"]).await?;
    let status = String::from_utf8(status.stdout)?;
    ensure!(status.contains(names[0]), "{status}");
    // It reports only.
    let row = view
        .query_one(
            "select quantity > 1000, exists (select from warehouse.wh_item where id = 5)
            from sales.sls_orderdetail where id = 17",
            &[],
        )
        .await?;
    ensure!(row.get::<_, bool>(0) && !row.get::<_, bool>(1), "mended");
    let repaired = aggregator.command(&["verify", "--repair"]).await?;
    ensure!(repaired.status.success(), "{repaired:?}");
    let whole = round(stack).await?;
    ensure!(whole["differences"] == 0, "{whole:#}");
    Ok(())
}

/// The next process goes on where the last one was.
async fn killed(stack: &Stack) -> Result<()> {
    let late = |sweep: &Value| {
        sweep["table"]
            .as_str()
            .is_some_and(|table| table.starts_with("public."))
    };
    let before = until(stack, "a round that is far", late).await?;
    let aggregator = stack.service("aggregator");
    let starts = aggregator.starts();
    aggregator.kill();
    let after = until(stack, "the next process", |sweep| {
        sweep.is_object() && aggregator.starts() > starts
    });
    let after = after.await?;
    // The round that was under way may have ended before anybody could look.
    let same = |sweep: &Value| sweep["began_at_ms"] == before["began_at_ms"];
    ensure!(
        (same(&after) && after["slices"].as_u64() >= before["slices"].as_u64())
            || same(&after["last"]),
        "{before:#}\n{after:#}"
    );
    Ok(())
}

/// A source that is behind is left alone, the others are compared.
async fn away(stack: &Stack) -> Result<()> {
    let connector = stack.service("connector-sales");
    connector.terminate().await?;
    let sweep = until(stack, "a round without sales", |sweep| {
        sweep["last"]["not_compared"] == 2
    });
    let mut last = sweep.await?["last"].take();
    ensure!(
        last["differences"].take() == 0 && last["rows"].as_u64() > Some(1000),
        "{last:#}"
    );
    let log = stack.service("aggregator").log();
    ensure!(
        log.contains("leaves sales.sls_order out: its source is behind"),
        "the log does not say why"
    );
    connector.start()
}
