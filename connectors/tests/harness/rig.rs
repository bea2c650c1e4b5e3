//! A source of the test's own, and connector processes over it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use fixtures::postgres::{Postgres, TEST_PASSWORD, connect};
use fixtures::process::{Process, Spawn};
use nix::sys::signal::Signal;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;
use tokio_postgres::Client;

use super::journal::Journal;

/// Everything that is waited for comes sooner, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A database with its owner's tables, publication and role, and names for a connector over it.
pub(crate) struct Rig {
    /// The owner's session (a superuser's, so that a test can do what only they can).
    pub(crate) db: Client,
    pub(crate) database: String,
    pub(crate) role: String,
    pub(crate) slot: String,
    pub(crate) prefix: String,
    pub(crate) bootstrap: String,
    tables: Vec<String>,
    superuser_url: String,
    connector_url: String,
    folder: tempfile::TempDir,
}

impl Rig {
    /// On the shared legacy cluster. `ddl` makes the tables, in the schema `public`.
    pub(crate) async fn new(tables: &[&str], ddl: &str) -> Result<Self> {
        Self::on(fixtures::servers().legacy().await?, tables, ddl).await
    }

    pub(crate) async fn on(server: &Postgres, tables: &[&str], ddl: &str) -> Result<Self> {
        let kafka = fixtures::servers().kafka().await?;
        let database = fixtures::servers::database(server, "shop").await?;
        let role = fixtures::unique("capture");
        let superuser_url = server.superuser_url(&database);
        let db = connect(&superuser_url).await?;
        let list = tables.join(", ");
        run(
            &db,
            &format!(
                "{ddl}; CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{TEST_PASSWORD}'; \
                 GRANT SELECT ON {list} TO {role}; CREATE PUBLICATION tributary FOR TABLE {list}"
            ),
        )
        .await?;
        Ok(Self {
            connector_url: server.url(&role, &database),
            superuser_url,
            slot: fixtures::unique("slot"),
            prefix: format!("{}.", fixtures::unique("t")),
            bootstrap: kafka.bootstrap(),
            tables: tables.iter().map(|table| (*table).to_owned()).collect(),
            folder: tempfile::tempdir()?,
            db,
            database,
            role,
        })
    }

    /// Another session of the owner's.
    pub(crate) async fn session(&self) -> Result<Client> {
        connect(&self.superuser_url).await
    }

    /// SQL as the owner.
    pub(crate) async fn run(&self, sql: &str) -> Result<()> {
        run(&self.db, sql).await
    }

    /// Where the source's WAL ends: what a writer is told after its commit.
    pub(crate) async fn wal_lsn(&self) -> Result<kafka::Lsn> {
        let row = self
            .db
            .query_one("SELECT pg_current_wal_lsn()::text", &[])
            .await?;
        Ok(row.get::<_, String>(0).parse()?)
    }

    /// The same database on another server, as after a failover.
    pub(crate) async fn moved_to(&mut self, server: &Postgres) -> Result<()> {
        self.superuser_url = server.superuser_url(&self.database);
        self.connector_url = server.url(&self.role, &self.database);
        self.db = connect(&self.superuser_url).await?;
        Ok(())
    }

    /// Makes the source begin another segment of its WAL, 16 MiB, so many times.
    pub(crate) async fn switch_wal(&self, times: usize) -> Result<()> {
        for _ in 0..times {
            self.run("SELECT pg_logical_emit_message(false, 'test', 'x'); SELECT pg_switch_wal()")
                .await?;
        }
        Ok(())
    }

    /// The slot's confirmed position, if there is a slot.
    pub(crate) async fn confirmed(&self) -> Result<Option<kafka::Lsn>> {
        let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots \
                   WHERE slot_name = $1";
        let row = self.db.query_opt(sql, &[&self.slot]).await?;
        row.map(|row| Ok(row.get::<_, String>(0).parse()?))
            .transpose()
    }

