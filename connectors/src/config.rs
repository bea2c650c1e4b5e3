//! The configuration of one connector: which source, which tables, where to.

use std::path::PathBuf;

use garde::Validate;
use kafka::KafkaConfig;
use links::{Access, AccessError, Endpoint, TlsConfig};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use service::admin::AdminConfig;
use service::telemetry::LogConfig;

/// Everything that a connector is told. The shipped files `connectors/*.toml` name every key.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectorConfig {
    /// The logical name of the source: the first part of its topics. Never change it.
    #[garde(pattern(r"^[a-z][a-z0-9_]{0,62}$"))]
    pub source: String,
    /// What is streamed, each as `schema.table`. A table that is added later is read then.
    #[garde(
        length(min = 1, max = 1000),
        inner(custom(qualified)),
        custom(distinct)
    )]
    pub tables: Vec<String>,
    /// What becomes of a change that cannot be encoded, or is larger than a record of Kafka:
    /// `quarantine` (it goes to `<source>.quarantine`) or `stop`. Default `quarantine`.
    #[serde(default)]
    #[garde(skip)]
    pub on_undecodable: OnUndecodable,
    /// The source.
    #[garde(dive)]
    pub postgres: PostgresConfig,
    /// Where the topics are.
    #[garde(dive)]
    pub kafka: KafkaConfig,
    /// Where metrics, health and `/status` are served.
    #[garde(skip)]
    pub admin: AdminConfig,
    /// What is logged.
    #[serde(default)]
    #[garde(skip)]
    pub log: LogConfig,
    /// When records are written.
    #[serde(default)]
    #[garde(dive)]
    pub stream: StreamConfig,
    /// How the source is read.
    #[serde(default)]
    #[garde(dive)]
    pub reads: ReadsConfig,
}

/// What becomes of a change that cannot be encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnUndecodable {
    /// It goes to `<source>.quarantine`; the rest goes on.
    #[default]
    Quarantine,
    /// The connector stops.
    Stop,
}

/// The section `[postgres]`.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database`; the password may stand elsewhere.
    #[garde(skip)]
    #[schemars(with = "String")]
    pub url: SecretString,
    /// The user's password, where the URL has none. Best set as `TRIBUTARY_POSTGRES__PASSWORD`.
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
    /// The replication slot; the connector makes it.
    #[garde(pattern(r"^[a-z0-9_]{1,63}$"))]
    pub slot: String,
    /// The publication; the source's owner makes it.
    #[garde(length(min = 1, max = 63))]
    pub publication: String,
    /// A leader that is not heard for so long loses its lock, milliseconds. Default 2500.
    #[serde(default = "lock_timeout_ms")]
    #[garde(range(min = 2000, max = 60_000))]
    pub lock_timeout_ms: u64,
    /// The source frees a slot whose client it has not heard for so long, milliseconds.
    /// Default 7000.
    #[serde(default = "slot_timeout_ms")]
    #[garde(range(min = 2000, max = 60_000))]
    pub slot_timeout_ms: u64,
    /// For a connection to stand, milliseconds. Default 5000.
    #[serde(default = "connect_timeout_ms")]
    #[garde(range(min = 100, max = 60_000))]
    pub connect_timeout_ms: u64,
    /// A new slot waits for every transaction that runs in the source; so long at most,
    /// milliseconds, then it is tried again. Default 600000.
    #[serde(default = "slot_creation_ms_max")]
    #[garde(range(min = 1000, max = 86_400_000))]
    pub slot_creation_ms_max: u64,
    /// Publication and tables are looked at again after so many milliseconds: the log does not
    /// tell everything that can happen to them. Default 60000.
    #[serde(default = "check_ms")]
    #[garde(range(min = 100, max = 3_600_000))]
    pub check_ms: u64,
    /// Bytes received from the slot and not yet handled, at most. Default 8 MiB.
    #[serde(default = "buffer_bytes_max")]
    #[garde(range(min = 65_536, max = 1_073_741_824))]
    pub buffer_bytes_max: usize,
    /// A slot that makes the source keep more WAL than so many bytes is given up, and a new
    /// epoch begins. 0: only the source's own max_slot_wal_keep_size ends it. Default 0.
    #[serde(default)]
    #[garde(skip)]
    pub slot_wal_bytes_max: u64,
    /// The alarm comes when the slot keeps so many hundredths of what it may. Default 50.
    #[serde(default = "slot_wal_alarm_percent")]
    #[garde(range(min = 1, max = 100))]
    pub slot_wal_alarm_percent: u8,
}

