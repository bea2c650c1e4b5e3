//! The peer: Debezium's embedded engine with its JSON converter, into a consumer that throws
//! events away (`tests/debezium/NullConsumer.java`).

use std::fmt;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fixtures::place;
use fixtures::postgres::TEST_PASSWORD;
use fixtures::process::{Process, Spawn};
use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::latency::{self, Pace};
use crate::source::{PUBLICATION, Source, TABLE, Written};
use tests::machine;

/// As `fixtures/install/downloads.sh` names it.
const FOLDER: &str = "debezium-3.6.3.0";
const RUN_MAX: Duration = Duration::from_secs(300);
const IDLE: Duration = Duration::from_secs(10);

/// The engine's jars, and the compiled consumer.
#[derive(Debug)]
pub(crate) struct Debezium {
    jars: PathBuf,
    folder: tempfile::TempDir,
}

/// What a user of the engine can turn.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) heap_mib: u32,
    collector: &'static str,
    batch: u32,
    /// Threads that convert records.
    threads: u32,
    poll_ms: u32,
}

impl Setting {
    pub(crate) fn with_heap(&self, heap_mib: u32) -> Self {
        Self {
            heap_mib,
            ..self.clone()
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "heap {} MiB, {}, batches of {}, {} converting",
            self.heap_mib, self.collector, self.batch, self.threads
        )
    }
}

impl Setting {
    pub(crate) fn candidates() -> Vec<Self> {
        let base = Self {
            heap_mib: 512,
            collector: "UseParallelGC",
            batch: 8192,
            threads: 1,
            poll_ms: 10,
        };
        let serial = Self {
            collector: "UseSerialGC",
            ..base.clone()
        };
        let defaults = Self {
            batch: 2048,
            poll_ms: 500,
            ..base.clone()
        };
        let threads = Self {
            threads: 2,
            ..base.clone()
        };
        vec![defaults, serial, threads, base]
    }

    /// For the least delay.
    fn eager() -> Self {
        Self {
            heap_mib: 256,
            collector: "UseSerialGC",
            batch: 2048,
            threads: 1,
            poll_ms: 1,
        }
    }
}

pub(crate) struct Run {
    /// In the second half of the rows: the virtual machine has warmed up by then.
    pub(crate) rows_per_second: f64,
    pub(crate) peak_rss_mib: f64,
}

pub(crate) struct Latencies {
    pub(crate) latencies: Vec<Duration>,
    pub(crate) idle_cpu_percent: f64,
}

/// What the consumer says in the end.
#[derive(Debug, Deserialize)]
struct Report {
    events: u64,
    half: u64,
    half_us: i64,
    last_us: i64,
    latencies_us: Vec<i64>,
}

