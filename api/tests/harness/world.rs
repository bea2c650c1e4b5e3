//! A world of one table that a test has in its hands: the view's database, and the feed.
//!
//! A view transaction moves one of two sources. Its position *names* the state of the view: the
//! epoch is the view's writer, the LSN the number of the transaction. So every answer can be
//! held against the truth: whatever an answer says it is at, its row must be the row of that
//! state. A restored view has the old numbers again, but its next writer begins another epoch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use fixtures::postgres::{Postgres, TEST_PASSWORD};
use fixtures::stack::unified_tables;
use kafka::producer::Producer;
use kafka::topic::{self, Topics};
use kafka::{Checkpoint, KafkaConfig, Lsn, Offsets, TableState};
use serde_json::json;
use tokio_postgres::Client;

/// The sources, in turn.
const SOURCES: [&str; 2] = ["sales", "accounting"];
/// A state of the view: who wrote it and its number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) writer: u64,
    pub(crate) number: u64,
}

impl At {
    /// From a `View-Position`: its latest position names the state.
    pub(crate) fn parse(header: &str) -> Result<Self> {
        let mut latest = Self::default();
        for item in header.split(", ") {
            let (_, position) = item.split_once('=').context("no =")?;
            if position == "none" {
                continue;
            }
            let (writer, lsn) = position.split_once(':').context("no :")?;
            latest = latest.max(Self {
                writer: writer.parse()?,
                number: lsn.parse::<Lsn>()?.0,
            });
        }
        Ok(latest)
    }

    fn source(self) -> &'static str {
        SOURCES[usize::try_from(self.number % 2).unwrap_or(0)]
    }

    /// As a `Min-Position`.
    pub(crate) fn minimum(self) -> String {
        format!("{}={}:{}", self.source(), self.writer, Lsn(self.number))
    }

    fn revision(self) -> String {
        format!("{:010}-{:012}", self.writer, self.number)
    }
}

/// The products of a state, by id.
type Products = BTreeMap<i64, String>;

/// One state of the view.
#[derive(Debug, Clone, Default)]
struct State {
    products: Products,
    /// Per source the state that moved it last.
    moved: BTreeMap<&'static str, At>,
}

/// Every state there ever was.
#[derive(Debug, Clone, Default)]
pub(crate) struct Truth(Arc<Mutex<BTreeMap<At, State>>>);

impl Truth {
    fn states(&self) -> MutexGuard<'_, BTreeMap<At, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses an answer that is not the row of the state it says.
    pub(crate) fn check(&self, id: i64, answered: Option<&str>, at: At) -> Result<()> {
        let states = self.states();
        let state = states
            .get(&at)
            .with_context(|| format!("{at:?} never was"))?;
        let truth = state.products.get(&id).map(String::as_str);
        ensure!(
            answered == truth,
            "product {id} at {at:?}: answered {answered:?}, but it was {truth:?}"
        );
        Ok(())
    }
}

