//! What the fence costs: events and a checkpoint in a Kafka transaction, against the same by an
//! idempotent producer that awaits acknowledgements. On a broker of its own; see the decision
//! record on transactions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use futures_util::future::try_join_all;
use kafka::follower::{Follower, FollowerOptions, Standing, Step};
use kafka::producer::Producer;
use kafka::topic::{self, Topics};
use kafka::{Checkpoint, KafkaConfig, Lsn, Offsets, TableState};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tests::bench::{Figures, percentile_ms};

const SOURCE: &str = "bench";
/// An update of a row of a few columns, as Debezium's envelope says it, is about this long.
const EVENT_BYTES: usize = 700;

#[derive(Debug, Parser)]
#[command(about, version)]
struct Arguments {
    /// Events in a batch, besides its checkpoint.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
    events: Vec<usize>,
    /// Batches of each size that are measured.
    #[arg(long, default_value_t = 300)]
    batches: usize,
    /// Batches of each size before those, so that the broker's code is compiled.
    #[arg(long, default_value_t = 300)]
    warmup: usize,
    /// Pause between two batches of the paced runs, milliseconds.
    #[arg(long, default_value_t = 10)]
    pause_ms: u64,
    /// A broker that runs already, instead of one of its own.
    #[arg(long)]
    bootstrap: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Transaction,
    Idempotent,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Idempotent => "idempotent",
        }
    }
}

/// Durations of one batch each.
#[derive(Debug, Default)]
struct Measured {
    /// From the first send until the checkpoint is committed, or acknowledged.
    whole: Vec<Duration>,
    /// Until every event was acknowledged.
    delivered: Vec<Duration>,
    /// From the end of the commit until a reader of checkpoints has the last event.
    seen: Vec<Duration>,
    /// Of the whole run, pauses included.
    elapsed: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (bootstrap, _broker) = match &arguments.bootstrap {
        Some(bootstrap) => (bootstrap.clone(), None),
        None => {
            let broker = fixtures::Kafka::start().await?;
            (broker.bootstrap(), Some(broker))
        }
    };
    let config = KafkaConfig::new(&bootstrap, 1);
    let bench = Bench {
        table: topic::table(&config, SOURCE, "public", "item"),
        checkpoint: topic::checkpoint(&config, SOURCE),
        config,
        lsn: AtomicU64::new(1),
    };
    Topics::connect(&bench.config)?
        .ensure(std::slice::from_ref(&bench.table), &bench.checkpoint)
        .await?;
    let mut figures = Figures::default();
    println!(
        "{:<12} {:>7} {:>6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "producer",
        "events",
        "pause",
        "median ms",
        "p99 ms",
        "events ms",
        "read ms",
        "read p99",
        "events/s"
    );
    for pause in [Duration::from_millis(arguments.pause_ms), Duration::ZERO] {
        for mode in [Mode::Transaction, Mode::Idempotent] {
            for &events in &arguments.events {
                bench
                    .run(mode, events, arguments.warmup, Duration::ZERO)
                    .await?;
                let measured = bench.run(mode, events, arguments.batches, pause).await?;
                report(&mut figures, mode, events, pause, &measured);
            }
        }
    }
    figures.write("transaction")
}

fn report(figures: &mut Figures, mode: Mode, events: usize, pause: Duration, found: &Measured) {
    let (median, p99) = (
        percentile_ms(&found.whole, 0.5),
        percentile_ms(&found.whole, 0.99),
    );
    let delivered = percentile_ms(&found.delivered, 0.5);
    let rate = (events * found.whole.len()) as f64 / found.elapsed.as_secs_f64();
    let (seen, seen_p99) = (
        percentile_ms(&found.seen, 0.5),
        percentile_ms(&found.seen, 0.99),
    );
    println!(
        "{:<12} {events:>7} {:>6} {median:>10.2} {p99:>10.2} {delivered:>10.2} {seen:>10.2} \
         {seen_p99:>10.2} {rate:>10.0}",
        mode.name(),
        pause.as_millis()
    );
    let pace = if pause.is_zero() { "unpaced" } else { "paced" };
    let name = format!("{}_{pace}_{events}", mode.name());
    figures.set(format!("{name}_median_ms"), median);
    figures.set(format!("{name}_p99_ms"), p99);
    figures.set(format!("{name}_events_median_ms"), delivered);
    figures.set(format!("{name}_events_per_s"), rate);
    if mode == Mode::Transaction {
        figures.set(format!("{name}_read_median_ms"), seen);
        figures.set(format!("{name}_read_p99_ms"), seen_p99);
    }
}

struct Bench {
    config: KafkaConfig,
    table: String,
    checkpoint: String,
    /// The position of the next record.
    lsn: AtomicU64,
}

impl Bench {
    async fn run(
        &self,
        mode: Mode,
        events: usize,
        batches: usize,
        pause: Duration,
    ) -> Result<Measured> {
        match mode {
            Mode::Transaction => self.transactions(events, batches, pause).await,
            Mode::Idempotent => self.idempotent(events, batches, pause).await,
        }
    }

