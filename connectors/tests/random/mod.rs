//! Everything at once, at random: processes killed and paused, connections cut, silenced and
//! ended, servers crashed, slots dropped, tables altered, while three writers go on.
//!
//! Afterwards a consumer of the test's own looks at every checkpoint: its state is the source's
//! at its position, exactly. `FAULT_SECONDS` (40) says for how long, `FAULT_SEED` which run.
//!
//! Every third seed has Kafka transactions smaller than the source's. One of these that is half
//! sent when its sender dies is sent again from its beginning: a reader of checkpoints never sees
//! the half, but one who reads on without them sees the events of the half twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fixtures::Kafka;
use fixtures::postgres::{Postgres, Version, connect};
use kafka::{Checkpoint, Lsn};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::harness::{Connector, Journal, Proxy, Rig, equals_source};

const ACCOUNT: &str = "public.account";
const CLOCK: &str = "public.clock";
const WRITERS: i64 = 3;
/// Ids of a writer begin at its number times this.
const IDS: i64 = 1_000_000;
const DDL: &str = "CREATE TABLE account (id bigint PRIMARY KEY, amount int NOT NULL, version int NOT NULL); \
                   CREATE TABLE clock (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO account SELECT w * 1000000 + g, 100, 0 \
                       FROM generate_series(0, 2) w, generate_series(1, 8) g; \
                   INSERT INTO clock SELECT w, 0 FROM generate_series(0, 2) w";

/// Id → amount and version, of one writer.
type State = BTreeMap<i64, (i64, i64)>;

/// A writer's transaction number N is at place N.
struct Committed {
    state: State,
    /// The WAL ended here before it began.
    after: Lsn,
    /// Everything up to here contains it.
    by: Lsn,
}

/// One who moves money between accounts of its own, and remembers.
struct Writer {
    number: i64,
    url: String,
    db: Client,
    random: StdRng,
    /// Between two transactions, at most.
    pause_ms: u64,
    next_id: i64,
    truth: Vec<Committed>,
}

impl Writer {
    async fn new(number: i64, url: &str, seed: u64, pause_ms: u64) -> Result<Self> {
        let ids = (1..=8).map(|n| (number * IDS + n, (100, 0)));
        let begun = Committed {
            state: ids.collect(),
            after: Lsn::ZERO,
            by: Lsn::ZERO,
        };
        Ok(Self {
            number,
            url: url.to_owned(),
            db: connect(url).await?,
            random: StdRng::seed_from_u64(seed ^ number.unsigned_abs()),
            pause_ms,
            next_id: number * IDS + 100,
            truth: vec![begun],
        })
    }

