//! What is demanded of topics, without a broker.

use proptest::prelude::*;

use super::*;

fn config() -> KafkaConfig {
    KafkaConfig::new("broker:9092", 3)
}

proptest! {
    #[test]
    fn what_a_new_topic_gets_is_what_the_check_demands(
        lateness in 1000..10 * LATENESS_MAX_MS,
        replicas in 1..9_i32,
        kind in prop::sample::select(vec![Kind::Table, Kind::Checkpoint, Kind::Quarantine]),
    ) {
        let mut config = KafkaConfig::new("broker:9092", replicas);
        config.lateness_max_ms = lateness;
        let required = required(&config, kind);
        let made: std::collections::BTreeMap<_, _> = required
            .iter()
            .map(|(name, must)| (*name, must.value()))
            .collect();
        let found = deviations(&config, "t", &required, |name| made.get(name).cloned());
        prop_assert_eq!(found, Vec::<String>::new());
    }
}

#[test]
fn a_week_and_a_month_are_the_defaults() {
    let settings = required(&config(), Kind::Table);
    let value = |name: &str| {
        let (_, must) = settings.iter().find(|(found, _)| *found == name).unwrap();
        must.value()
    };
    assert_eq!(value("min.compaction.lag.ms"), "604800000");
    assert_eq!(value("delete.retention.ms"), "604800000");
    assert_eq!(value("max.compaction.lag.ms"), "2592000000");
    assert_eq!(value("min.insync.replicas"), "2");
}

#[test]
fn a_deviation_says_how_to_mend_it() {
    let found = deviations(
        &config(),
        "sales.public.sls_order",
        &[("cleanup.policy", Must::Be("compact"))],
        |_| Some("delete".to_owned()),
    );
    assert_eq!(
        found,
        [
            "topic sales.public.sls_order: cleanup.policy is delete, must be compact; mend it \
             with `kafka-configs.sh --bootstrap-server broker:9092 --alter --entity-type \
             topics --entity-name sales.public.sls_order --add-config cleanup.policy=compact`"
        ]
    );
}

#[test]
fn longer_lags_and_more_copies_are_welcome() {
    for (must, good, bad) in [
        (Must::BeAtLeast(10), "10", "9"),
        (Must::BeAtLeast(10), "11", "unset"),
        (Must::BeAtMost(10), "10", "11"),
        (Must::BeAtMost(10), "9", ""),
    ] {
        assert!(must.allows(good) && !must.allows(bad), "{must:?}");
    }
    let layout = Layout {
        partitions: 7,
        replicas: 4,
    };
    assert!(layout_deviations(&config(), "t", Kind::Table, layout).is_empty());
}

#[test]
fn a_checkpoint_topic_of_two_partitions_and_missing_copies_are_refused() {
    let layout = Layout {
        partitions: 2,
        replicas: 1,
    };
    let found = layout_deviations(&config(), "t", Kind::Checkpoint, layout);
    assert_eq!(found.len(), 2, "{found:?}");
}
