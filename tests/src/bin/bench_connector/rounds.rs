//! What is measured, in which order, and the figures that come of it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use fixtures::Kafka;
use nix::sys::signal::Signal;
use tests::bench::{Figures, percentile_ms};

use crate::connector::{Connectors, Run, Sink};
use crate::debezium::{Debezium, Setting};
use crate::latency::{self, Pace};
use crate::programs;
use crate::source::{Source, Written};

const NULL: Sink = Sink::Null { latencies: false };

/// How much is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rows in transactions of 100.
    #[arg(long, default_value_t = 400_000)]
    rows: u64,
    /// Transactions of one row.
    #[arg(long, default_value_t = 100_000)]
    single_rows: u64,
    /// Rows of the large transaction, and of the table that is read.
    #[arg(long, default_value_t = 1_000_000)]
    large_rows: u64,
    /// Rows of the largest transaction, for its memory.
    #[arg(long, default_value_t = 5_000_000)]
    huge_rows: u64,
    /// Rounds of each part.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Changes whose latency is measured, at 100 a second.
    #[arg(long, default_value_t = 1000)]
    changes: usize,
    /// Only these parts: tx100, tx1, tx1m, snapshot, latency, huge, slow, debezium.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The shipped program; by default the one beside this.
    #[arg(long)]
    connector: Option<PathBuf>,
}

/// What the project has set itself: figure, bar, is it a floor?
const BARS: [(&str, f64, bool); 10] = [
    ("ratio_tx100", 0.8, true),
    ("ratio_tx1", 0.7, true),
    ("ratio_tx1m", 0.8, true),
    ("kafka_ratio_tx100", 0.6, true),
    ("ratio_snapshot", 0.6, true),
    ("peak_rss_mib", 128.0, false),
    ("added_latency_median_ms", 10.0, false),
    ("ratio_debezium", 3.0, true),
    ("rss_ratio_debezium", 0.2, false),
    ("latency_ratio_debezium", 0.5, false),
];

struct Bench<'a> {
    options: &'a Options,
    source: &'a Source,
    connectors: Connectors<'a>,
    debezium: Option<Debezium>,
    figures: Figures,
    /// The most memory that a connector of ours had in any run.
    peak_rss_mib: f64,
}

pub(crate) async fn run(options: &Options) -> Result<ExitCode> {
    let program = match &options.connector {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("connector"),
    };
    ensure!(program.exists(), "{} is not built", program.display());
    let source = Source::start().await?;
    let kafka = Kafka::start().await?;
    let mut bench = Bench {
        options,
        source: &source,
        connectors: Connectors::new(&source, &kafka, &program).await?,
        debezium: Debezium::installed()?,
        figures: Figures::default(),
        peak_rss_mib: 0.0,
    };
    bench.all().await?;
    bench.figures.set("peak_rss_mib", bench.peak_rss_mib);
    bench.figures.write("connector")?;
    Ok(bench.judged())
}

