//! A reader of a source's topics that follows its checkpoints and keeps the tables in memory:
//! what a data team would write with our `kafka` crate.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fixtures::stack::Stack;
use kafka::follower::{
    Event, Follower, FollowerError, FollowerOptions, Standing, Step, last_record,
};
use kafka::{Checkpoint, KafkaConfig, Lsn, Position};
use serde_json::{Value, json};

/// How long a reader may take to reach a position.
const REACHED_WITHIN: Duration = Duration::from_secs(120);

/// After a follower failed.
const BETWEEN_FOLLOWERS: Duration = Duration::from_millis(200);

/// Rows by key, as the key's JSON text.
pub type Table = BTreeMap<String, Value>;

/// Follows one source.
#[derive(Debug)]
pub struct Reader {
    source: String,
    follower: Follower,
    /// After the last checkpoint: where a follower that failed is followed by another.
    standing: Standing,
    /// Since when no follower got anywhere.
    failing_since: Option<Instant>,
    config: KafkaConfig,
    tables: BTreeMap<String, Table>,
    /// What the events since the last checkpoint have replaced, newest last.
    undo: Vec<(String, String, Option<Value>)>,
    /// The checkpoint that `tables` stand at, when `undo` is empty.
    taken: Option<Checkpoint>,
    checkpoints: u64,
    /// Is it told to rebuild after seconds?
    may_lag: bool,
    rebuilds: u64,
}

/// Kafka's configuration as the stack's services have it.
///
/// # Errors
/// Where the configuration changed its shape.
pub fn kafka_config(stack: &Stack) -> Result<KafkaConfig> {
    let mut config = json!({
        "bootstrap": stack.bootstrap(),
        "topic_prefix": stack.topic_prefix(),
        "replication_factor": 1,
    });
    if let Some(lateness) = stack.lateness_max_ms() {
        config["lateness_max_ms"] = lateness.into();
    }
    serde_json::from_value(config).context("a KafkaConfig for the tests")
}

fn follow(config: &KafkaConfig, source: &str, standing: &Standing) -> Result<Follower> {
    let options = FollowerOptions {
        // Small, so that parts of a checkpoint occur too.
        step_events_max: 500,
        ..FollowerOptions::default()
    };
    Follower::new(config, source, standing.clone(), options)
        .with_context(|| format!("cannot follow {source}"))
}

impl Reader {
    /// A reader that has nothing yet.
    ///
    /// # Errors
    /// Where Kafka refuses.
    pub fn from_the_beginning(stack: &Stack, source: &str) -> Result<Self> {
        let config = kafka_config(stack)?;
        let standing = Standing::default();
        Ok(Self {
            source: source.to_owned(),
            follower: follow(&config, source, &standing)?,
            standing,
            failing_since: None,
            config,
            tables: BTreeMap::new(),
            undo: Vec::new(),
            taken: None,
            checkpoints: 0,
            may_lag: stack.lateness_max_ms().is_some(),
            rebuilds: 0,
        })
    }

    /// Takes one step. `Some` when a checkpoint is complete: only then the tables are to be looked
    /// at. A broker that is away for a while is waited for.
    ///
    /// # Errors
    /// Where the follower fails for long, or an event is not an envelope.
    pub async fn step(&mut self) -> Result<Option<&Checkpoint>> {
        let step = match self.follower.next().await {
            Ok(step) => step,
            Err(error) => return self.fails(error).await.map(|()| None),
        };
        self.failing_since = None;
        match step {
            Step::Events(events) => {
                self.apply(&events)?;
                Ok(None)
            }
            Step::Checkpoint {
                record,
                events,
                standing,
                ..
            } => {
                self.apply(&events)?;
                self.undo.clear();
                self.standing = standing;
                ensure!(record.is_whole(), "{}: a half checkpoint", self.source);
                if let Some(last) = &self.taken {
                    ensure!(
                        record.at() >= last.at(),
                        "{} goes back from {} to {}",
                        self.source,
                        last.at(),
                        record.at()
                    );
                }
                self.checkpoints += 1;
                Ok(Some(self.taken.insert(record)))
            }
            Step::TooOld => {
                self.undo();
                Ok(None)
            }
            Step::Behind => self.begins_again().map(|()| None),
        }
    }