impl PostgresConfig {
    /// The way into the source, without what each kind of session adds. Reads the files that
    /// hold secrets and certificates.
    ///
    /// # Errors
    /// Where the URL is none of PostgreSQL's, or a file is not what it should be.
    pub fn endpoint(&self) -> Result<Endpoint, AccessError> {
        let access = Access {
            section: "postgres",
            url: &self.url,
            password: self.password.as_ref(),
            password_file: self.password_file.as_deref(),
            tls: &self.tls,
        };
        let mut endpoint = access.endpoint()?;
        endpoint
            .postgres_mut()
            .connect_timeout(std::time::Duration::from_millis(self.connect_timeout_ms))
            .application_name("tributary");
        Ok(endpoint)
    }
}

/// The section `[stream]`.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StreamConfig {
    /// A source at rest repeats its checkpoint after so many milliseconds. Default 5000.
    #[garde(range(min = 100, max = 600_000))]
    pub heartbeat_ms: u64,
    /// A position that moves without any change is recorded after so many milliseconds.
    /// Default 100.
    #[garde(range(min = 1, max = 60_000))]
    pub idle_record_ms: u64,
    /// While changes keep coming, a record is written so many milliseconds after the last, or
    /// later, so that records take at most about a tenth of the time, until a quarter of
    /// `kafka_transaction_ms_max`; when none is waiting, at once. Default 20.
    #[garde(range(min = 1, max = 5000))]
    pub record_ms: u64,
    /// A Kafka transaction is ended at so many events, also inside a transaction of the
    /// source. Default 20000.
    #[garde(range(min = 1, max = 1_000_000))]
    pub kafka_transaction_events_max: usize,
    /// A Kafka transaction is ended at so many bytes, too. Default 16 MiB.
    #[garde(range(min = 1024, max = 1_073_741_824))]
    pub kafka_transaction_bytes_max: usize,
    /// A Kafka transaction is ended after so many milliseconds, too; well below `kafka.transaction_timeout_ms`.
    /// Default 2000.
    #[garde(range(min = 10, max = 30_000))]
    pub kafka_transaction_ms_max: u64,
    /// When nothing has moved for so many milliseconds that should (the source sends nothing
    /// while its WAL grows, Kafka does not commit, a table read waits for the source), state,
    /// health, metric and log say so. Default 15000.
    #[garde(range(min = 1000, max = 25_000))]
    pub stall_ms: u64,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            heartbeat_ms: 5000,
            idle_record_ms: 100,
            record_ms: 20,
            kafka_transaction_events_max: 20_000,
            kafka_transaction_bytes_max: 16 << 20,
            kafka_transaction_ms_max: 2000,
            stall_ms: 15_000,
        }
    }
}

/// The section `[reads]`.
#[derive(Debug, Clone, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReadsConfig {
    /// Tables, and ranges of one, that are read at once, each in a session of its own.
    /// Default 2.
    #[garde(range(min = 1, max = 16))]
    pub read_workers: usize,
    /// Rows read in a second at most, by all workers together; 0 is without a bound. A read by
    /// command can have a lower bound of its own. Default 0.
    #[garde(skip)]
    pub rows_per_second_max: u32,
    /// A chunk of table reads, all workers together, ends at so many rows. Default 100000.
    #[garde(range(min = 1, max = 1_000_000))]
    pub chunk_rows: usize,
    /// A chunk ends at so many bytes of events, too. Default 64 MiB.
    #[garde(range(min = 1024, max = 1_073_741_824))]
    pub chunk_bytes_max: usize,
    /// A chunk ends after so many milliseconds, too: for so long it holds up the stream. Default 250.
    #[garde(range(min = 10, max = 5000))]
    pub chunk_ms_max: u64,
    /// A read view for values that PostgreSQL did not resend is kept for so many milliseconds
    /// at most. Default 2000.
    #[garde(range(min = 10, max = 60_000))]
    pub read_view_ms_max: u64,
    /// Rows that a kept read view remembers as touched; with more it is dropped.
    /// Default 100000.
    #[garde(range(min = 1, max = 10_000_000))]
    pub read_view_touched_max: usize,
    /// Keys compared with the source at once by a reconciliation. Default 1000.
    #[garde(range(min = 1, max = 10_000))]
    pub reconcile_keys: usize,
    /// A read that waits for a lock of the source's for so many milliseconds steps back and
    /// comes again. Default 1000.
    #[garde(range(min = 10, max = 60_000))]
    pub lock_wait_ms_max: u64,
    /// One statement of a read takes so many milliseconds at most. Default 60000.
    #[garde(range(min = 100, max = 3_600_000))]
    pub statement_ms_max: u64,
}

