//! Readers that lag, while the log is compacted: seconds stand for the 7 days.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fixtures::Kafka;
use kafka::KafkaConfig;
use kafka::follower::{Event, Follower, FollowerOptions, Standing, Step};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::harness::Rig;

const ITEM: &str = "public.item";
const LATENESS_MS: u32 = 4000;
/// So many rows stand at any time, besides the one that says how many transactions there were.
const WINDOW: i64 = 3;
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n bigint NOT NULL); \
                   INSERT INTO item VALUES (0, 3), (1, 1), (2, 2), (3, 3)";
/// A reader that is never told to rebuild, or never gets a state, fails.
const PATIENCE: Duration = Duration::from_secs(240);

/// Id → n.
type Rows = BTreeMap<i64, i64>;

/// Each transaction brings a row, takes the oldest one away, and counts itself.
async fn write(rig: &Rig, stop: &CancellationToken) -> Result<()> {
    let db = rig.session().await?;
    let mut n = WINDOW;
    while !stop.is_cancelled() {
        n += 1;
        db.batch_execute(&format!(
            "BEGIN; INSERT INTO item VALUES ({n}, {n}); DELETE FROM item WHERE id = {}; \
             UPDATE item SET n = {n} WHERE id = 0; COMMIT",
            n - WINDOW
        ))
        .await?;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(())
}

/// The source as it was behind transaction n.
fn truth(n: i64) -> Rows {
    let rows = (n - WINDOW + 1..=n).map(|id| (id, id));
    rows.chain([(0, n)]).collect()
}

fn apply(rows: &mut Rows, events: Vec<Event>) -> Result<()> {
    for event in events {
        let key: Value = serde_json::from_slice(&event.key)?;
        let id = key["id"].as_i64().context("a key without id")?;
        let value: Option<Value> = event
            .value
            .map(|value| serde_json::from_slice(&value))
            .transpose()?;
        match value.and_then(|value| value["after"]["n"].as_i64()) {
            Some(n) => rows.insert(id, n),
            None => rows.remove(&id),
        };
    }
    Ok(())
}

/// Reads, with pauses, until it has had enough states and rebuilt itself often enough.
async fn read(
    config: &KafkaConfig,
    seed: u64,
    pause_ms_max: u64,
    enough: impl Fn(usize, usize) -> bool,
) -> Result<(usize, usize)> {
    let options = || FollowerOptions {
        step_events_max: 100,
        ..FollowerOptions::default()
    };
    let begin = |standing| Follower::new(config, "shop", standing, options());
    let mut random = StdRng::seed_from_u64(seed);
    let mut stands_at = Standing::default();
    let mut reader = None;
    let (mut rows, mut at_last) = (Rows::new(), Rows::new());
    let (mut states, mut rebuilt) = (0, 0);
    let begun = Instant::now();
    while !enough(states, rebuilt) {
        ensure!(
            begun.elapsed() < PATIENCE,
            "{states} states, {rebuilt} times rebuilt"
        );
        // Mostly it keeps up; the longest pauses are what this is about. A consumer that is only
        // not asked fetches on, so it is ended for that time.
        let ends = !at_last.is_empty() && at_last == rows && random.random_bool(0.2);
        let most = if ends { pause_ms_max } else { 100 };
        reader = reader.filter(|_| !ends);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..most))).await;
        let mut follower = match reader.take() {
            Some(follower) => follower,
            None => begin(stands_at.clone())?,
        };
        match tokio::time::timeout(PATIENCE, follower.next()).await?? {
            Step::Events(events) => apply(&mut rows, events)?,
            Step::Checkpoint {
                record,
                events,
                standing,
                ..
            } => {
                apply(&mut rows, events)?;
                let n = rows.get(&0).copied().unwrap_or_default();
                ensure!(
                    rows == truth(n),
                    "at {} transaction {n} is shown as {rows:?}",
                    record.at()
                );
                let before = at_last.get(&0).copied().unwrap_or_default();
                ensure!(before <= n, "{n} after {before}");
                at_last.clone_from(&rows);
                stands_at = standing;
                states += 1;
            }
            Step::TooOld => rows.clone_from(&at_last),
            Step::Behind => {
                stands_at = Standing::default();
                (rows, at_last) = (Rows::new(), Rows::new());
                rebuilt += 1;
                continue;
            }
        }
        reader = Some(follower);
    }
    Ok((states, rebuilt))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_lags_has_exact_states_or_is_told_to_rebuild() -> Result<()> {
    let kafka = Kafka::start_with(&[("log.cleaner.backoff.ms", "100")]).await?;
    let mut rig = Rig::new(&[ITEM], DDL).await?;
    rig.bootstrap = kafka.bootstrap();
    let lateness = LATENESS_MS.to_string();
    rig.create_topic(
        ITEM,
        2,
        &[
            ("cleanup.policy", "compact"),
            ("message.timestamp.type", "LogAppendTime"),
            ("min.compaction.lag.ms", &lateness),
            ("delete.retention.ms", &lateness),
            ("max.compaction.lag.ms", &lateness),
            ("max.message.bytes", "16777216"),
            ("segment.ms", "300"),
            ("min.cleanable.dirty.ratio", "0.001"),
        ],
    )
    .await?;
    let late = format!("lateness_max_ms = {LATENESS_MS}");
    let connector = rig.connector().kafka(&late).start()?;
    connector.ready().await?;
    let mut config = KafkaConfig::new(&rig.bootstrap, 1);
    config.topic_prefix.clone_from(&rig.prefix);
    config.lateness_max_ms = i64::from(LATENESS_MS);

    let stop = CancellationToken::new();
    let readers = async {
        let lateness_ms = u64::from(LATENESS_MS);
        let readers = tokio::try_join!(
            // Seldom further behind than the rules allow, often just about so far.
            read(&config, 1, lateness_ms, |states, _| states >= 40),
            // So far behind that deletes are gone.
            read(&config, 2, 4 * lateness_ms, |states, rebuilt| states >= 10
                && rebuilt >= 1),
        );
        stop.cancel();
        readers
    };
    let (written, seen) = tokio::join!(write(&rig, &stop), readers);
    written?;
    let seen = seen.with_context(|| connector.log())?;

    let mut journal = rig.journal()?;
    journal.until_position(rig.wal_lsn().await?).await?;
    let left = journal.of(ITEM).len();
    let last = journal.checkpoints.last().context("no checkpoint")?;
    let sent: i64 = last.offsets[&rig.topic(ITEM)].values().sum();
    println!("(states, rebuilt) {seen:?}; {left} records left of {sent} offsets");
    // A transaction has four records, and a marker in each of two partitions at the most.
    ensure!(
        i64::try_from(left)? * 3 < sent,
        "nothing was compacted: {left} of {sent}"
    );
    Ok(())
}