    /// Takes steps until a checkpoint of the epoch that the topics are in covers `lsn`.
    ///
    /// # Errors
    /// Where that takes too long.
    pub async fn reach(&mut self, lsn: &str) -> Result<()> {
        let lsn: Lsn = lsn.parse()?;
        let last = last_record(&self.config, &self.source).await?;
        let epoch = last.map_or(0, |record| record.epoch);
        let least = Position { epoch, lsn };
        let deadline = Instant::now() + REACHED_WITHIN;
        while self.taken.as_ref().is_none_or(|taken| taken.at() < least) {
            let left = deadline.saturating_duration_since(Instant::now());
            let step = tokio::time::timeout(left, self.step()).await;
            if let Ok(step) = step {
                step?;
            } else {
                let at = self.taken.as_ref().map(Checkpoint::at);
                let last = last_record(&self.config, &self.source).await;
                bail!(
                    "the topics of {} do not reach {lsn}; this reader took {at:?}, the last \
                     record is {last:?}",
                    self.source
                );
            }
        }
        Ok(())
    }

    /// The rows of `schema.table` at the last checkpoint.
    #[must_use]
    pub fn table(&self, name: &str) -> &Table {
        static EMPTY: Table = Table::new();
        self.tables.get(name).unwrap_or(&EMPTY)
    }

    /// The checkpoint that the tables stand at.
    #[must_use]
    pub fn taken(&self) -> Option<&Checkpoint> {
        self.taken.as_ref()
    }

    /// The source that it follows.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// How often it was too far behind, and began again.
    #[must_use]
    pub fn rebuilds(&self) -> u64 {
        self.rebuilds
    }

    /// How many checkpoints were taken.
    #[must_use]
    pub fn checkpoints(&self) -> u64 {
        self.checkpoints
    }

    /// It has to rebuild: where the stack's readers may be behind by seconds only, that happens.
    fn begins_again(&mut self) -> Result<()> {
        ensure!(
            self.may_lag,
            "a reader of {} is behind by days",
            self.source
        );
        self.undo.clear();
        self.tables.clear();
        self.standing = Standing::default();
        self.rebuilds += 1;
        self.follower = follow(&self.config, &self.source, &self.standing)?;
        Ok(())
    }

    /// Another follower goes on from the last checkpoint.
    async fn fails(&mut self, error: FollowerError) -> Result<()> {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() > REACHED_WITHIN {
            return Err(error).with_context(|| format!("cannot follow {}", self.source));
        }
        tokio::time::sleep(BETWEEN_FOLLOWERS).await;
        self.undo();
        self.follower = follow(&self.config, &self.source, &self.standing)?;
        Ok(())
    }

    fn undo(&mut self) {
        while let Some((table, key, before)) = self.undo.pop() {
            let table = self.tables.entry(table).or_default();
            match before {
                Some(row) => table.insert(key, row),
                None => table.remove(&key),
            };
        }
    }

    fn apply(&mut self, events: &[Event]) -> Result<()> {
        for event in events {
            let place = || format!("{} {} at {}", event.topic, event.partition, event.offset);
            let key = String::from_utf8(event.key.to_vec()).with_context(place)?;
            let after = match &event.value {
                None => Value::Null,
                Some(value) => {
                    let mut envelope: Value = serde_json::from_slice(value).with_context(place)?;
                    envelope["after"].take()
                }
            };
            let table = self.tables.entry(event.table.to_string()).or_default();
            let before = match after {
                Value::Null => table.remove(&key),
                row => table.insert(key.clone(), row),
            };
            self.undo.push((event.table.to_string(), key, before));
        }
        Ok(())
    }
}
