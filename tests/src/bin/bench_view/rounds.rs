//! What is measured, in which order, and the figures that come of it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use fixtures::{Kafka, Postgres, Version};
use tests::bench::{Figures, percentile_ms};

use crate::latency::Watch;
use crate::peers::Peer;
use crate::place::{CaughtUp, Place};
use crate::shop;

/// Measures the aggregator and its peers; needs PostgreSQL 18 and Kafka. The figures go to
/// `bench/view.json` in `LOCAL_DIR`.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Order lines that are there before the changes.
    #[arg(long, default_value_t = 10_000)]
    history_lines: i64,
    /// Order lines of a long history.
    #[arg(long, default_value_t = 10_000_000)]
    long_history_lines: i64,
    /// Orders that a round writes, three lines and a payment each. The default is an hour of 100
    /// changes a second.
    #[arg(long, default_value_t = 60_000)]
    orders: i64,
    /// Rounds of each rate.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Orders that a round writes with row triggers.
    #[arg(long, default_value_t = 5_000)]
    trigger_orders: i64,
    /// Orders that a round writes with a statement a change.
    #[arg(long, default_value_t = 1_000)]
    single_orders: i64,
    /// Orders below the materialized view.
    #[arg(long, default_value_t = 100_000)]
    materialized_orders: i64,
    /// Changes whose lateness is measured, at 100 a second.
    #[arg(long, default_value_t = 1_000)]
    changes: usize,
    /// Orders with three lines of the large transaction: a million rows.
    #[arg(long, default_value_t = 250_000)]
    large_orders: i64,
    /// Orders that are loaded, and then rebuilt.
    #[arg(long, default_value_t = 1_000_000)]
    rebuild_orders: i64,
    /// Only these parts: rates, history, latency, large, rebuild, materialized.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Further settings of the server, `name=value`: to see where the time goes.
    #[arg(long)]
    setting: Vec<String>,
    /// The shipped program; by default the one beside this.
    #[arg(long)]
    aggregator: Option<PathBuf>,
}

/// What the project has set itself: figure, bar, is it a floor?
const BARS: [(&str, f64, bool); 7] = [
    ("ratio_bulk", 0.5, true),
    ("ratio_per_statement", 15.0, true),
    ("ratio_history", 0.8, true),
    ("visible_median_ms", 10.0, false),
    ("peak_rss_mib", 256.0, false),
    ("ratio_triggers", 1.0, true),
    ("ratio_materialized", 1.0, true),
];

struct Bench {
    options: Options,
    program: PathBuf,
    server: Postgres,
    kafka: Kafka,
    figures: Figures,
    peak_rss_mib: f64,
}

pub(crate) async fn run(options: Options) -> Result<ExitCode> {
    let program = match &options.aggregator {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("aggregator"),
    };
    ensure!(program.exists(), "{} is not built", program.display());
    let mut settings = vec![
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("max_wal_size", "4GB"),
    ];
    let given = options.setting.clone();
    settings.extend(given.iter().filter_map(|setting| setting.split_once('=')));
    let mut bench = Bench {
        options,
        program,
        server: Postgres::start_with(Version::View18, &settings).await?,
        kafka: Kafka::start().await?,
        figures: Figures::default(),
        peak_rss_mib: 0.0,
    };
    bench.all().await?;
    bench.figures.set("peak_rss_mib", bench.peak_rss_mib);
    bench.figures.write("view")?;
    Ok(bench.judged())
}

impl Bench {
    fn wants(&self, part: &str) -> bool {
        let only = &self.options.only;
        only.is_empty() || only.iter().any(|name| name == part)
    }

    async fn place(&self, name: &str, history_lines: i64) -> Result<Place> {
        let begun = Instant::now();
        let mut place = Place::new(name, &self.server, &self.kafka, &self.program).await?;
        let filled = place.fill(history_lines / shop::LINES).await;
        filled.map_err(|error| place.explain(error))?;
        println!(
            "a view with {history_lines} order lines: {:.1} s",
            begun.elapsed().as_secs_f64()
        );
        Ok(place)
    }

    async fn all(&mut self) -> Result<()> {
        let mut short = self.place("short", self.options.history_lines).await?;
        if self.wants("rates") {
            self.rates(&mut short).await?;
        }
        if self.wants("history") {
            self.history(&mut short).await?;
        }
        let paid = short.next_order - 1;
        if self.wants("latency") {
            let lateness = self.latency(&mut short).await;
            lateness.map_err(|error| short.explain(error))?;
        }
        if self.wants("large") {
            let large = self.large(&mut short, paid).await;
            large.map_err(|error| short.explain(error))?;
        }
        self.peak_rss_mib = self.peak_rss_mib.max(short.peak_rss_mib);
        drop(short);
        if self.wants("materialized") {
            self.materialized().await?;
        }
        if self.wants("rebuild") {
            self.rebuild().await?;
        }
        Ok(())
    }

