//! What `aggregator verify` costs: rows a second over a million order lines and their orders, the
//! processor time that a row costs the source and the view, the time with rows that differ, and what
//! all that makes for a hundred million rows.
//!
//! The shipped program compares a source and a view of an installation's durability, each on a
//! cluster of its own. Both are filled by SQL with the same rows, and the view says that it is past all
//! that the source holds: measured is the comparison, not the way there. What came of it:
//! `docs/performance.md`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fixtures::legacy::System;
use fixtures::stack::{Build, Options, Stack};
use serde_json::Value;
use tests::bench::Figures;
use tests::machine::cpu_time;
use tokio_postgres::Client;

/// Measures the comparison of a view with its source.
#[derive(Debug, Parser)]
struct Arguments {
    /// Order lines; an order has three.
    #[arg(long, default_value_t = 1_000_000)]
    lines: i64,
    /// How often each part is measured; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Rows that somebody changed in the mirror.
    #[arg(long, default_value_t = 100)]
    differing: i64,
}

const HUNDRED_MILLION: f64 = 1e8;
/// The shipped bound, `verify.rows_per_second`.
const DEFAULT_RATE: f64 = 50_000.0;
const POLL: Duration = Duration::from_millis(20);
/// The longest wait for the schema and for the unified rows.
const WITHIN: Duration = Duration::from_secs(900);

/// One comparison.
#[derive(Debug, Clone, Copy)]
struct Run {
    seconds: f64,
    rows: f64,
    differences: f64,
    /// Processor time of the source's and the view's session, seconds.
    source_cpu: f64,
    view_cpu: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let settings = |key: &str, value: i64| ("aggregator".to_owned(), key.to_owned(), value.into());
    let stack = Stack::start(Options {
        durable: true,
        build: Build::Release,
        stopped: true,
        // As fast as it can; what the shipped bound makes of it is computed.
        settings: vec![settings("verify.rows_per_second", 10_000_000)],
        ..Options::default()
    })
    .await?;
    let measured = measure(&stack, &arguments).await;
    let figures = measured.map_err(|error| stack.explain(error))?;
    figures.write("verify")
}

async fn measure(stack: &Stack, arguments: &Arguments) -> Result<Figures> {
    fill(stack, arguments).await.context("cannot fill")?;
    let sessions = Sessions {
        source: stack.source_superuser(System::Sales).await?,
        view: stack.view().await?,
    };
    let mut figures = Figures::default();
    let mirrors = run_all(stack, &sessions, &["--source", "sales"], arguments.rounds).await?;
    ensure!(mirrors.differences == 0.0, "{mirrors:?}");
    let rate = mirrors.rows / mirrors.seconds;
    let source_us = mirrors.source_cpu / mirrors.rows * 1e6;
    say(&mut figures, "mirror_rows", mirrors.rows);
    say(&mut figures, "mirror_rows_per_s", rate);
    say(&mut figures, "source_cpu_us_per_row", source_us);
    let view_us = mirrors.view_cpu / mirrors.rows * 1e6;
    say(&mut figures, "view_cpu_us_per_row", view_us);
    let bound = rate.min(DEFAULT_RATE);
    let share = bound * source_us / 1e6;
    say(&mut figures, "source_core_share_at_default", share);
    for (name, rate) in [("as_fast_as_it_can", rate), ("at_default", bound)] {
        let minutes = HUNDRED_MILLION / rate / 60.0;
        say(
            &mut figures,
            &format!("hundred_million_minutes_{name}"),
            minutes,
        );
    }
    let cpu = HUNDRED_MILLION * source_us / 1e6 / 60.0;
    say(&mut figures, "hundred_million_source_cpu_minutes", cpu);

    let whole = run_all(stack, &sessions, &[], arguments.rounds).await?;
    ensure!(whole.differences == 0.0, "{whole:?}");
    let (rows, seconds) = (whole.rows - mirrors.rows, whole.seconds - mirrors.seconds);
    say(&mut figures, "unified_rows", rows);
    say(&mut figures, "unified_rows_per_s", rows / seconds.max(1e-3));

    let sql = "UPDATE sales.sls_orderdetail SET quantity = quantity + 1 WHERE id IN (
        SELECT n * $1::bigint / $2::bigint FROM generate_series(1, $2::bigint) AS n)";
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
        [&arguments.lines, &arguments.differing];
    sessions.view.execute(sql, &parameters).await?;
    let differing = run(stack, &sessions, &["--source", "sales"]).await?;
    ensure!(
        differing.differences as i64 == arguments.differing,
        "{differing:?}"
    );
    say(&mut figures, "differing_rows", differing.differences);
    say(&mut figures, "seconds_without_differing", mirrors.seconds);
    say(&mut figures, "seconds_with_differing", differing.seconds);
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load: f64 = load.split(' ').next().unwrap_or_default().parse()?;
    say(&mut figures, "load_at_end", load);
    Ok(figures)
}

fn say(figures: &mut Figures, name: &str, value: f64) {
    println!("{name:42} {value:>14.3}");
    figures.set(name, value);
}

