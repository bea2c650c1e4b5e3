//! From commit in a source to the new value in an API answer: 1000 changes at 100 a second on the
//! shipped build, and where the time goes.
//!
//! A change is one UPDATE of an order line. Its clock starts when COMMIT is sent. *kafka* is when
//! a consumer that reads committed has the event, *view* when the view's position contains it,
//! *api* when a client that asks with `Min-Position` has read the answer with the new value: a
//! request that waits is answered at once when the position is there. All clocks are this
//! process's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fixtures::legacy::System;
use fixtures::stack::{Build, Options, Stack, current_lsn};
use kafka::Lsn;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tests::api::Api;
use tests::bench::{Figures, percentile_ms};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// Measures how long a change takes from a source to the API.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many changes are measured.
    #[arg(long, default_value_t = 1000)]
    changes: usize,
    /// How many a second, at an even pace, however long each takes.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// How many go before, unmeasured: connections are opened and caches filled.
    #[arg(long, default_value_t = 100)]
    warm_up: usize,
}

/// Connections that the shop writes with.
const WRITERS: usize = 8;

/// The bars that the project has set itself.
const MEDIAN_BAR_MS: f64 = 50.0;
const P99_BAR_MS: f64 = 250.0;

/// What was seen of one change, since its COMMIT was sent.
#[derive(Debug, Clone, Copy)]
struct Change {
    line: i64,
    quantity: i32,
    sent: Instant,
    committed: Instant,
    lsn: Lsn,
    answered: Instant,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let stack = Stack::start(Options {
        seed: true,
        durable: true,
        build: Build::Release,
        ..Options::default()
    })
    .await?;
    let lines = lines(&stack, arguments.warm_up + arguments.changes).await?;
    let stop = CancellationToken::new();
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let consumer = watch_kafka(&stack, Arc::clone(&seen), stop.clone())?;
    let view = tokio::spawn(watch_view(stack.view().await?, stop.clone()));

    let changes = change_all(&stack, &arguments, lines).await;
    stop.cancel();
    let positions = view.await??;
    consumer.await??;
    let changes = changes.map_err(|error| stack.explain(error))?;
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    report(&changes[arguments.warm_up..], &seen, &positions)
}

/// As many lines, each with its order.
async fn lines(stack: &Stack, count: usize) -> Result<Vec<(i64, i64)>> {
    let sales = stack.source(System::Sales).await?;
    let rows = sales
        .query(
            "select id, order_id from sls_orderdetail order by id limit $1",
            &[&i64::try_from(count)?],
        )
        .await?;
    ensure!(rows.len() == count, "the seed has {} lines", rows.len());
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn change_all(
    stack: &Stack,
    arguments: &Arguments,
    lines: Vec<(i64, i64)>,
) -> Result<Vec<Change>> {
    let api = Api::new(stack.api_url())?;
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        writers.push(Arc::new(tokio::sync::Mutex::new(
            stack.source(System::Sales).await?,
        )));
    }
    let mut pace = tokio::time::interval(Duration::from_secs(1) / arguments.rate);
    let mut running = JoinSet::new();
    for (number, (line, order)) in lines.into_iter().enumerate() {
        pace.tick().await;
        let (api, writer) = (api.clone(), Arc::clone(&writers[number % WRITERS]));
        running.spawn(async move {
            let change = change(&api, &writer, line, order).await;
            change.map(|change| (number, change))
        });
    }
    let mut changes = Vec::new();
    while let Some(change) = running.join_next().await {
        changes.push(change??);
    }
    changes.sort_by_key(|(number, _)| *number);
    Ok(changes.into_iter().map(|(_, change)| change).collect())
}

async fn change(
    api: &Api,
    writer: &tokio::sync::Mutex<Client>,
    line: i64,
    order: i64,
) -> Result<Change> {
    // A quantity that no seed row has.
    let quantity = 1_000_000 + i32::try_from(line)?;
    let (sent, committed, lsn) = {
        let mut client = writer.lock().await;
        let transaction = client.transaction().await?;
        transaction
            .execute(
                "update sls_orderdetail set quantity = $1 where id = $2",
                &[&quantity, &line],
            )
            .await?;
        let sent = Instant::now();
        transaction.commit().await?;
        let committed = Instant::now();
        (sent, committed, current_lsn(&client).await?)
    };
    let path = format!("/v1/orders/{order}?max_wait_ms=10000");
    let answer = api.get(&path, Some(&format!("sales={lsn}"))).await?;
    let answered = Instant::now();
    let lines = answer.body["lines"].as_array().context("no lines")?;
    let new = lines
        .iter()
        .any(|row| row["id"] == json!(line) && row["quantity"] == json!(quantity));
    ensure!(new, "{path} at {lsn} answers {}", answer.body);
    Ok(Change {
        line,
        quantity,
        sent,
        committed,
        lsn: lsn.parse()?,
        answered,
    })
}