    /// The aggregator on what waits for it; it is right afterwards.
    async fn catch_up(&self, place: &mut Place) -> Result<CaughtUp> {
        let changes = place.write(self.options.orders).await?;
        let rates = place.catch_up(changes).await;
        let rates = rates.map_err(|error| place.explain(error))?;
        place.is_right(place.next_order - 1).await?;
        Ok(rates)
    }

    async fn rates(&mut self, place: &mut Place) -> Result<()> {
        let mut bulk = Peer::bulk(&self.server).await?;
        let mut triggers = Peer::triggers(&self.server).await?;
        let history = self.options.history_lines / shop::LINES;
        bulk.write(history).await?;
        triggers.write(history).await?;
        let mut rates: [Vec<f64>; 8] = Default::default();
        for round in 0..self.options.rounds {
            let ours = self.catch_up(place).await?;
            let before = bulk.cpu_time().await?;
            let bare = bulk.write(self.options.orders).await?;
            let cpu = bulk.cpu_time().await?.saturating_sub(before);
            let bare_cpu_us = cpu.as_secs_f64() * 1e6 / (self.options.orders * shop::ROWS) as f64;
            let batches = triggers.write(self.options.trigger_orders).await?;
            let single = triggers
                .write_one_by_one(self.options.single_orders)
                .await?;
            triggers.is_right().await?;
            place.print_statements().await?;
            println!("round {round}: {ours:?}; {bare_cpu_us:.1} µs of the server for a bare one");
            println!(
                "changes a second: {:.0} ours, {bare:.0} bare batches, {batches:.0} row triggers, \
                {single:.0} a statement each",
                ours.working
            );
            let of_round = [
                ours.working,
                ours.started,
                ours.cpu_us,
                ours.server_cpu_us,
                bare,
                bare_cpu_us,
                batches,
                single,
            ];
            for (all, one) in rates.iter_mut().zip(of_round) {
                all.push(one);
            }
        }
        let [ours, all, cpu, server_cpu, bulk, bulk_cpu, batches, single] = &rates;
        for (name, rates) in [
            ("changes_per_s", ours),
            ("catch_up_rows_per_s", all),
            ("cpu_us_per_change", cpu),
            ("server_cpu_us_per_change", server_cpu),
            ("bulk_rows_per_s", bulk),
            ("bulk_server_cpu_us_per_row", bulk_cpu),
            ("triggers_rows_per_s", batches),
            ("per_statement_rows_per_s", single),
        ] {
            self.figures.set(name, median(rates.clone()));
        }
        for (name, peer) in [
            ("ratio_bulk", bulk),
            ("ratio_triggers", batches),
            ("ratio_per_statement", single),
        ] {
            self.figures.set(name, ratio(ours, peer));
        }
        Ok(())
    }

    async fn history(&mut self, short: &mut Place) -> Result<()> {
        let lines = self.options.long_history_lines;
        let begun = Instant::now();
        let mut long = self.place("long", lines).await?;
        self.figures
            .set("history_fill_s", begun.elapsed().as_secs_f64());
        let (mut less, mut more) = (Vec::new(), Vec::new());
        for round in 0..self.options.rounds {
            let with_little = self.catch_up(short).await?.working;
            let with_much = self.catch_up(&mut long).await?.working;
            println!(
                "round {round}, changes a second: {with_little:.0} with little before, {with_much:.0} \
                with {lines} lines"
            );
            less.push(with_little);
            more.push(with_much);
        }
        self.figures.set("ratio_history", ratio(&more, &less));
        self.figures.set("long_history_changes_per_s", median(more));
        self.peak_rss_mib = self.peak_rss_mib.max(long.peak_rss_mib);
        Ok(())
    }

    /// Changes at an even pace, each with a checkpoint of its own.
    async fn latency(&mut self, place: &mut Place) -> Result<()> {
        place.start()?;
        place.caught_up().await?;
        let watch = Watch::start(place.watcher(&self.server).await?, "sales").await?;
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        let mut commits = Vec::new();
        let orders = place.next_order - 1;
        let changes = i64::try_from(self.options.changes)?;
        for change in 0..changes + 100 {
            pace.tick().await;
            let order = orders - change % orders;
            // Twice, so that all are as they were in the end.
            let quantity = 1 + change % 2 * 7;
            place.sales.line(order, 0, quantity).await?;
            let lsn = place.sales.commit().await?;
            commits.push((lsn, Instant::now()));
        }
        for order in 0..(changes + 100).min(orders) {
            place.sales.line(orders - order, 0, 1).await?;
        }
        place.sales.commit().await?;
        place.caught_up().await?;
        let late = watch.lateness(&commits[100..]).await?;
        place.stop().await?;
        let [median, p99] = [0.5, 0.99].map(|share| percentile_ms(&late, share));
        println!("from a checkpoint in Kafka to the view: median {median:.1} ms, p99 {p99:.1} ms");
        self.figures.set("visible_median_ms", median);
        self.figures.set("visible_p99_ms", p99);
        Ok(())
    }

