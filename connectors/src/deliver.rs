//! Events on their way into Kafka, in transactions that each end with a record.

use std::time::{Duration, Instant};

use kafka::producer::{Producer, ProducerError};
use kafka::{Checkpoint, Offsets};
use metrics::{counter, histogram};
use service::fault;

use crate::error::LifeError;
use crate::status::names;

/// The fenced producer of this source.
#[derive(Debug)]
pub(crate) struct Delivery {
    producer: Producer,
    checkpoint_topic: String,
    /// When the open transaction's first event was sent.
    began: Option<Instant>,
    /// What takes the events in Kafka's place.
    #[cfg(feature = "bench")]
    null_sink: Option<crate::bench::NullSink>,
}

/// A table's topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// `schema.table`.
    pub(crate) table: &'a str,
    pub(crate) topic: &'a str,
}

impl Delivery {
    pub(crate) fn new(producer: Producer, checkpoint_topic: String) -> Self {
        Self {
            producer,
            checkpoint_topic,
            began: None,
            #[cfg(feature = "bench")]
            null_sink: crate::bench::null_sink(),
        }
    }

    /// An event of a row that is there.
    pub(crate) async fn upsert(
        &mut self,
        target: Target<'_>,
        key: &[u8],
        event: &[u8],
        headers: &[(&str, &[u8])],
    ) -> Result<(), LifeError> {
        self.send(target, key, Some(event), headers).await
    }

    /// An event of a row that is gone, and the tombstone that lets compaction forget the key.
    pub(crate) async fn delete(
        &mut self,
        target: Target<'_>,
        key: &[u8],
        event: &[u8],
        headers: &[(&str, &[u8])],
    ) -> Result<(), LifeError> {
        self.send(target, key, Some(event), headers).await?;
        self.send(target, key, None, headers).await
    }

    async fn send(
        &mut self,
        target: Target<'_>,
        key: &[u8],
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Result<(), LifeError> {
        fault::point("connector.before_send").await;
        self.began.get_or_insert_with(Instant::now);
        #[cfg(feature = "bench")]
        if let Some(sink) = &mut self.null_sink {
            sink.take(key, value);
            counter!(names::EVENTS).increment(1);
            return Ok(());
        }
        let sent = self.producer.send(target.topic, key, value, headers).await;
        sent.map_err(|source| too_large(target, key, source))?;
        counter!(names::EVENTS).increment(1);
        fault::point("connector.after_send").await;
        Ok(())
    }

    /// Waits until everything sent is acknowledged; the offsets after it.
    pub(crate) async fn delivered(&mut self) -> Result<Offsets, ProducerError> {
        self.producer.delivered().await
    }

    /// Ends the transaction with its record.
    pub(crate) async fn commit(&mut self, record: &Checkpoint) -> Result<(), ProducerError> {
        let begun = Instant::now();
        #[cfg(feature = "bench")]
        if let Some(sink) = &mut self.null_sink {
            sink.commit();
            self.began = None;
            return Ok(());
        }
        self.producer.commit(&self.checkpoint_topic, record).await?;
        self.began = None;
        histogram!(names::COMMIT_MS).record(begun.elapsed().as_secs_f64() * 1000.0);
        Ok(())
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

fn too_large(target: Target<'_>, key: &[u8], source: ProducerError) -> LifeError {
    if source.is_too_large() {
        LifeError::TooLarge {
            table: target.table.to_owned(),
            topic: target.topic.to_owned(),
            key: String::from_utf8_lossy(key).into_owned(),
            source: Box::new(source),
        }
    } else {
        LifeError::Producer(source)
    }
}