impl Bench<'_> {
    async fn all(&mut self) -> Result<()> {
        let options = self.options;
        for (name, rows, per_transaction) in [
            ("tx100", options.rows, 100),
            ("tx1", options.single_rows, 1),
        ] {
            if self.wants(name) {
                let written = self.source.write(name, rows, per_transaction).await?;
                self.streams(name, &written).await?;
            }
        }
        if self.wants("debezium") {
            let written = self.source.write("peer", options.rows, 100).await?;
            self.peer(&written).await?;
        }
        if self.wants("slow") {
            let written = self.source.write("slow", options.rows, 100).await?;
            self.slow_broker(&written).await?;
        }
        if self.wants("latency") {
            let written = self.source.write("latency", 5000, 100).await?;
            self.latency(&written).await?;
        }
        if self.wants("tx1m") || self.wants("snapshot") {
            let rows = options.large_rows;
            let written = self.source.write("tx1m", rows, rows).await?;
            if self.wants("tx1m") {
                self.streams("tx1m", &written).await?;
            }
            if self.wants("snapshot") {
                self.snapshot().await?;
            }
        }
        if self.wants("huge") {
            let rows = options.huge_rows;
            let written = self.source.write("tx5m", rows, rows).await?;
            self.huge(&written).await?;
        }
        Ok(())
    }

    fn wants(&self, part: &str) -> bool {
        let only = &self.options.only;
        only.is_empty() || only.iter().any(|name| name == part)
    }

    /// PostgreSQL's program, ours into nothing, ours into Kafka, in turn.
    async fn streams(&mut self, name: &str, written: &Written) -> Result<()> {
        let into_kafka = name == "tx100";
        let (mut theirs, mut ours, mut in_kafka) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            theirs.push(per_second(
                written.rows,
                programs::pg_recvlogical(self.source, written).await?,
            ));
            ours.push(self.ours(NULL, written).await?);
            if into_kafka {
                in_kafka.push(self.ours(Sink::Kafka, written).await?);
            }
        }
        self.rate(&format!("pg_recvlogical_{name}"), &theirs);
        self.runs(&format!("null_{name}"), &ours);
        let ratio = median_ratio(&rates(&ours), &theirs);
        self.ratio(&format!("ratio_{name}"), ratio);
        if into_kafka {
            self.runs(&format!("kafka_{name}"), &in_kafka);
            let ratio = median_ratio(&rates(&in_kafka), &theirs);
            self.ratio(&format!("kafka_ratio_{name}"), ratio);
            let share = |of: fn(&Run) -> Duration| {
                median(in_kafka.iter().map(|run| {
                    let all = run.cpu + run.walsender_cpu + run.broker_cpu;
                    of(run).as_secs_f64() / all.as_secs_f64()
                }))
            };
            let (broker, walsender) = (share(|run| run.broker_cpu), share(|run| run.walsender_cpu));
            self.ratio("kafka_cpu_share_broker", broker);
            self.ratio("kafka_cpu_share_walsender", walsender);
        }
        self.source.drop_slot(&written.slot).await
    }

    async fn ours(&mut self, sink: Sink, written: &Written) -> Result<Run> {
        let run = self.connectors.stream(sink, written).await?;
        self.peak_rss_mib = self.peak_rss_mib.max(run.peak_rss_mib);
        Ok(run)
    }

    async fn snapshot(&mut self) -> Result<()> {
        let rows = self.source.rows().await?;
        let (mut theirs, mut ours, mut two) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            theirs.push(per_second(rows, programs::copy(self.source).await?));
            for (workers, rates) in [(1, &mut ours), (2, &mut two)] {
                let (rate, peak) = self.connectors.read_table(workers).await?;
                self.peak_rss_mib = self.peak_rss_mib.max(peak);
                rates.push(rate);
            }
        }
        self.rate("copy", &theirs);
        self.rate("null_snapshot", &ours);
        self.ratio("ratio_snapshot", median_ratio(&ours, &theirs));
        self.rate("null_snapshot_two_workers", &two);
        self.ratio("ratio_snapshot_two_workers", median_ratio(&two, &theirs));
        Ok(())
    }

    async fn latency(&mut self, written: &Written) -> Result<()> {
        let pace = Pace {
            changes: self.options.changes,
            rate: 100,
            warm_up: 200,
        };
        let in_kafka = latency::in_kafka(&self.connectors, written, pace).await?;
        self.latencies("added_latency", &in_kafka.latencies);
        self.figures
            .set("idle_cpu_percent", in_kafka.idle_cpu_percent);
        println!("{:<28}{:>10.2} %", "idle_cpu", in_kafka.idle_cpu_percent);
        let ours = latency::in_nothing(&self.connectors, written, pace).await?;
        self.latencies("null_latency", &ours);
        if let Some(debezium) = &self.debezium {
            let theirs = debezium.latencies(self.source, written, pace).await?;
            self.latencies("debezium_latency", &theirs.latencies);
            let ratio = percentile_ms(&ours, 0.5) / percentile_ms(&theirs.latencies, 0.5);
            self.ratio("latency_ratio_debezium", ratio);
            self.figures
                .set("debezium_idle_cpu_percent", theirs.idle_cpu_percent);
        }
        self.source.drop_slot(&written.slot).await
    }

    /// Debezium at its best, then with the smallest heap that is as good; ours in turn with it.
    async fn peer(&mut self, written: &Written) -> Result<()> {
        let Some(debezium) = self.debezium.take() else {
            println!("Debezium's engine is not installed: no peer");
            return self.source.drop_slot(&written.slot).await;
        };
        let setting = self.best_setting(&debezium, written).await?;
        let (mut theirs, mut ours, mut rss) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.options.rounds {
            let run = debezium.stream(self.source, written, &setting).await?;
            theirs.push(run.rows_per_second);
            let mine = self.ours(NULL, written).await?;
            rss.push(mine.peak_rss_mib / run.peak_rss_mib);
            ours.push(mine);
            self.figures.set("debezium_peak_rss_mib", run.peak_rss_mib);
        }
        self.rate("debezium", &theirs);
        let (ratio, rss) = (median_ratio(&rates(&ours), &theirs), median(rss));
        self.ratio("ratio_debezium", ratio);
        self.ratio("rss_ratio_debezium", rss);
        self.figures
            .set("debezium_heap_mib", f64::from(setting.heap_mib));
        self.debezium = Some(debezium);
        self.source.drop_slot(&written.slot).await
    }

    async fn best_setting(&self, debezium: &Debezium, written: &Written) -> Result<Setting> {
        let mut best: Option<(f64, Setting)> = None;
        for setting in Setting::candidates() {
            let run = debezium.stream(self.source, written, &setting).await?;
            println!("  debezium, {setting}: {:.0} rows/s", run.rows_per_second);
            if best
                .as_ref()
                .is_none_or(|(rate, _)| run.rows_per_second > *rate)
            {
                best = Some((run.rows_per_second, setting));
            }
        }
        let (rate, mut setting) = best.context("no setting")?;
        for heap_mib in [256, 192, 128, 96, 64] {
            let smaller = setting.with_heap(heap_mib);
            let Ok(run) = debezium.stream(self.source, written, &smaller).await else {
                println!("  debezium, {smaller}: too small");
                break;
            };
            println!("  debezium, {smaller}: {:.0} rows/s", run.rows_per_second);
            if run.rows_per_second < 0.95 * rate {
                break;
            }
            setting = smaller;
        }
        Ok(setting)
    }

    /// Memory with the largest transaction.
    async fn huge(&mut self, written: &Written) -> Result<()> {
        for (name, sink) in [("null_tx5m", NULL), ("kafka_tx5m", Sink::Kafka)] {
            let run = self.ours(sink, written).await?;
            self.runs(name, &[run]);
        }
        self.source.drop_slot(&written.slot).await
    }

    /// Memory with a broker that runs for a tenth of the time.
    async fn slow_broker(&mut self, written: &Written) -> Result<()> {
        let broker = self.connectors.kafka.process().context("no broker")?;
        let slow = async {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                broker.signal(Signal::SIGSTOP);
                tokio::time::sleep(Duration::from_millis(450)).await;
                broker.signal(Signal::SIGCONT);
            }
        };
        let run = tokio::select! {
            run = self.connectors.stream(Sink::Kafka, written) => run,
            never = slow => never,
        };
        broker.signal(Signal::SIGCONT);
        let run = run?;
        self.peak_rss_mib = self.peak_rss_mib.max(run.peak_rss_mib);
        self.runs("kafka_slow_broker", &[run]);
        self.source.drop_slot(&written.slot).await
    }

    // -- figures -------------------------------------------------------------------------

    fn rate(&mut self, name: &str, rates: &[f64]) {
        let rate = median(rates.iter().copied());
        println!("{name:<28}{rate:>10.0} rows/s");
        self.figures.set(format!("{name}_rows_per_second"), rate);
    }

    fn runs(&mut self, name: &str, runs: &[Run]) {
        let rate = median(rates(runs));
        let cpu_us = median(
            runs.iter()
                .map(|run| 1e6 * run.cpu.as_secs_f64() / run.rows as f64),
        );
        let peak = runs.iter().map(|run| run.peak_rss_mib).fold(0.0, f64::max);
        println!("{name:<28}{rate:>10.0} rows/s {cpu_us:>6.2} µs/row {peak:>6.1} MiB");
        self.figures.set(format!("{name}_rows_per_second"), rate);
        self.figures.set(format!("{name}_cpu_us_per_row"), cpu_us);
        self.figures.set(format!("{name}_peak_rss_mib"), peak);
    }

    fn ratio(&mut self, name: &str, ratio: f64) {
        println!("{name:<28}{ratio:>10.2}");
        self.figures.set(name, ratio);
    }

    fn latencies(&mut self, name: &str, latencies: &[Duration]) {
        let [median, p99] = [0.5, 0.99].map(|share| percentile_ms(latencies, share));
        println!("{name:<28}{median:>10.2} ms, p99 {p99:.2} ms");
        self.figures.set(format!("{name}_median_ms"), median);
        self.figures.set(format!("{name}_p99_ms"), p99);
    }

    /// Which bars were missed, of those that were measured.
    fn judged(&self) -> ExitCode {
        let mut code = ExitCode::SUCCESS;
        for (name, bar, floor) in BARS {
            let Some(value) = self.figures.get(name) else {
                continue;
            };
            let met = if floor { value >= bar } else { value < bar };
            let (word, sign) = (
                if met { "met" } else { "missed" },
                if floor { "at least" } else { "below" },
            );
            println!("{word:<8}{name} is {value:.2}, {sign} {bar}");
            if !met {
                code = ExitCode::FAILURE;
            }
        }
        code
    }
}

fn per_second(rows: u64, elapsed: Duration) -> f64 {
    rows as f64 / elapsed.as_secs_f64()
}

fn rates(runs: &[Run]) -> Vec<f64> {
    runs.iter().map(Run::rows_per_second).collect()
}

/// Of each round's ratio.
fn median_ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs))
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
