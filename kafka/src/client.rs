//! What every client of Kafka here is set to, and where librdkafka's own words go.

use std::time::Duration;

use links::TlsMode;
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use secrecy::ExposeSecret as _;

use crate::config::KafkaConfig;

pub(crate) fn settings(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.bootstrap)
        .set("client.id", "tributary")
        // Small requests go out at once.
        .set("socket.nagle.disable", "true")
        .set("socket.keepalive.enable", "true")
        // A broker that comes back is found within a second (default: 10 s).
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("message.max.bytes", config.record_bytes_max.to_string());
    secure(&mut client, config);
    client
}

/// TLS and SASL. librdkafka reads the files of TLS itself; what it finds wrong with them fails
/// the making of the client.
fn secure(client: &mut ClientConfig, config: &KafkaConfig) {
    let tls = &config.tls;
    let protocol = match (tls.mode == TlsMode::Disable, config.sasl.is_some()) {
        (true, false) => "plaintext",
        (true, true) => "sasl_plaintext",
        (false, false) => "ssl",
        (false, true) => "sasl_ssl",
    };
    client.set("security.protocol", protocol);
    let (verifies, is_full) = (
        tls.mode >= TlsMode::VerifyCa,
        tls.mode == TlsMode::VerifyFull,
    );
    client
        .set("enable.ssl.certificate.verification", verifies.to_string())
        .set(
            "ssl.endpoint.identification.algorithm",
            if is_full { "https" } else { "none" },
        );
    for (key, path) in [
        ("ssl.ca.location", &tls.ca_file),
        ("ssl.certificate.location", &tls.certificate_file),
        ("ssl.key.location", &tls.key_file),
    ] {
        if let Some(path) = path {
            client.set(key, path.display().to_string());
        }
    }
    let Some(sasl) = &config.sasl else { return };
    client
        .set("sasl.mechanism", sasl.mechanism.name())
        .set("sasl.username", &sasl.username);
    match sasl.secret() {
        Ok(password) => _ = client.set("sasl.password", password.expose_secret()),
        // It could be read at the start. Without it no client is made, and the next try reads
        // it again.
        Err(error) => tracing::error!(%error, "no password for Kafka: {error}"),
    }
}

pub(crate) fn request_timeout(config: &KafkaConfig) -> Duration {
    Duration::from_millis(u64::from(config.request_timeout_ms))
}

/// Sends what librdkafka reports by itself to the log.
#[derive(Debug)]
pub(crate) struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        report(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

/// An end of partition is news to its reader only; librdkafka mends the rest by itself or fails
/// the call that it is about.
pub(crate) fn report(error: &KafkaError, reason: &str) {
    if !matches!(error, KafkaError::PartitionEOF(_)) && !reason.contains("reached end of partition")
    {
        tracing::warn!(%error, "Kafka: {reason}");
    }
}
