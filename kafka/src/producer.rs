//! The one writer of a source's topics.

use crate::{Checkpoint, KafkaConfig, Offsets};

/// Sends in transactions, each begun by its first event and ended by a checkpoint.
#[derive(Debug)]
pub struct Producer;

/// After any of these the producer is to be dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProducerError {
    #[error("a newer producer of this name exists")]
    Fenced,
}

impl ProducerError {
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced)
    }
}

impl Producer {
    pub async fn connect(
        _config: &KafkaConfig,
        _transactional_id: &str,
    ) -> Result<Self, ProducerError> {
        unimplemented!()
    }

    /// Sends an event; waits while the local queue is full.
    pub async fn send(
        &mut self,
        _topic: &str,
        _key: &[u8],
        _value: Option<&[u8]>,
        _headers: &[(&str, &[u8])],
    ) -> Result<(), ProducerError> {
        unimplemented!()
    }

    /// Waits until every send was acknowledged; per partition the offset after the last event of
    /// this transaction.
    pub async fn delivered(&mut self) -> Result<Offsets, ProducerError> {
        unimplemented!()
    }

    /// Sends the checkpoint, awaits it and commits.
    pub async fn commit(
        &mut self,
        _topic: &str,
        _record: &Checkpoint,
    ) -> Result<(), ProducerError> {
        unimplemented!()
    }

    #[must_use]
    pub fn events_in_transaction(&self) -> usize {
        unimplemented!()
    }

    #[must_use]
    pub fn bytes_in_transaction(&self) -> usize {
        unimplemented!()
    }
}
