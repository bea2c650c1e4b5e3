//! How a replication session is set up and bounded.

use std::time::Duration;

use links::Endpoint;

use super::error::ReplicationError;

/// Settings of every session with a source, replication or reading, so that none of the
/// source's own shows in a value: the text forms of dates, intervals, bytes, floats and money
/// depend on them.
pub const SESSION_SETTINGS: [(&str, &str); 7] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("lc_monetary", "C"),
];

/// Where the source is, and the bounds of the conversation with it.
#[derive(Debug, Clone)]
pub struct ReplicationConfig {
    /// Address, user, password, database; hosts are tried in order.
    pub postgres: Endpoint,
    /// Shown in the source's `pg_stat_replication`. Default `tributary`.
    pub application_name: String,
    /// The server frees the slot of a client that it has not heard for so long. Default 7 s.
    pub wal_sender_timeout: Duration,
    /// Between two statuses when there is nothing new to tell. Default 1 s.
    pub status_interval: Duration,
    /// A server that sends nothing for so long, though asked, is gone. Default 10 s.
    pub read_timeout: Duration,
    /// For a connection to be there, authenticated and ready. Default 10 s.
    pub connect_timeout: Duration,
    /// For a replication command to be answered. Default 30 s.
    pub command_timeout: Duration,
    /// Bytes received and not yet consumed, at most (a row that is larger passes alone).
    /// Default 8 MiB.
    pub buffer_bytes_max: usize,
    /// The largest message taken; PostgreSQL's own limit is 1 GiB. Default 1 GiB.
    pub message_bytes_max: usize,
}

impl ReplicationConfig {
    /// Defaults, for a URL as tokio-postgres takes it, without TLS.
    ///
    /// # Errors
    /// Where the URL does not parse, or names no user or host.
    pub fn from_url(url: &str) -> Result<Self, ReplicationError> {
        let postgres: tokio_postgres::Config = url.parse().map_err(ReplicationError::Url)?;
        Self::new(postgres)
    }

    /// Defaults, for an address that is already parsed.
    ///
    /// # Errors
    /// Where it names no user or host.
    pub fn new(postgres: impl Into<Endpoint>) -> Result<Self, ReplicationError> {
        let postgres = postgres.into();
        if postgres.get_user().is_none() {
            return Err(ReplicationError::UrlIncomplete("a user"));
        }
        if postgres.get_hosts().is_empty() && postgres.get_hostaddrs().is_empty() {
            return Err(ReplicationError::UrlIncomplete("a host"));
        }
        Ok(Self {
            connect_timeout: postgres
                .get_connect_timeout()
                .copied()
                .unwrap_or(Duration::from_secs(10)),
            application_name: postgres
                .get_application_name()
                .unwrap_or("tributary")
                .to_owned(),
            postgres,
            wal_sender_timeout: Duration::from_secs(7),
            status_interval: Duration::from_secs(1),
            read_timeout: Duration::from_secs(10),
            command_timeout: Duration::from_secs(30),
            buffer_bytes_max: 8 << 20,
            message_bytes_max: 1 << 30,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_cannot_work_is_refused_before_anything_is_connected() {
        let config = |url| ReplicationConfig::from_url(url);
        assert!(config("postgres://u:p@h/d").is_ok());
        assert!(matches!(config("http://h"), Err(ReplicationError::Url(_))));
        assert!(matches!(
            config("postgres://u@/d"),
            Err(ReplicationError::UrlIncomplete("a host"))
        ));
        assert!(matches!(
            config("postgres://h/d"),
            Err(ReplicationError::UrlIncomplete("a user"))
        ));
    }

    #[test]
    fn a_password_is_not_shown() {
        let config = ReplicationConfig::from_url("postgres://u:hush@h/d").unwrap();
        assert!(!format!("{config:?}").contains("hush"));
        let error = ReplicationConfig::from_url("postgres://u:hush@h:port/d").unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hush"), "{error:?}");
    }
}