    /// A transaction of a million rows in sales, while accounting goes on.
    async fn large(&mut self, place: &mut Place, paid: i64) -> Result<()> {
        place.start()?;
        place.caught_up().await?;
        let changes = place.write_at_once(self.options.large_orders).await?;
        let committed = Instant::now();
        let lsn = place.sales.lsn;
        let watch = Watch::start(place.watcher(&self.server).await?, "accounting").await?;
        let mut commits = Vec::new();
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        let mut first = place.next_order;
        let applied = loop {
            pace.tick().await;
            if place.is_at("sales", lsn).await? {
                break committed.elapsed();
            }
            // Payments of orders that there are not: nothing else depends on them.
            first += 1;
            place.accounting.payment(first).await?;
            let lsn = place.accounting.commit().await?;
            commits.push((lsn, Instant::now()));
        };
        place.caught_up().await?;
        let late = watch.lateness(&commits).await?;
        place.stop().await?;
        place.is_right(paid).await?;
        let delay = late.iter().max().copied().unwrap_or_default();
        let (applied, delay) = (applied.as_secs_f64(), delay.as_secs_f64());
        println!(
            "{changes} rows in one transaction: {applied:.1} s, delays others by up to {delay:.1} s, \
            peak memory {:.0} MiB",
            place.peak_rss_mib
        );
        self.figures.set("large_rows", changes as f64);
        self.figures.set("large_apply_s", applied);
        self.figures.set("large_delays_s", delay);
        self.figures.set("large_peak_rss_mib", place.peak_rss_mib);
        Ok(())
    }

    /// The same orders as a materialized view, which shows a batch once it is refreshed.
    async fn materialized(&mut self) -> Result<()> {
        let orders = self.options.materialized_orders;
        let mut peer = Peer::materialized(&self.server, orders).await?;
        let mut place = self.place("beside", orders * shop::LINES).await?;
        let batch = 1_700;
        let (mut ours, mut theirs, mut refreshes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            let begun = Instant::now();
            peer.write(batch).await?;
            let refresh = peer.refresh().await?;
            refreshes.push(refresh.as_secs_f64() * 1000.0);
            let changes = (batch * shop::ROWS) as f64;
            theirs.push(changes / begun.elapsed().as_secs_f64());
            place.write(batch).await?;
            let rates = place.catch_up(batch * shop::ROWS).await;
            ours.push(rates.map_err(|error| place.explain(error))?.working);
        }
        place.is_right(place.next_order - 1).await?;
        let refresh_ms = median(refreshes);
        println!(
            "a batch of {} changes over {orders} orders, changes a second: {:.0} ours, {:.0} with a \
            materialized view ({refresh_ms:.0} ms a refresh)",
            batch * shop::ROWS,
            median(ours.clone()),
            median(theirs.clone())
        );
        self.figures
            .set("ratio_materialized", ratio(&ours, &theirs));
        self.figures.set("materialized_rows_per_s", median(theirs));
        self.figures.set("materialized_refresh_ms", refresh_ms);
        Ok(())
    }

    /// Many orders from the first record of the topics on: a first load, and a rebuild.
    async fn rebuild(&mut self) -> Result<()> {
        let mut place = Place::new("rebuilt", &self.server, &self.kafka, &self.program).await?;
        place.accounting.commit().await?;
        let mut changes = 0;
        let mut left = self.options.rebuild_orders;
        while left > 0 {
            changes += place.write_orders(left.min(10_000)).await?;
            left -= 10_000;
        }
        let begun = Instant::now();
        place.start()?;
        let loaded = place.caught_up().await;
        loaded.map_err(|error| place.explain(error))?;
        let load = changes as f64 / begun.elapsed().as_secs_f64();
        let rebuilt = place.rebuild(changes).await;
        let rebuild = rebuilt.map_err(|error| place.explain(error))?;
        place.stop().await?;
        place.is_right(0).await?;
        println!("{changes} rows: {load:.0} a second loaded, {rebuild:.0} rebuilt");
        self.figures.set("load_rows_per_s", load);
        self.figures.set("rebuild_rows_per_s", rebuild);
        self.peak_rss_mib = self.peak_rss_mib.max(place.peak_rss_mib);
        Ok(())
    }

    /// Says which bars were missed.
    fn judged(&self) -> ExitCode {
        let mut missed = false;
        for (name, bar, floor) in BARS {
            let Some(value) = self.figures.get(name) else {
                continue;
            };
            let met = if floor { value >= bar } else { value < bar };
            missed |= !met;
            let (what, mark) = (
                if floor { "at least" } else { "under" },
                if met { "" } else { "  MISSED" },
            );
            println!("{name:24} {value:10.2}   bar: {what} {bar}{mark}");
        }
        ExitCode::from(u8::from(missed))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The median of the rounds' ratios.
fn ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
    median(ratios.collect())
}
