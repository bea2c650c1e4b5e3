//! One life of a connector: takeover, then the stream until something is lost.
//!
//! Takeover takes in this order: the advisory lock, the slot, the transactional id, the last
//! record. Each step makes the ones before it safe to rely on: with the lock nobody healthy is
//! disturbed; with the slot no predecessor receives anything new; after `init_transactions` no
//! predecessor can commit what it had received; so the record read last is the last.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kafka::follower::last_record;
use kafka::producer::Producer;
use kafka::topic::{self, Topics};
use kafka::{Checkpoint, Lsn};
use links::Endpoint;
use metrics::counter;
use service::fault::{self, in_force};
use tokio::sync::watch;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use crate::captured::Captured;
use crate::command::Orders;
use crate::config::{ConnectorConfig, split_qualified};
use crate::deliver::Delivery;
use crate::epoch::{self, Server, Slot};
use crate::error::LifeError;
use crate::progress::{Identity, Progress};
use crate::replication::{
    Feedback, ReplicationClient, ReplicationConfig, ReplicationError, ReplicationStream,
};
use crate::snapshot::holes::Holes;
use crate::snapshot::readers::Readers;
use crate::snapshot::reconcile::Scan;
use crate::snapshot::view::Settling;
use crate::source::{Catalog, Control, Pulse, Session, SourceError, Unsettled, WalLayout};
use crate::status::{State, StatusBoard, names};
use crate::stream::Transaction;
use crate::watch::Activity;

/// Between two tries to take a slot that somebody still holds.
const SLOT_RETRY: Duration = Duration::from_millis(100);

/// The source ends a statement of a read by itself; an answer that takes so much longer is lost.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// Everything that a leader holds. Dropping it gives all of it up.
#[derive(Debug)]
pub(crate) struct Life<'a> {
    pub(crate) config: &'a ConnectorConfig,
    pub(crate) status: &'a StatusBoard,
    pub(crate) database: String,
    pub(crate) control: Control,
    pub(crate) pulse: watch::Receiver<Pulse>,
    pub(crate) wal: WalLayout,
    pub(crate) stream: ReplicationStream,
    pub(crate) feedback: Feedback,
    pub(crate) topics: Topics,
    pub(crate) delivery: Delivery,
    pub(crate) progress: Progress,
    pub(crate) catalog: Catalog,
    /// Tables by the id that the stream calls them; none: not captured.
    pub(crate) relations: HashMap<u32, Option<Arc<Captured>>>,
    pub(crate) transaction: Option<Transaction>,
    /// The session of chunks, reconciliation and catalog.
    pub(crate) reads: Arc<Session>,
    /// Commands that wait.
    pub(crate) orders: Orders,
    /// The id of the last read by command.
    pub(crate) last_request: u64,
    /// Further sessions that read tables.
    pub(crate) readers: Readers,
    /// The session whose read view is kept.
    pub(crate) hole_reads: Arc<Session>,
    pub(crate) holes: Holes,
    pub(crate) unsettled: Unsettled,
    pub(crate) settling: Settling,
    pub(crate) scan: Option<Scan>,
    pub(crate) read_again_at: Instant,
    /// When the catalog is looked at again.
    pub(crate) look_at: Instant,
    pub(crate) recorded_at: Instant,
    /// How long the last record took, acknowledgements awaited.
    pub(crate) record_took: Duration,
    pub(crate) recorded: Lsn,
}

/// Lives until something is lost, or until `shutdown`.
pub(crate) async fn live(
    config: &ConnectorConfig,
    status: &StatusBoard,
    shutdown: &CancellationToken,
) -> Result<(), LifeError> {
    counter!(names::LIVES).increment(1);
    status.connecting();
    let postgres = config
        .postgres
        .endpoint()
        .map_err(crate::source::SourceError::Endpoint)?;
    let control = Control::take_lock(&postgres, &config.postgres, |tries| {
        status.motion().begin(Activity::TakingLock);
        if tries == 1 {
            tracing::info!("another connector of this source leads; waiting for its lock");
            status.set(State::WaitingForLock, None);
        }
    })
    .await?;
    fault::point("connector.after_lock").await;
    status.connecting();
    let lost = control.lost();
    let life = async {
        let mut life = Box::pin(Life::take_over(config, status, &postgres, control)).await?;
        let followed = Box::pin(life.follow(shutdown)).await;
        // A producer that failed, fenced maybe, has nothing to end in order.
        let failed = matches!(followed, Err(LifeError::Producer(_)));
        if !failed && let Err(error) = life.delivery.abort().await {
            // What was open ends by its timeout, or by the successor's hand.
            tracing::debug!(%error, "cannot abort the open transaction");
        }
        followed
    };
    tokio::select! {
        ended = life => ended,
        () = lost.cancelled() => Err(LifeError::LockLost),
    }
}

