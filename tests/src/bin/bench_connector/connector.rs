//! Our side: connectors as processes of their own, each with topics of its own that begin where
//! the slot does.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fixtures::Kafka;
use fixtures::process::{Process, Spawn};
use kafka::follower::{Follower, FollowerOptions, Standing};
use kafka::producer::Producer;
use kafka::topic::{self, Topics};
use kafka::{Checkpoint, KafkaConfig, Lsn, Offsets};
use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::source::{PUBLICATION, Source, TABLE, Written};
use tests::machine;

const SOURCE: &str = "bench";
const STOP_GRACE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);
const START_MAX: Duration = Duration::from_secs(120);
const READ_MAX: Duration = Duration::from_secs(600);

/// Where events go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sink {
    /// The shipped program, into Kafka.
    Kafka,
    /// The same code with a sink that throws events away.
    Null { latencies: bool },
}

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) rows: u64,
    /// From when the slot was taken until its last commit was confirmed.
    pub(crate) elapsed: Duration,
    pub(crate) cpu: Duration,
    /// Of the process that serves the slot.
    pub(crate) walsender_cpu: Duration,
    pub(crate) broker_cpu: Duration,
    pub(crate) peak_rss_mib: f64,
}

impl Run {
    pub(crate) fn rows_per_second(&self) -> f64 {
        self.rows as f64 / self.elapsed.as_secs_f64()
    }
}

/// What a null sink's process reports when it ends.
#[derive(Debug, Deserialize)]
pub(crate) struct Report {
    pub(crate) events: u64,
    pub(crate) first_us: i64,
    pub(crate) last_us: i64,
    pub(crate) latencies_us: Vec<i64>,
}

/// Starts connectors.
pub(crate) struct Connectors<'a> {
    pub(crate) source: &'a Source,
    pub(crate) kafka: &'a Kafka,
    /// The shipped program.
    program: PathBuf,
    folder: tempfile::TempDir,
    /// The record of a connector that has read the empty table.
    template: Option<Checkpoint>,
}

/// A connector that runs. Dropped, it is killed.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) slot: String,
    pub(crate) config: KafkaConfig,
    /// Where it answers `/status`.
    admin: u16,
    report: PathBuf,
    log: PathBuf,
}

impl<'a> Connectors<'a> {
    /// The table must still be empty.
    pub(crate) async fn new(source: &'a Source, kafka: &'a Kafka, program: &Path) -> Result<Self> {
        let mut connectors = Self {
            source,
            kafka,
            program: program.to_owned(),
            folder: tempfile::tempdir()?,
            template: None,
        };
        let running = connectors.start(Sink::Kafka, &fixtures::unique("run"))?;
        connectors.template = Some(running.whole_record().await?);
        connectors.end(running).await?;
        Ok(connectors)
    }

    /// Starts one at the beginning of what was written.
    pub(crate) async fn start_at(&self, sink: Sink, written: &Written) -> Result<Running> {
        let (slot, confirmed) = self.source.copy_slot(written).await?;
        self.begin_at(&slot, confirmed).await?;
        self.start(sink, &slot)
    }

    /// Waits until everything that was written is confirmed.
    pub(crate) async fn caught_up(&self, running: &Running, written: &Written) -> Result<()> {
        self.source
            .confirmed(&running.slot, written.end, &running.process)
            .await?;
        Ok(())
    }

    /// Waits until everything that there is is confirmed.
    pub(crate) async fn all_confirmed(&self, running: &Running) -> Result<()> {
        let end = self.source.wal_end().await?;
        self.source
            .confirmed(&running.slot, end, &running.process)
            .await?;
        Ok(())
    }

    /// Streams everything that was written.
    pub(crate) async fn stream(&self, sink: Sink, written: &Written) -> Result<Run> {
        let running = self.start_at(sink, written).await?;
        let run = self.measure(&running, written).await;
        let run = run.with_context(|| running.log_end())?;
        self.end(running).await?;
        Ok(run)
    }

    /// Reads the whole table into nothing; rows a second from the first row to the last, and the
    /// most memory.
    pub(crate) async fn read_table(&self, workers: usize) -> Result<(f64, f64)> {
        let reads = format!("[reads]\nread_workers = {workers}\n");
        let sink = Sink::Null { latencies: false };
        let running = self.start_with(sink, &fixtures::unique("run"), &reads)?;
        let (rows, peak) = self
            .table_read(&running)
            .await
            .with_context(|| running.log_end())?;
        let report = self.end(running).await?.context("no report")?;
        ensure!(
            report.events == rows,
            "{} of {rows} rows were read",
            report.events
        );
        let elapsed = Duration::from_micros(u64::try_from(report.last_us - report.first_us)?);
        Ok((rows as f64 / elapsed.as_secs_f64(), peak))
    }

    /// The slot is told a position above where it began once a record covers all reads.
    async fn table_read(&self, running: &Running) -> Result<(u64, f64)> {
        self.source.in_use(&running.slot, &running.process).await?;
        let rows = self.source.rows().await?;
        running.is_streaming().await?;
        Ok((rows, machine::peak_rss_mib(running.process.id())?))
    }

