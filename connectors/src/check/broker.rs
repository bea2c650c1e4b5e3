//! What a connector needs of Kafka.

use kafka::follower::last_record;
use kafka::topic::examine::{Observation, Trouble, observe};
use kafka::topic::{RECORD_BYTES_MAX, Topics, shorter};

use super::finding::Finding;
use crate::config::ConnectorConfig;
use crate::life::{
    checkpoint_topic, ends_recorded, partitions_added, quarantine_lost, quarantine_topic,
    topic_names,
};

/// Topics besides those of tables: checkpoint and quarantine.
const OTHER_TOPICS: usize = 2;

/// Asks the brokers; nothing is made.
pub(super) async fn examine(config: &ConnectorConfig) -> Vec<Finding> {
    match observe(
        &config.kafka,
        &topic_names(config),
        &checkpoint_topic(config),
        &quarantine_topic(config),
    )
    .await
    {
        Ok(observation) => {
            let mut findings = observed(config, &observation);
            if observation.topics.contains_key(&checkpoint_topic(config)) {
                // What cannot be asked for here a start would say.
                findings.extend(written(config).await.unwrap_or_default());
            }
            findings
        }
        Err(trouble) => troubles(&trouble),
    }
}

/// What was written, against what the topics hold.
async fn written(config: &ConnectorConfig) -> Option<Vec<Finding>> {
    let last = last_record(&config.kafka, &config.source).await.ok()??;
    let topics = Topics::connect(&config.kafka).ok()?;
    let ends = ends_recorded(config, &topics, Some(&last)).await.ok()?;
    let added = partitions_added(config, &topics, &last, &ends);
    let added = added.iter().map(|error| {
        let said = error.to_string();
        let (cause, remedy) = said.split_once("; ").unwrap_or((&said, ""));
        Finding::wrong("partitions_added", "kafka", cause).advice(remedy)
    });
    let lost = shorter(&last.offsets, &ends).map(|error| {
        Finding::warning("topic_lost", "kafka", error.to_string()).advice(
            "nothing needs to be done: the next start begins a new epoch and writes it anew",
        )
    });
    let quarantine = quarantine_lost(config, &last, &ends).map(|error| {
        Finding::warning("quarantine_lost", "kafka", error.to_string()).advice(
            "the next start goes on with it, but who reads it anew does not hear of the changes \
             that it held: if there were any, have their tables read again (connector read --table …)",
        )
    });
    Some(added.chain(lost).chain(quarantine).collect())
}

fn troubles(trouble: &Trouble) -> Vec<Finding> {
    let wrong = |code, place: &str, cause| Finding::wrong(code, place, cause);
    match trouble {
        Trouble::Unreachable(dead) => dead
            .iter()
            .map(|dead| {
                wrong("kafka_unreachable", &dead.address, dead.to_string()).setting(
                    "kafka.bootstrap",
                    "start the broker, open the way to it, or correct kafka.bootstrap",
                )
            })
            .collect(),
        Trouble::Refused { .. } => vec![
            wrong("kafka_refused", "kafka", trouble.to_string()).setting(
                "kafka",
                "correct [kafka] and what the broker's listener asks for (TLS, SASL, rights)",
            ),
        ],
        Trouble::Settings(_) => {
            vec![
                wrong("kafka_settings", "kafka", trouble.to_string())
                    .setting("kafka", "correct [kafka]"),
            ]
        }
    }
}

fn observed(config: &ConnectorConfig, observation: &Observation) -> Vec<Finding> {
    let mut findings = Vec::new();
    for dead in &observation.dead_bootstrap {
        let finding = Finding::warning("kafka_bootstrap", &dead.address, dead.to_string());
        findings.push(finding.setting(
            "kafka.bootstrap",
            "start it, or take it out of kafka.bootstrap",
        ));
    }
    for dead in &observation.dead_brokers {
        let cause = format!("{dead}, which Kafka advertises as a broker");
        let finding = Finding::wrong("kafka_advertised", &dead.address, cause);
        findings.push(finding.advice(
            "start it, or correct the broker's advertised.listeners to what is reachable from here",
        ));
    }
    let copies = config.kafka.replication_factor;
    let brokers = observation.brokers;
    let missing = observation.topics.len() < config.tables.len() + OTHER_TOPICS;
    if brokers < copies && missing {
        let cause = format!(
            "topics are to have {copies} copies, but Kafka has only {brokers} broker{}",
            if brokers == 1 { "" } else { "s" }
        );
        let finding = Finding::wrong("kafka_copies", "kafka.replication_factor", cause);
        findings.push(finding.setting(
            "kafka.replication_factor",
            "start more brokers, or set kafka.replication_factor to what you can lose data with",
        ));
    }
    if brokers >= 3 && copies < 3 {
        let cause = format!(
            "new topics get {copies} cop{} although Kafka has {brokers} brokers",
            if copies == 1 { "y" } else { "ies" }
        );
        let finding = Finding::warning("kafka_few_copies", "kafka.replication_factor", cause);
        findings.push(finding.setting(
            "kafka.replication_factor",
            "set kafka.replication_factor = 3",
        ));
    }
    for deviation in &observation.deviations {
        let (cause, remedy) = deviation.split_once("; ").unwrap_or((deviation, ""));
        let topic = cause.trim_start_matches("topic ");
        let topic = topic.split([':', ' ']).next().unwrap_or(topic);
        let finding = Finding::wrong("kafka_topic", format!("topic {topic}"), cause);
        findings.push(if cause.contains(RECORD_BYTES_MAX) {
            finding.setting("kafka.record_bytes_max", remedy)
        } else {
            finding.advice(remedy)
        });
    }
    findings
}