type Seen = Arc<Mutex<HashMap<(i64, i64), Instant>>>;

/// Notes when each event of a line arrives at a consumer.
fn watch_kafka(
    stack: &Stack,
    seen: Seen,
    stop: CancellationToken,
) -> Result<tokio::task::JoinHandle<Result<()>>> {
    let topic = format!("{}sales.public.sls_orderdetail", stack.topic_prefix());
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", stack.bootstrap())
        .set("group.id", "bench-latency")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(&topic), Duration::from_secs(10))?;
    let mut assignment = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        assignment.add_partition_offset(&topic, partition.id(), Offset::End)?;
    }
    consumer.assign(&assignment)?;
    Ok(tokio::task::spawn_blocking(move || {
        while !stop.is_cancelled() {
            let Some(message) = consumer.poll(Duration::from_millis(100)) else {
                continue;
            };
            let message = message?;
            let now = Instant::now();
            let Some(payload) = message.payload() else {
                continue;
            };
            let mut event: Value = serde_json::from_slice(payload)?;
            let row = event["after"].take();
            if let (Some(line), Some(quantity)) = (row["id"].as_i64(), row["quantity"].as_i64()) {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.insert((line, quantity), now);
            }
        }
        Ok(())
    }))
}

/// Notes, about every millisecond, how far the view is in sales.
async fn watch_view(view: Client, stop: CancellationToken) -> Result<Vec<(Lsn, Instant)>> {
    let statement = view
        .prepare("select lsn from public.positions where source = 'sales'")
        .await?;
    let mut positions: Vec<(Lsn, Instant)> = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_millis(1));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stop.is_cancelled() {
        pace.tick().await;
        let row = view.query_one(&statement, &[]).await?;
        let lsn: Lsn = row.get::<_, &str>(0).parse()?;
        if positions.last().is_none_or(|(last, _)| *last < lsn) {
            positions.push((lsn, Instant::now()));
        }
    }
    Ok(positions)
}

fn report(
    changes: &[Change],
    seen: &HashMap<(i64, i64), Instant>,
    positions: &[(Lsn, Instant)],
) -> Result<()> {
    let mut stages: [(&str, Vec<Duration>); 5] = [
        ("commit", Vec::new()),
        ("kafka", Vec::new()),
        ("view", Vec::new()),
        ("api", Vec::new()),
        ("total", Vec::new()),
    ];
    for change in changes {
        let kafka = seen.get(&(change.line, i64::from(change.quantity)));
        let kafka = kafka.with_context(|| format!("Kafka never showed {change:?}"))?;
        let place = positions.partition_point(|(lsn, _)| *lsn < change.lsn);
        let view = positions.get(place);
        let (_, view) = view.with_context(|| format!("the view never showed {change:?}"))?;
        let steps = [
            change.sent,
            change.committed,
            (*kafka).max(change.committed),
            *view,
            change.answered,
        ];
        for (stage, times) in steps.windows(2).enumerate() {
            stages[stage]
                .1
                .push(times[1].saturating_duration_since(times[0]));
        }
        stages[4].1.push(change.answered - change.sent);
    }
    let mut figures = Figures::default();
    println!("{} changes, milliseconds:", changes.len());
    println!("{:28} {:>9} {:>9} {:>9}", "", "median", "p99", "max");
    let names = [
        ("commit", "commit sent → acknowledged"),
        ("kafka", "→ a consumer has the event"),
        ("view", "→ the view contains it"),
        ("api", "→ the API's answer is read"),
        ("total", "commit sent → answer read"),
    ];
    for ((stage, durations), (_, text)) in stages.iter().zip(names) {
        let [median, p99, max] = [0.5, 0.99, 1.0].map(|share| percentile_ms(durations, share));
        println!("{text:28} {median:9.2} {p99:9.2} {max:9.2}");
        let name = |what: &str| match *stage {
            "total" => format!("{what}_ms"),
            stage => format!("{stage}_{what}_ms"),
        };
        figures.set(name("median"), median);
        figures.set(name("p99"), p99);
        figures.set(name("max"), max);
    }
    figures.set("changes", f64::from(u32::try_from(changes.len())?));
    figures.write("latency")?;
    let [median, p99] = [0.5, 0.99].map(|share| percentile_ms(&stages[4].1, share));
    println!("bars: median under {MEDIAN_BAR_MS} ms, p99 under {P99_BAR_MS} ms");
    ensure!(
        median < MEDIAN_BAR_MS && p99 < P99_BAR_MS,
        "a bar was missed"
    );
    Ok(())
}
