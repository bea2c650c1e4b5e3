//! How fast a replication stream can be received: the connectors' thin client and the crate
//! `pgwire-replication` against PostgreSQL's own `pg_recvlogical`.
//!
//! Every client reads the same WAL of the same server over the same kind of connection into
//! nothing: before each run the slot is copied, so all begin at the same place. Runs of the
//! clients alternate, so that whatever else the machine does falls on all of them. What it
//! measures and what came of it: `docs/adr/0002-a-thin-replication-client.md`.

mod clients;
mod source;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;
use clients::{Client, Connection};
use source::{Source, Workload, Written};
use tests::bench::Figures;

/// Measures clients of logical replication; needs PostgreSQL 15's programs. The figures go to
/// `bench/replication.json` in `LOCAL_DIR`.
#[derive(Debug, Parser)]
struct Options {
    /// Rows in transactions of 100; 0 leaves a workload out.
    #[arg(long, default_value_t = 400_000)]
    rows: u64,
    /// Transactions of one row.
    #[arg(long, default_value_t = 100_000)]
    single_rows: u64,
    /// Rows of the one large transaction.
    #[arg(long, default_value_t = 1_000_000)]
    large_rows: u64,
    /// Runs of each client; the table shows their median.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) rows: u64,
    /// From before the connection to the last commit.
    pub(crate) elapsed: Duration,
    /// Processor time of the client, both kinds.
    pub(crate) client_cpu: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let workloads = [
        Workload::new("hundred", options.rows, 100),
        Workload::new("single", options.single_rows, 1),
        Workload::new("large", options.large_rows, options.large_rows),
    ];
    let source = Arc::new(Source::start().await?);
    let mut figures = Figures::default();
    println!(
        "{:<10}{:<6}{:<26}{:>10}{:>10}{:>16}",
        "workload", "over", "client", "rows/s", "best", "client µs/row"
    );
    for workload in workloads.iter().filter(|workload| workload.rows > 0) {
        let written = source.write(workload).await?;
        for connection in [Connection::Tcp, Connection::Unix] {
            let mut runs = Client::ALL.map(|client| (client, Vec::new()));
            for _ in 0..options.rounds {
                for (client, runs) in &mut runs {
                    runs.push(run(&source, *client, connection, &written).await?);
                }
            }
            for (client, runs) in &runs {
                report(workload, connection, *client, runs, &mut figures);
            }
        }
        source.drop_slot(&written.slot).await?;
    }
    figures.write("replication")
}

/// One run from a slot of its own.
async fn run(
    source: &Arc<Source>,
    client: Client,
    connection: Connection,
    written: &Written,
) -> Result<Run> {
    let slot = source.copy_slot(written).await?;
    let run = {
        let (source, slot, written) = (Arc::clone(source), slot.clone(), written.clone());
        // On a worker of the runtime, as the connector's own tasks are.
        tokio::spawn(async move { client.run(&source, connection, &slot, &written).await })
            .await??
    };
    if run.rows != written.rows {
        bail!("{client:?} received {} of {} rows", run.rows, written.rows);
    }
    source.drop_slot(&slot).await?;
    Ok(run)
}

/// Prints a line and keeps its figures.
fn report(
    workload: &Workload,
    connection: Connection,
    client: Client,
    runs: &[Run],
    figures: &mut Figures,
) {
    let (median, best) = ordered(runs, |run| run.rows as f64 / run.elapsed.as_secs_f64());
    let (cpu_us, _) = ordered(runs, |run| {
        run.client_cpu.as_secs_f64() * 1e6 / run.rows as f64
    });
    println!(
        "{:<10}{:<6}{:<26}{median:>10.0}{best:>10.0}{cpu_us:>16.2}",
        workload.name,
        connection.name(),
        client.name(),
    );
    let key = format!("{}_{}_{}", workload.name, connection.name(), client.key());
    figures.set(format!("{key}_rows_per_second"), median);
    figures.set(format!("{key}_best_rows_per_second"), best);
    figures.set(format!("{key}_client_cpu_us_per_row"), cpu_us);
}

/// Median and highest of a figure.
fn ordered(runs: &[Run], figure: impl Fn(&Run) -> f64) -> (f64, f64) {
    let mut values: Vec<f64> = runs.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    (at(values.len() / 2), at(values.len().saturating_sub(1)))
}
