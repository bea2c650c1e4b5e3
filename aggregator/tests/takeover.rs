//! Who writes after whom, and how soon.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tokio_postgres::Client;

use crate::Database;
use crate::rules::{apply, begin, order};
use crate::topics::Place;

/// What is promised for the median.
const WITHIN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn revisions_grow_from_writer_to_writer_although_the_clock_does_not() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    let mut newest = String::new();
    for id in 10..15 {
        let before = view.revision();
        // In the same second.
        view = database.open().await?;
        ensure!(view.revision().writer > before.writer);
        ensure!(view.revision().number > before.number);
        order(&mut shop, id, id);
        apply(&mut view, &mut shop, "sales").await?;
        let sql = format!("SELECT revision FROM public.orders WHERE id = {id}");
        let revision: String = database.one(&sql).await?;
        ensure!(revision > newest, "{revision} after {newest}");
        ensure!(revision == view.revision().to_string());
        let position: String = database
            .one("SELECT max(revision) FROM public.positions")
            .await?;
        ensure!(position == revision);
        newest = revision;
    }
    Ok(())
}

#[tokio::test]
async fn a_writer_that_dies_within_a_view_transaction_leaves_nothing_of_it() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    order(&mut shop, 3, 3);
    shop.sales.checkpoint();
    let part = shop.sales.part(&view.standing("sales"));
    view.step("sales", part.changes).await?;
    drop(view);
    let mut view = database.open().await?;
    let seen: i64 = database
        .one("SELECT count(*) FROM public.orders WHERE id = 3")
        .await?;
    ensure!(seen == 0);
    apply(&mut view, &mut shop, "sales").await?;
    let seen: i64 = database
        .one("SELECT count(*) FROM public.orders WHERE id = 3")
        .await?;
    ensure!(seen == 1);
    Ok(())
}

/// Ten writers stop, half of them killed and half paused; from there to when the view shows an order
/// that was placed meanwhile. Every time-out has its default. Readers notice nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_writes_within_five_seconds_of_its_writers_end() -> Result<()> {
    let mut place = Place::new(7).await?;
    place.work().await?;
    let mut writer = place.start_as_shipped("", &[])?;
    place.caught_up(&[&writer]).await?;
    let server = fixtures::servers().view().await?;
    let readers = Readers::start(server.superuser(&place.database.name).await?).await?;
    let mut paused = Vec::new();
    let mut taken = Vec::new();
    for round in 0..10 {
        let standby = place.start_as_shipped("", &[])?;
        standby
            .says("standby: another aggregator holds the lock")
            .await?;
        let how = if round % 2 == 0 { "killed" } else { "paused" };
        order(&mut place.shop, 1000 + round, 1);
        let begun = Instant::now();
        writer.process.signal(if round % 2 == 0 {
            Signal::SIGKILL
        } else {
            Signal::SIGSTOP
        });
        place.commit("sales").await?;
        place.caught_up(&[&writer, &standby]).await?;
        let took = begun.elapsed();
        println!("{how}: the standby wrote after {} ms", took.as_millis());
        taken.push((took, how));
        if round % 2 == 1 {
            paused.push(writer);
        }
        writer = standby;
    }
    // The paused ones wake up, and write nothing.
    for zombie in &paused {
        zombie.process.signal(Signal::SIGCONT);
    }
    for zombie in &paused {
        zombie.says("starts anew").await?;
    }
    place.work().await?;
    place.caught_up(&[&writer]).await?;
    place.is_right().await?;
    println!("{} looks at the view", readers.end().await?);
    taken.sort();
    let median = (taken[4].0 + taken[5].0) / 2;
    println!("median {} ms of {taken:?}", median.as_millis());
    ensure!(median < WITHIN, "median {median:?} of {taken:?}");
    for how in ["killed", "paused"] {
        let of: Vec<_> = taken.iter().filter(|(_, one)| *one == how).collect();
        ensure!(of[of.len() / 2].0 < WITHIN, "{how}: {of:?}");
    }
    Ok(())
}

/// Somebody who looks at the view all the time.
struct Readers {
    done: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl Readers {
    /// None of their looks may wait for a lock.
    async fn start(client: Client) -> Result<Self> {
        client.batch_execute("SET lock_timeout = '100ms'").await?;
        let (done, looks) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (until, count) = (Arc::clone(&done), Arc::clone(&looks));
        let task = tokio::spawn(async move {
            while !until.load(Ordering::Relaxed) {
                let sql = "SELECT count(*), max(revision) FROM public.orders";
                client.query_one(sql, &[]).await?;
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        });
        Ok(Self { done, looks, task })
    }

    /// How often they looked; fails where a look did.
    async fn end(self) -> Result<u64> {
        self.done.store(true, Ordering::Relaxed);
        self.task.await??;
        let looks = self.looks.load(Ordering::Relaxed);
        ensure!(looks > 0, "nobody looked");
        Ok(looks)
    }
}
