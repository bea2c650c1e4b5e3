//! The one writer of a source's topics.
//!
//! A transaction here is a fence and a batch: it begins with its first event, ends with a
//! checkpoint, and whoever calls itself the same later ends it and shuts this producer out.
//! Three things of librdkafka shape this module. Its `commit_transaction` waits in quanta of
//! 100 ms while anything is unacknowledged, so every delivery is counted here and awaited
//! before. Once a call has failed nothing certain is known of what the brokers have: so
//! after any error the producer is dropped, which discards what it had not sent, and the owner
//! starts over from the last record that was committed. And a transaction that begins before the
//! markers of the last one of its id are written waits 20 ms: so there are two writers with an id
//! each, which take turns.
//!
//! Two ids are still one writer. A transaction begins once the one before it is decided (the
//! coordinator has answered its commit), so at most one is undecided, and in every partition its
//! records stand behind those of the one before. Until the markers of that one are written, no
//! reader of what is committed sees beyond its first record; so the order in which markers of two
//! transactions are written is nobody's business. A successor takes over both ids before it reads
//! the last record.

mod delivery;
pub mod hanging;
mod writer;

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;

use crate::checkpoint::{self, Checkpoint, Offsets};
use crate::client;
use crate::config::KafkaConfig;

use writer::{Outgoing, Sent, Writer};

/// How long an orderly end may take.
const ABORT_MAX: Duration = Duration::from_secs(2);
/// How often the thread looks whether the last acknowledgement has been put away.
const SETTLE_POLL: Duration = Duration::from_micros(50);

/// Header of a checkpoint: which of the two writers sent it, `0` or `1`.
const WRITER: &str = "writer";
const WRITERS: [&[u8]; 2] = [b"0", b"1"];

/// Room for a record's framing and the names of its headers, bytes.
const RECORD_OVERHEAD: usize = 1024;

/// After any of these the producer is to be dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProducerError {
    /// Somebody else writes now; or the broker ended a transaction that was open too long.
    #[error(
        "fenced while {doing}: another connector took over, or a transaction was open for longer \
         than transaction_timeout_ms"
    )]
    Fenced {
        doing: &'static str,
        #[source]
        source: KafkaError,
    },
    /// The record is larger than topics take.
    #[error("a record of {bytes} bytes for topic {topic} is larger than Kafka takes ({max} bytes)")]
    TooLarge {
        topic: String,
        bytes: usize,
        max: usize,
    },
    /// Another try fails in the same way until somebody changes something.
    #[error("Kafka refuses while {doing}; check [kafka], the user's rights and the topics")]
    Refused {
        doing: &'static str,
        #[source]
        source: KafkaError,
    },
    /// Another producer may succeed.
    #[error("failed while {doing}")]
    Retriable {
        doing: &'static str,
        #[source]
        source: KafkaError,
    },
    /// Kafka did not answer in time; another producer may succeed.
    #[error("no answer from Kafka within {limit_ms} ms while {doing}")]
    TimedOut { doing: &'static str, limit_ms: u128 },
    /// A checkpoint that JSON cannot say.
    #[error("cannot encode the checkpoint")]
    Encode(#[source] serde_json::Error),
}

impl ProducerError {
    /// Does somebody else write now?
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced { .. })
    }

    /// Is this one record's fault, so that another producer can go on without it?
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::TooLarge { .. })
    }

    /// Must somebody change something before another try makes sense?
    #[must_use]
    pub fn is_setup(&self) -> bool {
        match self {
            Self::TooLarge { .. } | Self::Refused { .. } | Self::Encode(_) => true,
            Self::Fenced { .. } | Self::Retriable { .. } | Self::TimedOut { .. } => false,
        }
    }

    /// The one place that decides what an error means.
    fn new(doing: &'static str, source: KafkaError) -> Self {
        use RDKafkaErrorCode as Code;
        match source.rdkafka_error_code() {
            Some(
                Code::Fenced
                | Code::ProducerFenced
                | Code::InvalidProducerEpoch
                | Code::TransactionCoordinatorFenced,
            ) => Self::Fenced { doing, source },
            Some(
                Code::Authentication
                | Code::SaslAuthenticationFailed
                | Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
                | Code::InvalidTransactionTimeout
                | Code::InvalidTopic
                | Code::InvalidRecord
                | Code::InvalidConfig
                | Code::MessageSizeTooLarge
                | Code::MessageBatchTooLarge
                | Code::UnsupportedFeature
                | Code::UnsupportedVersion
                | Code::UnsupportedForMessageFormat
                | Code::UnsupportedCompressionType,
            ) => Self::Refused { doing, source },
            // The library's list of codes is open, so this arm must be: brokers that are away,
            // moving or slow, and what is new to us. A new try is bounded by its owner.
            Some(_) | None => match source {
                KafkaError::ClientConfig(..) | KafkaError::Nul(_) => {
                    Self::Refused { doing, source }
                }
                source => Self::Retriable { doing, source },
            },
        }
    }
}