/// Source and mirrors have the same orders and lines, the unified rows are computed from them.
async fn fill(stack: &Stack, arguments: &Arguments) -> Result<()> {
    let aggregator = stack.service("aggregator");
    aggregator.start()?;
    let view = stack.view().await?;
    let deadline = Instant::now() + WITHIN;
    // Its last act of taking over.
    let taken = "SELECT count(*) = 3 FROM public.positions";
    while !matches!(view.query_one(taken, &[]).await, Ok(row) if row.get(0)) {
        ensure!(Instant::now() < deadline, "the view is not migrated");
        tokio::time::sleep(POLL).await;
    }
    aggregator.terminate().await?;
    let source = stack.source(System::Sales).await?;
    let (lines, orders) = (arguments.lines, arguments.lines / 3 + 1);
    for (client, orders_of, lines_of) in [
        (&source, "sls_order", "sls_orderdetail"),
        (&view, "sales.sls_order", "sales.sls_orderdetail"),
    ] {
        client
            .batch_execute(&format!(
                "INSERT INTO {orders_of} (id, customer_id, date)
                SELECT n, n % 20000 + 1, '2024-01-01T00:00:00Z'::timestamptz + n * interval '1 s'
                FROM generate_series(1, {orders}) AS n;
                INSERT INTO {lines_of} (id, item_id, unit_price, quantity, order_id)
                SELECT n, (n::bigint * 7919 % 10000 + 1)::integer, (n % 9000 + 100) / 100.0, n % 5 + 1, (n - 1) / 3 + 1
                FROM generate_series(1, {lines}) AS n"
            ))
            .await?;
    }
    let vacuum = "VACUUM ANALYZE; CHECKPOINT";
    for client in [&stack.source_superuser(System::Sales).await?, &view] {
        for statement in vacuum.split("; ") {
            client.batch_execute(statement).await?;
        }
    }
    view.batch_execute(
        "UPDATE public.positions SET epoch = 1, lsn = '7FFFFFF/0', wal_end = '7FFFFFF/0',
            committed_at = now(), current_at = now(), applied_at = now()",
    )
    .await?;
    aggregator.start()?;
    let url = format!("{}/recompute", aggregator.admin_url());
    let client = reqwest::Client::new();
    let deadline = Instant::now() + WITHIN;
    let status = format!("{}/status", aggregator.admin_url());
    let mut is_taken = false;
    loop {
        if !is_taken {
            let answer = client.post(&url).send().await;
            is_taken = answer.is_ok_and(|answer| answer.status().is_success());
        } else if let Ok(answer) = client.get(&status).send().await {
            let status: serde_json::Value = answer.json().await?;
            if !status["recompute"]["rows"].is_null() {
                break;
            }
        }
        ensure!(
            Instant::now() < deadline,
            "the unified rows are not computed"
        );
        tokio::time::sleep(POLL).await;
    }
    aggregator.terminate().await?;
    view.batch_execute("VACUUM ANALYZE").await?;
    Ok(())
}

/// Who looks at the sessions of the comparison.
struct Sessions {
    source: Client,
    view: Client,
}

/// The run of the median time.
async fn run_all(
    stack: &Stack,
    sessions: &Sessions,
    arguments: &[&str],
    rounds: usize,
) -> Result<Run> {
    let mut runs = Vec::new();
    for _ in 0..rounds.max(1) {
        runs.push(run(stack, sessions, arguments).await?);
    }
    runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    Ok(runs[runs.len() / 2])
}

async fn run(stack: &Stack, sessions: &Sessions, arguments: &[&str]) -> Result<Run> {
    let aggregator = stack.service("aggregator");
    let arguments: Vec<_> = ["verify", "--json"]
        .iter()
        .chain(arguments)
        .copied()
        .collect();
    let began = Instant::now();
    let running = aggregator.spawn_command(aggregator.config(), &arguments)?;
    let mut output = std::pin::pin!(running.wait_with_output());
    let (mut source_cpu, mut view_cpu) = (Duration::ZERO, Duration::ZERO);
    let output = loop {
        tokio::select! {
            output = &mut output => break output?,
            () = tokio::time::sleep(POLL) => {
                let source = cpu_of(&sessions.source, "tributary verify").await?;
                source_cpu = source_cpu.max(source);
                view_cpu = view_cpu.max(cpu_of(&sessions.view, "aggregator verify").await?);
            }
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    // The other sources have no rows, and are compared all the same.
    ensure!(
        report["not_compared"] == serde_json::json!([]),
        "{report:#}"
    );
    let rows = report["rows"].as_object().context("no rows")?;
    Ok(Run {
        seconds,
        rows: rows.values().filter_map(Value::as_f64).sum(),
        differences: report["difference_count"].as_f64().context("no count")?,
        source_cpu: source_cpu.as_secs_f64(),
        view_cpu: view_cpu.as_secs_f64(),
    })
}

/// The processor time of a session so far; nothing where there is none (any more).
async fn cpu_of(client: &Client, application: &str) -> Result<Duration> {
    let sql = "SELECT pid FROM pg_stat_activity
        WHERE application_name = $1 AND backend_type = 'client backend'";
    let row = client.query_opt(sql, &[&application]).await?;
    let pid = row.map(|row| row.get(0));
    Ok(pid.and_then(|pid| cpu_time(pid).ok()).unwrap_or_default())
}
