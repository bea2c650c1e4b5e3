//! The real way in: a broker with each source's topics, and aggregator processes that follow
//! them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fixtures::process::{Process, Spawn};
use kafka::producer::Producer;
use kafka::topic::{self, Topics};
use kafka::{Checkpoint, KafkaConfig, Offsets};
use nix::sys::signal::Signal;
use secrecy::ExposeSecret;

use crate::Database;
use crate::oracle::{mirrors_equal_source, unified_tables_equal_joins};
use crate::shop::Shop;

/// The longest wait for a state that must come.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// A shop whose sources stand in Kafka, and a view database.
pub(crate) struct Place {
    pub(crate) database: Database,
    pub(crate) shop: Shop,
    pub(crate) kafka: KafkaConfig,
    producers: BTreeMap<&'static str, Producer>,
    offsets: BTreeMap<&'static str, Offsets>,
    folder: tempfile::TempDir,
    started: usize,
}

impl Place {
    pub(crate) async fn new(seed: u64) -> Result<Self> {
        Self::with(seed, |_| {}).await
    }

    /// With other settings of Kafka.
    pub(crate) async fn with(seed: u64, settings: impl Fn(&mut KafkaConfig)) -> Result<Self> {
        let mut kafka = KafkaConfig::new(&fixtures::servers().kafka().await?.bootstrap(), 1);
        kafka.topic_prefix = format!("{}.", fixtures::unique("aggregator"));
        kafka.partitions = 2;
        settings(&mut kafka);
        let topics = Topics::connect(&kafka)?;
        let mut producers = BTreeMap::new();
        for source in aggregator::SOURCES {
            let tables = aggregator::mirror::Table::captured_by(source);
            let tables: Vec<_> = tables.iter().map(|t| name(&kafka, source, t)).collect();
            let checkpoint = topic::checkpoint(&kafka, source);
            topics.ensure(&tables, &checkpoint).await?;
            let id = topic::transactional_id(&kafka, source);
            producers.insert(source, Producer::connect(&kafka, &id).await?);
        }
        Ok(Self {
            database: Database::new().await?,
            shop: Shop::new(seed),
            kafka,
            producers,
            offsets: BTreeMap::new(),
            folder: tempfile::tempdir()?,
            started: 0,
        })
    }

    /// What the source did since its last one, as one Kafka transaction with a checkpoint.
    pub(crate) async fn commit(&mut self, source: &'static str) -> Result<()> {
        self.commit_as(source, |_| ()).await
    }

    /// The same with something else in the checkpoint.
    pub(crate) async fn commit_as(
        &mut self,
        source: &'static str,
        change: impl FnOnce(&mut Checkpoint),
    ) -> Result<()> {
        self.shop.source(source).checkpoint();
        let events = self.shop.source(source).unsent();
        let producer = self.producers.get_mut(source).context("no producer")?;
        for event in events {
            let topic = name(&self.kafka, source, &event.table);
            producer
                .send(&topic, &event.key, event.value.as_deref(), &[])
                .await?;
        }
        let offsets = self.offsets.entry(source).or_default();
        for (topic, ends) in producer.delivered().await? {
            offsets.entry(topic).or_default().extend(ends);
        }
        let mut record = self.shop.source(source).record();
        record.offsets.clone_from(offsets);
        change(&mut record);
        let topic = topic::checkpoint(&self.kafka, source);
        producer.commit(&topic, &record).await?;
        Ok(())
    }

    /// Random work in every source, each with a checkpoint.
    pub(crate) async fn work(&mut self) -> Result<()> {
        for source in aggregator::SOURCES {
            self.shop.work(source);
            self.commit(source).await?;
        }
        Ok(())
    }

    /// Starts the aggregator with further settings of `[apply]` and variables. Whoever is silent is
    /// replaced sooner than by default.
    pub(crate) fn start(
        &mut self,
        apply: &str,
        environment: &[(&str, &str)],
    ) -> Result<Aggregator> {
        self.start_as_shipped(&format!("silence_max_ms = 3000\n{apply}"), environment)
    }

