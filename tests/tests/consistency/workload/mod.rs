//! A random workload over all three sources, while processes and servers die, hang and are cut
//! off, sources and view are read again, restored and verified. Nobody who looks may see part of a
//! transaction or the past, and at rest everything equals the oracle.
//!
//! `SEED=` repeats a run's decisions (not its timing). `FAULTS=` says how many faults there are, or
//! which of the seed's (`FROM..TO`, several with commas between); `SOAK_S=` for how many seconds there
//! are any instead. `CLIENTS=` names who writes, `TRANSACTIONS=` how many each. A run with one of these
//! that fails tries parts of its history, for `SHRINK_S=` seconds, and prints the smallest that was seen
//! to fail. `ONLY=broker` leaves out the faults whose line does not say so. Where nothing is said the
//! broker stays up.

mod chaos;
mod clients;
mod deeds;
mod guarded;
mod history;
mod office;
mod owners;
mod quiet;
mod shop;
mod watchers;
mod writers;

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use fixtures::disk::SmallDisk;
use fixtures::legacy::{PerSystem, System};
use fixtures::stack::{Options, Stack};
use tests::oracle::Oracle;
use tests::rest;
use tests::topics::Reader;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use chaos::Fault;
use clients::Workload;
use guarded::Guarded;
use history::History;
use office::Office;
use shop::Shop;

/// What a task of the workload hands back when it is told to stop.
#[derive(Debug)]
enum Outcome {
    Count(String, u64),
    Reader(Box<Reader>),
}

/// What happened less often than this in a run was not tried.
const ENOUGH: u64 = 10;

/// Faults of a run that says nothing else.
const FAULTS: usize = 18;

/// In a soak readers may be so far behind: minutes stand for the days. Whoever begins anew has half of it
/// to read the topics.
const LATENESS_MAX_MS: u32 = 180_000;

/// The aggregator in a soak: less than somebody who reads what he wrote waits.
const LATENESS_OF_THE_VIEW_MS: i64 = 60_000;

/// Holds the view's cluster and what it grows by.
const DISK_MIB: u32 = 1_000;

/// Longer than any run: somebody counts on its transactions.
const NO_LIMIT: Duration = Duration::from_secs(24 * 3_600);

/// How long parts of a failing history are tried where nothing is said.
const SHRINK_S: u64 = 1_800;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_part_of_a_transaction_or_the_past_whatever_fails() -> Result<()> {
    let asked = Asked::from_the_environment()?;
    println!("{asked:?}");
    let seed = asked.seed;
    let mut random = writers::random(seed, 100, 0);
    let drawn = std::iter::from_fn(|| Some(Fault::draw(&mut random)))
        // A soak alone: see the open failures in tests/README.md.
        .filter(|fault| asked.soaks() || !fault.is_for_soaks())
        .filter(|fault| fault.to_string().contains(&asked.only))
        .enumerate()
        .map(|(number, fault)| Fault { number, ..fault });
    let mut history = History {
        faults: Vec::new(),
        workload: asked.workload.clone(),
    };
    let depth = if asked.soaks() {
        Depth::Soak
    } else {
        Depth::Short
    };
    let ended = match (&asked.faults, asked.soak_s) {
        (Some(chosen), _) => {
            let last = chosen.iter().map(|range| range.end).max();
            let part = drawn
                .take(last.unwrap_or_default())
                .filter(|fault| chosen.iter().any(|range| range.contains(&fault.number)));
            simulate(seed, &mut history, part, Depth::Part).await
        }
        (None, Some(soak_s)) => {
            let end = Instant::now() + Duration::from_secs(soak_s);
            let until = drawn.take_while(|_| Instant::now() < end);
            simulate(seed, &mut history, until, depth).await
        }
        (None, None) => simulate(seed, &mut history, drawn.take(FAULTS), depth).await,
    };
    let Err(error) = ended else { return Ok(()) };
    println!(
        "SEED={seed} fails after {} faults: {error:#}",
        history.faults.len()
    );
    println!("that is: {}", error.root_cause());
    if asked.soaks() {
        history = smaller(&asked, history).await;
    }
    println!("the smallest history that was seen to fail, of SEED={seed}:\n{history}");
    let (only, variables) = (asked.only, history.variables());
    bail!("see above; repeat with SEED={seed} ONLY={only:?} {variables}")
}

/// What the environment says about the run.
#[derive(Debug)]
struct Asked {
    seed: u64,
    soak_s: Option<u64>,
    faults: Option<Vec<Range<usize>>>,
    only: String,
    workload: Workload,
    shrink_s: u64,
}

