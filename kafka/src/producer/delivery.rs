//! Which sends were acknowledged, and at which offsets.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{DeliveryResult, ProducerContext};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::checkpoint::Offsets;
use crate::client;

/// Shared by a producer and librdkafka's callbacks.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    outstanding: AtomicUsize,
    /// Signalled when nothing is outstanding, and at an error.
    settled: Notify,
    /// Signalled at each acknowledgement.
    room: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    offsets: Offsets,
    error: Option<KafkaError>,
}

impl Deliveries {
    pub(super) fn sent(&self) {
        self.outstanding.fetch_add(1, Ordering::AcqRel);
    }

    /// Undoes `sent`. Signals nothing: no room was made, and the sender itself is the only one
    /// who could be waiting.
    pub(super) fn not_sent(&self) {
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
    }

    /// Completes when a send that was outstanding when this was called no longer is.
    pub(super) fn room(&self) -> Notified<'_> {
        self.room.notified()
    }

    /// Waits until every send was acknowledged, or one failed.
    pub(super) async fn none_outstanding(&self) -> Result<(), KafkaError> {
        loop {
            let settled = self.settled.notified();
            if let Some(error) = self.lock().error.clone() {
                return Err(error);
            }
            if self.outstanding.load(Ordering::Acquire) == 0 {
                return Ok(());
            }
            settled.await;
        }
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Acquire)
    }

    pub(super) fn offsets(&self) -> Offsets {
        self.lock().offsets.clone()
    }

    pub(super) fn begin_anew(&self) {
        self.lock().offsets.clear();
    }

    fn acknowledged(&self, topic: &str, partition: i32, offset: i64) {
        {
            let mut state = self.lock();
            // Looked up before it is inserted: the name is copied once a transaction.
            match state.offsets.get_mut(topic) {
                Some(partitions) => advance(partitions, partition, offset + 1),
                None => advance(
                    state.offsets.entry(topic.to_owned()).or_default(),
                    partition,
                    offset + 1,
                ),
            }
        }
        self.settle_one();
    }

    fn failed(&self, error: KafkaError) {
        self.lock().error.get_or_insert(error);
        self.settle_one();
        self.settled.notify_waiters();
    }

    fn settle_one(&self) {
        if self.outstanding.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settled.notify_waiters();
        }
        self.room.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn advance(partitions: &mut std::collections::BTreeMap<i32, i64>, partition: i32, next: i64) {
    let offset = partitions.entry(partition).or_default();
    *offset = next.max(*offset);
}

/// What librdkafka calls back.
#[derive(Debug)]
pub(super) struct DeliveryContext {
    deliveries: Arc<Deliveries>,
}

impl DeliveryContext {
    pub(super) fn new(deliveries: Arc<Deliveries>) -> Self {
        Self { deliveries }
    }
}

impl ClientContext for DeliveryContext {
    fn error(&self, error: KafkaError, reason: &str) {
        client::report(&error, reason);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            // A retry that the broker knows already, but not where it stands. The checkpoint has
            // to name the place, so the transaction is given up.
            Ok(message) if message.offset() < 0 => {
                let code = RDKafkaErrorCode::OffsetNotAvailable;
                self.deliveries.failed(KafkaError::MessageProduction(code));
            }
            Ok(message) => {
                self.deliveries
                    .acknowledged(message.topic(), message.partition(), message.offset())
            }
            Err((error, _)) => self.deliveries.failed(error.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn offsets_are_those_after_the_last_event_of_each_partition(
            events in prop::collection::vec((0..3_i32, 0..1000_i64), 0..50)
        ) {
            let deliveries = Deliveries::default();
            for (partition, offset) in &events {
                deliveries.sent();
                deliveries.acknowledged("t", *partition, *offset);
            }
            for partition in 0..3 {
                let last = events.iter().filter(|(p, _)| *p == partition).map(|(_, o)| o).max();
                let next = deliveries
                    .offsets()
                    .get("t")
                    .and_then(|partitions| partitions.get(&partition).copied());
                prop_assert_eq!(next, last.map(|offset| offset + 1));
            }
            deliveries.begin_anew();
            prop_assert!(deliveries.offsets().is_empty());
        }
    }

    #[tokio::test]
    async fn waits_for_the_last_acknowledgement() {
        let deliveries = Arc::new(Deliveries::default());
        deliveries.sent();
        deliveries.sent();
        deliveries.acknowledged("t", 0, 4);
        let waiter = tokio::spawn({
            let deliveries = Arc::clone(&deliveries);
            async move { deliveries.none_outstanding().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        deliveries.acknowledged("t", 0, 5);
        assert!(waiter.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn one_failure_fails_the_wait_and_every_later_one() {
        let deliveries = Deliveries::default();
        deliveries.sent();
        deliveries.sent();
        deliveries.failed(KafkaError::MessageProduction(RDKafkaErrorCode::PurgeQueue));
        assert!(deliveries.none_outstanding().await.is_err());
        deliveries.acknowledged("t", 0, 5);
        assert!(deliveries.none_outstanding().await.is_err());
    }
}