impl<'a> Life<'a> {
    async fn take_over(
        config: &'a ConnectorConfig,
        status: &'a StatusBoard,
        postgres: &Endpoint,
        control: Control,
    ) -> Result<Self, LifeError> {
        let motion = status.motion();
        motion.begin(Activity::AskingSource);
        let reads = read_session(config).await?;
        let hole_reads = read_session(config).await?;
        let publication = &config.postgres.publication;
        let catalog = Catalog::read(&reads, publication, &config.tables).await?;
        let wal = WalLayout::read(&reads).await?;
        motion.begin(Activity::AskingTopics);
        let topics = Topics::connect(&config.kafka)?;
        topics
            .ensure(&topic_names(config), &checkpoint_topic(config))
            .await?;
        let quarantine = topic::quarantine(&config.kafka, &config.source);
        topics.ensure_quarantine(&quarantine).await?;

        let replication = replication_config(config, postgres)?;
        let (taken, producer, last) = take_in_order(config, status, &replication, &control).await?;
        let server = Server {
            flushed: control.flushed().await?,
            ..taken.server
        };
        let (progress, stream, begun) = match epoch::lasts(last.as_ref(), taken.slot, &server) {
            Ok(last) => {
                let tables = catalog.columns_by_table();
                let mut progress = Progress::resume(last, server.identity, &tables);
                for table in config
                    .tables
                    .iter()
                    .filter(|t| !last.tables.contains_key(*t))
                {
                    let ends = topics.ends(&table_topic(config, table)).await?;
                    progress.add(table, &ends);
                }
                (progress, taken.stream, false)
            }
            Err(reason) => {
                tracing::warn!(%reason, "a new epoch begins: {reason}");
                motion.begin(Activity::MakingSlot);
                fault::point("connector.begin_epoch").await;
                let (progress, stream) = begin_epoch(
                    config,
                    &replication,
                    &catalog,
                    &topics,
                    last.as_ref(),
                    &server,
                    taken.stream,
                )
                .await?;
                (progress, Some(stream), true)
            }
        };
        let stream = stream.ok_or(LifeError::Order("an epoch lasts without a slot"))?;
        let mut unsettled = Unsettled::default();
        if in_force("settle_predecessors") {
            unsettled = control.running().await?;
        }
        let now = Instant::now();
        let mut life = Self {
            config,
            status,
            database: postgres.get_dbname().unwrap_or_default().to_owned(),
            pulse: control.pulse(),
            control,
            wal,
            feedback: stream.feedback(),
            stream,
            topics,
            delivery: Delivery::new(producer, checkpoint_topic(config), quarantine),
            recorded: progress.position(),
            progress,
            catalog,
            relations: HashMap::new(),
            transaction: None,
            reads,
            orders: status.commands().lead(),
            last_request: 0,
            readers: Readers::default(),
            hole_reads,
            holes: Holes::default(),
            unsettled,
            settling: Settling::default(),
            scan: None,
            read_again_at: now,
            look_at: now + Duration::from_millis(config.postgres.check_ms),
            recorded_at: now,
            record_took: Duration::ZERO,
        };
        life.begin_streaming(begun).await?;
        Ok(life)
    }

    /// The first record: of a new epoch at once, so that every successor knows of it; else it
    /// says that somebody writes again.
    async fn begin_streaming(&mut self, begun: bool) -> Result<(), LifeError> {
        let looked_at = self.wal.border(self.control.inserted().await?);
        self.compare(looked_at).await?;
        let epoch = self.progress.epoch();
        let position = self.progress.position();
        if begun {
            tracing::info!(epoch, %position, "epoch {epoch} begins at {position}; all tables are read");
        } else {
            tracing::info!(epoch, %position, "epoch {epoch} goes on at {position}");
        }
        self.record().await
    }
}

/// Slot, transactional id, last record, in this order; each rule's switch turns two around.
async fn take_in_order(
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
    let producer = match early_producer {
        Some(producer) => producer,
        None => connect_producer(config).await?,
    };
    motion.begin(Activity::ReadingLastRecord);
    fault::point("connector.after_init").await;
    let last = match early_last {
        Some(last) => last,
        None => last_record(&config.kafka, &config.source).await?,
    };
    Ok((taken, producer, last))
}

/// The slot, taken or not, and what the server said of itself before.
struct Taken {
    server: Server,
    slot: Option<Slot>,
    stream: Option<ReplicationStream>,
}

