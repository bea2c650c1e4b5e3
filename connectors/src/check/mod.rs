//! What must hold before a connector starts, and what an operator should know: each finding one
//! sentence that says what to do, with the SQL for the source's owner where it is theirs to do.
//!
//! A start asks the source only ([`check`]); the command asks everything ([`examine`]). Neither
//! changes anything.

mod broker;
mod finding;
mod publication;
mod report;
mod source;
mod table;

use std::net::IpAddr;

use links::{AccessError, Endpoint};
use tokio_postgres::SimpleQueryRow;
use tokio_postgres::config::Host;

use crate::config::ConnectorConfig;
use crate::replication::{ReplicationClient, ReplicationConfig};
use crate::source::session::{self, Session, SourceError};

pub use finding::{AtStart, Finding, Severity};
pub use report::Report;
pub(crate) use source::refused;

/// Something that somebody has to put right; trying again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// A check could not be ended, or was and found faults.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("{}", sentences(.0))]
    Faults(Vec<Fault>),
    /// What may be gone with the next try.
    #[error("{}", sentences(.0))]
    NotNow(Vec<Fault>),
    #[error(transparent)]
    Source(#[from] SourceError),
}

fn sentences(faults: &[Fault]) -> String {
    let texts: Vec<_> = faults.iter().map(|fault| fault.0.as_str()).collect();
    texts.join("\n")
}

/// Looks at everything that a connector needs of the source, before a life. Returns what is only to
/// be said.
///
/// # Errors
/// All faults at once; or where the source cannot be asked now.
pub async fn check(config: &ConnectorConfig) -> Result<Vec<Finding>, CheckError> {
    let (postgres, mut findings) = match address(config) {
        Ok(found) => found,
        Err(findings) => {
            let faults = findings.iter().map(|one| Fault(one.to_string()));
            return Err(CheckError::Faults(faults.collect()));
        }
    };
    match Session::connect(&postgres, &[]).await {
        Ok(session) => findings.extend(source::examine(&session, config).await?),
        Err(error) => {
            let finding = source::refused(&postgres, &error);
            if finding.at_start == AtStart::Waits {
                return Err(CheckError::Source(error));
            }
            findings.push(finding);
        }
    }
    let (said, wrong): (Vec<_>, Vec<_>) = findings.into_iter().partition(Finding::is_said_only);
    let faults = |at_start: AtStart| -> Vec<Fault> {
        let some = wrong.iter().filter(|finding| finding.at_start == at_start);
        some.map(|finding| Fault(finding.to_string())).collect()
    };
    match (faults(AtStart::Stops), faults(AtStart::Waits)) {
        (faults, _) if !faults.is_empty() => Err(CheckError::Faults(faults)),
        (_, passing) if !passing.is_empty() => Err(CheckError::NotNow(passing)),
        _ => Ok(said),
    }
}

/// Everything that can be found about configuration, source and Kafka.
pub async fn examine(config: &ConnectorConfig) -> Report {
    let (source, kafka) = tokio::join!(source_findings(config), broker::examine(config));
    let mut findings = source;
    findings.extend(kafka);
    findings.extend(bounds(config));
    Report::new(&config.source, findings)
}

async fn source_findings(config: &ConnectorConfig) -> Vec<Finding> {
    let (postgres, mut findings) = match address(config) {
        Ok(found) => found,
        Err(findings) => return findings,
    };
    let session = match Session::connect(&postgres, &[]).await {
        Ok(session) => session,
        Err(error) => {
            findings.push(source::refused(&postgres, &error));
            return findings;
        }
    };
    match source::examine(&session, config).await {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(
            Finding::wrong("query", "source", error.to_string())
                .advice("see the source's log, and try again"),
        ),
    }
    // What a replication session may do can differ from what another may.
    let may_replicate = !findings
        .iter()
        .any(|finding| finding.code == "replication_right");
    if may_replicate {
        findings.extend(replication(&postgres).await);
    }
    findings
}

