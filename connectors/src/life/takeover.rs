//! Takeover: slot, transactional id, what hangs, last record, and whether the epoch lasts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kafka::follower::last_record;
use kafka::producer::Producer;
use kafka::topic::{self, TopicError, Topics, shorter};
use kafka::{Checkpoint, Offsets};
use metrics::counter;
use service::fault::{self, in_force};
use tokio_postgres::error::SqlState;

use super::{quarantine_topic, table_topic};
use crate::config::ConnectorConfig;
use crate::epoch::{Server, Slot};
use crate::error::LifeError;
use crate::progress::{Identity, Progress};
use crate::replication::{
    ReplicationClient, ReplicationConfig, ReplicationError, ReplicationStream,
};
use crate::source::{Catalog, Control};
use crate::status::{State, StatusBoard, names};
use crate::watch::Activity;

/// Between two tries to take a slot that somebody still holds.
const SLOT_RETRY: Duration = Duration::from_millis(100);

/// Of so many tries one also ends the predecessor's stream.
const TRIES_PER_END: u32 = 10;

/// Slot, transactional id, what hangs, last record, in this order; each rule's switch turns two around.
pub(super) async fn take_in_order(
    config: &ConnectorConfig,
    status: &StatusBoard,
    replication: &ReplicationConfig,
    control: &Control,
) -> Result<(Taken, Producer, Option<Checkpoint>), LifeError> {
    let mut early_producer = None;
    if !in_force("slot_before_init") {
        early_producer = Some(connect_producer(config).await?);
    }
    let motion = status.motion();
    motion.begin(Activity::TakingSlot);
    let taken = take_slot(config, status, replication, control).await?;
    fault::point("connector.after_slot").await;
    let mut early_last = None;
    if !in_force("init_before_last") {
        early_last = Some(last_record(&config.kafka, &config.source).await?);
    }
    motion.begin(Activity::TakingProducer);
    fault::point("connector.before_init").await;
    let mut producer = match early_producer {
        Some(producer) => producer,
        None => connect_producer(config).await?,
    };
    if in_force("end_hanging") {
        let tables = super::topic_names(config);
        let ended = producer.end_hanging(&config.kafka, &config.source, &tables);
        let ended = u64::try_from(Box::pin(ended).await?).unwrap_or(u64::MAX);
        counter!(names::HANGING).increment(ended);
    }
    motion.begin(Activity::ReadingLastRecord);
    fault::point("connector.after_init").await;
    let last = match early_last {
        Some(last) => last,
        None => last_record(&config.kafka, &config.source).await?,
    };
    Ok((taken, producer, last))
}

/// The slot, taken or not, and what the server said of itself before.
pub(super) struct Taken {
    pub(super) server: Server,
    pub(super) slot: Option<Slot>,
    pub(super) stream: Option<ReplicationStream>,
}