/// Takes the slot. One that is in use may be a predecessor's, whose connection the server has
/// not given up yet: said once, then waited for.
async fn take_slot(
    config: &ConnectorConfig,
    status: &StatusBoard,
    replication: &ReplicationConfig,
    control: &Control,
) -> Result<Taken, LifeError> {
    let name = &config.postgres.slot;
    let mut said = false;
    loop {
        let mut client = ReplicationClient::connect(replication).await?;
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
                if !std::mem::replace(&mut said, true) {
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

/// Nothing is known any more: a new slot, all tables, and what else is in the topics.
async fn begin_epoch(
    config: &ConnectorConfig,
    replication: &ReplicationConfig,
    catalog: &Catalog,
    topics: &Topics,
    last: Option<&Checkpoint>,
    server: &Server,
    stream: Option<ReplicationStream>,
) -> Result<(Progress, ReplicationStream), LifeError> {
    let slot = &config.postgres.slot;
    if let Some(stream) = stream
        && let Err(error) = stream.close().await
    {
        tracing::debug!(%error, "the slot's stream did not end in order");
    }
    let mut client = ReplicationClient::connect(replication).await?;
    loop {
        match client.drop_slot(slot).await {
            Ok(()) => break,
            Err(error) if error.sql_state() == Some(&SqlState::UNDEFINED_OBJECT) => break,
            Err(error) if is_in_use(&error) => tokio::time::sleep(SLOT_RETRY).await,
            Err(error) => return Err(error.into()),
        }
    }
    fault::point("connector.after_drop").await;
    tracing::info!(
        slot,
        "making slot {slot}; it waits for every transaction that runs now"
    );
    let limit = Duration::from_millis(config.postgres.slot_creation_ms_max);
    let created = client.create_slot(slot, limit).await?;
    fault::point("connector.after_create").await;
    let stream = client.start(slot, &config.postgres.publication).await?;
    let mut ends = BTreeMap::new();
    for table in &config.tables {
        ends.insert(
            table.clone(),
            topics.ends(&table_topic(config, table)).await?,
        );
    }
    let now_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let progress = Progress::begin_epoch(
        last,
        now_s,
        server.identity.clone(),
        created.consistent_point,
        &catalog.columns_by_table(),
        &ends,
    );
    Ok((progress, stream))
}

async fn connect_producer(config: &ConnectorConfig) -> Result<Producer, LifeError> {
    let id = topic::transactional_id(&config.kafka, &config.source);
    Ok(Producer::connect(&config.kafka, &id).await?)
}

/// A session that reads the source.
pub(crate) async fn read_session(config: &ConnectorConfig) -> Result<Arc<Session>, SourceError> {
    let postgres = config.postgres.endpoint().map_err(SourceError::Endpoint)?;
    let reads = &config.reads;
    let settings = [
        ("lock_timeout", format!("{}ms", reads.lock_wait_ms_max)),
        ("statement_timeout", format!("{}ms", reads.statement_ms_max)),
        // A connector that is gone leaves no snapshot open on the source.
        ("client_connection_check_interval", "1s".to_owned()),
        (
            "idle_in_transaction_session_timeout",
            format!("{}ms", config.postgres.lock_timeout_ms.max(60_000)),
        ),
    ];
    let session = Session::connect(&postgres, &settings).await?;
    let limit = Duration::from_millis(reads.statement_ms_max) + ANSWER_MARGIN;
    Ok(Arc::new(session.answering_within(limit)))
}

fn replication_config(
    config: &ConnectorConfig,
    postgres: &Endpoint,
) -> Result<ReplicationConfig, LifeError> {
    let mut replication = ReplicationConfig::new(postgres.clone())?;
    replication
        .application_name
        .clone_from(&config.postgres.slot);
    replication.wal_sender_timeout = Duration::from_millis(config.postgres.slot_timeout_ms);
    replication.buffer_bytes_max = config.postgres.buffer_bytes_max;
    Ok(replication)
}

pub(crate) fn checkpoint_topic(config: &ConnectorConfig) -> String {
    topic::checkpoint(&config.kafka, &config.source)
}

pub(crate) fn table_topic(config: &ConnectorConfig, qualified: &str) -> String {
    let (schema, table) = split_qualified(qualified).unwrap_or(("", qualified));
    topic::table(&config.kafka, &config.source, schema, table)
}

pub(crate) fn topic_names(config: &ConnectorConfig) -> Vec<String> {
    let tables = config.tables.iter();
    tables.map(|table| table_topic(config, table)).collect()
}
