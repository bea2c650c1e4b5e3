//! The API's configuration: `api.toml`, where every key is documented with unit and default.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use garde::Validate;
use kafka::KafkaConfig;
use links::{Access, TlsConfig};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;
use service::admin::AdminConfig;
use service::telemetry::LogConfig;

#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port of the public API.
    #[garde(skip)]
    pub listen: SocketAddr,
    /// The sources of the view; the ones that `View-Position` always names.
    #[garde(length(min = 1, max = 100), inner(pattern(r"^[a-z][a-z0-9_-]{0,62}$")))]
    pub sources: Vec<String>,
    /// A source that was not known current for longer is `stale`, milliseconds.
    #[serde(default = "defaults::stale_after_ms")]
    #[garde(range(min = 100, max = 60_000))]
    pub stale_after_ms: i64,
    #[garde(dive)]
    pub view: ViewConfig,
    #[garde(dive)]
    pub kafka: KafkaConfig,
    #[serde(default)]
    #[garde(dive)]
    pub cache: CacheConfig,
    #[serde(default)]
    #[garde(dive)]
    pub limits: LimitsConfig,
    #[garde(skip)]
    pub admin: AdminConfig,
    #[serde(default)]
    #[garde(skip)]
    pub log: LogConfig,
}

/// The view's database.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ViewConfig {
    /// PostgreSQL URL, with a role that reads `public` only.
    #[garde(skip)]
    #[schemars(with = "String")]
    pub url: SecretString,
    /// The role's password, where the URL has none. Best set as `TRIBUTARY_VIEW__PASSWORD`.
    #[serde(default)]
    #[garde(skip)]
    #[schemars(with = "Option<String>")]
    pub password: Option<SecretString>,
    /// A file that holds the password, read anew for each connection.
    #[serde(default)]
    #[garde(skip)]
    pub password_file: Option<PathBuf>,
    /// TLS to the view's database.
    #[serde(default)]
    #[garde(dive)]
    pub tls: TlsConfig,
    /// Connections at most.
    #[serde(default = "defaults::view_connections_max")]
    #[garde(range(min = 1, max = 1000))]
    pub connections_max: usize,
    /// A connection is given up after, milliseconds.
    #[serde(default = "defaults::connect_timeout_ms")]
    #[garde(range(min = 10, max = 60_000))]
    pub connect_timeout_ms: u64,
    /// A request waits for a free connection at most, milliseconds.
    #[serde(default = "defaults::acquire_timeout_ms")]
    #[garde(range(min = 10, max = 60_000))]
    pub acquire_timeout_ms: u64,
    /// PostgreSQL gives a statement up after, milliseconds.
    #[serde(default = "defaults::statement_timeout_ms")]
    #[garde(range(min = 10, max = 60_000))]
    pub statement_timeout_ms: u64,
    /// While requests wait for a position, the view's is read this often, milliseconds.
    #[serde(default = "defaults::poll_interval_ms")]
    #[garde(range(min = 1, max = 1000))]
    pub poll_interval_ms: u64,
    /// Whether the database answers is looked at this often, milliseconds.
    #[serde(default = "defaults::watch_interval_ms")]
    #[garde(range(min = 10, max = 60_000))]
    pub watch_interval_ms: u64,
}

/// The cache of single rows, and the feed that evicts from it.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Rows cached at most, in bytes of their JSON and what it takes to keep them.
    #[garde(range(min = 0))]
    pub bytes_max: u64,
    /// A larger row is not cached, bytes of its JSON.
    #[garde(range(min = 1, max = 1 << 30))]
    pub row_bytes_max: u32,
    /// Marks: keys that share one are closed together while one of them changes.
    #[garde(range(min = 1, max = 1 << 24))]
    pub marks: usize,
    /// With no checkpoint for longer, cached rows serve only where the database does not
    /// answer, milliseconds.
    #[garde(range(min = 100, max = 3_600_000))]
    pub silence_max_ms: u64,
    /// Events taken from Kafka at once at most.
    #[garde(range(min = 1, max = 1_000_000))]
    pub step_events_max: usize,
    /// Bytes taken from Kafka at once at most.
    #[garde(range(min = 1 << 10, max = 1 << 30))]
    pub step_bytes_max: usize,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            bytes_max: 64 << 20,
            row_bytes_max: 1 << 20,
            marks: 65_536,
            silence_max_ms: 15_000,
            step_events_max: 10_000,
            step_bytes_max: 16 << 20,
        }
    }
}

/// What one instance takes on.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Connections open at a time; more wait to be accepted.
    #[garde(range(min = 1, max = 1_000_000))]
    pub connections_max: usize,
    /// Requests answered at a time; more get `too_many_requests`.
    #[garde(range(min = 1, max = 1_000_000))]
    pub requests_max: usize,
    /// Requests that wait for a position at a time; more get `too_many_waits`.
    #[garde(range(min = 1, max = 1_000_000))]
    pub waits_max: usize,
    /// A client sends a request's head within, milliseconds.
    #[garde(range(min = 10, max = 600_000))]
    pub header_timeout_ms: u64,
    /// A request's head, bytes.
    #[garde(range(min = 8192, max = 1 << 20))]
    pub header_bytes_max: usize,
    /// Path and query, bytes.
    #[garde(range(min = 64, max = 1 << 16))]
    pub uri_bytes_max: usize,
    /// A request's body, bytes.
    #[garde(range(min = 0, max = 1 << 20))]
    pub body_bytes_max: usize,
    /// A request is given up after, milliseconds, also one that may wait longer.
    #[garde(range(min = 100, max = 600_000))]
    pub request_timeout_ms: u64,
    /// At shutdown, open requests may end within, milliseconds.
    #[garde(range(min = 0, max = 600_000))]
    pub drain_timeout_ms: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            requests_max: 512,
            waits_max: 256,
            header_timeout_ms: 10_000,
            header_bytes_max: 16 << 10,
            uri_bytes_max: 4096,
            body_bytes_max: 16 << 10,
            request_timeout_ms: 20_000,
            drain_timeout_ms: 10_000,
        }
    }
}

impl ViewConfig {
    pub(crate) fn access(&self) -> Access<'_> {
        Access {
            section: "view",
            url: &self.url,
            password: self.password.as_ref(),
            password_file: self.password_file.as_deref(),
            tls: &self.tls,
        }
    }
}

impl CacheConfig {
    /// How long the feed may be silent before cached rows count as old.
    #[must_use]
    pub fn silence_max(&self) -> Duration {
        Duration::from_millis(self.silence_max_ms)
    }
}

mod defaults {
    pub(super) fn stale_after_ms() -> i64 {
        15_000
    }
    pub(super) fn view_connections_max() -> usize {
        16
    }
    pub(super) fn connect_timeout_ms() -> u64 {
        2000
    }
    pub(super) fn acquire_timeout_ms() -> u64 {
        2000
    }
    pub(super) fn statement_timeout_ms() -> u64 {
        5000
    }
    pub(super) fn poll_interval_ms() -> u64 {
        5
    }
    pub(super) fn watch_interval_ms() -> u64 {
        1000
    }
}
