//! Everything at once, at random: processes killed and paused, connections cut, silenced and
//! ended, servers crashed, slots dropped, tables altered, while three writers go on. They change keys,
//! leave out what PostgreSQL then does not send again (TOAST), and one of them truncates.
//!
//! Afterwards a consumer of the test's own looks at every checkpoint: its state is the source's
//! at its position, exactly. `FAULT_SECONDS` (40) says for how long, `FAULT_SEED` which run.
//!
//! Who reads on without checkpoints sees no change twice. Every third seed has Kafka transactions
//! smaller than the source's, so that their senders die within one.

mod gremlin;
mod verify;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fixtures::distant::DistantKafka;
use fixtures::postgres::{Postgres, Version};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

use crate::harness::{Journal, Proxy, Rig, equals_source};
use gremlin::Gremlin;
use verify::{check_every_checkpoint, check_every_key};
use writer::Writer;

const ACCOUNT: &str = "public.account";
const CLOCK: &str = "public.clock";
/// The first writer's alone, who truncates it.
const PAGE: &str = "public.page";
const WRITERS: i64 = 3;
/// More whole checkpoints than this are looked at.
const WHOLE_MIN: usize = 20;
/// Ids of a writer begin at its number times this.
const IDS: i64 = 1_000_000;
/// A long note stands out of line, and an update that leaves it alone sends nothing of it.
const DDL: &str = "CREATE TABLE account (id bigint PRIMARY KEY, amount int NOT NULL, version int NOT NULL, \
                       note text NOT NULL); \
                   ALTER TABLE account ALTER note SET STORAGE EXTERNAL; \
                   CREATE TABLE page (id bigint PRIMARY KEY); \
                   CREATE TABLE clock (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO account SELECT w * 1000000 + g, 100, 0, lpad('0', CASE g % 4 WHEN 0 THEN 3000 ELSE 8 END, '0') \
                       FROM generate_series(0, 2) w, generate_series(1, 8) g; \
                   INSERT INTO clock SELECT w, 0 FROM generate_series(0, 2) w";

fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_befalls_it_every_checkpoint_is_truthful() -> Result<()> {
    let seed = setting("FAULT_SEED", rand::random_range(0..1_000_000));
    println!("FAULT_SEED={seed}");
    let spread = seed.is_multiple_of(3);
    let version = if seed.is_multiple_of(2) {
        Version::Legacy15
    } else {
        Version::View18
    };
    let mut server = Postgres::start(version).await?;
    let mut kafka = DistantKafka::start().await?;
    let mut rig = Rig::on(&server, &[ACCOUNT, CLOCK, PAGE], DDL).await?;
    rig.bootstrap = kafka.kafka.bootstrap();
    let proxy = Proxy::to(server.port()).await?;
    let stop = CancellationToken::new();
    let url = server.superuser_url(&rig.database);
    // A connector whose Kafka transactions are tiny must keep up.
    let pause_ms = if spread { 200 } else { 30 };
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let writer = Writer::new(number, &url, seed, pause_ms).await?;
        writers.push(tokio::spawn(writer.run(stop.clone())));
    }
    let mut gremlin = Gremlin {
        rig: &mut rig,
        server: &mut server,
        kafka: &mut kafka,
        proxy: &proxy,
        random: StdRng::seed_from_u64(seed),
        connectors: Vec::new(),
        spread,
        columns: 0,
        done: BTreeMap::new(),
    };
    let begun = Instant::now();
    let lasts = Duration::from_secs(setting("FAULT_SECONDS", 40));
    while begun.elapsed() < lasts {
        gremlin.replace()?;
        gremlin.wait(2500).await;
        gremlin.replace()?;
        gremlin.harm().await?;
    }
    let (done, connectors) = (gremlin.done, gremlin.connectors);
    for connector in connectors {
        connector.kill().await;
    }
    let healed = rig.connector().start()?;
    healed.ready().await?;
    let mut journal = rig.journal()?;
    // A busy machine may have had few moments without a half-sent transaction or an open read;
    // what went wrong before shows in each later state, too.
    let whole = |journal: &Journal| {
        journal
            .checkpoints
            .iter()
            .filter(|one| one.is_whole())
            .count()
    };
    journal
        .until("enough whole checkpoints", |journal| {
            whole(journal) > WHOLE_MIN
        })
        .await
        .with_context(|| healed.log())?;
    stop.cancel();
    let mut truth = Vec::new();
    for writer in writers {
        truth.push(writer.await??);
    }
    equals_source(&rig, &mut journal, &[CLOCK, ACCOUNT, PAGE])
        .await
        .with_context(|| healed.log())?;
    let whole = check_every_checkpoint(&journal, &truth, &rig.topic(""))?;
    check_every_key(&journal)?;
    let epochs: BTreeSet<_> = journal.checkpoints.iter().map(|one| one.epoch).collect();
    println!(
        "{done:?}: {whole} of {} checkpoints whole and truthful in {} epochs, {} events, {} transactions",
        journal.checkpoints.len(),
        epochs.len(),
        journal.records.len(),
        truth.iter().map(Vec::len).sum::<usize>(),
    );
    Ok(())
}
