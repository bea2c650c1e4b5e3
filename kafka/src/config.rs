//! Where Kafka is and how its topics are set.

use std::path::PathBuf;

use garde::Validate;
use links::{SecretError, TlsConfig, secret};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::topic::LATENESS_MAX_MS;

/// The section `[kafka]` of every binary's configuration.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// Addresses to begin with, `host:port` with commas between.
    #[garde(length(min = 1))]
    pub bootstrap: String,
    /// Put before every topic name and transactional id, so that several installations can
    /// share a cluster. Default empty.
    #[serde(default)]
    #[garde(pattern(r"^[A-Za-z0-9._-]{0,100}$"))]
    pub topic_prefix: String,
    /// Partitions of a table's topic when it is made; fixed for its life. Default 4.
    #[serde(default = "partitions")]
    #[garde(range(min = 1, max = 1000))]
    pub partitions: i32,
    /// Copies of each topic. Default 3; 1 only where one broker is all there is.
    #[serde(default = "replication_factor")]
    #[garde(range(min = 1, max = 9))]
    pub replication_factor: i32,
    /// A transaction that is open for longer is aborted by the broker, milliseconds.
    /// Default 10000.
    #[serde(default = "transaction_timeout_ms")]
    #[garde(range(min = 1000, max = 60000))]
    pub transaction_timeout_ms: u32,
    /// How far a reader may be behind, and how long a topic keeps every version of a row and
    /// every tombstone, milliseconds. The topics' settings must agree. Default 7 days.
    #[serde(default = "lateness_max_ms")]
    #[garde(range(min = 1000, max = 10 * LATENESS_MAX_MS))]
    pub lateness_max_ms: i64,
    /// Events that are on their way to Kafka at most, KiB; no record can be larger. Default 32768.
    #[serde(default = "send_queue_kib")]
    #[garde(range(min = 64, max = 1_048_576))]
    pub send_queue_kib: u32,
    /// Requests with events that are on their way to one broker at once. With 1, whatever comes
    /// meanwhile goes together, which costs connector and broker least. More help where the broker
    /// is far (milliseconds) and transactions touch many partitions: each has a request of its own.
    /// Default 1.
    #[serde(default = "requests_in_flight_max")]
    #[garde(range(min = 1, max = 5))]
    pub requests_in_flight_max: u32,
    /// A record of Kafka, key, value and headers, has so many bytes at most, and topics take as much:
    /// a larger event goes to quarantine. Default 16 MiB.
    #[serde(default = "record_bytes_max")]
    #[garde(range(min = 65_536, max = 67_108_864))]
    pub record_bytes_max: u32,
    /// Events of one partition that were fetched and not read yet at most, KiB; one request
    /// goes over it. Default 4096.
    #[serde(default = "fetch_queue_kib")]
    #[garde(range(min = 64, max = 1_048_576))]
    pub fetch_queue_kib: u32,
    /// A request to Kafka that has not succeeded after this time, retries included, fails,
    /// milliseconds. Default 10000.
    #[serde(default = "request_timeout_ms")]
    #[garde(range(min = 1000, max = 60000))]
    pub request_timeout_ms: u32,
    /// TLS to the brokers.
    #[serde(default)]
    #[garde(dive)]
    pub tls: TlsConfig,
    /// Who we are to the brokers. Default: nobody, or who the certificate of `tls` is for.
    #[serde(default)]
    #[garde(dive)]
    pub sasl: Option<SaslConfig>,
}

/// The section `[kafka.sasl]`.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields)]
#[garde(custom(has_one_password))]
pub struct SaslConfig {
    /// `SCRAM-SHA-512` (default), `SCRAM-SHA-256`, or `PLAIN`, which shows the broker the password.
    #[serde(default)]
    #[garde(skip)]
    pub mechanism: SaslMechanism,
    /// The user.
    #[garde(length(min = 1))]
    pub username: String,
    /// The user's password. Best set as `TRIBUTARY_KAFKA__SASL__PASSWORD`.
    #[serde(default)]
    #[garde(skip)]
    #[schemars(with = "Option<String>")]
    pub password: Option<SecretString>,
    /// A file that holds the password, read anew for each client.
    #[serde(default)]
    #[garde(skip)]
    pub password_file: Option<PathBuf>,
}

/// How a user proves itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SaslMechanism {
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "PLAIN")]
    Plain,
}

impl SaslMechanism {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::Plain => "PLAIN",
        }
    }
}

impl SaslConfig {
    /// The password, wherever it stands.
    ///
    /// # Errors
    /// Where it stands nowhere, or twice, or its file cannot be read.
    pub fn secret(&self) -> Result<SecretString, SaslError> {
        let file = self.password_file.as_deref();
        secret("kafka.sasl.password", self.password.as_ref(), file)?.ok_or(SaslError::NoPassword)
    }
}

/// Why a user's password is not known.
#[derive(Debug, thiserror::Error)]
pub enum SaslError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("kafka.sasl has no password; set password or password_file")]
    NoPassword,
}

fn has_one_password(sasl: &SaslConfig, (): &()) -> garde::Result {
    sasl.secret()
        .map(|_| ())
        .map_err(|error| garde::Error::new(error.to_string()))
}

impl KafkaConfig {
    /// Defaults, but where `bootstrap` is and how many copies there are.
    #[must_use]
    pub fn new(bootstrap: &str, replication_factor: i32) -> Self {
        Self {
            bootstrap: bootstrap.to_owned(),
            topic_prefix: String::new(),
            partitions: partitions(),
            replication_factor,
            transaction_timeout_ms: transaction_timeout_ms(),
            lateness_max_ms: lateness_max_ms(),
            send_queue_kib: send_queue_kib(),
            requests_in_flight_max: requests_in_flight_max(),
            record_bytes_max: record_bytes_max(),
            fetch_queue_kib: fetch_queue_kib(),
            request_timeout_ms: request_timeout_ms(),
            tls: TlsConfig::default(),
            sasl: None,
        }
    }

    /// In-sync copies that must have a record before it counts: all but one, at least one.
    #[must_use]
    pub fn min_insync_replicas(&self) -> i32 {
        (self.replication_factor - 1).max(1)
    }
}

fn partitions() -> i32 {
    4
}

fn replication_factor() -> i32 {
    3
}

fn transaction_timeout_ms() -> u32 {
    10_000
}

fn lateness_max_ms() -> i64 {
    LATENESS_MAX_MS
}

fn send_queue_kib() -> u32 {
    32_768
}

fn requests_in_flight_max() -> u32 {
    1
}

fn record_bytes_max() -> u32 {
    16 << 20
}

fn fetch_queue_kib() -> u32 {
    4096
}

fn request_timeout_ms() -> u32 {
    10_000
}