impl Asked {
    fn from_the_environment() -> Result<Self> {
        let text = |name: &str| std::env::var(name).ok();
        let number = |name: &str| text(name)?.parse().ok();
        let faults = text("FAULTS").as_deref().map(history::chosen);
        let clients = text("CLIENTS");
        Ok(Self {
            seed: number("SEED").unwrap_or_else(rand::random),
            soak_s: number("SOAK_S"),
            faults: faults.transpose()?,
            only: text("ONLY").unwrap_or_default(),
            workload: history::workload(clients.as_deref(), number("TRANSACTIONS"))?,
            shrink_s: number("SHRINK_S").unwrap_or(SHRINK_S),
        })
    }

    fn soaks(&self) -> bool {
        self.soak_s.is_some() || self.faults.is_some()
    }
}

/// What a run has to try, to mean something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Of a history: nothing.
    Part,
    /// Everything often enough.
    Short,
    /// And the view is compared with the sources while these are written to.
    Soak,
}

/// The smallest part of a history that is found to fail in the time there is.
async fn smaller(asked: &Asked, failing: History) -> History {
    let end = Instant::now() + Duration::from_secs(asked.shrink_s);
    history::smallest(failing, async |part| {
        if Instant::now() > end {
            return false;
        }
        let mut again = History {
            faults: Vec::new(),
            workload: part.workload.clone(),
        };
        let faults = part.faults.iter().cloned();
        let ran = simulate(asked.seed, &mut again, faults, Depth::Part).await;
        ran.is_err()
    })
    .await
}

/// One run on a stack of its own. In the history stands what was done, also where it fails.
async fn simulate(
    seed: u64,
    history: &mut History,
    faults: impl Iterator<Item = Fault>,
    depth: Depth,
) -> Result<()> {
    let shop = Arc::new(opened(depth != Depth::Short).await?);
    let begun = Instant::now();
    let ran = run(&shop, seed, history, faults, depth).await;
    history.workload.within = Some(begun.elapsed());
    let each = history.workload.each.get_or_insert(u64::MAX);
    *each = shop.tries().min(*each);
    ran.map_err(|error| {
        println!("fails: {}", error.root_cause());
        shop.stack.explain(error)
    })
}

/// A stack of its own, with the guarded rows, that shows all of it.
async fn opened(soaks: bool) -> Result<Shop> {
    let disk = if soaks { small_disk() } else { None };
    let stack = Stack::start(Options {
        seed: true,
        own_servers: true,
        standbys: &["aggregator", "connector-sales"],
        transaction_timeout_ms: Some(3_000),
        settings: settings(soaks),
        lateness_max_ms: soaks.then_some(LATENESS_MAX_MS),
        view_folder: disk.as_ref().map(|disk| disk.path().to_owned()),
        ..Options::default()
    })
    .await?;
    if disk.is_some() {
        // Of its log no more than fits.
        let view = stack.view().await?;
        let bound = "alter system set max_wal_size = '128MB'";
        view.execute(bound, &[]).await?;
        view.execute("select pg_reload_conf()", &[]).await?;
    }
    let (mut sales, mut accounting) = (
        stack.source(System::Sales).await?,
        stack.source(System::Accounting).await?,
    );
    let guarded = Guarded::write(&mut sales, &mut accounting).await?;
    let probe = async |system| watchers::probe(&stack.source(system).await?, system).await;
    let probes = PerSystem {
        warehouse: probe(System::Warehouse).await?,
        accounting: probe(System::Accounting).await?,
        sales: probe(System::Sales).await?,
    };
    stack.caught_up().await?;
    let office = match soaks {
        true => Some(Office::open(&stack).await?),
        false => None,
    };
    Ok(Shop::new(stack, office, disk, guarded, probes))
}

/// A disk that can be filled; none where neither this process nor `sudo` may mount one.
fn small_disk() -> Option<SmallDisk> {
    SmallDisk::mount(DISK_MIB)
        .inspect_err(|error| println!("no disk is filled: {error:#}"))
        .ok()
}

/// Bounds so small that a large source transaction spans several Kafka transactions, a table
/// several chunks, and a checkpoint several steps of the aggregator.
fn settings(soaks: bool) -> Vec<(String, String, toml::Value)> {
    let lateness = (
        "aggregator",
        "kafka.lateness_max_ms",
        LATENESS_OF_THE_VIEW_MS,
    );
    let always = [
        ("connector", "stream.kafka_transaction_events_max", 400),
        ("connector", "stream.kafka_transaction_ms_max", 1_000),
        ("connector", "reads.chunk_rows", 300),
        ("aggregator", "apply.step_events_max", 500),
        (
            "aggregator",
            "quarantine.suspend_after",
            owners::SUSPEND_AFTER,
        ),
    ];
    always
        .into_iter()
        .chain(soaks.then_some(lateness))
        .map(|(service, key, value)| (service.to_owned(), key.to_owned(), value.into()))
        .collect()
}