    async fn run(mut self, stop: CancellationToken) -> Result<Vec<Committed>> {
        while !stop.is_cancelled() {
            self.transact().await?;
            let pause = self.random.random_range(0..self.pause_ms);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Ok(self.truth)
    }

    async fn transact(&mut self) -> Result<()> {
        let n = self.truth.len();
        let mut state = self.truth[n - 1].state.clone();
        let mut sql = vec!["BEGIN".to_owned()];
        self.change(&mut state, &mut sql);
        sql.push(format!(
            "UPDATE clock SET n = {n} WHERE id = {}",
            self.number
        ));
        sql.push("COMMIT".to_owned());
        let sql = sql.join("; ");
        let (mut after, mut doubtful) = (None, false);
        let by = loop {
            match self.attempt(n, &sql, doubtful, &mut after).await {
                Ok(by) => break by,
                Err(_) => {
                    // The server crashed: whether it has committed it will say itself.
                    doubtful = true;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if let Ok(db) = connect(&self.url).await {
                        self.db = db;
                    }
                }
            }
        };
        self.truth.push(Committed {
            state,
            after: after.unwrap_or_default(),
            by,
        });
        Ok(())
    }

    async fn attempt(
        &self,
        n: usize,
        sql: &str,
        doubtful: bool,
        after: &mut Option<Lsn>,
    ) -> Result<Lsn> {
        let clock = "SELECT n FROM clock WHERE id = $1";
        let done = doubtful && {
            let row = self.db.query_one(clock, &[&self.number]).await?;
            usize::try_from(row.get::<_, i32>(0))? == n
        };
        if after.is_none() {
            *after = Some(lsn(&self.db, "pg_current_wal_insert_lsn()").await?);
        }
        if !done {
            self.db.batch_execute(sql).await?;
        }
        lsn(&self.db, "pg_current_wal_lsn()").await
    }

    /// A transfer, mostly; else an account that is opened, closed (as often: tables stay small), or
    /// everything at once.
    fn change(&mut self, state: &mut State, sql: &mut Vec<String>) {
        let ids: Vec<_> = state.keys().copied().collect();
        let from = ids[self.random.random_range(0..ids.len())];
        let to = ids[self.random.random_range(0..ids.len())];
        let mut add = |state: &mut State, id: i64, amount: i64| {
            let row = state.entry(id).or_default();
            *row = (row.0 + amount, row.1 + 1);
            sql.push(format!(
                "UPDATE account SET amount = {}, version = {} WHERE id = {id}",
                row.0, row.1
            ));
        };
        match self.random.random_range(0..20) {
            0..=1 => {
                add(state, from, -7);
                self.next_id += 1;
                let id = self.next_id;
                state.insert(id, (7, 0));
                sql.push(format!("INSERT INTO account VALUES ({id}, 7, 0)"));
            }
            2..=3 if state.len() > 4 && from != to => {
                let left = state.remove(&from).unwrap_or_default().0;
                add(state, to, left);
                sql.push(format!("DELETE FROM account WHERE id = {from}"));
            }
            4 => {
                for id in ids {
                    add(state, id, 0);
                }
            }
            _ => {
                add(state, from, -1);
                add(state, to, 1);
            }
        }
    }
}

async fn lsn(db: &Client, function: &str) -> Result<Lsn> {
    let row = db
        .query_one(&format!("SELECT {function}::text"), &[])
        .await?;
    Ok(row.get::<_, String>(0).parse()?)
}

/// Who does harm.
struct Gremlin<'a> {
    rig: &'a mut Rig,
    server: &'a mut Postgres,
    kafka: &'a mut Kafka,
    proxy: &'a Proxy,
    random: StdRng,
    connectors: Vec<Connector>,
    /// Source transactions are spread over several of Kafka's.
    spread: bool,
    columns: u32,
    done: BTreeMap<&'static str, u32>,
}

const POINTS: [&str; 12] = [
    "after_lock",
    "after_slot",
    "before_init",
    "after_init",
    "begin_epoch",
    "after_create",
    "before_send",
    "after_send",
    "before_commit",
    "after_commit",
    "after_confirm",
    "after_chunk",
];