impl Default for ReadsConfig {
    fn default() -> Self {
        Self {
            read_workers: 2,
            rows_per_second_max: 0,
            chunk_rows: 100_000,
            chunk_bytes_max: 64 << 20,
            chunk_ms_max: 250,
            read_view_ms_max: 2000,
            read_view_touched_max: 100_000,
            reconcile_keys: 1000,
            lock_wait_ms_max: 1000,
            statement_ms_max: 60_000,
        }
    }
}

/// A table's name as `schema.table`, taken apart.
#[must_use]
pub fn split_qualified(name: &str) -> Option<(&str, &str)> {
    name.split_once('.')
        .filter(|(schema, table)| !schema.is_empty() && !table.is_empty())
}

fn qualified(name: &str, (): &()) -> garde::Result {
    let topic = |part: &str| {
        part.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
    };
    match split_qualified(name) {
        Some((schema, table)) if topic(schema) && topic(table) => Ok(()),
        _ => Err(garde::Error::new(format!(
            "{name:?} is not schema.table in letters, digits, _ and - (it names a Kafka topic)"
        ))),
    }
}

fn distinct(tables: &[String], (): &()) -> garde::Result {
    let mut seen = std::collections::BTreeSet::new();
    match tables.iter().find(|table| !seen.insert(table.as_str())) {
        None => Ok(()),
        Some(table) => Err(garde::Error::new(format!("{table} is named twice"))),
    }
}

fn lock_timeout_ms() -> u64 {
    2500
}

fn slot_timeout_ms() -> u64 {
    7000
}

fn connect_timeout_ms() -> u64 {
    5000
}

fn slot_wal_alarm_percent() -> u8 {
    50
}

fn slot_creation_ms_max() -> u64 {
    600_000
}

fn check_ms() -> u64 {
    60_000
}

fn buffer_bytes_max() -> usize {
    8 << 20
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str, text: &str) -> ConnectorConfig {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        service::config::load(&path).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Commented keys are shown with their defaults: taking them out of the comment changes
    /// nothing, and every key is shown.
    #[test]
    fn the_shipped_files_are_valid_and_show_every_key_with_its_default() {
        for (name, text) in [
            ("warehouse", include_str!("../warehouse.toml")),
            ("accounting", include_str!("../accounting.toml")),
            ("sales", include_str!("../sales.toml")),
            ("unified", include_str!("../unified.toml")),
        ] {
            let shipped = load(name, text);
            assert_eq!(shipped.source, name);
            let is_key = |line: &&str| {
                line.strip_prefix("# ").is_some_and(|line| {
                    line.split_once(" = ").is_some_and(|(key, _)| {
                        key.bytes()
                            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                    })
                })
            };
            let shown = text.lines().map(|line| match Some(line).filter(is_key) {
                Some(line) => line.trim_start_matches("# "),
                None => line,
            });
            let shown: Vec<_> = shown.collect();
            let explicit = load(name, &shown.join("\n"));
            assert_eq!(format!("{explicit:?}"), format!("{shipped:?}"));
            for (key, value) in format!("{shipped:#?}").lines().filter_map(|line| {
                let (key, value) = line.trim().split_once(": ")?;
                key.bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_')
                    .then_some((key, value))
            }) {
                let is_shown = |line: &&str| {
                    line.starts_with(&format!("{key} ="))
                        || line.starts_with('[') && line.trim_matches(['[', ']']).ends_with(key)
                        // What has no default stands there as an example.
                        || value == "None," && line.starts_with("# unset: ") && line.contains(key)
                };
                assert!(
                    shown.iter().any(is_shown),
                    "{name}.toml does not show {key}"
                );
            }
        }
    }

    #[test]
    fn names_that_would_share_a_topic_or_are_none_are_refused() {
        for table in [
            "orders",
            "public.",
            ".orders",
            "public.Bestell nr",
            "public.a.b",
        ] {
            assert!(qualified(table, &()).is_err(), "{table}");
        }
        let twice = ["public.a".to_owned(), "public.a".to_owned()];
        assert!(distinct(&twice, &()).is_err());
    }
}