async fn run(
    shop: &Arc<Shop>,
    seed: u64,
    history: &mut History,
    faults: impl Iterator<Item = Fault>,
    depth: Depth,
) -> Result<()> {
    let begun = Instant::now();
    let tasks = Tasks::of(shop);
    history.workload.begins(&tasks, shop, seed);
    watch(&tasks, shop);
    let chaos = async {
        deeds::run(shop, faults, &mut history.faults).await?;
        if let Some(each) = history.workload.each {
            let ends = begun + history.workload.within.unwrap_or(NO_LIMIT);
            tokio::select! {
                () = shop.stop.cancelled() => {}
                () = tokio::time::sleep_until(ends.into()) => {}
                () = shop.has_tried(each) => {}
            }
        }
        // Everything lives, and all catch up under load.
        tokio::select! {
            () = shop.stop.cancelled() => Ok(()),
            caught_up = catches_up(shop, depth) => caught_up,
        }
    };
    let chaos = chaos.await;
    println!("{} faults", history.faults.len());
    // What a watcher saw says more than what the chaos did about it.
    let outcomes = tasks.finish().await?;
    chaos?;

    let stack = &shop.stack;
    quiet::ended(stack).await?;
    let oracle = Oracle::read(stack).await?;
    let whole = depth != Depth::Part;
    for outcome in outcomes {
        match outcome {
            Outcome::Count(what, count) => {
                println!("{what}: {count}");
                ensure!(count >= ENOUGH || !whole, "{what} {count} times is no test");
            }
            Outcome::Reader(reader) => ended(stack, &oracle, *reader, whole).await?,
        }
    }
    Ok(())
}

/// While writers go on, but for those that have written all they should.
async fn catches_up(shop: &Shop, depth: Depth) -> Result<()> {
    quiet::recovered(&shop.stack).await?;
    match depth {
        Depth::Part | Depth::Short => Ok(()),
        Depth::Soak => quiet::verified(&shop.stack).await,
    }
}

/// A reader that followed all the way ends where the oracle is.
async fn ended(stack: &Stack, oracle: &Oracle, mut reader: Reader, whole: bool) -> Result<()> {
    let source = reader.source().to_owned();
    println!(
        "checkpoints of {source}: {}, rebuilt {} times",
        reader.checkpoints(),
        reader.rebuilds()
    );
    // `unified` has few where its database is away for much of the run.
    let least = if source == "unified" { 3 } else { 10 };
    ensure!(
        reader.checkpoints() >= least || !whole,
        "too few checkpoints of {source}"
    );
    let lsn = match System::ALL
        .into_iter()
        .find(|system| system.name() == source)
    {
        Some(system) => stack.wal_lsn(system).await?,
        None => fixtures::stack::current_lsn(&stack.view().await?).await?,
    };
    reader.reach(&lsn).await?;
    rest::reader_agrees(&reader, oracle)
}

fn watch(tasks: &Tasks, shop: &Arc<Shop>) {
    let of = shop.clone();
    tasks.spawn(async move {
        let looks = watchers::view(&of).await?;
        Ok(Outcome::Count("looks at the view".to_owned(), looks))
    });
    let of = shop.clone();
    tasks.spawn(async move {
        let looks = watchers::api(&of).await?;
        Ok(Outcome::Count("answers of the API".to_owned(), looks))
    });
    let of = shop.clone();
    tasks.spawn(async move {
        let looks = watchers::lists(&of).await?;
        Ok(Outcome::Count("pages of the API".to_owned(), looks))
    });
    for source in ["sales", "accounting", "warehouse", "unified"] {
        let of = shop.clone();
        tasks.spawn(async move {
            let reader = watchers::topics(&of, source).await?;
            Ok(Outcome::Reader(Box::new(reader)))
        });
    }
}

/// The tasks of a run. The first that fails stops all.
#[derive(Debug)]
struct Tasks {
    stop: CancellationToken,
    failed: CancellationToken,
    running: Mutex<JoinSet<Result<Outcome>>>,
}

impl Tasks {
    fn of(shop: &Shop) -> Self {
        Self {
            stop: shop.stop.clone(),
            failed: shop.failed.clone(),
            running: Mutex::default(),
        }
    }

    fn spawn(&self, task: impl Future<Output = Result<Outcome>> + Send + 'static) {
        let (stop, failed) = (self.stop.clone(), self.failed.clone());
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.spawn(async move {
            let outcome = task.await;
            if outcome.is_err() {
                failed.cancel();
                stop.cancel();
            }
            outcome
        });
    }

    async fn finish(self) -> Result<Vec<Outcome>> {
        self.stop.cancel();
        let running = self.running.into_inner();
        let mut running = running.unwrap_or_else(PoisonError::into_inner);
        let mut outcomes = Vec::new();
        while let Some(outcome) = running.join_next().await {
            outcomes.push(outcome??);
        }
        Ok(outcomes)
    }
}
