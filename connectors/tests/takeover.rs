//! How long it takes a standby to write where a leader has stopped.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::harness::{Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 5) g";

/// What is promised for the median.
const WITHIN: Duration = Duration::from_secs(5);

/// Ten leaders stop, half of them killed and half paused; from there to when a reader of
/// checkpoints has a row that was written meanwhile. Every time-out has its default.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_writes_within_five_seconds_of_its_leaders_end() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let plan = rig.connector().default_timeouts();
    let mut leader = plan.start()?;
    leader.ready().await?;
    let mut journal = rig.journal()?;
    let mut paused = Vec::new();
    let mut taken = Vec::new();
    for round in 0..10 {
        let standby = plan.start()?;
        eventually("it stands by", || async {
            Ok((standby.status().await?["state"] == "waiting for lock").then_some(()))
        })
        .await
        .with_context(|| standby.log())?;
        let id = 100 + round;
        let how = if round % 2 == 0 { "killed" } else { "paused" };
        let begun = Instant::now();
        leader.signal(if round % 2 == 0 {
            Signal::SIGKILL
        } else {
            Signal::SIGSTOP
        });
        rig.run(&format!("INSERT INTO item VALUES ({id}, 0)"))
            .await?;
        journal.until_position(rig.wal_lsn().await?).await?;
        let took = begun.elapsed();
        println!(
            "leader {how}: the standby wrote after {} ms",
            took.as_millis()
        );
        taken.push((took, how));
        if round % 2 == 1 {
            paused.push(leader);
        }
        leader = standby;
        leader.ready().await?;
    }
    // The zombies wake up, and write nothing.
    for zombie in &paused {
        zombie.signal(Signal::SIGCONT);
    }
    rig.run("INSERT INTO item VALUES (200, 0)").await?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    for id in (100..110).chain([200]) {
        let times = journal.count(ITEM, &format!("{{\"id\":{id}}}"), "c");
        assert_eq!(times, 1, "the insert of {id} was sent {times} times");
    }
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