/// What a view transaction changed.
pub(crate) type Changes<'a> = &'a [(i64, Option<&'a str>)];

/// A view transaction that was committed and that the feed can be told.
#[derive(Debug, Clone)]
pub(crate) struct Committed {
    pub(crate) at: At,
    changes: Vec<(i64, Option<String>)>,
}

pub(crate) struct World {
    pub(crate) port: u16,
    pub(crate) database: String,
    pub(crate) kafka: KafkaConfig,
    pub(crate) view: Client,
    pub(crate) truth: Truth,
    /// The state that the database shows.
    pub(crate) at: At,
    pub(crate) feed: Feed,
}

impl World {
    /// On the servers that all tests share.
    pub(crate) async fn new() -> Result<Self> {
        Self::on(fixtures::servers().view().await?).await
    }

    /// On a cluster of the test's own.
    pub(crate) async fn on(server: &Postgres) -> Result<Self> {
        let database = fixtures::servers::database(server, "view").await?;
        let view = server.superuser(&database).await?;
        migrate(&view).await?;
        let broker = fixtures::servers().kafka().await?;
        let mut kafka = KafkaConfig::new(&broker.bootstrap(), 1);
        kafka.topic_prefix = format!("{}.", fixtures::unique("api"));
        kafka.partitions = 2;
        let at = At {
            writer: 1_700_000_000,
            number: 0,
        };
        for source in SOURCES {
            let insert = "INSERT INTO public.positions (source, writer, number, revision) VALUES ($1, $2, 0, '')";
            view.execute(insert, &[&source, &1_700_000_000_i64]).await?;
        }
        let truth = Truth::default();
        truth.states().insert(At::default(), State::default());
        truth.states().insert(at, State::default());
        Ok(Self {
            port: server.port(),
            database,
            feed: Feed::new(&kafka).await?,
            kafka,
            view,
            truth,
            at,
        })
    }

    /// A view transaction: the database shows it, the feed does not tell it yet.
    pub(crate) async fn commit(&mut self, changes: Changes<'_>) -> Result<Committed> {
        let at = At {
            writer: self.at.writer,
            number: self.at.number + 1,
        };
        self.write_as(at, changes).await
    }

    /// A view transaction by this writer and with this number.
    pub(crate) async fn write_as(&mut self, at: At, changes: Changes<'_>) -> Result<Committed> {
        let committed = self.invent(at, changes)?;
        self.show(at).await?;
        Ok(committed)
    }

    /// A view transaction that the database does not show yet, as a replica that lags.
    pub(crate) fn invent(&mut self, at: At, changes: Changes<'_>) -> Result<Committed> {
        let mut states = self.truth.states();
        let mut state = states.get(&self.at).context("the last state")?.clone();
        for (id, name) in changes {
            match name {
                Some(name) => state.products.insert(*id, (*name).to_owned()),
                None => state.products.remove(id),
            };
        }
        state.moved.insert(at.source(), at);
        states.insert(at, state);
        self.at = at;
        let owned = |(id, name): &(i64, Option<&str>)| (*id, name.map(str::to_owned));
        Ok(Committed {
            at,
            changes: changes.iter().map(owned).collect(),
        })
    }

    /// Has the database show a state, in one transaction.
    pub(crate) async fn show(&mut self, at: At) -> Result<()> {
        let state = self.truth.states().get(&at).context("a state")?.clone();
        let transaction = self.view.transaction().await?;
        let ids: Vec<i64> = state.products.keys().copied().collect();
        transaction
            .execute("DELETE FROM public.products WHERE id <> ALL ($1)", &[&ids])
            .await?;
        for (id, name) in &state.products {
            transaction
                .execute(
                    "INSERT INTO public.products (id, name, units_sold, unknown, degraded, revision) \
                     VALUES ($1, $2, 0, '{}', false, $3) \
                     ON CONFLICT (id) DO UPDATE SET name = $2, revision = $3 \
                     WHERE products.name <> $2",
                    &[id, name, &at.revision()],
                )
                .await?;
        }
        for source in SOURCES {
            let moved = state.moved.get(source).copied();
            transaction
                .execute(
                    "UPDATE public.positions SET epoch = $2, lsn = $3, lag_bytes = 0, \
                     current_at = now(), writer = $4, number = $5, revision = $6 WHERE source = $1",
                    &[
                        &source,
                        &moved.map(|at| at.writer.cast_signed()),
                        &moved.map(|at| Lsn(at.number).to_string()),
                        &moved.unwrap_or(at).writer.cast_signed(),
                        &moved.unwrap_or_default().number.cast_signed(),
                        &moved.unwrap_or(at).revision(),
                    ],
                )
                .await?;
        }
        transaction.commit().await?;
        self.at = at;
        Ok(())
    }

    /// Commits, and has the feed tell it.
    pub(crate) async fn change(&mut self, changes: Changes<'_>) -> Result<At> {
        let committed = self.commit(changes).await?;
        self.feed.tell(&committed).await?;
        Ok(committed.at)
    }

    /// The database is restored to an earlier state; whoever writes next begins another epoch.
    pub(crate) async fn restore(&mut self, at: At) -> Result<()> {
        self.show(at).await
    }
}

/// The topics of `unified`, as its connector writes them.
pub(crate) struct Feed {
    config: KafkaConfig,
    producer: Producer,
    offsets: Offsets,
    /// Of the view's database: grows with every record.
    lsn: u64,
    pub(crate) epoch: u64,
    /// What a source's positions say of unified tables, as the connector writes arrays.
    pub(crate) degraded: String,
}

impl Feed {
    async fn new(config: &KafkaConfig) -> Result<Self> {
        let tables = unified_tables()?;
        let topics: Vec<_> = tables.iter().map(|table| topic_of(config, table)).collect();
        let connected = Topics::connect(config)?;
        connected
            .ensure(&topics, &topic::checkpoint(config, "unified"))
            .await?;
        let id = format!("{}unified.test", config.topic_prefix);
        Ok(Self {
            config: config.clone(),
            producer: Producer::connect(config, &id).await?,
            offsets: Offsets::new(),
            lsn: 1,
            epoch: 1_700_000_000,
            degraded: "{}".to_owned(),
        })
    }

    /// Tells what a view transaction changed, its positions, and a checkpoint that covers it.
    pub(crate) async fn tell(&mut self, committed: &Committed) -> Result<()> {
        self.send_rows(committed).await?;
        self.send_positions(committed).await?;
        self.checkpoint(true).await
    }

    /// The same in two Kafka transactions. The first has the positions and a record that is no
    /// checkpoint; a reader must not take anything of it yet.
    pub(crate) async fn tell_first_half(&mut self, committed: &Committed) -> Result<()> {
        self.send_positions(committed).await?;
        self.checkpoint(false).await
    }

    pub(crate) async fn tell_second_half(&mut self, committed: &Committed) -> Result<()> {
        self.send_rows(committed).await?;
        self.checkpoint(true).await
    }

    async fn send_rows(&mut self, committed: &Committed) -> Result<()> {
        for (id, name) in &committed.changes {
            let key = json!({"id": id}).to_string();
            let row = name.as_ref().map(|name| {
                json!({"id": id, "name": name, "units_sold": 0, "unknown": "{}", "degraded": false,
                    "revision": committed.at.revision()})
            });
            let before = row.is_none().then(|| json!({"id": id}));
            let op = if row.is_some() { "u" } else { "d" };
            let value = json!({"before": before, "after": row, "op": op}).to_string();
            self.send("products", &key, Some(&value)).await?;
            if row.is_none() {
                self.send("products", &key, None).await?;
            }
        }
        Ok(())
    }

    async fn send_positions(&mut self, committed: &Committed) -> Result<()> {
        let At { writer, number } = committed.at;
        let source = committed.at.source();
        let key = json!({"source": source}).to_string();
        let after = json!({"source": source, "epoch": writer, "lsn": Lsn(number), "wal_end": Lsn(number),
            "lag_bytes": 0, "committed_at": null, "current_at": "2020-01-01T00:00:00.000000Z",
            "applied_at": null, "writer": writer, "number": number, "degraded": self.degraded,
            "revision": committed.at.revision()});
        let value = json!({"before": null, "after": after, "op": "u"}).to_string();
        self.send("positions", &key, Some(&value)).await
    }

    /// Sends one event; the next checkpoint covers it.
    pub(crate) async fn send(&mut self, table: &str, key: &str, value: Option<&str>) -> Result<()> {
        let topic = topic_of(&self.config, table);
        let value = value.map(str::as_bytes);
        Ok(self
            .producer
            .send(&topic, key.as_bytes(), value, &[])
            .await?)
    }

    /// Ends the Kafka transaction with a record, whole or not.
    pub(crate) async fn checkpoint(&mut self, is_whole: bool) -> Result<()> {
        for (topic, partitions) in self.producer.delivered().await? {
            self.offsets.entry(topic).or_default().extend(partitions);
        }
        self.lsn += 1;
        let known = TableState {
            columns: vec!["id".to_owned()],
            ..TableState::default()
        };
        let record = Checkpoint {
            epoch: self.epoch,
            system_identifier: "1".to_owned(),
            timeline: 1,
            position: Lsn(self.lsn),
            reach: Lsn(self.lsn + u64::from(!is_whole)),
            half_sent: None,
            committed_at_us: None,
            current_at_us: None,
            wal_end: Lsn(self.lsn),
            offsets: self.offsets.clone(),
            quarantine: std::collections::BTreeMap::new(),
            tables: unified_tables()?
                .into_iter()
                .map(|table| (table, known.clone()))
                .collect(),
        };
        let topic = topic::checkpoint(&self.config, "unified");
        self.producer.commit(&topic, &record).await?;
        Ok(())
    }
}

fn topic_of(config: &KafkaConfig, table: &str) -> String {
    let name = table.trim_start_matches("public.");
    topic::table(config, "unified", "public", name)
}

/// The view's schema as the aggregator makes it, and a role that reads as the API's does.
async fn migrate(view: &Client) -> Result<()> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../aggregator/migrations");
    let mut files: Vec<_> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    view.batch_execute("CREATE SCHEMA aggregator").await?;
    for file in files {
        view.batch_execute(&std::fs::read_to_string(&file)?)
            .await
            .with_context(|| file.display().to_string())?;
    }
    // Tests on one cluster share the role, and may make it at the same moment.
    view.batch_execute(&format!(
        "DO $$ BEGIN
             CREATE ROLE api LOGIN PASSWORD '{TEST_PASSWORD}';
         EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
         END $$;
         GRANT USAGE ON SCHEMA public TO api;
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO api"
    ))
    .await?;
    Ok(())
}
