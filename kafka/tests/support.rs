//! A source with topics of its own on the broker that all tests share.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use kafka::follower::{Event, Follower, FollowerOptions, Standing, Step};
use kafka::producer::Producer;
use kafka::topic::{self, Topics};
use kafka::{Checkpoint, KafkaConfig, Lsn, Offsets, TableState};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use service::fault::in_force;

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const SOURCE: &str = "shop";

/// A source with one table, `public.item`.
pub(crate) struct Source {
    pub(crate) config: KafkaConfig,
    pub(crate) table: String,
    pub(crate) checkpoint: String,
    pub(crate) quarantine: String,
}

impl Source {
    pub(crate) async fn create(name: &str) -> Result<Self> {
        let source = Self::unmade(name).await?;
        source.ensure().await?;
        Ok(source)
    }

    pub(crate) async fn create_with(name: &str, partitions: i32) -> Result<Self> {
        let mut source = Self::unmade(name).await?;
        source.config.partitions = partitions;
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
            quarantine: topic::quarantine(&config, SOURCE),
            config,
        }
    }

    pub(crate) async fn ensure(&self) -> Result<()> {
        let topics = Topics::connect(&self.config)?;
        Ok(topics
            .ensure(std::slice::from_ref(&self.table), &self.checkpoint)
            .await?)
    }

    /// Its quarantine exists only from here on.
    pub(crate) async fn ensure_quarantine(&self) -> Result<()> {
        let topics = Topics::connect(&self.config)?;
        Ok(topics.ensure_quarantine(&self.quarantine).await?)
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(ClientConfig::new()
            .set("bootstrap.servers", &self.config.bootstrap)
            .create()?)
    }

    pub(crate) async fn create_topic(
        &self,
        topic: &str,
        partitions: i32,
        settings: &[(&str, &str)],
    ) -> Result<()> {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let new = settings
            .iter()
            .fold(new, |new, (name, value)| new.set(name, value));
        let admin = self.admin()?;
        for result in admin.create_topics([&new], &AdminOptions::new()).await? {
            result.map_err(|(topic, code)| anyhow!("cannot create {topic}: {code}"))?;
        }
        Ok(())
    }

    pub(crate) async fn delete_topic(&self, topic: &str) -> Result<()> {
        // The client has to outlive its answer, or nobody hears that.
        let admin = self.admin()?;
        for result in admin.delete_topics(&[topic], &AdminOptions::new()).await? {
            result.map_err(|(topic, code)| anyhow!("cannot delete {topic}: {code}"))?;
        }
        Ok(())
    }

    pub(crate) async fn delete_records_before(&self, offset: i64) -> Result<()> {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&self.table, 0, Offset::Offset(offset))?;
        let (admin, options) = (self.admin()?, AdminOptions::new());
        // Of a topic that is only compacted no records are deleted.
        let deletable =
            AlterConfig::new(ResourceSpecifier::Topic(&self.table)).set("cleanup.policy", "delete");
        for result in admin.alter_configs([&deletable], &options).await? {
            result.map_err(|(_, code)| anyhow!("cannot alter {}: {code}", self.table))?;
        }
        let deleted = admin.delete_records(&offsets, &options).await?;
        for one in deleted.elements() {
            one.error()?;
        }
        Ok(())
    }

    /// What a data team's consumer finds in the table's first partition: offset, key, has value.
    pub(crate) fn log(&self) -> Result<Vec<(i64, String, bool)>> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.config.bootstrap)
            .set("group.id", fixtures::unique("log"))
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .create()?;
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(&self.table, 0, Offset::Beginning)?;
        consumer.assign(&partitions)?;
        let mut found = Vec::new();
        loop {
            match consumer.poll(PATIENCE).context("no end of partition")? {
                Ok(message) => {
                    let key = String::from_utf8_lossy(message.key().unwrap_or_default());
                    found.push((
                        message.offset(),
                        key.into_owned(),
                        message.payload().is_some(),
                    ));
                }
                Err(KafkaError::PartitionEOF(_)) => return Ok(found),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where these partitions end, counting what is open.
    pub(crate) fn written(&self, partitions: &Offsets) -> Result<Offsets> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.config.bootstrap)
            .set("isolation.level", "read_uncommitted")
            .create()?;
        let mut written = partitions.clone();
        for (topic, ends) in &mut written {
            for (partition, end) in ends {
                (_, *end) = consumer.fetch_watermarks(topic, *partition, PATIENCE)?;
            }
        }
        Ok(written)
    }

    /// What is committed: partition, offset and value of each record that has one.
    pub(crate) fn records(&self, topic: &str, partitions: i32) -> Result<Vec<(i32, i64, String)>> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.config.bootstrap)
            .set("group.id", fixtures::unique("records"))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .create()?;
        let mut all = TopicPartitionList::new();
        for partition in 0..partitions {
            all.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&all)?;
        let (mut found, mut ends) = (Vec::new(), 0);
        while ends < partitions {
            match consumer.poll(PATIENCE).context("no end of partition")? {
                Ok(message) => {
                    if let Some(value) = message.payload() {
                        let value = String::from_utf8_lossy(value).into_owned();
                        found.push((message.partition(), message.offset(), value));
                    }
                }
                Err(KafkaError::PartitionEOF(_)) => ends += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
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
    pub(crate) quarantine: BTreeMap<i32, i64>,
    pub(crate) lsn: u64,
}

impl<'a> Writer<'a> {
    pub(crate) async fn take_over(source: &'a Source) -> Result<Self> {
        let mut producer = source.producer().await?;
        if in_force("end_hanging") {
            let tables = std::slice::from_ref(&source.table);
            producer.end_hanging(&source.config, SOURCE, tables).await?;
        }
        let last = kafka::follower::last_record(&source.config, SOURCE).await?;
        Ok(Self {
            source,
            producer,
            lsn: last.as_ref().map_or(0, |record| record.position.0),
            quarantine: last
                .as_ref()
                .map(|record| record.quarantine.clone())
                .unwrap_or_default(),
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

    /// What cannot be sent.
    pub(crate) async fn set_aside(&mut self, key: &str) -> Result<()> {
        let topic = &self.source.quarantine;
        Ok(self
            .producer
            .send(topic, key.as_bytes(), Some(b"{}"), &[])
            .await?)
    }

    /// Ends the transaction with a whole checkpoint, and returns that.
    pub(crate) async fn commit(&mut self) -> Result<Checkpoint> {
        self.lsn += 1;
        self.commit_as(self.lsn, self.lsn).await
    }

    pub(crate) async fn commit_as(&mut self, position: u64, reach: u64) -> Result<Checkpoint> {
        let mut delivered = self.producer.delivered().await?;
        let quarantined = delivered.remove(&self.source.quarantine);
        self.quarantine.extend(quarantined.into_iter().flatten());
        merge(&mut self.offsets, delivered);
        let record = Checkpoint {
            quarantine: self.quarantine.clone(),
            ..record(position, reach, self.offsets.clone())
        };
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
        half_sent: None,
        committed_at_us: None,
        current_at_us: None,
        wal_end: Lsn(position),
        offsets,
        quarantine: BTreeMap::new(),
        tables: BTreeMap::from([("public.item".to_owned(), known)]),
    }
}

/// A checkpoint that was taken, with all of its events.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) record: Checkpoint,
    pub(crate) events: Vec<Event>,
    pub(crate) standing: Standing,
}

pub(crate) async fn next_step(follower: &mut Follower) -> Result<Step> {
    let step = tokio::time::timeout(PATIENCE, follower.next()).await;
    Ok(step.context("no step came")??)
}

/// The next checkpoint; fails where the reader is told anything else.
pub(crate) async fn take(follower: &mut Follower) -> Result<Taken> {
    let mut all = Vec::new();
    loop {
        match next_step(follower).await? {
            Step::Events(events) => all.extend(events),
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
                });
            }
            other @ (Step::TooOld | Step::Behind) => bail!("told {other:?}"),
        }
    }
}

/// There is nothing to be waited for: for a while no step comes.
pub(crate) async fn nothing_comes(follower: &mut Follower) -> Result<()> {
    match tokio::time::timeout(Duration::from_secs(2), follower.next()).await {
        Err(_) => Ok(()),
        Ok(step) => bail!("{:?} came", step?),
    }
}

/// Key and value of each event; a tombstone's value is empty.
pub(crate) fn rows(events: &[Event]) -> Vec<(&str, &str)> {
    let text = |bytes| std::str::from_utf8(bytes).unwrap_or("not UTF-8");
    events
        .iter()
        .map(|event| {
            let value = event.value.as_deref().unwrap_or_default();
            (text(&event.key), text(value))
        })
        .collect()
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