/// Takes the slot. One that is in use may be a predecessor's, whose connection the server has
/// not given up yet, because it is paused or cut off: it has lost the lock, so its stream is
/// ended. Anybody else's is said once, then waited for.
async fn take_slot(
    config: &ConnectorConfig,
    status: &StatusBoard,
    replication: &ReplicationConfig,
    control: &Control,
) -> Result<Taken, LifeError> {
    let name = &config.postgres.slot;
    let mut tries = 0;
    loop {
        let mut client = ReplicationClient::connect(replication).await?;
        let started = client.server_started().await?;
        control.is_same_server(&started)?;
        let identity = client.identify_system().await?;
        let history = client.timeline_history(identity.timeline).await?;
        let server = Server {
            identity: Identity {
                system_identifier: identity.system_identifier,
                timeline: identity.timeline,
            },
            history,
            flushed: identity.flushed,
        };
        if !control.slot(name).await?.is_some_and(|slot| slot.valid) {
            return Ok(Taken {
                server,
                slot: None,
                stream: None,
            });
        }
        match client.start(name, &config.postgres.publication).await {
            Ok(stream) => {
                let slot = control.slot(name).await?.and_then(|slot| slot.usable());
                return Ok(Taken {
                    server,
                    slot,
                    stream: slot.is_some().then_some(stream),
                });
            }
            Err(error) if is_in_use(&error) => {
                let pid = control.slot(name).await?.and_then(|slot| slot.active_pid);
                if tries % TRIES_PER_END == 0 && in_force("end_predecessors_stream") {
                    control.end_stream(name).await?;
                }
                tries += 1;
                // The predecessor's stream has been ended: a stranger's is worth a word.
                if tries == TRIES_PER_END {
                    let sentence = slot_in_use(name, pid);
                    tracing::warn!("{sentence}");
                    status.set(State::Connecting, Some(sentence));
                }
                status.motion().begin(Activity::TakingSlot);
                tokio::time::sleep(SLOT_RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn slot_in_use(slot: &str, pid: Option<i32>) -> String {
    let pid = pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"));
    format!(
        "the replication slot {slot} is in use by {pid} of the source, maybe a connector that has \
         just ended; if it stays so, stop what uses it, or let the owner run: SELECT \
         pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}';"
    )
}

fn is_in_use(error: &ReplicationError) -> bool {
    error.sql_state() == Some(&SqlState::OBJECT_IN_USE)
}

/// Drops the slot, if there is one, as soon as nobody streams from it.
pub(super) async fn drop_slot(client: &mut ReplicationClient, slot: &str) -> Result<(), LifeError> {
    loop {
        match client.drop_slot(slot).await {
            Ok(()) => return Ok(()),
            Err(error) if error.sql_state() == Some(&SqlState::UNDEFINED_OBJECT) => return Ok(()),
            Err(error) if is_in_use(&error) => tokio::time::sleep(SLOT_RETRY).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a new epoch is begun with.
pub(super) struct Beginning<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) last: Option<&'a Checkpoint>,
    pub(super) server: &'a Server,
    /// Where the topics end.
    pub(super) ends: &'a Offsets,
}

impl Beginning<'_> {
    /// Nothing is known any more: a new slot, all tables, and what else is in the topics.
    pub(super) async fn begin_epoch(
        self,
        config: &ConnectorConfig,
        replication: &ReplicationConfig,
        stream: Option<ReplicationStream>,
    ) -> Result<(Progress, ReplicationStream), LifeError> {
        let slot = &config.postgres.slot;
        if let Some(stream) = stream
            && let Err(error) = stream.close().await
        {
            tracing::debug!(%error, "the slot's stream did not end in order");
        }
        let mut client = ReplicationClient::connect(replication).await?;
        drop_slot(&mut client, slot).await?;
        fault::point("connector.after_drop").await;
        tracing::info!(
            slot,
            "making slot {slot}; it waits for every transaction that runs now"
        );
        let limit = Duration::from_millis(config.postgres.slot_creation_ms_max);
        let created = client.create_slot(slot, limit).await?;
        fault::point("connector.after_create").await;
        let stream = client.start(slot, &config.postgres.publication).await?;
        let ends = config.tables.iter().filter_map(|table| {
            let ends = self.ends.get(&table_topic(config, table))?;
            Some((table.clone(), ends.clone()))
        });
        let now_s = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let last = self.last.map(|last| Checkpoint {
            offsets: held(&last.offsets, self.ends),
            ..last.clone()
        });
        let progress = Progress::begin_epoch(
            last.as_ref(),
            now_s,
            self.server.identity.clone(),
            created.consistent_point,
            &self.catalog.columns_by_table(),
            &ends.collect(),
        );
        Ok((progress, stream))
    }
}

/// What of recorded offsets the topics still hold: a reader would wait for the rest for ever.
fn held(recorded: &Offsets, ends: &Offsets) -> Offsets {
    let mut held = recorded.clone();
    for (topic, partitions) in &mut held {
        let Some(ends) = ends.get(topic) else {
            continue;
        };
        partitions.retain(|partition, offset| {
            let end = ends.get(partition).copied().unwrap_or_default();
            *offset = end.min(*offset);
            *offset > 0
        });
    }
    held
}

/// What a record says of the quarantine, by topic.
fn quarantine_of(config: &ConnectorConfig, last: &Checkpoint) -> Offsets {
    Offsets::from([(quarantine_topic(config), last.quarantine.clone())])
}

/// That the quarantine is not the one that was recorded. No new epoch follows: it holds nothing
/// that belongs to a table's state, and is kept for a time only anyway.
pub(crate) fn quarantine_lost(
    config: &ConnectorConfig,
    last: &Checkpoint,
    ends: &Offsets,
) -> Option<TopicError> {
    shorter(&quarantine_of(config, last), ends)
}

/// Takes back what the record says of the quarantine and that does not hold.
pub(super) fn hold_quarantine(config: &ConnectorConfig, last: &mut Checkpoint, ends: &Offsets) {
    let Some(error) = quarantine_lost(config, last, ends).filter(|_| in_force("quarantine_held"))
    else {
        return;
    };
    tracing::warn!(
        %error,
        "{error}; the stream goes on, but who reads it anew does not hear of the changes that it \
         held: if there were any, have their tables read again (connector read --table …)"
    );
    let held = held(&quarantine_of(config, last), ends);
    last.quarantine = held.into_values().flatten().collect();
}

/// Where the topics of all tables and the quarantine end, compared with what was recorded.
///
/// # Errors
/// Where Kafka does not say.
pub(crate) async fn ends_recorded(
    config: &ConnectorConfig,
    topics: &Topics,
    last: Option<&Checkpoint>,
) -> Result<Offsets, TopicError> {
    let mut names = super::topic_names(config);
    names.push(quarantine_topic(config));
    let mut recorded = Offsets::new();
    if let Some(last) = last {
        recorded.clone_from(&last.offsets);
        recorded.extend(quarantine_of(config, last));
    }
    topics.standing_since(&names, &recorded).await
}

/// The same, once nobody else can write.
///
/// # Errors
/// As there, or where a table's topic got partitions while it held events: a key's events would
/// stand in two.
pub(super) async fn ends_of_topics(
    config: &ConnectorConfig,
    topics: &Topics,
    last: Option<&Checkpoint>,
) -> Result<Offsets, LifeError> {
    let ends = ends_recorded(config, topics, last).await?;
    let mut added = last
        .into_iter()
        .flat_map(|last| partitions_added(config, topics, last, &ends));
    match added.next() {
        Some(error) if in_force("partitions_fixed") => Err(error.into()),
        _ => Ok(ends),
    }
}

/// The topics that got partitions while they held events.
pub(crate) fn partitions_added(
    config: &ConnectorConfig,
    topics: &Topics,
    last: &Checkpoint,
    ends: &Offsets,
) -> Vec<TopicError> {
    let added = config.tables.iter().filter_map(|table| {
        let topic = table_topic(config, table);
        let then = last.tables.get(table).map_or(0, |state| state.partitions);
        let ends = ends.get(&topic).cloned().unwrap_or_default();
        let now = i32::try_from(ends.len()).unwrap_or(i32::MAX);
        let one = Offsets::from([(topic.clone(), ends)]);
        let holds_events =
            last.offsets.contains_key(&topic) && shorter(&last.offsets, &one).is_none();
        ((1..now).contains(&then) && holds_events)
            .then(|| topics.partitions_added(&topic, then, now))
    });
    added.collect()
}

async fn connect_producer(config: &ConnectorConfig) -> Result<Producer, LifeError> {
    let id = topic::transactional_id(&config.kafka, &config.source);
    Ok(Producer::connect(&config.kafka, &id).await?)
}

pub(super) fn replication_config(
    config: &ConnectorConfig,
    postgres: &links::Endpoint,
) -> Result<ReplicationConfig, LifeError> {
    let mut replication = ReplicationConfig::new(postgres.clone())?;
    replication
        .application_name
        .clone_from(&config.postgres.slot);
    replication.wal_sender_timeout = Duration::from_millis(config.postgres.slot_timeout_ms);
    replication.buffer_bytes_max = config.postgres.buffer_bytes_max;
    Ok(replication)
}
