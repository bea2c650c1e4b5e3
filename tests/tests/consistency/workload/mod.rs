//! A random workload over all three sources, while connectors, aggregator and API are killed and
//! paused. Nobody who looks may see part of a transaction or the past, and at rest everything
//! equals the oracle.
//!
//! `SEED=` repeats a run's decisions (not its timing), `KILLS=` sets how many kills there are
//! (default 20), `SOAK_S=` for how many seconds there are any instead. A soak that fails tries halves of
//! what went wrong, as long as they fail too, and prints the smallest list it found;
//! `FAULTS=FROM..TO` does only these of a seed's faults.

mod chaos;
mod guarded;
mod watchers;
mod writers;

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fixtures::legacy::System;
use fixtures::stack::{Options, Stack};
use rand::Rng;
use tests::oracle::Oracle;
use tests::rest;
use tests::topics::Reader;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use chaos::Fault;
use guarded::Guarded;

/// What a task of the workload hands back when it is told to stop.
#[derive(Debug)]
enum Outcome {
    Count(&'static str, u64),
    Reader(Box<Reader>),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_part_of_a_transaction_or_the_past_while_processes_die() -> Result<()> {
    let seed = variable("SEED").unwrap_or_else(rand::random);
    let mut random = writers::random(seed, 100);
    let drawn = std::iter::from_fn(|| Some(Fault::draw(&mut random)));
    let Some(soak_s) = variable("SOAK_S") else {
        let kills = usize::try_from(variable("KILLS").unwrap_or(20))?;
        println!("SEED={seed} KILLS={kills}");
        let faults = up_to_kills(drawn, kills);
        return simulate(seed, faults.into_iter(), &mut Vec::new(), true)
            .await
            .with_context(|| format!("repeat with SEED={seed} KILLS={kills}"));
    };
    println!("SEED={seed} SOAK_S={soak_s}");
    let mut done = Vec::new();
    let ended = match range("FAULTS")? {
        Some(part) => {
            let part = drawn.skip(part.start).take(part.len());
            simulate(seed, part, &mut done, false).await
        }
        None => {
            let end = Instant::now() + Duration::from_secs(soak_s);
            let until = drawn.take_while(|_| Instant::now() < end);
            simulate(seed, until, &mut done, true).await
        }
    };
    let Err(error) = ended else { return Ok(()) };
    println!("fails after {} faults: {error:#}", done.len());
    let found = chaos::smallest(done, async |half| {
        simulate(seed, half.into_iter(), &mut Vec::new(), false).await
    });
    let found = found.await;
    println!("the smallest history that fails, with the workload of SEED={seed}:");
    for fault in &found {
        println!("  {fault}");
    }
    Err(error.context(format!("repeat with SEED={seed} SOAK_S={soak_s}")))
}

/// The first faults, until so many of them are kills.
fn up_to_kills(drawn: impl Iterator<Item = Fault>, kills: usize) -> Vec<Fault> {
    let mut left = kills;
    drawn
        .take_while(|fault| {
            let more = left > 0;
            left -= usize::from(more && fault.is_kill());
            more
        })
        .collect()
}

/// One run on a stack of its own. `whole`: it must have been long enough to mean something.
async fn simulate(
    seed: u64,
    faults: impl Iterator<Item = Fault>,
    done: &mut Vec<Fault>,
    whole: bool,
) -> Result<()> {
    let stack = Arc::new(start().await?);
    let ran = run(&stack, seed, faults, done, whole).await;
    ran.map_err(|error| stack.explain(error))
}

/// `FROM..TO` of a variable.
fn range(name: &str) -> Result<Option<std::ops::Range<usize>>> {
    let Ok(text) = std::env::var(name) else {
        return Ok(None);
    };
    let (from, to) = text.split_once("..").context("write FROM..TO")?;
    Ok(Some(from.parse()?..to.parse()?))
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn start() -> Result<Stack> {
    Stack::start(Options {
        seed: true,
        transaction_timeout_ms: Some(3_000),
        settings: settings(),
        ..Options::default()
    })
    .await
}

/// Bounds so small that a large source transaction spans several Kafka transactions, a table
/// several chunks, and a checkpoint several steps of the aggregator.
fn settings() -> Vec<(String, String, toml::Value)> {
    [
        ("connector", "stream.kafka_transaction_events_max", 400),
        ("connector", "stream.kafka_transaction_ms_max", 1_000),
        ("connector", "reads.chunk_rows", 300),
        ("aggregator", "apply.step_events_max", 500),
    ]
    .map(|(service, key, value)| (service.to_owned(), key.to_owned(), value.into()))
    .into()
}

async fn run(
    stack: &Arc<Stack>,
    seed: u64,
    faults: impl Iterator<Item = Fault>,
    done: &mut Vec<Fault>,
    whole: bool,
) -> Result<()> {
    let (mut sales, mut accounting) = (
        stack.source(System::Sales).await?,
        stack.source(System::Accounting).await?,
    );
    let guarded = Arc::new(Guarded::write(&mut sales, &mut accounting).await?);
    stack.caught_up().await?;

    let tasks = Tasks::default();
    write(&tasks, stack, &guarded, seed);
    watch(&tasks, stack, &guarded);
    let chaos = chaos::run(stack, faults, done, &tasks.stop).await;
    let kills = done.iter().filter(|fault| fault.is_kill()).count();
    println!("{kills} kills, {} pauses", done.len() - kills);
    // Everything lives; the writers go on for a while, so that all catch up under load.
    tokio::time::sleep(Duration::from_secs(2)).await;
    // What a watcher saw says more than what the chaos did about it.
    let outcomes = tasks.finish().await?;
    chaos?;

    rest::agrees(stack).await?;
    let oracle = Oracle::read(stack).await?;
    for outcome in outcomes {
        match outcome {
            Outcome::Count(what, count) => {
                println!("{what}: {count}");
                ensure!(count >= 30 || !whole, "{what} {count} times is no test");
            }
            Outcome::Reader(reader) => ended(stack, &oracle, *reader, whole).await?,
        }
    }
    Ok(())
}

/// A reader that followed all the way ends where the oracle is.
async fn ended(stack: &Stack, oracle: &Oracle, mut reader: Reader, whole: bool) -> Result<()> {
    let source = reader.source().to_owned();
    println!("checkpoints of {source}: {}", reader.checkpoints());
    ensure!(
        reader.checkpoints() >= 30 || !whole,
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

fn write(tasks: &Tasks, stack: &Arc<Stack>, guarded: &Arc<Guarded>, seed: u64) {
    let stop = &tasks.stop;
    let (of, rows, until) = (stack.clone(), guarded.clone(), stop.clone());
    tasks.spawn(async move {
        let mut random = writers::random(seed, 1);
        let mut client = of.source(System::Sales).await?;
        let mut moves = 0;
        while !until.is_cancelled() {
            let large = moves % 40 == 39;
            rows.move_in_sales(&mut random, &mut client, large).await?;
            moves += 1;
            pace(random.random_range(5..60)).await;
        }
        Ok(Outcome::Count("moves in sales", moves))
    });
    let (of, rows, until) = (stack.clone(), guarded.clone(), stop.clone());
    tasks.spawn(async move {
        let mut random = writers::random(seed, 2);
        let mut client = of.source(System::Accounting).await?;
        let mut moves = 0;
        while !until.is_cancelled() {
            rows.move_in_accounting(&mut random, &mut client).await?;
            moves += 1;
            pace(random.random_range(20..120)).await;
        }
        Ok(Outcome::Count("moves in accounting", moves))
    });
    for system in System::ALL {
        let (of, until) = (stack.clone(), stop.clone());
        tasks.spawn(async move {
            let mut random = writers::random(seed, 3 + system as u64);
            let mut client = of.source(system).await?;
            let (mut count, mut own) = (0, Vec::new());
            while !until.is_cancelled() {
                match system {
                    System::Warehouse => writers::warehouse(&mut random, &mut client).await?,
                    System::Sales => writers::sales(&mut random, &mut client, &mut own).await?,
                    System::Accounting => {
                        writers::accounting(&mut random, &mut client, &mut own).await?;
                    }
                }
                count += 1;
                pace(random.random_range(10..150)).await;
            }
            Ok(Outcome::Count(system.name(), count))
        });
    }
}

fn watch(tasks: &Tasks, stack: &Arc<Stack>, guarded: &Arc<Guarded>) {
    let stop = &tasks.stop;
    let (of, rows, until) = (stack.clone(), guarded.clone(), stop.clone());
    tasks.spawn(async move {
        let looks = watchers::view(&of, &rows, &until).await?;
        Ok(Outcome::Count("looks at the view", looks))
    });
    let (of, rows, until) = (stack.clone(), guarded.clone(), stop.clone());
    tasks.spawn(async move {
        let looks = watchers::api(&of, &rows, &until).await?;
        Ok(Outcome::Count("answers of the API", looks))
    });
    let (of, rows, until) = (stack.clone(), guarded.clone(), stop.clone());
    tasks.spawn(async move {
        let looks = watchers::lists(&of, &rows, &until).await?;
        Ok(Outcome::Count("pages of the API", looks))
    });
    for source in ["sales", "accounting", "warehouse", "unified"] {
        let (of, rows, until) = (stack.clone(), guarded.clone(), stop.clone());
        tasks.spawn(async move {
            let reader = watchers::topics(&of, source, &rows, &until).await?;
            Ok(Outcome::Reader(Box::new(reader)))
        });
    }
    for system in System::ALL {
        let (of, until) = (stack.clone(), stop.clone());
        tasks.spawn(async move {
            let count = watchers::read_own_writes(&of, system, &until).await?;
            Ok(Outcome::Count("own writes read", count))
        });
    }
}

/// The load's rhythm; nothing waits for it.
async fn pace(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// The tasks of a run. The first that fails stops all.
#[derive(Debug, Default)]
struct Tasks {
    stop: CancellationToken,
    running: Mutex<JoinSet<Result<Outcome>>>,
}

impl Tasks {
    fn spawn(&self, task: impl Future<Output = Result<Outcome>> + Send + 'static) {
        let stop = self.stop.clone();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.spawn(async move {
            let outcome = task.await;
            if outcome.is_err() {
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