    /// The full name of a table's topic (`public.name`), or `checkpoint`.
    pub(crate) fn topic(&self, of: &str) -> String {
        format!("{}shop.{of}", self.prefix)
    }

    fn kafka(&self) -> Result<AdminClient<DefaultClientContext>> {
        let mut settings = ClientConfig::new();
        Ok(settings
            .set("bootstrap.servers", &self.bootstrap)
            .create()?)
    }

    /// Deletes a topic, and waits until it is gone.
    pub(crate) async fn delete_topic(&self, of: &str) -> Result<()> {
        let (kafka, topic) = (self.kafka()?, self.topic(of));
        for answer in kafka.delete_topics(&[&topic], &AdminOptions::new()).await? {
            answer.map_err(|(topic, code)| anyhow!("cannot delete {topic}: {code}"))?;
        }
        Ok(())
    }

    /// Gives a topic so many partitions.
    pub(crate) async fn partition_topic(&self, of: &str, partitions: usize) -> Result<()> {
        let (kafka, topic) = (self.kafka()?, self.topic(of));
        let more = NewPartitions::new(&topic, partitions);
        for answer in kafka
            .create_partitions(&[more], &AdminOptions::new())
            .await?
        {
            answer.map_err(|(topic, code)| anyhow!("cannot alter {topic}: {code}"))?;
        }
        Ok(())
    }

    /// A connector over it that is not started yet.
    pub(crate) fn connector(&self) -> Plan<'_> {
        Plan {
            rig: self,
            environment: Vec::new(),
            top: String::new(),
            sections: String::new(),
            stream: String::new(),
            reads: String::new(),
            url: self.connector_url.clone(),
            bootstrap: self.bootstrap.clone(),
            postgres: "lock_timeout_ms = 2000\nslot_timeout_ms = 2000\n".to_owned(),
            publication: "tributary".to_owned(),
            tables: self.tables.clone(),
        }
    }

    /// The topics, read from the beginning.
    pub(crate) fn journal(&self) -> Result<Journal> {
        Journal::new(&self.bootstrap, &self.prefix, &self.tables)
    }

    /// Rows of a table as the topics have them: key → row, both in JSON text of the source's.
    pub(crate) async fn source_rows(&self, table: &str) -> Result<Vec<String>> {
        let sql = format!("SELECT to_jsonb(t)::text FROM {table} t ORDER BY 1");
        let rows = self.db.query(&sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The next test needs the slot's place; a thread of its own, because the runtime ends.
        let (url, slot) = (self.superuser_url.clone(), self.slot.clone());
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async move {
                let db = connect(&url).await?;
                for _ in 0..100 {
                    let sql = format!(
                        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
                         WHERE slot_name = '{slot}' AND active; \
                         SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                         WHERE slot_name = '{slot}'"
                    );
                    if run(&db, &sql).await.is_ok() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                anyhow::Ok(())
            })
        });
        _ = dropped.join();
    }
}

async fn run(db: &Client, sql: &str) -> Result<()> {
    db.batch_execute(sql)
        .await
        .map_err(|error| fixtures::postgres::describe(&error))
        .with_context(|| sql.to_owned())
}

/// A connector's configuration and environment.
#[derive(Clone)]
pub(crate) struct Plan<'a> {
    rig: &'a Rig,
    environment: Vec<(String, String)>,
    top: String,
    sections: String,
    stream: String,
    reads: String,
    url: String,
    bootstrap: String,
    postgres: String,
    publication: String,
    tables: Vec<String>,
}