impl Debezium {
    /// Where it is downloaded: the consumer, compiled.
    pub(crate) fn installed() -> Result<Option<Self>> {
        let jars = place::downloads().join(FOLDER);
        if !jars.exists() {
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        let output = Command::new("javac")
            .arg("-cp")
            .arg(format!("{}/*", jars.display()))
            .arg("-d")
            .arg(folder.path())
            .arg(place::repository().join("tests/debezium/NullConsumer.java"))
            .output()
            .context("cannot run javac")?;
        ensure!(
            output.status.success(),
            "javac: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Some(Self { jars, folder }))
    }

    /// Streams everything that was written.
    pub(crate) async fn stream(
        &self,
        source: &Source,
        written: &Written,
        setting: &Setting,
    ) -> Result<Run> {
        let (slot, _) = source.copy_slot(written).await?;
        let engine = self.start(source, &slot, setting, written.rows, false)?;
        let ran = tokio::time::timeout(RUN_MAX, engine.counted()).await;
        let peak_rss_mib = machine::peak_rss_mib(engine.process.id());
        let report = engine.end().await?;
        source.drop_slot(&slot).await?;
        ran.context("Debezium did not end in time")??;
        ensure!(
            report.events >= written.rows,
            "Debezium sent {} of {} rows",
            report.events,
            written.rows
        );
        let elapsed = Duration::from_micros(u64::try_from(report.last_us - report.half_us)?);
        Ok(Run {
            rows_per_second: (report.events - report.half) as f64 / elapsed.as_secs_f64(),
            peak_rss_mib: peak_rss_mib?,
        })
    }

    /// From each commit's own time, with the poll interval at 1 ms.
    pub(crate) async fn latencies(
        &self,
        source: &Source,
        written: &Written,
        pace: Pace,
    ) -> Result<Latencies> {
        let (slot, _) = source.copy_slot(written).await?;
        let setting = Setting::eager();
        let all = written.rows + (pace.warm_up + pace.changes) as u64;
        // What was changed before stands behind the slot, too.
        let all = all + 2 * (pace.warm_up + pace.changes) as u64;
        let engine = self.start(source, &slot, &setting, all, true)?;
        source.in_use(&slot, &engine.process).await?;
        engine.caught_up(source, &slot).await?;
        latency::change_all(source, pace).await?;
        tokio::time::timeout(RUN_MAX, engine.counted())
            .await
            .context("Debezium did not end in time")??;
        let before = machine::cpu_time(engine.process.id())?;
        tokio::time::sleep(IDLE).await;
        let idle = machine::cpu_time(engine.process.id())?.saturating_sub(before);
        let report = engine.end().await?;
        source.drop_slot(&slot).await?;
        Ok(Latencies {
            latencies: latency::last_latencies(&report.latencies_us, pace)?,
            idle_cpu_percent: 100.0 * idle.as_secs_f64() / IDLE.as_secs_f64(),
        })
    }

    fn start(
        &self,
        source: &Source,
        slot: &str,
        setting: &Setting,
        events: u64,
        latencies: bool,
    ) -> Result<Engine> {
        let folder = self.folder.path();
        let [properties, report, done, log] = ["properties", "json", "done", "log"]
            .map(|ending| folder.join(format!("{slot}.{ending}")));
        std::fs::write(&properties, engine_properties(source, slot, setting))?;
        let path = |path: &Path| path.display().to_string();
        let process = Process::spawn(&Spawn {
            command: vec![
                "java".to_owned(),
                format!("-Xmx{}m", setting.heap_mib),
                format!("-XX:+{}", setting.collector),
                "-cp".to_owned(),
                format!("{}:{}/*", folder.display(), self.jars.display()),
                "NullConsumer".to_owned(),
                path(&properties),
                path(&report),
                path(&done),
                events.to_string(),
                latencies.to_string(),
            ],
            environment: Vec::new(),
            without: vec!["JAVA_TOOL_OPTIONS".to_owned(), "CLASSPATH".to_owned()],
            log: log.clone(),
            user: None,
            on_parent_death: Signal::SIGKILL,
        })?;
        Ok(Engine {
            process,
            report,
            done,
            log,
        })
    }
}

struct Engine {
    process: Process,
    report: PathBuf,
    /// Made by the consumer once it has seen all events.
    done: PathBuf,
    log: PathBuf,
}

impl Engine {
    async fn counted(&self) -> Result<()> {
        while !self.done.exists() {
            if let Some(status) = self.process.status() {
                bail!("Debezium has ended: {status}{}", self.log_end());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Everything that there is has been sent to it.
    async fn caught_up(&self, source: &Source, slot: &str) -> Result<()> {
        let end = source.wal_end().await?;
        let sent = "select coalesce((select write_lsn >= $2::text::pg_lsn from pg_stat_replication
                      join pg_replication_slots on active_pid = pid where slot_name = $1), false)";
        let deadline = Instant::now() + RUN_MAX;
        while !source
            .sql()
            .query_one(sent, &[&slot, &end.to_string()])
            .await?
            .get::<_, bool>(0)
        {
            ensure!(Instant::now() < deadline, "{}", self.log_end());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn end(self) -> Result<Report> {
        self.process
            .stop(Signal::SIGTERM, Duration::from_secs(20))
            .await;
        let report = std::fs::read(&self.report).with_context(|| self.log_end())?;
        Ok(serde_json::from_slice(&report)?)
    }

    fn log_end(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!(
            "; its log ends:\n{}",
            lines[lines.len().saturating_sub(12)..].join("\n")
        )
    }
}

fn engine_properties(source: &Source, slot: &str, setting: &Setting) -> String {
    let port = source.postgres.port().to_string();
    let (batch, queue) = (setting.batch.to_string(), (setting.batch * 4).to_string());
    let (threads, poll) = (setting.threads.to_string(), setting.poll_ms.to_string());
    let mut text = String::new();
    for (name, value) in [
        ("name", slot),
        (
            "connector.class",
            "io.debezium.connector.postgresql.PostgresConnector",
        ),
        (
            "offset.storage",
            "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
        ),
        ("offset.flush.interval.ms", "1000"),
        ("plugin.name", "pgoutput"),
        ("publication.name", PUBLICATION),
        ("publication.autocreate.mode", "disabled"),
        ("slot.name", slot),
        ("snapshot.mode", "no_data"),
        ("topic.prefix", "bench"),
        ("table.include.list", TABLE),
        ("database.hostname", "127.0.0.1"),
        ("database.port", &port),
        ("database.user", "postgres"),
        ("database.password", TEST_PASSWORD),
        ("database.dbname", "postgres"),
        ("decimal.handling.mode", "string"),
        ("converter.schemas.enable", "false"),
        ("max.batch.size", &batch),
        ("max.queue.size", &queue),
        ("poll.interval.ms", &poll),
        ("record.processing.threads", &threads),
        ("record.processing.order", "ORDERED"),
    ] {
        _ = writeln!(text, "{name}={value}");
    }
    text
}