/// The way into the source, and what is doubtful about it.
pub(crate) fn address(config: &ConnectorConfig) -> Result<(Endpoint, Vec<Finding>), Vec<Finding>> {
    let endpoint = config.postgres.endpoint().map_err(|error| {
        let (code, place, advice) = match &error {
            AccessError::Url { .. } => (
                "url",
                "postgres.url",
                "write postgres://user:password@host:port/database (TLS: section [postgres.tls])",
            ),
            AccessError::TwoPasswords { .. } => ("password", "postgres.password", "leave one"),
            AccessError::Secret(_) => (
                "password",
                "postgres.password",
                "set postgres.password or postgres.password_file",
            ),
            AccessError::Tls { .. } => ("tls", "postgres.tls", "correct [postgres.tls]"),
        };
        vec![Finding::wrong(code, place, error.to_string()).setting(place, advice)]
    })?;
    let findings = on_the_way(&endpoint).into_iter().collect();
    Ok((endpoint, findings))
}

/// What passes a network that others use must be encrypted, and the server be known.
fn on_the_way(endpoint: &Endpoint) -> Option<Finding> {
    let is_here = |host: &Host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
    };
    if endpoint.get_hosts().iter().all(is_here) {
        return None;
    }
    let cause = if !endpoint.is_encrypted() {
        "passwords and rows go to the source unencrypted"
    } else if endpoint.believes_anybody() {
        "whoever answers in the place of the source is believed"
    } else {
        return None;
    };
    Some(
        Finding::warning("tls_weak", "postgres.tls.mode", cause).setting(
            "postgres.tls.mode",
            "set mode = \"verify-full\" in [postgres.tls], and ca_file to who signed its certificate",
        ),
    )
}

async fn replication(postgres: &Endpoint) -> Option<Finding> {
    let asked = async {
        let config = ReplicationConfig::new(postgres.clone())?;
        ReplicationClient::connect(&config)
            .await?
            .identify_system()
            .await
    };
    let error = asked.await.err()?;
    Some(
        Finding::wrong("replication_session", "postgres.url", error.to_string()).advice(
            "allow replication sessions of this user in pg_hba.conf, and raise max_wal_senders if \
             all are in use",
        ),
    )
}

/// Bounds that only together make no sense.
fn bounds(config: &ConnectorConfig) -> Vec<Finding> {
    let (record, queue) = (
        u64::from(config.kafka.record_bytes_max),
        u64::from(config.kafka.send_queue_kib) * 1024,
    );
    let queue_small = (record > queue).then(|| {
        Finding::warning(
            "send_queue",
            "kafka.send_queue_kib",
            format!(
                "a record may have {record} bytes, but the queue takes {queue}: what is larger goes to \
                 quarantine"
            ),
        )
        .setting(
            "kafka.send_queue_kib",
            format!("set kafka.send_queue_kib to at least {}", record.div_ceil(1024)),
        )
    });
    queue_small
        .into_iter()
        .chain(transaction_time(config))
        .collect()
}

fn transaction_time(config: &ConnectorConfig) -> Option<Finding> {
    let (open_max, timeout) = (
        config.stream.kafka_transaction_ms_max,
        u64::from(config.kafka.transaction_timeout_ms),
    );
    (open_max > timeout / 2).then(|| {
        Finding::warning(
            "transaction_time",
            "stream.kafka_transaction_ms_max",
            format!(
                "a Kafka transaction may be open for {open_max} ms, and the broker aborts it after {timeout} ms"
            ),
        )
        .setting(
            "stream.kafka_transaction_ms_max",
            "set stream.kafka_transaction_ms_max to at most half of kafka.transaction_timeout_ms",
        )
    })
}

fn is_true(row: &SimpleQueryRow, column: usize) -> bool {
    session::text(row, column) == Some("t")
}

fn name(row: &SimpleQueryRow, column: usize) -> &str {
    session::text(row, column).unwrap_or_default()
}