impl Plan<'_> {
    /// Fault points of this process.
    pub(crate) fn faults(mut self, points: &str) -> Self {
        self.environment
            .push(("FAULT_POINTS".to_owned(), points.to_owned()));
        self
    }

    /// A variable of this process.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Rules that are out of force in this process, besides those that `RULES_OFF` names.
    pub(crate) fn without_rules(mut self, rules: &str) -> Self {
        let mut off = std::env::var("RULES_OFF").unwrap_or_default();
        _ = write!(off, ",{rules}");
        self.environment.push(("RULES_OFF".to_owned(), off));
        self
    }

    /// Lines before the sections.
    pub(crate) fn top(mut self, lines: &str) -> Self {
        self.top.push_str(lines);
        self.top.push('\n');
        self
    }

    /// A variable of its environment.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lines of the section `[postgres]`.
    pub(crate) fn postgres(mut self, lines: &str) -> Self {
        self.postgres.push_str(lines);
        self.postgres.push('\n');
        self
    }

    /// Further sections.
    pub(crate) fn sections(mut self, text: &str) -> Self {
        self.sections.push_str(text);
        self.sections.push('\n');
        self
    }

    /// Lines of the section `[stream]`.
    pub(crate) fn stream(mut self, lines: &str) -> Self {
        self.stream.push_str(lines);
        self.stream.push('\n');
        self
    }

    /// Lines of the section `[reads]`.
    pub(crate) fn reads(mut self, lines: &str) -> Self {
        self.reads.push_str(lines);
        self.reads.push('\n');
        self
    }

    pub(crate) fn url(mut self, url: &str) -> Self {
        url.clone_into(&mut self.url);
        self
    }

    pub(crate) fn bootstrap(mut self, addresses: &str) -> Self {
        addresses.clone_into(&mut self.bootstrap);
        self
    }

    /// Reaches the source through another port of this machine.
    pub(crate) fn through(mut self, port: u16) -> Self {
        let (address, database) = self.url.rsplit_once('/').unwrap_or_default();
        let (user, _) = address.rsplit_once(':').unwrap_or_default();
        self.url = format!("{user}:{port}/{database}");
        self
    }

    /// The time-outs of lock and slot as a configuration that does not name them has them.
    pub(crate) fn default_timeouts(mut self) -> Self {
        self.postgres.clear();
        self
    }

    pub(crate) fn publication(mut self, name: &str) -> Self {
        name.clone_into(&mut self.publication);
        self
    }

    pub(crate) fn tables(mut self, tables: &[&str]) -> Self {
        self.tables = tables.iter().map(|table| (*table).to_owned()).collect();
        self
    }

    /// Starts the process.
    pub(crate) fn start(&self) -> Result<Connector> {
        self.spawn(&["run"])
    }

    /// Runs `check`; its exit code and what it printed.
    pub(crate) async fn check(&self) -> Result<(Option<i32>, String)> {
        self.command(&["check"]).await
    }

    /// Runs a command; its exit code and what it printed.
    pub(crate) async fn command(&self, command: &[&str]) -> Result<(Option<i32>, String)> {
        self.spawn(command)?.ended().await
    }

    fn spawn(&self, command: &[&str]) -> Result<Connector> {
        let name = fixtures::unique("connector");
        let port = fixtures::place::free_port()?;
        let folder = self.rig.folder.path();
        let (config, log) = (
            folder.join(format!("{name}.toml")),
            folder.join(format!("{name}.log")),
        );
        std::fs::write(&config, self.config(port))?;
        let mut line = vec![
            env!("CARGO_BIN_EXE_connector").to_owned(),
            "--config".to_owned(),
            config.display().to_string(),
        ];
        line.extend(command.iter().map(|word| (*word).to_owned()));
        let process = Process::spawn(&Spawn {
            command: line,
            environment: self.environment.clone(),
            without: Vec::new(),
            log: log.clone(),
            user: None,
            on_parent_death: Signal::SIGKILL,
        })?;
        Ok(Connector {
            process,
            port,
            log,
            config,
        })
    }

    fn config(&self, port: u16) -> String {
        format!(
            "source = \"shop\"\ntables = {:?}\n{}\
             [postgres]\nurl = \"{}\"\nslot = \"{}\"\npublication = \"{}\"\n\
             {}\
             [kafka]\nbootstrap = \"{}\"\ntopic_prefix = \"{}\"\nreplication_factor = 1\npartitions = 2\n\
             [admin]\nlisten = \"127.0.0.1:{port}\"\n[log]\nfilter = \"connectors=debug,info\"\n\
             [stream]\n{}[reads]\n{}{}",
            self.tables,
            self.top,
            self.url,
            self.rig.slot,
            self.publication,
            self.postgres,
            self.bootstrap,
            self.rig.prefix,
            self.stream,
            self.reads,
            self.sections,
        )
    }
}

