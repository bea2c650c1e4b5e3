//! Creation and check of topics.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kafka::KafkaConfig;
use kafka::topic::{TopicError, Topics};

use crate::support::Source;

async fn refused(source: &Source) -> Result<Vec<String>> {
    let topics = Topics::connect(&source.config)?;
    let tables = std::slice::from_ref(&source.table);
    match topics.ensure(tables, &source.checkpoint).await {
        Err(TopicError::Wrong(sentences)) => Ok(sentences),
        other => bail!("{other:?}"),
    }
}

#[tokio::test]
async fn topics_that_were_created_pass_the_check_and_keep_their_partitions() -> Result<()> {
    let mut source = Source::create("made").await?;
    source.config.partitions = 5;
    source.ensure().await?;
    let topics = Topics::connect(&source.config)?;
    assert_eq!(topics.partitions(&source.table).await?, 2);
    assert_eq!(topics.partitions(&source.checkpoint).await?, 1);
    assert_eq!(topics.ends(&source.table).await?, [(0, 0), (1, 0)].into());
    let missing = topics.partitions("no.such.topic").await;
    assert!(
        matches!(missing, Err(TopicError::Missing { .. })),
        "{missing:?}"
    );
    Ok(())
}

#[tokio::test]
async fn each_wrong_setting_is_refused_with_the_command_that_mends_it() -> Result<()> {
    let source = Source::unmade("wrong").await?;
    source
        .create_topic(&source.table, 2, &[("cleanup.policy", "delete")])
        .await?;
    let sentences = refused(&source).await?;
    let names: Vec<_> = sentences
        .iter()
        .filter_map(|sentence| sentence.split("--add-config ").nth(1))
        .collect();
    assert_eq!(
        names,
        [
            "cleanup.policy=compact`",
            "message.timestamp.type=LogAppendTime`",
            "min.compaction.lag.ms=604800000`",
            "delete.retention.ms=604800000`",
            "max.compaction.lag.ms=2592000000`",
            "max.message.bytes=16777216`, or set record_bytes_max under [kafka] to what it takes: \
             larger events then go to quarantine",
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_checkpoint_topic_of_several_partitions_is_refused() -> Result<()> {
    let source = Source::unmade("parts").await?;
    let settings = [
        ("cleanup.policy", "compact"),
        ("message.timestamp.type", "LogAppendTime"),
    ];
    source
        .create_topic(&source.checkpoint, 3, &settings)
        .await?;
    let sentences = refused(&source).await?;
    assert_eq!(sentences.len(), 1, "{sentences:?}");
    assert!(sentences[0].contains("has 3 partitions, must have 1"));
    Ok(())
}

#[tokio::test]
async fn fewer_brokers_than_copies_is_a_matter_of_setup() -> Result<()> {
    let mut source = Source::unmade("copies").await?;
    source.config.replication_factor = 3;
    let topics = Topics::connect(&source.config)?;
    let refused = topics.ensure(&[], &source.checkpoint).await;
    match refused {
        Err(error @ TopicError::Create { .. }) => {
            assert!(error.is_setup());
            assert!(error.to_string().contains("replication_factor"), "{error}");
        }
        other => bail!("{other:?}"),
    }
    source.config.replication_factor = 1;
    source.ensure().await?;
    source.config.replication_factor = 3;
    let sentences = self::refused(&source).await?;
    let copies = sentences.iter().filter(|s| s.contains("has 1 copies"));
    assert_eq!(copies.count(), 2, "{sentences:?}");
    Ok(())
}

#[tokio::test]
async fn a_broker_that_is_away_is_no_matter_of_setup_and_known_in_time() -> Result<()> {
    let mut config = KafkaConfig::new("127.0.0.1:1", 1);
    config.request_timeout_ms = 1000;
    let begun = Instant::now();
    let asked = Topics::connect(&config)?.ensure(&[], "checkpoint").await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    match asked {
        Err(error @ TopicError::Ask { .. }) => assert!(!error.is_setup()),
        other => bail!("{other:?}"),
    }
    Ok(())
}
