//! A source of the test's own.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use fixtures::postgres::{Postgres, TEST_PASSWORD, connect};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio_postgres::Client;

use super::connector::eventually;
use super::journal::Journal;
use super::plan::Plan;

/// A database with its owner's tables, publication and role, and names for a connector over it.
pub(crate) struct Rig {
    /// The owner's session (a superuser's, so that a test can do what only they can).
    pub(crate) db: Client,
    pub(crate) database: String,
    pub(crate) role: String,
    pub(crate) slot: String,
    pub(crate) prefix: String,
    pub(crate) bootstrap: String,
    pub(super) tables: Vec<String>,
    superuser_url: String,
    pub(super) connector_url: String,
    pub(super) folder: tempfile::TempDir,
}

impl Rig {
    /// On the shared legacy cluster. `ddl` makes the tables, in the schema `public`.
    pub(crate) async fn new(tables: &[&str], ddl: &str) -> Result<Self> {
        Self::on(fixtures::servers().source().await?, tables, ddl).await
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

    /// Waits for the connector's next words to PostgreSQL.
    pub(crate) async fn replies(&self) -> Result<()> {
        let sql = "SELECT reply_time::text FROM pg_stat_replication WHERE application_name = $1";
        let last = || async {
            let row = self.db.query_opt(sql, &[&self.slot]).await?;
            anyhow::Ok(row.and_then(|row| row.get::<_, Option<String>>(0)))
        };
        let before = last().await?;
        eventually("a status", || async {
            let now = last().await?;
            Ok((now.is_some() && now != before).then_some(()))
        })
        .await
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

    /// Makes a topic before the connector does.
    pub(crate) async fn create_topic(
        &self,
        of: &str,
        partitions: i32,
        settings: &[(&str, &str)],
    ) -> Result<()> {
        let (kafka, topic) = (self.kafka()?, self.topic(of));
        let new = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1));
        let new = settings
            .iter()
            .fold(new, |new, (name, value)| new.set(name, value));
        for answer in kafka.create_topics([&new], &AdminOptions::new()).await? {
            answer.map_err(|(topic, code)| anyhow!("cannot make {topic}: {code}"))?;
        }
        Ok(())
    }

    /// Deletes a topic, and waits until it is gone.
    pub(crate) async fn delete_topic(&self, of: &str) -> Result<()> {
        let (kafka, topic) = (self.kafka()?, self.topic(of));
        for answer in kafka.delete_topics(&[&topic], &AdminOptions::new()).await? {
            answer.map_err(|(topic, code)| anyhow!("cannot delete {topic}: {code}"))?;
        }
        Ok(())
    }

    /// Somebody else writes to a topic.
    pub(crate) async fn write(&self, of: &str, key: &str, value: &str) -> Result<()> {
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .create()?;
        let topic = self.topic(of);
        let record = FutureRecord::to(&topic).key(key).payload(value);
        let sent = producer.send(record, Duration::from_secs(30)).await;
        sent.map_err(|(error, _)| error)?;
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
        Plan::over(self)
    }

    /// A connector reads everything once, and is down.
    pub(crate) async fn read_once(&self) -> Result<()> {
        let connector = self.connector().start()?;
        connector.ready().await?;
        connector.kill().await;
        Ok(())
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
