//! What every client of Kafka here is set to, and where librdkafka's own words go.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

use crate::config::KafkaConfig;

/// The largest record that is sent; topics take as much.
pub(crate) const RECORD_BYTES_MAX: usize = 16 << 20;

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
        .set("message.max.bytes", RECORD_BYTES_MAX.to_string());
    client
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