    async fn measure(&self, running: &Running, written: &Written) -> Result<Run> {
        let broker = self.kafka.process().context("no broker")?.id();
        let (begun, walsender) = self.source.in_use(&running.slot, &running.process).await?;
        let broker_before = machine::cpu_time(broker)?;
        let ended = self
            .source
            .confirmed(&running.slot, written.end, &running.process)
            .await?;
        Ok(Run {
            rows: written.rows,
            elapsed: ended - begun,
            cpu: machine::cpu_time(running.process.id())?,
            walsender_cpu: machine::cpu_time(walsender)?,
            broker_cpu: machine::cpu_time(broker)?.saturating_sub(broker_before),
            peak_rss_mib: machine::peak_rss_mib(running.process.id())?,
        })
    }

    /// A record in topics of this name that says that a slot is where it is, as if a connector had
    /// come so far.
    async fn begin_at(&self, name: &str, confirmed: Lsn) -> Result<()> {
        let template = self.template.as_ref().context("no template yet")?;
        let config = self.kafka_config(name);
        let table = topic::table(&config, SOURCE, "public", "line");
        let checkpoint = topic::checkpoint(&config, SOURCE);
        Topics::connect(&config)?
            .ensure(&[table], &checkpoint)
            .await?;
        let id = topic::transactional_id(&config, SOURCE);
        let mut producer = Producer::connect(&config, &id).await?;
        let record = Checkpoint {
            position: confirmed,
            reach: confirmed,
            half_sent: None,
            offsets: Offsets::new(),
            ..template.clone()
        };
        producer.commit(&checkpoint, &record).await?;
        Ok(())
    }

    fn kafka_config(&self, name: &str) -> KafkaConfig {
        let mut config = KafkaConfig::new(&self.kafka.bootstrap(), 1);
        config.topic_prefix = format!("{name}.");
        config
    }

    /// Slot and topics have this name; where there are none, it makes them and reads the table.
    pub(crate) fn start(&self, sink: Sink, name: &str) -> Result<Running> {
        self.start_with(sink, name, "")
    }

    fn start_with(&self, sink: Sink, name: &str, settings: &str) -> Result<Running> {
        let folder = self.folder.path();
        let config = folder.join(format!("{name}.toml"));
        let report = folder.join(format!("{name}.json"));
        let log = folder.join(format!("{name}.log"));
        let kafka = self.kafka_config(name);
        let admin = fixtures::place::free_port()?;
        std::fs::write(
            &config,
            format!(
                "source = \"{SOURCE}\"\ntables = [\"{TABLE}\"]\n\
                 [postgres]\nurl = \"{}\"\nslot = \"{name}\"\npublication = \"{PUBLICATION}\"\n\
                 [kafka]\nbootstrap = \"{}\"\ntopic_prefix = \"{}\"\nreplication_factor = 1\n\
                 [admin]\nlisten = \"127.0.0.1:{admin}\"\n{settings}",
                self.source.url(),
                kafka.bootstrap,
                kafka.topic_prefix,
            ),
        )?;
        let config = config.display().to_string();
        let mut command = match sink {
            Sink::Kafka => vec![self.program.display().to_string()],
            Sink::Null { .. } => vec![
                std::env::current_exe()?.display().to_string(),
                "null-sink".to_owned(),
                "--report".to_owned(),
                report.display().to_string(),
            ],
        };
        command.extend(["--config".to_owned(), config]);
        if sink == (Sink::Null { latencies: true }) {
            command.push("--latencies".to_owned());
        }
        let process = Process::spawn(&Spawn {
            command,
            environment: Vec::new(),
            without: vec!["RUST_LOG".to_owned()],
            log: log.clone(),
            user: None,
            on_parent_death: Signal::SIGKILL,
        })?;
        Ok(Running {
            process,
            slot: name.to_owned(),
            config: kafka,
            admin,
            report,
            log,
        })
    }

    /// Stops it in order, and removes its slot.
    pub(crate) async fn end(&self, running: Running) -> Result<Option<Report>> {
        running.process.stop(Signal::SIGTERM, STOP_GRACE).await;
        self.source.drop_slot(&running.slot).await?;
        match std::fs::read(&running.report) {
            Ok(report) => Ok(Some(serde_json::from_slice(&report)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Running {
    /// Waits until readers could take a checkpoint.
    pub(crate) async fn whole_record(&self) -> Result<Checkpoint> {
        let deadline = Instant::now() + START_MAX;
        loop {
            let mut follower = Follower::new(
                &self.config,
                SOURCE,
                Standing::default(),
                FollowerOptions::default(),
            )?;
            if let Some((_, _, record)) = follower.last_checkpoint().await? {
                return Ok(record);
            }
            if self.process.status().is_some() || Instant::now() > deadline {
                anyhow::bail!("no checkpoint comes{}", self.log_end());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until it says that nothing is to be read any more.
    async fn is_streaming(&self) -> Result<()> {
        let url = format!("http://127.0.0.1:{}/status", self.admin);
        let deadline = Instant::now() + READ_MAX;
        loop {
            if let Ok(answer) = reqwest::get(&url).await
                && let Ok(status) = answer.json::<serde_json::Value>().await
                && status["state"] == "streaming"
            {
                return Ok(());
            }
            ensure!(
                self.process.status().is_none() && Instant::now() < deadline,
                "the table read does not end"
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Where its events of the table go.
    pub(crate) fn table_topic(&self) -> String {
        topic::table(&self.config, SOURCE, "public", "line")
    }

    pub(crate) fn log_end(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!(
            "; its log ends:\n{}",
            lines[lines.len().saturating_sub(12)..].join("\n")
        )
    }
}
