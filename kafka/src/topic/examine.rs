//! What can be told of Kafka and the topics without changing anything.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{Kind, Layout, TopicError, Topics, deviations, layout_deviations, required};
use crate::client;
use crate::config::KafkaConfig;

/// For a TCP connection to stand.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long librdkafka may be at it before what it said meanwhile is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// For librdkafka to hand on what it has to say.
const WORDS_WAIT: Duration = Duration::from_millis(20);
/// What librdkafka says that is kept.
const WORDS_MAX: usize = 20;

/// An address where no broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadAddress {
    /// `host:port`.
    pub address: String,
    pub reason: String,
}

impl std::fmt::Display for DeadAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no broker answers at {}: {}", self.address, self.reason)
    }
}

/// Kafka could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// None of the addresses of `bootstrap` answers.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Unreachable(Vec<DeadAddress>),
    /// Somebody listens, but does not talk to us.
    #[error("Kafka at {bootstrap} does not answer as it should: {reason}")]
    Refused { bootstrap: String, reason: String },
    /// No client can be made.
    #[error(transparent)]
    Settings(TopicError),
}

/// A topic that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicLayout {
    pub partitions: i32,
    /// Of the partition that has the fewest.
    pub replicas: i32,
}

/// Kafka as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    pub brokers: i32,
    /// Addresses of `bootstrap` where nobody listens, though somebody does at another.
    pub dead_bootstrap: Vec<DeadAddress>,
    /// Addresses that Kafka gives for its brokers and where nobody listens.
    pub dead_brokers: Vec<DeadAddress>,
    /// Each topic asked about that exists.
    pub topics: BTreeMap<String, TopicLayout>,
    /// A sentence per setting that a topic must not have, with what mends it.
    pub deviations: Vec<String>,
}

/// Looks at brokers and topics. Names are full topic names.
///
/// # Errors
/// Where no broker talks to us.
pub async fn observe(
    config: &KafkaConfig,
    tables: &[String],
    checkpoint: &str,
    quarantine: &str,
) -> Result<Observation, Trouble> {
    let addresses = addresses(config);
    let dead_bootstrap = dead(&addresses).await;
    if dead_bootstrap.len() == addresses.len() {
        return Err(Trouble::Unreachable(dead_bootstrap));
    }
    let known = ask(config).await?;
    let dead_brokers = dead(&known.brokers).await;
    let mut observation = Observation {
        brokers: i32::try_from(known.brokers.len()).unwrap_or(i32::MAX),
        dead_bootstrap,
        dead_brokers,
        topics: BTreeMap::new(),
        deviations: Vec::new(),
    };
    let topics = Topics::connect(config).map_err(Trouble::Settings)?;
    let asked = tables.iter().map(|table| (table.as_str(), Kind::Table));
    let others = [
        (checkpoint, Kind::Checkpoint),
        (quarantine, Kind::Quarantine),
    ];
    for (topic, kind) in asked.chain(others) {
        if let Some(layout) = known.topics.get(topic) {
            let found = topics.deviations_of(topic, kind, *layout).await;
            observation.deviations.extend(found);
            observation.topics.insert(
                topic.to_owned(),
                TopicLayout {
                    partitions: layout.partitions,
                    replicas: layout.replicas,
                },
            );
        }
    }
    Ok(observation)
}

impl Topics {
    async fn deviations_of(&self, topic: &str, kind: Kind, layout: Layout) -> Vec<String> {
        let mut found = match self.describe(topic).await {
            Ok(Some(settings)) => {
                let value = |name: &str| settings.get(name).and_then(|one| one.value.clone());
                deviations(&self.config, topic, &required(&self.config, kind), value)
            }
            Ok(None) => vec![format!(
                "topic {topic} is not described; allow this user DescribeConfigs on it"
            )],
            Err(error) => vec![format!("topic {topic}: {error}")],
        };
        found.extend(layout_deviations(&self.config, topic, kind, layout));
        found
    }
}

/// Why Kafka does not answer us; none where it does.
pub async fn trouble(config: &KafkaConfig) -> Option<Trouble> {
    let addresses = addresses(config);
    let dead = dead(&addresses).await;
    if dead.len() == addresses.len() {
        return Some(Trouble::Unreachable(dead));
    }
    ask(config).await.err()
}

fn addresses(config: &KafkaConfig) -> Vec<String> {
    let addresses = config.bootstrap.split(',').map(str::trim);
    addresses.map(str::to_owned).collect()
}