    async fn transactions(
        &self,
        events: usize,
        batches: usize,
        pause: Duration,
    ) -> Result<Measured> {
        let id = topic::transactional_id(&self.config, SOURCE);
        let mut producer = Producer::connect(&self.config, &id).await?;
        let mut measured = Measured::default();
        let ends = Topics::connect(&self.config)?.ends(&self.table).await?;
        let mut offsets = Offsets::from([(self.table.clone(), ends)]);
        let mut commits = Vec::with_capacity(batches);
        let first = self.lsn.fetch_add(batches as u64 + 1, Ordering::Relaxed);
        let follower = self.follower(&mut producer, first, &offsets).await?;
        let reader = tokio::spawn(read(follower, first + batches as u64));
        let begun = Instant::now();
        for batch in 0..batches {
            let start = Instant::now();
            for event in 0..events {
                let (key, value) = row(batch * events + event);
                producer
                    .send(&self.table, key.as_bytes(), Some(value.as_bytes()), &[])
                    .await?;
            }
            for (topic, partitions) in producer.delivered().await? {
                offsets.entry(topic).or_default().extend(partitions);
            }
            measured.delivered.push(start.elapsed());
            producer
                .commit(
                    &self.checkpoint,
                    &record(first + 1 + batch as u64, offsets.clone()),
                )
                .await?;
            commits.push(Instant::now());
            measured.whole.push(start.elapsed());
            tokio::time::sleep(pause).await;
        }
        measured.elapsed = begun.elapsed();
        for (lsn, seen) in reader.await?? {
            // Several checkpoints may be read as one: the newest of them is seen then.
            if let Some(commit) = commits.get((lsn - first - 1) as usize) {
                measured.seen.push(seen.saturating_duration_since(*commit));
            }
        }
        Ok(measured)
    }

    /// A reader that has begun: it has taken the second of two records that are committed for it.
    async fn follower(
        &self,
        producer: &mut Producer,
        lsn: u64,
        offsets: &Offsets,
    ) -> Result<Follower> {
        let mut follower = Follower::new(
            &self.config,
            SOURCE,
            Standing::default(),
            FollowerOptions::default(),
        )?;
        let record = record(lsn, offsets.clone());
        producer.commit(&self.checkpoint, &record).await?;
        follower.last_checkpoint().await?;
        producer.commit(&self.checkpoint, &record).await?;
        follower.next().await?;
        Ok(follower)
    }

    async fn idempotent(&self, events: usize, batches: usize, pause: Duration) -> Result<Measured> {
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.config.bootstrap)
            .set("socket.nagle.disable", "true")
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .set("partitioner", "murmur2_random")
            .create()?;
        let mut measured = Measured::default();
        let begun = Instant::now();
        for batch in 0..batches {
            let start = Instant::now();
            let rows: Vec<_> = (0..events).map(|n| row(batch * events + n)).collect();
            try_join_all(rows.iter().map(|(key, value)| {
                let record = FutureRecord::to(&self.table).key(key).payload(value);
                send(&producer, record)
            }))
            .await?;
            measured.delivered.push(start.elapsed());
            let value = serde_json::to_string(&record(batch as u64, Offsets::new()))?;
            let key = kafka::checkpoint::KEY.to_owned();
            let last = FutureRecord::to(&self.checkpoint).key(&key).payload(&value);
            send(&producer, last).await?;
            measured.whole.push(start.elapsed());
            tokio::time::sleep(pause).await;
        }
        measured.elapsed = begun.elapsed();
        Ok(measured)
    }
}

/// When each checkpoint was read, until that at `last`.
async fn read(mut follower: Follower, last: u64) -> Result<Vec<(u64, Instant)>> {
    let mut seen = Vec::new();
    loop {
        match follower.next().await? {
            Step::Events(_) => {}
            Step::Checkpoint { record, .. } => {
                seen.push((record.position.0, Instant::now()));
                if record.position.0 >= last {
                    return Ok(seen);
                }
            }
            other @ (Step::TooOld | Step::Behind) => anyhow::bail!("the reader is told {other:?}"),
        }
    }
}

async fn send(producer: &FutureProducer, record: FutureRecord<'_, String, String>) -> Result<()> {
    let sent = producer.send(record, Duration::from_secs(10)).await;
    sent.map_err(|(error, _)| error)?;
    Ok(())
}

fn row(number: usize) -> (String, String) {
    let mut value = format!("{{\"before\":null,\"after\":{{\"id\":{number},\"text\":\"");
    while value.len() < EVENT_BYTES {
        value.push_str("one of the words that rows are made of ");
    }
    value.push_str("\"}}");
    (format!("{{\"id\":{}}}", number % 5000), value)
}

fn record(lsn: u64, offsets: Offsets) -> Checkpoint {
    let columns = vec!["id".to_owned(), "text".to_owned()];
    let lsn = Lsn(lsn);
    Checkpoint {
        epoch: 1,
        system_identifier: "7300000000000000000".to_owned(),
        timeline: 1,
        position: lsn,
        reach: lsn,
        half_sent: None,
        committed_at_us: Some(0),
        current_at_us: Some(0),
        wal_end: lsn,
        offsets,
        quarantine: BTreeMap::new(),
        tables: BTreeMap::from([(
            "public.item".to_owned(),
            TableState {
                columns: columns.clone(),
                target: columns,
                ..TableState::default()
            },
        )]),
    }
}