impl Gremlin<'_> {
    /// A connector that may kill itself somewhere.
    fn start(&mut self) -> Result<()> {
        let mut plan = self
            .rig
            .connector()
            .through(self.proxy.port())
            .stream("idle_record_ms = 50")
            .reads("chunk_rows = 5\nreconcile_keys = 3");
        if self.spread {
            plan = plan.stream("kafka_transaction_events_max = 7");
        }
        if self.random.random_bool(0.5) {
            let point = POINTS[self.random.random_range(0..POINTS.len())];
            let times = self.random.random_range(1..40);
            plan = plan.faults(&format!("connector.{point}:kill:{times}"));
        }
        self.connectors.push(plan.start()?);
        Ok(())
    }

    /// Those that ended are followed by others.
    fn replace(&mut self) -> Result<()> {
        self.connectors.retain(Connector::is_running);
        while self.connectors.len() < 2 {
            self.start()?;
        }
        Ok(())
    }

    async fn harm(&mut self) -> Result<()> {
        let what = match self.random.random_range(0..22) {
            0..=5 => self.kill().await,
            6..=9 => self.pause().await,
            10..=12 => self.end_a_session().await?,
            13..=14 => {
                self.proxy.cut();
                "cut"
            }
            15..=16 => {
                self.proxy.silence();
                "silence"
            }
            17 => {
                self.proxy.down();
                self.wait(3000).await;
                self.proxy.up();
                "network down"
            }
            18 => {
                self.kafka.crash().await;
                self.wait(1000).await;
                self.kafka.restart().await?;
                "broker crash"
            }
            19 => {
                self.server.crash().await;
                self.server.restart().await?;
                self.rig.moved_to(self.server).await?;
                "source crash"
            }
            20 => self.drop_the_slot().await?,
            _ => self.alter().await?,
        };
        *self.done.entry(what).or_default() += 1;
        Ok(())
    }

    async fn wait(&mut self, ms_max: u64) {
        let pause = self.random.random_range(0..ms_max);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    fn any(&mut self) -> &Connector {
        let at = self.random.random_range(0..self.connectors.len());
        &self.connectors[at]
    }

    async fn kill(&mut self) -> &'static str {
        self.any().kill().await;
        "kill"
    }

    /// Longer than locks last, or shorter.
    async fn pause(&mut self) -> &'static str {
        let at = self.random.random_range(0..self.connectors.len());
        self.connectors[at].signal(Signal::SIGSTOP);
        self.wait(5000).await;
        self.connectors[at].signal(Signal::SIGCONT);
        "pause"
    }

    async fn end_a_session(&mut self) -> Result<&'static str> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE usename = $1 ORDER BY random() LIMIT 1";
        self.rig.db.query(sql, &[&self.rig.role]).await?;
        Ok("pg_terminate_backend")
    }

    async fn drop_the_slot(&mut self) -> Result<&'static str> {
        let slot = &self.rig.slot;
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
             WHERE slot_name = '{slot}' AND active; \
             SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = '{slot}'"
        );
        // A connector may be quicker: then the slot stays.
        Ok(match self.rig.run(&sql).await {
            Ok(()) => "slot dropped",
            Err(_) => "slot's stream ended",
        })
    }

    /// A column more is a table read more.
    async fn alter(&mut self) -> Result<&'static str> {
        self.columns += 1;
        let sql = format!(
            "SET lock_timeout = '1s'; ALTER TABLE account ADD COLUMN c{} int DEFAULT {}; \
             RESET lock_timeout",
            self.columns, self.columns
        );
        Ok(match self.rig.run(&sql).await {
            Ok(()) => "column added",
            Err(_) => "column not added",
        })
    }
}

fn number(row: &serde_json::Value, column: &str) -> i64 {
    row[column].as_i64().unwrap_or(i64::MIN)
}

/// What a reader has who reads to a checkpoint's offsets and no further, checkpoint by checkpoint.
fn check_every_checkpoint(
    journal: &Journal,
    truth: &[Vec<Committed>],
    prefix: &str,
) -> Result<usize> {
    let mut partitions: BTreeMap<(&str, i32), Vec<_>> = BTreeMap::new();
    for record in &journal.records {
        let key = (record.topic.as_str(), record.partition);
        partitions.entry(key).or_default().push(record);
    }
    let mut next: BTreeMap<(&str, i32), usize> = BTreeMap::new();
    let (mut accounts, mut clocks) = (BTreeMap::new(), BTreeMap::new());
    let mut whole = 0;
    for checkpoint in journal.checkpoints.iter().filter(|one| one.is_whole()) {
        for (key, records) in &partitions {
            let ends = checkpoint.offsets.get(key.0);
            let end = ends.and_then(|ends| ends.get(&key.1)).copied().unwrap_or(0);
            let at = next.entry(*key).or_default();
            while let Some(record) = records.get(*at).filter(|record| record.offset < end) {
                *at += 1;
                let rows = if key.0.strip_prefix(prefix) == Some(CLOCK) {
                    &mut clocks
                } else {
                    &mut accounts
                };
                match record.value.as_ref().map(|value| &value["after"]) {
                    Some(after) if !after.is_null() => _ = rows.insert(record.key.clone(), after),
                    _ => _ = rows.remove(&record.key),
                }
            }
        }
        whole += 1;
        is_truthful(checkpoint, &accounts, &clocks, truth)?;
    }
    Ok(whole)
}