/// What the cluster says of itself.
struct Known {
    /// `host:port` of each broker.
    brokers: Vec<String>,
    topics: BTreeMap<String, Layout>,
}

/// Brokers and topics; a topic that does not exist is not asked for, or some clusters make it.
async fn ask(config: &KafkaConfig) -> Result<Known, Trouble> {
    let words = Words::default();
    // A producer, because an admin client hands on nothing that librdkafka says by itself.
    let asker: BaseProducer<Words> = client::settings(config)
        .create_with_context(words.clone())
        .map_err(|source| {
            Trouble::Settings(TopicError::Client {
                bootstrap: config.bootstrap.clone(),
                source,
            })
        })?;
    let asker = Arc::new(asker);
    let deadline = Instant::now() + client::request_timeout(config);
    loop {
        let asking = Arc::clone(&asker);
        let answer = tokio::task::spawn_blocking(move || {
            let metadata = asking.client().fetch_metadata(None, LOOK);
            asking.poll(WORDS_WAIT);
            Ok(known(&metadata?))
        })
        .await
        .unwrap_or(Err(KafkaError::Canceled));
        let error = match answer {
            Ok(known) => return Ok(known),
            Err(error) => error,
        };
        if words.is_final() || Instant::now() >= deadline {
            return Err(Trouble::Refused {
                bootstrap: config.bootstrap.clone(),
                reason: words.said().unwrap_or_else(|| error.to_string()),
            });
        }
    }
}

fn known(metadata: &Metadata) -> Known {
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    Known {
        brokers: metadata
            .brokers()
            .iter()
            .map(|broker| format!("{}:{}", broker.host(), broker.port()))
            .collect(),
        topics: metadata
            .topics()
            .iter()
            .map(|topic| {
                let partitions = topic.partitions();
                let replicas = partitions.iter().map(|one| count(one.replicas().len()));
                let layout = Layout {
                    partitions: count(partitions.len()),
                    replicas: replicas.min().unwrap_or_default(),
                };
                (topic.name().to_owned(), layout)
            })
            .collect(),
    }
}

/// The addresses where nobody listens.
async fn dead(addresses: &[String]) -> Vec<DeadAddress> {
    let mut probes = tokio::task::JoinSet::new();
    for address in addresses.iter().cloned() {
        probes.spawn(async move {
            let reason = probe(&address).await.err()?;
            Some(DeadAddress { address, reason })
        });
    }
    let mut dead: Vec<_> = probes.join_all().await.into_iter().flatten().collect();
    dead.sort_by(|a, b| a.address.cmp(&b.address));
    dead
}

async fn probe(address: &str) -> Result<(), String> {
    // A port left out is Kafka's.
    let full = match address.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => address.to_owned(),
        _ => format!("{address}:9092"),
    };
    let looked_up = tokio::task::spawn_blocking(move || {
        full.to_socket_addrs()
            .map(|found| found.collect::<Vec<_>>())
    });
    let found = match timeout(CONNECT_MAX, looked_up).await {
        Ok(Ok(found)) => found.map_err(|error| error.to_string())?,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("its name was not resolved in time".to_owned()),
    };
    match timeout(CONNECT_MAX, TcpStream::connect(&found[..])).await {
        Ok(connected) => connected.map(|_| ()).map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} ms", CONNECT_MAX.as_millis())),
    }
}

/// What librdkafka says by itself, kept: a refused handshake is told nowhere else.
#[derive(Debug, Clone, Default)]
struct Words(Arc<Mutex<Vec<Word>>>);

/// A code and its reason.
type Word = (Option<RDKafkaErrorCode>, String);

impl Words {
    /// Will another try be refused like this one?
    fn is_final(&self) -> bool {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        words.iter().any(|(code, _)| {
            use RDKafkaErrorCode as Code;
            matches!(
                code,
                Some(Code::Authentication | Code::SSL | Code::SaslAuthenticationFailed)
            )
        })
    }

    /// The reason that says most.
    fn said(&self) -> Option<String> {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let telling =
            |(code, _): &&Word| !matches!(code, Some(RDKafkaErrorCode::AllBrokersDown) | None);
        let told = words.iter().find(telling).or_else(|| words.first());
        told.map(|(_, reason)| reason.clone())
    }
}

impl ClientContext for Words {
    fn error(&self, error: KafkaError, reason: &str) {
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() < WORDS_MAX {
            words.push((error.rdkafka_error_code(), reason.to_owned()));
        }
    }

    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
}

impl ProducerContext for Words {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
