//! A source with topics of its own on the broker that all tests share.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kafka::follower::{Event, Follower, FollowerOptions, Standing, Step};
use kafka::producer::Producer;
use kafka::topic::{self, Topics};
use kafka::{Checkpoint, KafkaConfig, Lsn, Offsets, TableState};

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const SOURCE: &str = "shop";

/// A source with one table, `public.item`.
pub(crate) struct Source {
    pub(crate) config: KafkaConfig,
    pub(crate) table: String,
    pub(crate) checkpoint: String,
}

impl Source {
    pub(crate) async fn create(name: &str) -> Result<Self> {
        let source = Self::unmade(name).await?;
        source.ensure().await?;
        Ok(source)
    }

    /// Its topics do not exist yet.
    pub(crate) async fn unmade(name: &str) -> Result<Self> {
        let broker = fixtures::servers().kafka().await?;
        Ok(Self::on(&broker.bootstrap(), name))
    }

    pub(crate) fn on(bootstrap: &str, name: &str) -> Self {
        let mut config = KafkaConfig::new(bootstrap, 1);
        config.topic_prefix = format!("{}.", fixtures::unique(name));
        config.partitions = 2;
        Self {
            table: topic::table(&config, SOURCE, "public", "item"),
            checkpoint: topic::checkpoint(&config, SOURCE),
            config,
        }
    }

    pub(crate) async fn ensure(&self) -> Result<()> {
        let topics = Topics::connect(&self.config)?;
        Ok(topics
            .ensure(std::slice::from_ref(&self.table), &self.checkpoint)
            .await?)
    }

    pub(crate) async fn producer(&self) -> Result<Producer> {
        let id = topic::transactional_id(&self.config, SOURCE);
        Ok(Producer::connect(&self.config, &id).await?)
    }

    pub(crate) fn follower(&self) -> Result<Follower> {
        self.follower_from(Standing::default(), FollowerOptions::default())
    }

    pub(crate) fn follower_from(
        &self,
        standing: Standing,
        options: FollowerOptions,
    ) -> Result<Follower> {
        Ok(Follower::new(&self.config, SOURCE, standing, options)?)
    }
}

/// The connector's part: sends rows and ends each transaction with what it says.
pub(crate) struct Writer<'a> {
    pub(crate) source: &'a Source,
    pub(crate) producer: Producer,
    pub(crate) offsets: Offsets,
    pub(crate) lsn: u64,
}

impl<'a> Writer<'a> {
    pub(crate) async fn take_over(source: &'a Source) -> Result<Self> {
        let producer = source.producer().await?;
        let last = kafka::follower::last_record(&source.config, SOURCE).await?;
        Ok(Self {
            source,
            producer,
            lsn: last.as_ref().map_or(0, |record| record.position.0),
            offsets: last.map(|record| record.offsets).unwrap_or_default(),
        })
    }

    pub(crate) async fn send(&mut self, key: &str, value: Option<&str>) -> Result<()> {
        let value = value.map(str::as_bytes);
        let topic = &self.source.table;
        Ok(self
            .producer
            .send(topic, key.as_bytes(), value, &[])
            .await?)
    }

    /// Ends the transaction with a whole checkpoint, and returns that.
    pub(crate) async fn commit(&mut self) -> Result<Checkpoint> {
        self.lsn += 1;
        self.commit_as(self.lsn, self.lsn).await
    }

    pub(crate) async fn commit_as(&mut self, position: u64, reach: u64) -> Result<Checkpoint> {
        merge(&mut self.offsets, self.producer.delivered().await?);
        let record = record(position, reach, self.offsets.clone());
        self.producer
            .commit(&self.source.checkpoint, &record)
            .await?;
        Ok(record)
    }
}

fn merge(offsets: &mut Offsets, newer: Offsets) {
    for (topic, partitions) in newer {
        offsets.entry(topic).or_default().extend(partitions);
    }
}

pub(crate) fn record(position: u64, reach: u64, offsets: Offsets) -> Checkpoint {
    let known = TableState {
        columns: vec!["id".to_owned()],
        target: vec!["id".to_owned()],
        ..TableState::default()
    };
    Checkpoint {
        epoch: 7,
        system_identifier: "1".to_owned(),
        timeline: 1,
        position: Lsn(position),
        reach: Lsn(reach),
        committed_at_us: None,
        current_at_us: None,
        wal_end: Lsn(position),
        offsets,
        tables: BTreeMap::from([("public.item".to_owned(), known)]),
    }
}

/// A checkpoint that was taken, with all of its events.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) record: Checkpoint,
    pub(crate) events: Vec<Event>,
    pub(crate) standing: Standing,
    /// How many steps came before the last.
    pub(crate) steps_before: usize,
}

pub(crate) async fn next_step(follower: &mut Follower) -> Result<Step> {
    let step = tokio::time::timeout(PATIENCE, follower.next()).await;
    Ok(step.context("no step came")??)
}

/// The next checkpoint; fails where the reader is told anything else.
pub(crate) async fn take(follower: &mut Follower) -> Result<Taken> {
    let mut all = Vec::new();
    let mut steps_before = 0;
    loop {
        match next_step(follower).await? {
            Step::Events(events) => {
                all.extend(events);
                steps_before += 1;
            }
            Step::Checkpoint {
                record,
                events,
                standing,
                ..
            } => {
                all.extend(events);
                return Ok(Taken {
                    record,
                    events: all,
                    standing,
                    steps_before,
                });
            }
            other @ (Step::TooOld | Step::Behind) => bail!("told {other:?}"),
        }
    }
}

/// Upserts and deletes: the table that a reader of these events has.
pub(crate) fn apply(rows: &mut BTreeMap<String, String>, events: &[Event]) {
    for event in events {
        let key = String::from_utf8_lossy(&event.key).into_owned();
        match &event.value {
            Some(value) => rows.insert(key, String::from_utf8_lossy(value).into_owned()),
            None => rows.remove(&key),
        };
    }
}