/// Sends in transactions, each begun by its first event and ended by a checkpoint.
pub struct Producer {
    /// They take turns; nothing of the other is undecided.
    writers: [Writer; 2],
    turn: usize,
    /// Bound of every wait but a takeover's.
    patience: Duration,
    record_bytes_max: usize,
    in_transaction: bool,
    events: usize,
    bytes: usize,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("in_transaction", &self.in_transaction)
            .field("events", &self.events)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Producer {
    /// Fences every older producer of this id and waits until what it left open is aborted, or
    /// what it had decided to commit is committed.
    ///
    /// # Errors
    /// See [`ProducerError`].
    pub async fn connect(
        config: &KafkaConfig,
        transactional_id: &str,
    ) -> Result<Self, ProducerError> {
        let timeout_ms = config.transaction_timeout_ms;
        let mut settings = client::settings(config);
        settings
            .set("transaction.timeout.ms", timeout_ms.to_string())
            .set(
                "message.timeout.ms",
                config.request_timeout_ms.min(timeout_ms).to_string(),
            )
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // An event waits for nobody: batches form by themselves while a request is away.
            .set("linger.ms", "0")
            .set(
                "max.in.flight.requests.per.connection",
                config.requests_in_flight_max.to_string(),
            )
            .set("retry.backoff.ms", "20")
            // As Java's clients choose it.
            .set("partitioner", "murmur2_random")
            .set(
                "queue.buffering.max.kbytes",
                config.send_queue_kib.to_string(),
            )
            .set("queue.buffering.max.messages", "100000");
        let [first, second] = ids(transactional_id);
        let producer = Self {
            writers: [
                Writer::new(&settings, &first)?,
                Writer::new(&settings, &second)?,
            ],
            turn: 0,
            patience: client::request_timeout(config),
            record_bytes_max: (config.record_bytes_max as usize)
                .min(config.send_queue_kib as usize * 1024),
            in_transaction: false,
            events: 0,
            bytes: 0,
        };
        let [first, second] = &producer.writers;
        tokio::try_join!(first.take_over(), second.take_over())?;
        Ok(producer)
    }

    /// Sends an event; waits while the local queue is full. The first one begins a transaction.
    ///
    /// # Errors
    /// See [`ProducerError`].
    pub async fn send(
        &mut self,
        topic: &str,
        key: &[u8],
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Result<(), ProducerError> {
        self.send_to(topic, None, key, value, headers).await
    }

    /// [`Producer::send`]; to this partition, or to that of the key.
    async fn send_to(
        &mut self,
        topic: &str,
        partition: Option<i32>,
        key: &[u8],
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Result<(), ProducerError> {
        let record = Outgoing {
            topic,
            partition,
            key,
            value,
            headers,
        };
        self.enqueue(record).await?;
        self.events += 1;
        self.bytes += record.bytes();
        Ok(())
    }

    /// Waits until every send was acknowledged. Per topic and partition the offset after the last
    /// event of this transaction.
    ///
    /// # Errors
    /// See [`ProducerError`].
    pub async fn delivered(&mut self) -> Result<Offsets, ProducerError> {
        const DOING: &str = "waiting for acknowledgements";
        let waited = tokio::time::timeout(self.patience, self.writer().none_outstanding()).await;
        match waited {
            Ok(Ok(())) => Ok(self.writer().offsets()),
            Ok(Err(error)) => Err(self.writer().root_cause(DOING, error)),
            Err(_) => Err(ProducerError::TimedOut {
                doing: DOING,
                limit_ms: self.patience.as_millis(),
            }),
        }
    }

    /// Sends the checkpoint, awaits it and what was sent before, and commits. The offsets after
    /// the last record of each partition, the checkpoint's too.
    ///
    /// That it is committed does not mean that it can be read: see [`hanging`].
    ///
    /// # Errors
    /// See [`ProducerError`]. After an error in the last step it is not known whether the
    /// transaction is committed; the last record of the topic tells, once the next producer has
    /// connected.
    pub async fn commit(
        &mut self,
        topic: &str,
        record: &Checkpoint,
    ) -> Result<Offsets, ProducerError> {
        const DOING: &str = "committing a transaction";
        let value = serde_json::to_vec(record).map_err(ProducerError::Encode)?;
        self.enqueue(Outgoing {
            topic,
            partition: None,
            key: checkpoint::KEY.as_bytes(),
            value: Some(&value),
            headers: &[(WRITER, WRITERS[self.turn])],
        })
        .await?;
        let offsets = self.delivered().await?;
        let patience = self.patience;
        let ended = self.writer().blocking(DOING, move |client| {
            // The callback of the last acknowledgement ran, but librdkafka counts the message
            // until its thread has returned; a flush that begins before would wait 100 ms.
            let begun = std::time::Instant::now();
            while client.in_flight_count() > 0 && begun.elapsed() < patience {
                std::thread::sleep(SETTLE_POLL);
            }
            client.commit_transaction(patience)
        });
        ended.await?;
        self.writer().begin_anew();
        self.turn = 1 - self.turn;
        self.in_transaction = false;
        (self.events, self.bytes) = (0, 0);
        Ok(offsets)
    }

    /// Ends the open transaction, if there is one, so that readers need not wait for its
    /// timeout: for an orderly stop.
    ///
    /// # Errors
    /// See [`ProducerError`].
    pub async fn abort(mut self) -> Result<(), ProducerError> {
        self.abort_open().await
    }

    async fn abort_open(&mut self) -> Result<(), ProducerError> {
        if !std::mem::take(&mut self.in_transaction) {
            return Ok(());
        }
        let aborted = self.writer().blocking("aborting a transaction", |client| {
            client.abort_transaction(ABORT_MAX)
        });
        aborted.await?;
        self.writer().begin_anew();
        (self.events, self.bytes) = (0, 0);
        Ok(())
    }

    /// The largest record that [`Producer::send`] takes, key and value, bytes. A larger one is
    /// refused before anything is sent, and leaves the producer as it was.
    #[must_use]
    pub fn record_bytes_max(&self) -> usize {
        self.record_bytes_max - RECORD_OVERHEAD
    }

    /// Records sent and not yet acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.writer().outstanding()
    }

    /// Events sent since the last commit.
    #[must_use]
    pub fn events_in_transaction(&self) -> usize {
        self.events
    }

    /// Their keys and values, bytes.
    #[must_use]
    pub fn bytes_in_transaction(&self) -> usize {
        self.bytes
    }

    /// Whose turn it is.
    fn writer(&self) -> &Writer {
        &self.writers[self.turn]
    }

    async fn enqueue(&mut self, record: Outgoing<'_>) -> Result<(), ProducerError> {
        const DOING: &str = "sending an event";
        let bytes = record.bytes();
        if bytes + RECORD_OVERHEAD > self.record_bytes_max {
            return Err(ProducerError::TooLarge {
                topic: record.topic.to_owned(),
                bytes,
                max: self.record_bytes_max(),
            });
        }
        if !self.in_transaction {
            let begun = self.writer().blocking("beginning a transaction", |client| {
                client.begin_transaction()
            });
            begun.await?;
            self.in_transaction = true;
        }
        let deadline = tokio::time::Instant::now() + self.patience;
        loop {
            // Registered before the try, so that room made in between is not missed.
            let room = self.writer().room();
            match self.writer().try_send(record)? {
                Sent::Yes => return Ok(()),
                Sent::QueueIsFull => {
                    metrics::counter!(QUEUE_FULL).increment(1);
                    if tokio::time::timeout_at(deadline, room).await.is_err() {
                        return Err(ProducerError::TimedOut {
                            doing: DOING,
                            limit_ms: self.patience.as_millis(),
                        });
                    }
                }
            }
        }
    }
}

/// Counts how often a send had to wait for the local queue.
pub const QUEUE_FULL: &str = "tributary_kafka_queue_full_total";

/// Says what the producer's metric is.
pub fn describe() {
    metrics::describe_counter!(
        QUEUE_FULL,
        metrics::Unit::Count,
        "times an event waited because kafka.send_queue_kib was full"
    );
}

/// Those of the two writers: the id as given, and a second one. With a rule switched off nobody
/// fences anybody, or nobody the second one.
fn ids(transactional_id: &str) -> [String; 2] {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let own = |id: String, rule: &str| {
        if service::fault::in_force(rule) && service::fault::in_force("fence") {
            return id;
        }
        format!("{id}-{}-{}", std::process::id(), now.as_nanos())
    };
    [
        own(transactional_id.to_owned(), "fence"),
        own(format!("{transactional_id}.2"), "fence_both"),
    ]
}
