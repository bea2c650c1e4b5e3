//! The aggregator's configuration.

use std::collections::BTreeMap;
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

/// The file, before the environment overrides it.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The sources it joins: some of `warehouse`, `accounting`, `sales`. Default all.
    #[serde(default = "all_sources")]
    #[garde(length(min = 1), inner(custom(is_source)))]
    pub sources: Vec<String>,
    #[garde(dive)]
    pub view: ViewConfig,
    #[garde(dive)]
    pub kafka: KafkaConfig,
    #[garde(skip)]
    pub admin: AdminConfig,
    #[serde(default)]
    #[garde(skip)]
    pub log: LogConfig,
    #[serde(default)]
    #[garde(dive)]
    pub apply: ApplyConfig,
    #[serde(default)]
    #[garde(dive)]
    pub verify: VerifyConfig,
    #[serde(default)]
    #[garde(dive)]
    pub discrepancies: DiscrepanciesConfig,
    #[serde(default)]
    #[garde(dive)]
    pub quarantine: QuarantineConfig,
    #[serde(default)]
    #[garde(dive)]
    pub sweep: SweepConfig,
}

/// How the running aggregator compares view and sources all the time, slice by slice. It reports,
/// and mends nothing.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SweepConfig {
    /// Is it done? Mirrors are compared with the sources that `verify.sources` names. Default false.
    #[garde(skip)]
    pub enabled: bool,
    /// Rows a second that are compared, at most; unified tables take a tenth of the time at most, too.
    /// Default 1000.
    #[garde(range(min = 1, max = 1_000_000))]
    pub rows_per_second: u32,
    /// Rows of a slice. Default 500.
    #[garde(range(min = 1, max = 100_000))]
    pub slice_rows: u32,
    /// A round begins so long after the last one began, at least, seconds. Default 60.
    #[garde(range(min = 1, max = 31_536_000))]
    pub round_min_s: u32,
    /// A source that is not known current for so long is left alone, milliseconds. Default 60000.
    #[garde(range(min = 1000, max = 3_600_000))]
    pub stale_after_ms: u32,
}

impl Default for SweepConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            rows_per_second: 1000,
            slice_rows: 500,
            round_min_s: 60,
            stale_after_ms: 60_000,
        }
    }
}

/// What becomes of a table of which much cannot be applied.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QuarantineConfig {
    /// A table with more keys in quarantine than this is suspended: it stands still until it is
    /// mended and read again, `aggregator quarantine resume`. Default 1000.
    #[garde(range(min = 1, max = 100_000))]
    pub suspend_after: u32,
}

impl Default for QuarantineConfig {
    fn default() -> Self {
        Self {
            suspend_after: 1000,
        }
    }
}

/// The terms of the rules that say what does not fit between the systems.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DiscrepanciesConfig {
    /// How long an order may be paid in part, seconds. When it is changed, all discrepancies are
    /// computed at the next start. Default 2592000.
    #[garde(range(min = 1, max = 315_360_000))]
    pub part_paid_max_s: u32,
}

impl DiscrepanciesConfig {
    pub(crate) fn part_paid_max_s(&self) -> i64 {
        self.part_paid_max_s.into()
    }
}

impl Default for DiscrepanciesConfig {
    fn default() -> Self {
        Self {
            part_paid_max_s: 30 * 24 * 3600,
        }
    }
}

/// How `aggregator verify` compares the view with the sources.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyConfig {
    /// By source the way into it. Default none: then only the unified tables can be compared.
    #[garde(dive)]
    pub sources: BTreeMap<String, SourceConfig>,
    /// By source the address of its connector's admin port, `http://HOST:PORT`, for `--repair`.
    /// Default none.
    #[garde(skip)]
    pub connectors: BTreeMap<String, String>,
    /// Rows a second that are read from a source, at most. Default 50000.
    #[garde(range(min = 1, max = 10_000_000))]
    pub rows_per_second: u32,
    /// Rows compared by one hash. Default 5000.
    #[garde(range(min = 1, max = 100_000))]
    pub chunk_rows: u32,
    /// How long the view may take to pass what a source showed, milliseconds. Default 60000.
    #[garde(range(min = 1, max = 3_600_000))]
    pub wait_max_ms: u64,
}

impl VerifyConfig {
    pub(crate) fn wait_max(&self) -> Duration {
        Duration::from_millis(self.wait_max_ms)
    }
}

impl Default for VerifyConfig {
    fn default() -> Self {
        Self {
            sources: BTreeMap::new(),
            connectors: BTreeMap::new(),
            rows_per_second: 50_000,
            chunk_rows: 5000,
            wait_max_ms: 60_000,
        }
    }
}

/// The way into a source, to compare the view with it: its connector's.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE` with the connector's role.
    #[garde(skip)]
    #[schemars(with = "String")]
    pub url: SecretString,
    /// The role's password, where the URL has none.
    #[serde(default)]
    #[garde(skip)]
    #[schemars(with = "Option<String>")]
    pub password: Option<SecretString>,
    /// A file that holds the password, read anew for each connection.
    #[serde(default)]
    #[garde(skip)]
    pub password_file: Option<PathBuf>,
    /// TLS to the source.
    #[serde(default)]
    #[garde(dive)]
    pub tls: TlsConfig,
}

impl SourceConfig {
    /// The way as `section` says it.
    pub(crate) fn access<'a>(&'a self, section: &'a str) -> Access<'a> {
        Access {
            section,
            url: &self.url,
            password: self.password.as_ref(),
            password_file: self.password_file.as_deref(),
            tls: &self.tls,
        }
    }
}

/// Where the view is.
#[derive(Debug, Clone, Default, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ViewConfig {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE` of the database's owner.
    #[garde(skip)]
    #[schemars(with = "String")]
    pub url: SecretString,
    /// The owner's password, where the URL has none. Best set as `TRIBUTARY_VIEW__PASSWORD`.
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
    /// Roles that may read the unified tables. They must exist. Default none.
    #[serde(default)]
    #[garde(skip)]
    pub readers: Vec<String>,
    /// Roles that capture the unified tables. They must exist. Default none.
    #[serde(default)]
    #[garde(skip)]
    pub replicators: Vec<String>,
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

/// The bounds of what is read ahead and applied at once.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApplyConfig {
    /// The most events that one step of a view transaction applies. Default 10000.
    #[garde(range(min = 1, max = 100_000))]
    pub step_events_max: usize,
    /// The most bytes of keys and values of one step. Default 16777216.
    #[garde(range(min = 1024, max = 268_435_456))]
    pub step_bytes_max: usize,
    /// Steps read ahead, a source. Default 2.
    #[garde(range(min = 1, max = 100))]
    pub queue_steps_max: usize,
    /// How long the lock's holder may be silent before another takes over, milliseconds.
    /// Default 3000.
    #[garde(range(min = 500, max = 60_000))]
    pub silence_max_ms: u64,
}

impl Default for ApplyConfig {
    fn default() -> Self {
        Self {
            step_events_max: 10_000,
            step_bytes_max: 16 << 20,
            queue_steps_max: 2,
            silence_max_ms: 3000,
        }
    }
}

impl ApplyConfig {
    pub(crate) fn silence_max(&self) -> Duration {
        Duration::from_millis(self.silence_max_ms)
    }
}

fn all_sources() -> Vec<String> {
    crate::SOURCES.map(str::to_owned).to_vec()
}

fn is_source(source: &str, _: &()) -> garde::Result {
    if crate::SOURCES.contains(&source) {
        Ok(())
    } else {
        let known = crate::SOURCES.join(", ");
        Err(garde::Error::new(format!("is none of {known}")))
    }
}