    /// The same with no other time-out than the shipped ones.
    pub(crate) fn start_as_shipped(
        &mut self,
        apply: &str,
        environment: &[(&str, &str)],
    ) -> Result<Aggregator> {
        self.started += 1;
        let name = format!("aggregator-{}", self.started);
        let port = fixtures::place::free_port()?;
        let config = self.folder.path().join(format!("{name}.toml"));
        let url = self.database.config.url.expose_secret();
        let text = format!(
            "[view]\nurl = {url:?}\n[kafka]\nbootstrap = {:?}\ntopic_prefix = {:?}\n\
            replication_factor = 1\nlateness_max_ms = {}\n[admin]\nlisten = \"127.0.0.1:{port}\"\n\
            [log]\nfilter = \"info,aggregator=debug\"\n[apply]\n{apply}\n",
            self.kafka.bootstrap, self.kafka.topic_prefix, self.kafka.lateness_max_ms
        );
        std::fs::write(&config, text)?;
        let log = self.folder.path().join(format!("{name}.log"));
        let process = Process::spawn(&Spawn {
            command: vec![
                env!("CARGO_BIN_EXE_aggregator").to_owned(),
                "--config".to_owned(),
                config.display().to_string(),
            ],
            environment: environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            without: vec!["FAULT_POINTS".to_owned()],
            log: log.clone(),
            user: None,
            on_parent_death: Signal::SIGKILL,
        })?;
        Ok(Aggregator {
            process,
            config,
            log,
            port,
        })
    }

    #[cfg(feature = "faults")]
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Waits until the view stands at every source's newest checkpoint.
    pub(crate) async fn caught_up(&mut self, aggregators: &[&Aggregator]) -> Result<()> {
        self.stands_at(&aggregator::SOURCES, aggregators).await
    }

