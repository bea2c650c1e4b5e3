//! Misses raced against changes and deletes, under slow reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::harness::instance::Instance;
use crate::harness::world::{At, Committed, World};

/// Few keys, fewer marks: everything meets everything.
const KEYS: i64 = 12;
const READERS: u64 = 12;
/// View transactions in all.
const CHANGES: u64 = 250;

/// Every place where the API could be interrupted, stretched to milliseconds.
const SLOW: &str = "api.between_read_and_insert:sleep:1:40,api.between_close_and_evict:sleep:1:1,\
    api.before_position_moves:sleep:1:4,api.between_look_and_insert:sleep:1:6,\
    api.between_look_and_position:sleep:1:4,api.between_row_and_positions:sleep:1:4,\
    api.after_position_moves:sleep:1:6";

/// Readers hold every answer against the truth while the view changes; at rest every row is
/// looked at once more, where a row that was cached wrongly stays wrong for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(feature = "faults"),
    ignore = "needs --features faults: its reads must be slow"
)]
async fn no_answer_is_wrong_while_misses_race_changes_and_no_row_is_wrong_at_rest() -> Result<()> {
    let mut world = World::new().await?;
    world.change(&[(1, Some("first"))]).await?;
    let slow = [
        ("FAULT_POINTS", SLOW),
        ("TRIBUTARY_CACHE__MARKS", "8"),
        ("TRIBUTARY_CACHE__STEP_EVENTS_MAX", "3"),
    ];
    let instance = Arc::new(Instance::start(&world, &slow).await?);
    instance.wait_until_fed(world.at).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let (told, newest) = watch::channel(world.at);
    let mut readers = JoinSet::new();
    for seed in 0..READERS {
        let truth = world.truth.clone();
        let (instance, stop, newest) = (instance.clone(), stop.clone(), newest.clone());
        readers.spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            let mut answers = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let id = random.random_range(1..=KEYS);
                let asked = *newest.borrow();
                // Half of the readers have just passed a position and must not see the past.
                let minimum = asked.minimum();
                let headers = [("min-position", minimum.as_str())];
                let headers = if random.random_bool(0.5) {
                    &headers[..]
                } else {
                    &[]
                };
                let (name, at) = instance.product(id, headers).await?;
                truth.check(id, name.as_deref(), at)?;
                ensure!(
                    headers.is_empty() || at >= asked,
                    "asked for {asked:?}, got {at:?}"
                );
                answers += 1;
            }
            Ok(answers)
        });
    }
    let written = write(&mut world, &told).await;
    stop.store(true, Ordering::Relaxed);
    let mut answers = 0;
    while let Some(reader) = readers.join_next().await {
        answers += reader?.with_context(|| instance.log())?;
    }
    written?;
    instance.wait_until_fed(world.at).await?;
    for id in 1..=KEYS {
        for _ in 0..2 {
            let (name, at) = instance.product(id, &[]).await?;
            ensure!(
                at == world.at,
                "at rest the answer is at {at:?}, the view at {:?}",
                world.at
            );
            world
                .truth
                .check(id, name.as_deref(), at)
                .context("at rest")?;
        }
    }
    let hits = instance
        .metric("api_cache_looks_total{result=\"hit\"}")
        .await?;
    let misses = instance
        .metric("api_cache_looks_total{result=\"miss\"}")
        .await?;
    let kept = instance
        .metric("api_cache_offers_total{result=\"kept\"}")
        .await?;
    println!("{answers} answers, {hits} hits, {misses} misses, {kept} rows kept");
    ensure!(
        hits > 100.0 && misses > 100.0 && kept > 50.0,
        "nothing raced"
    );
    Ok(())
}

/// Changes the view at random; the feed follows some transactions behind, one or several to a
/// checkpoint, and sometimes in two Kafka transactions.
async fn write(world: &mut World, told: &watch::Sender<At>) -> Result<()> {
    let mut random = StdRng::seed_from_u64(42);
    let mut backlog: Vec<Committed> = Vec::new();
    for number in 0..CHANGES {
        let names: Vec<_> = (0..random.random_range(1..=4))
            .map(|_| {
                let name = random.random_bool(0.7).then(|| format!("name {number}"));
                (random.random_range(1..=KEYS), name)
            })
            .collect();
        let changes: Vec<_> = names
            .iter()
            .map(|(id, name)| (*id, name.as_deref()))
            .collect();
        backlog.push(world.commit(&changes).await?);
        told.send_replace(world.at);
        pause(random.random_range(0..8)).await;
        while backlog.len() > random.random_range(0..4) {
            let committed = backlog.remove(0);
            if random.random_bool(0.3) {
                world.feed.tell_first_half(&committed).await?;
                pause(random.random_range(0..15)).await;
                world.feed.tell_second_half(&committed).await?;
            } else {
                world.feed.tell(&committed).await?;
            }
        }
    }
    for committed in backlog {
        world.feed.tell(&committed).await?;
    }
    Ok(())
}

/// Not to wait for something, but to let things happen in another order.
async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}
