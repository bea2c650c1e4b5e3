//! Events on their way into Kafka, in transactions that each end with a record.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kafka::event::Op;
use kafka::producer::{Producer, ProducerError};
use kafka::{Checkpoint, Offsets};
use metrics::{Counter, counter, histogram};
use service::fault;

use crate::captured::Captured;
use crate::error::LifeError;
use crate::status::names;
use crate::tally::Tallies;

/// The fenced producer of this source.
#[derive(Debug)]
pub(crate) struct Delivery {
    producer: Producer,
    checkpoint_topic: String,
    quarantine_topic: String,
    /// Table and reason of each change that went to quarantine since the last record was committed.
    quarantined: Vec<(String, &'static str)>,
    tallies: Tallies,
    events: Counter,
    /// When the open transaction's first event was sent.
    began: Option<Instant>,
    /// What takes the events in Kafka's place.
    #[cfg(feature = "bench")]
    null_sink: Option<crate::bench::NullSink>,
}

impl Delivery {
    pub(crate) fn new(
        producer: Producer,
        checkpoint_topic: String,
        quarantine_topic: String,
    ) -> Self {
        Self {
            producer,
            checkpoint_topic,
            quarantine_topic,
            quarantined: Vec::new(),
            tallies: Tallies::default(),
            events: counter!(names::EVENTS),
            began: None,
            #[cfg(feature = "bench")]
            null_sink: crate::bench::null_sink(),
        }
    }

    /// An event of a row that is there.
    pub(crate) async fn upsert(
        &mut self,
        to: &Captured,
        op: Op,
        key: &[u8],
        event: &[u8],
        headers: &[(&str, &[u8])],
    ) -> Result<(), LifeError> {
        self.send(&to.topic, key, Some(event), headers).await?;
        self.tallies.add(&to.name, op, key.len() + event.len());
        Ok(())
    }

    /// An event of a row that is gone, and the tombstone that lets compaction forget the key.
    pub(crate) async fn delete(
        &mut self,
        to: &Captured,
        key: &[u8],
        event: &[u8],
        headers: &[(&str, &[u8])],
    ) -> Result<(), LifeError> {
        self.send(&to.topic, key, Some(event), headers).await?;
        self.send(&to.topic, key, None, headers).await?;
        let bytes = 2 * key.len() + event.len();
        self.tallies.add(&to.name, Op::Delete, bytes);
        Ok(())
    }

    async fn send(
        &mut self,
        topic: &str,
        key: &[u8],
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Result<(), LifeError> {
        fault::point("connector.before_send").await;
        self.began.get_or_insert_with(Instant::now);
        #[cfg(feature = "bench")]
        if let Some(sink) = &mut self.null_sink {
            sink.take(key, value);
            self.events.increment(1);
            return Ok(());
        }
        self.producer.send(topic, key, value, headers).await?;
        self.events.increment(1);
        fault::point("connector.after_send").await;
        Ok(())
    }

    /// A record of what could not be encoded.
    pub(crate) async fn quarantine(&mut self, key: &[u8], value: &[u8]) -> Result<(), LifeError> {
        self.began.get_or_insert_with(Instant::now);
        let topic = &self.quarantine_topic;
        Ok(self.producer.send(topic, key, Some(value), &[]).await?)
    }

    /// All records of a change have been sent to quarantine.
    pub(crate) fn count_quarantined(&mut self, table: &str, reason: &'static str) {
        self.quarantined.push((table.to_owned(), reason));
    }

    /// The changes that are in quarantine since the last record, which has just been committed:
    /// what an aborted transaction held was never there.
    pub(crate) fn take_quarantined(&mut self) -> Vec<(String, &'static str)> {
        std::mem::take(&mut self.quarantined)
    }

    /// The largest record that can be sent, key and value, bytes.
    pub(crate) fn record_bytes_max(&self) -> usize {
        self.producer.record_bytes_max()
    }

    /// Waits until everything sent is acknowledged; the offsets after it: those of the tables'
    /// topics, and those of the quarantine.
    pub(crate) async fn delivered(
        &mut self,
    ) -> Result<(Offsets, BTreeMap<i32, i64>), ProducerError> {
        let mut offsets = self.producer.delivered().await?;
        let quarantine = offsets.remove(&self.quarantine_topic);
        Ok((offsets, quarantine.unwrap_or_default()))
    }

    /// Ends the transaction with its record; where it ends in each partition.
    pub(crate) async fn commit(&mut self, record: &Checkpoint) -> Result<Offsets, ProducerError> {
        let begun = Instant::now();
        #[cfg(feature = "bench")]
        if let Some(sink) = &mut self.null_sink {
            sink.commit();
            self.tallies.report();
            self.began = None;
            return Ok(Offsets::new());
        }
        let ends = self.producer.commit(&self.checkpoint_topic, record).await?;
        self.tallies.report();
        self.began = None;
        histogram!(names::COMMIT_MS).record(begun.elapsed().as_secs_f64() * 1000.0);
        Ok(ends)
    }

    /// Sent and not yet acknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.producer.unacknowledged()
    }

    /// Events since the last record.
    pub(crate) fn events(&self) -> usize {
        #[cfg(feature = "bench")]
        if let Some(sink) = &self.null_sink {
            return sink.events();
        }
        self.producer.events_in_transaction()
    }

    /// Their bytes.
    pub(crate) fn bytes(&self) -> usize {
        #[cfg(feature = "bench")]
        if let Some(sink) = &self.null_sink {
            return sink.bytes();
        }
        self.producer.bytes_in_transaction()
    }

    /// For how long the transaction has been open.
    pub(crate) fn age(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// Ends the open transaction, if there is one: what was sent in it was never there.
    pub(crate) async fn abort(self) -> Result<(), ProducerError> {
        self.producer.abort().await
    }
}