    /// The same of these sources.
    pub(crate) async fn stands_at(
        &mut self,
        sources: &[&str],
        aggregators: &[&Aggregator],
    ) -> Result<()> {
        let mut expected = BTreeMap::new();
        for source in sources.iter().copied() {
            let lsn = kafka::Lsn(self.shop.source(source).lsn).to_string();
            expected.insert(source.to_owned(), Some(lsn));
        }
        let deadline = Instant::now() + WITHIN;
        loop {
            let query = "SELECT source, lsn FROM public.positions";
            // The view may not have been migrated yet.
            let rows = self.database.client.query(query, &[]).await;
            let found: BTreeMap<String, Option<String>> = rows
                .unwrap_or_default()
                .iter()
                .map(|row| (row.get(0), row.get(1)))
                .filter(|(source, _)| expected.contains_key(source))
                .collect();
            if found == expected {
                return Ok(());
            }
            if Instant::now() > deadline {
                let logs: Vec<_> = aggregators.iter().map(|one| one.log()).collect();
                bail!("at {found:?}, not {expected:?}\n{}", logs.join("\n---\n"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The view equals the joins, and its mirrors the sources.
    pub(crate) async fn is_right(&mut self) -> Result<()> {
        for source in aggregator::SOURCES {
            mirrors_equal_source(&self.database, &mut self.shop, source).await?;
        }
        unified_tables_equal_joins(&self.database, &aggregator::SOURCES).await
    }
}

fn name(kafka: &KafkaConfig, source: &str, table: &str) -> String {
    let (schema, table) = table.split_once('.').unwrap_or(("public", table));
    topic::table(kafka, source, schema, table)
}

/// A process.
pub(crate) struct Aggregator {
    pub(crate) process: Process,
    config: PathBuf,
    log: PathBuf,
    port: u16,
}

impl Aggregator {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log says this.
    pub(crate) async fn says(&self, words: &str) -> Result<()> {
        wait(words, self, || self.log().contains(words)).await
    }

    /// What a command of the operator says, with the same configuration.
    pub(crate) async fn command(&self, command: &[&str]) -> Result<std::process::Output> {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_aggregator"))
            .arg("--config")
            .arg(&self.config)
            .args(command)
            .output()
            .await
            .context("cannot run the aggregator")
    }

    /// What `/readyz` answers.
    pub(crate) async fn readiness(&self) -> Result<String> {
        let (_, body) = self.ask("GET", "/readyz").await?;
        Ok(body.trim().to_owned())
    }

    /// Its admin port.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Status code and body of what the admin port answers.
    pub(crate) async fn ask(&self, method: &str, path: &str) -> Result<(u16, String)> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let status = answer.split(' ').nth(1).context("no status")?.parse()?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
        Ok((status, body.unwrap_or_default().to_owned()))
    }
}

/// Waits for a state of a process, named `what` where it does not come.
pub(crate) async fn wait(what: &str, of: &Aggregator, here: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    while !here() {
        if Instant::now() > deadline {
            bail!("waited in vain: {what}\n{}", of.log());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

#[tokio::test]
async fn checkpoints_become_view_transactions_and_the_process_stops_in_order() -> Result<()> {
    let mut place = Place::new(1).await?;
    let aggregator = place.start("", &[])?;
    for _ in 0..10 {
        place.work().await?;
    }
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await?;
    aggregator.says("follows every source").await?;
    assert_eq!(aggregator.readiness().await?, "ready");
    aggregator.process.signal(Signal::SIGTERM);
    let status = aggregator.process.exited().await.context("no status")?;
    assert!(status.success(), "{status}\n{}", aggregator.log());
    Ok(())
}

#[tokio::test]
async fn a_checkpoint_of_many_steps_is_one_view_transaction() -> Result<()> {
    let mut place = Place::new(2).await?;
    let aggregator = place.start("step_events_max = 10", &[])?;
    place.work().await?;
    place.caught_up(&[&aggregator]).await?;
    for id in 1..=100 {
        place.shop.sales.put(
            crate::shop::LINE,
            serde_json::json!({
                "id": 1000 + id, "item_id": id % 7, "unit_price": "1.25", "quantity": 1,
                "order_id": 1000,
            }),
        );
    }
    let customer = serde_json::json!({
        "id": 1000, "customer_id": 1000, "date": "2024-01-01T00:00:00.000000Z",
    });
    place.shop.sales.put(crate::shop::ORDER, customer);
    let before: i64 = place
        .database
        .one("SELECT number FROM aggregator.fence")
        .await?;
    place.commit("sales").await?;
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await?;
    let after: i64 = place
        .database
        .one("SELECT number FROM aggregator.fence")
        .await?;
    assert_eq!(after, before + 1);
    let ordered: String = place
        .database
        .one("SELECT ordered::text FROM public.customers WHERE id = 1000")
        .await?;
    assert_eq!(ordered, "125.00");
    Ok(())
}

#[tokio::test]
async fn a_source_that_cannot_be_followed_delays_only_its_own_data() -> Result<()> {
    let mut place = Place::new(6).await?;
    place.work().await?;
    let aggregator = place.start("", &[])?;
    place.caught_up(&[&aggregator]).await?;
    let checkpoint = topic::checkpoint(&place.kafka, "sales");
    let producer = place.producers.get_mut("sales").context("no producer")?;
    producer
        .send(&checkpoint, b"checkpoint", Some(b"no checkpoint"), &[])
        .await?;
    place.commit("sales").await?;
    aggregator.says("cannot follow sales").await?;
    for _ in 0..3 {
        place.shop.work("accounting");
        place.commit("accounting").await?;
        place.shop.work("warehouse");
        place.commit("warehouse").await?;
    }
    place
        .stands_at(&["accounting", "warehouse"], &[&aggregator])
        .await?;
    unified_tables_equal_joins(&place.database, &aggregator::SOURCES).await?;
    // Between two tries it may count as running for a moment.
    let deadline = Instant::now() + WITHIN;
    while !aggregator
        .readiness()
        .await?
        .contains("cannot follow sales")
    {
        if Instant::now() > deadline {
            bail!("says it is ready\n{}", aggregator.log());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