type Rows<'a> = BTreeMap<String, &'a serde_json::Value>;

fn is_truthful(
    checkpoint: &Checkpoint,
    accounts: &Rows<'_>,
    clocks: &Rows<'_>,
    truth: &[Vec<Committed>],
) -> Result<()> {
    let at = checkpoint.at();
    for (writer, truth) in (0..WRITERS).zip(truth) {
        let clock = clocks.values().find(|row| number(row, "id") == writer);
        let clock = clock.with_context(|| format!("{at}: no clock of writer {writer}"))?;
        let n = usize::try_from(number(clock, "n"))?;
        let mine: State = accounts
            .values()
            .filter(|row| number(row, "id") / IDS == writer)
            .map(|row| {
                (
                    number(row, "id"),
                    (number(row, "amount"), number(row, "version")),
                )
            })
            .collect();
        ensure!(
            mine == truth[n].state,
            "{at}: writer {writer} at transaction {n} has\n{mine:?}\nand had\n{:?}",
            truth[n].state
        );
        ensure!(
            truth[n].after <= checkpoint.position,
            "{at} shows transaction {n} of writer {writer}, which began at {}",
            truth[n].after
        );
        let missed = truth
            .get(n + 1)
            .filter(|next| next.by <= checkpoint.position);
        if let Some(missed) = missed {
            bail!(
                "{at} lacks transaction {} of writer {writer}, which was there by {}",
                n + 1,
                missed.by
            );
        }
    }
    Ok(())
}

/// Nothing twice that came from the log, and each key's versions in order; but for what was half
/// sent.
fn check_every_key(journal: &Journal, spread: bool) -> Result<()> {
    let mut last: BTreeMap<&str, (i64, i32)> = BTreeMap::new();
    let mut sent = std::collections::BTreeSet::new();
    for record in journal.of(ACCOUNT) {
        let Some(value) = &record.value else { continue };
        if value["after"].is_null() {
            continue;
        }
        let (key, version) = (record.key.as_str(), number(&value["after"], "version"));
        // A read shows every change that was sent, and may be ahead of the log.
        let from_log = value["op"] != "r";
        if let Some((before, partition)) = last.get(key).copied() {
            ensure!(partition == record.partition, "{key} is in two partitions");
            ensure!(
                spread || before <= version,
                "{key}: version {version} after {before}"
            );
        }
        if from_log {
            last.insert(key, (version, record.partition));
            let first = sent.insert((key, version));
            ensure!(spread || first, "{key}: version {version} twice");
        }
    }
    ensure!(sent.len() > 100, "only {} changes were sent", sent.len());
    Ok(())
}

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
    let mut kafka = Kafka::start().await?;
    let mut rig = Rig::on(&server, &[ACCOUNT, CLOCK], DDL).await?;
    rig.bootstrap = kafka.bootstrap();
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
    stop.cancel();
    let mut truth = Vec::new();
    for writer in writers {
        truth.push(writer.await??);
    }
    for connector in connectors {
        connector.kill().await;
    }
    let healed = rig.connector().start()?;
    healed.ready().await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[CLOCK, ACCOUNT])
        .await
        .with_context(|| healed.log())?;
    let whole = check_every_checkpoint(&journal, &truth, &rig.topic(""))?;
    check_every_key(&journal, spread)?;
    let epochs: std::collections::BTreeSet<_> =
        journal.checkpoints.iter().map(|one| one.epoch).collect();
    println!(
        "{done:?}: {whole} of {} checkpoints whole and truthful in {} epochs, {} events, {} transactions",
        journal.checkpoints.len(),
        epochs.len(),
        journal.records.len(),
        truth.iter().map(Vec::len).sum::<usize>(),
    );
    ensure!(whole > 20, "only {whole} whole checkpoints");
    Ok(())
}