/// A connector process. Dropped, it is killed.
pub(crate) struct Connector {
    process: Process,
    pub(crate) port: u16,
    log: PathBuf,
    config: PathBuf,
}

impl Connector {
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Runs a command with this one's configuration; its exit code and what it printed.
    pub(crate) async fn command(&self, words: &[&str]) -> Result<(Option<i32>, String)> {
        let ran = tokio::process::Command::new(env!("CARGO_BIN_EXE_connector"))
            .arg("--config")
            .arg(&self.config)
            .args(words)
            .output();
        let output = tokio::time::timeout(PATIENCE, ran)
            .await
            .map_err(|_| anyhow!("{words:?} does not end:\n{}", self.log()))??;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8(text)?))
    }

    /// SIGKILL, and waits for the end.
    pub(crate) async fn kill(&self) {
        self.process.signal(Signal::SIGKILL);
        self.process.exited().await;
    }

    /// Waits until it ends by itself; its exit code and its log.
    pub(crate) async fn ended(&self) -> Result<(Option<i32>, String)> {
        let status = tokio::time::timeout(PATIENCE, self.process.exited())
            .await
            .map_err(|_| anyhow!("the connector goes on:\n{}", self.log()))?
            .context("the connector's end was not seen")?;
        Ok((status.code(), self.log()))
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.status().is_none()
    }

    /// Has a fault point stopped it (SIGSTOP)?
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()));
        stat.is_ok_and(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    }

    pub(crate) async fn stopped(&self) -> Result<()> {
        eventually("the connector is stopped by a fault point", || async {
            Ok(self.is_stopped().then_some(()))
        })
        .await
        .with_context(|| self.log())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line of the log.
    pub(crate) async fn logged(&self, text: &str) -> Result<()> {
        eventually(&format!("{text:?} in the log"), || async {
            Ok(self.log().contains(text).then_some(()))
        })
        .await
        .with_context(|| self.log())
    }

    /// `/status`, once the admin port answers.
    pub(crate) async fn status(&self) -> Result<Value> {
        let url = format!("http://127.0.0.1:{}/status", self.port);
        eventually("the admin port answers", || async {
            match reqwest::get(&url).await {
                Ok(answer) => Ok(Some(answer.json().await?)),
                Err(_) if self.is_running() => Ok(None),
                Err(error) => bail!("{error}: {}", self.log()),
            }
        })
        .await
    }

    /// `/readyz`: status code and text.
    pub(crate) async fn readiness(&self) -> Result<(u16, String)> {
        let answer = reqwest::get(format!("http://127.0.0.1:{}/readyz", self.port)).await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// A metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> Result<Option<f64>> {
        let answer = reqwest::get(format!("http://127.0.0.1:{}/metrics", self.port)).await?;
        let text = answer.text().await?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(value)
    }

    /// Waits until it has said that it follows the source, all tables read.
    pub(crate) async fn ready(&self) -> Result<()> {
        eventually("the connector streams", || async {
            let status = self.status().await?;
            Ok((status["state"] == "streaming" && status["whole"] == true).then_some(()))
        })
        .await
        .with_context(|| self.log())
    }
}

/// Waits for a state: `look` until it finds something.
pub(crate) async fn eventually<T, F>(what: &str, look: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if begun.elapsed() > PATIENCE {
            bail!("waited in vain: {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
