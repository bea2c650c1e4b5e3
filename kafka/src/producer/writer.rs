//! One of the two transactional clients of a producer.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, PurgeConfig, ThreadedProducer};
use tokio::sync::futures::Notified;

use super::ProducerError;
use super::delivery::{Deliveries, DeliveryContext};
use crate::checkpoint::Offsets;

/// How long a successor may take to end what its predecessors left open.
const TAKEOVER_MAX: Duration = Duration::from_secs(60);

const TAKING_OVER: &str = "taking over the transactional id";

pub(super) type Client = ThreadedProducer<DeliveryContext>;

/// A client, and which of its sends were acknowledged.
pub(super) struct Writer {
    client: Option<Arc<Client>>,
    deliveries: Arc<Deliveries>,
}

/// A record on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outgoing<'a> {
    pub(super) topic: &'a str,
    /// None: that of the key.
    pub(super) partition: Option<i32>,
    pub(super) key: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: &'a [(&'a str, &'a [u8])],
}

impl Outgoing<'_> {
    /// Key, value and what the headers hold.
    pub(super) fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(_, value)| value.len()).sum();
        self.key.len() + self.value.map_or(0, <[u8]>::len) + headers
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    QueueIsFull,
}

impl Writer {
    /// Does not connect yet.
    pub(super) fn new(settings: &ClientConfig, id: &str) -> Result<Self, ProducerError> {
        let mut settings = settings.clone();
        let deliveries = Arc::new(Deliveries::default());
        let client = settings
            .set("transactional.id", id)
            .create_with_context(DeliveryContext::new(Arc::clone(&deliveries)))
            .map_err(|source| ProducerError::new(TAKING_OVER, source))?;
        Ok(Self {
            client: Some(Arc::new(client)),
            deliveries,
        })
    }

    /// Fences every older client of this id.
    pub(super) async fn take_over(&self) -> Result<(), ProducerError> {
        self.blocking(TAKING_OVER, |client| client.init_transactions(TAKEOVER_MAX))
            .await
    }

    pub(super) async fn none_outstanding(&self) -> Result<(), KafkaError> {
        self.deliveries.none_outstanding().await
    }

    pub(super) fn outstanding(&self) -> usize {
        self.deliveries.outstanding()
    }

    pub(super) fn offsets(&self) -> Offsets {
        self.deliveries.offsets()
    }

    pub(super) fn room(&self) -> Notified<'_> {
        self.deliveries.room()
    }

    pub(super) fn begin_anew(&self) {
        self.deliveries.begin_anew();
    }

    pub(super) fn try_send(&self, outgoing: Outgoing<'_>) -> Result<Sent, ProducerError> {
        const DOING: &str = "sending an event";
        let client = self.client()?;
        let mut record = BaseRecord::to(outgoing.topic).key(outgoing.key);
        record.partition = outgoing.partition;
        record.payload = outgoing.value;
        let headers = outgoing.headers;
        if !headers.is_empty() {
            let all = OwnedHeaders::new_with_capacity(headers.len());
            record.headers = Some(headers.iter().fold(all, |all, (name, value)| {
                all.insert(Header {
                    key: name,
                    value: Some(*value),
                })
            }));
        }
        self.deliveries.sent();
        match client.send(record) {
            Ok(()) => Ok(Sent::Yes),
            Err((error, _)) => {
                self.deliveries.not_sent();
                match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::QueueFull) => Ok(Sent::QueueIsFull),
                    _ => Err(self.root_cause(DOING, error)),
                }
            }
        }
    }

    /// Runs one of librdkafka's waiting calls, each of which bounds itself, on a thread where
    /// waiting is allowed.
    pub(super) async fn blocking(
        &self,
        doing: &'static str,
        call: impl FnOnce(&Client) -> Result<(), KafkaError> + Send + 'static,
    ) -> Result<(), ProducerError> {
        let client = Arc::clone(self.client()?);
        tokio::task::spawn_blocking(move || call(&client))
            .await
            .unwrap_or(Err(KafkaError::Canceled))
            .map_err(|error| self.root_cause(doing, error))
    }

    /// Fenced, every call and every delivery fails, some with what followed from it only.
    pub(super) fn root_cause(&self, doing: &'static str, error: KafkaError) -> ProducerError {
        let fatal = self.client.as_ref().and_then(|c| c.client().fatal_error());
        match fatal {
            Some((code, _)) => ProducerError::new(doing, KafkaError::Global(code)),
            None => ProducerError::new(doing, error),
        }
    }

    fn client(&self) -> Result<&Arc<Client>, ProducerError> {
        self.client.as_ref().ok_or(ProducerError::Retriable {
            doing: "using a producer that is gone",
            source: KafkaError::Canceled,
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else {
            return;
        };
        client.purge(PurgeConfig::default().queue().inflight());
        // Ending librdkafka's threads can take half a second: not on this one.
        let ended = std::thread::Builder::new()
            .name("kafka-producer-end".to_owned())
            .spawn(move || drop(client));
        if let Err(error) = ended {
            tracing::warn!(%error, "no thread to end a producer on");
        }
    }
}
