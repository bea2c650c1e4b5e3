//! What can be wrong with topics.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// A topic cannot be used as it is, or Kafka cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    #[error("cannot set up a Kafka client for {bootstrap}; correct [kafka] in the configuration")]
    Client {
        bootstrap: String,
        #[source]
        source: KafkaError,
    },
    #[error("cannot ask Kafka about topic {topic}; is it running at [kafka] bootstrap?")]
    Ask {
        topic: String,
        #[source]
        source: KafkaError,
    },
    #[error(
        "Kafka does not describe topic {topic}{}; allow this user DescribeConfigs on it",
        .code.map(|code| format!(": {code}")).unwrap_or_default()
    )]
    Describe {
        topic: String,
        code: Option<RDKafkaErrorCode>,
    },
    #[error(
        "Kafka refuses to create topic {topic} with {replication_factor} copies: {code}; with \
         fewer brokers than copies set replication_factor under [kafka], else allow this user \
         to create topics or create it yourself"
    )]
    Create {
        topic: String,
        replication_factor: i32,
        code: RDKafkaErrorCode,
    },
    #[error("partitions of topic {topic} have no leader; see the brokers' logs")]
    NoLeader { topic: String },
    #[error("topic {topic} does not exist")]
    Missing { topic: String },
    #[error(
        "topic {topic} has {now} partitions and had {then} when its events were written, so the \
         events of one key would stand in two partitions; partitions cannot be taken away: stop \
         the connector, delete the topic (`kafka-topics.sh --bootstrap-server {bootstrap} \
         --delete --topic {topic}`) and start it, which makes the topic anew, in a new epoch, \
         with `partitions` under [kafka]"
    )]
    PartitionsAdded {
        topic: String,
        then: i32,
        now: i32,
        bootstrap: String,
    },
    #[error(
        "topic {topic} was deleted, or Kafka lost what it held: its partition {partition} ends at \
         {now}, and did at {then}"
    )]
    Shorter {
        topic: String,
        partition: i32,
        then: i64,
        now: i64,
    },
    #[error("{}", .0.join("\n"))]
    Wrong(Vec<String>),
}

impl TopicError {
    /// Must somebody change something before another try makes sense?
    #[must_use]
    pub fn is_setup(&self) -> bool {
        match self {
            Self::Client { .. }
            | Self::Create { .. }
            | Self::Describe { .. }
            | Self::PartitionsAdded { .. }
            | Self::Wrong(_) => true,
            Self::Ask { .. }
            | Self::NoLeader { .. }
            | Self::Missing { .. }
            | Self::Shorter { .. } => false,
        }
    }
}
