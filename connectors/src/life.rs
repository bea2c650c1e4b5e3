//! One life of a connector: takeover, then the stream until something is lost.
//!
//! Takeover takes in this order: the advisory lock, the slot, the transactional id, the last
//! record. Each step makes the ones before it safe to rely on: with the lock nobody healthy is
//! disturbed; with the slot no predecessor receives anything new; after `init_transactions` no
//! predecessor can commit what it had received; what Kafka left without an end is ended; so the
//! record read last is the last.

mod takeover;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::Lsn;
use kafka::topic::{self, Topics};
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
use crate::epoch::{self, NewEpoch, Server};
use crate::error::LifeError;
use crate::progress::Progress;
use crate::readable::{self, Readable};
use crate::replication::{Feedback, ReplicationClient, ReplicationStream};
use crate::slot::{self, GivenUp};
use crate::snapshot::holes::Holes;
use crate::snapshot::readers::Readers;
use crate::snapshot::reconcile::Scan;
use crate::snapshot::view::Settling;
use crate::source::{Catalog, Control, Pulse, Session, SourceError, Unsettled, WalLayout};
use crate::status::{State, StatusBoard, names};
use crate::stream::Transaction;
use crate::topics::{self, Held, Watched};
use crate::watch::Activity;

pub(crate) use takeover::partitions_added;
use takeover::{
    Beginning, drop_slot, ends_of_topics, hold_quarantine, replication_config, take_in_order,
};
pub(crate) use takeover::{ends_recorded, quarantine_lost};

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
    /// What the topics hold at least.
    pub(crate) held: Held,
    /// What is committed and not confirmed.
    pub(crate) readable: Readable,
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
    status.motion().waits().clear();
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
    let (lost, hold) = (control.lost(), control.hold());
    let guard = slot::guard(config, status, control.pulse());
    let life = async {
        let mut life = Box::pin(Life::take_over(config, status, &postgres, control)).await?;
        let waits = status.motion().waits();
        let watched = Watched {
            keyed: keyed_topics(config),
            quarantine: quarantine_topic(config),
        };
        let topics = topics::watch(life.topics.clone(), watched, life.held.clone(), waits);
        let readable = readable::watch(
            life.topics.clone(),
            life.readable.clone(),
            life.feedback.clone(),
            waits,
        );
        let followed = tokio::select! {
            followed = Box::pin(life.follow(shutdown)) => followed,
            error = topics => Err(error),
            error = readable => Err(error),
        };
        // A producer that failed, fenced maybe, has nothing to end in order.
        let failed = matches!(followed, Err(LifeError::Producer(_)));
        if !failed && let Err(error) = life.delivery.abort().await {
            // What was open ends by its timeout, or by the successor's hand.
            tracing::debug!(%error, "cannot abort the open transaction");
        }
        match followed {
            Err(LifeError::Replication(error))
                if error.sql_state() == Some(&SqlState::UNDEFINED_OBJECT) =>
            {
                // The lock is still ours; the slot is, once its stream is closed.
                drop(life.stream);
                let replication = replication_config(config, &postgres)?;
                let mut client = ReplicationClient::connect(&replication).await?;
                drop_slot(&mut client, &config.postgres.slot).await?;
                Err(LifeError::PublicationUnseen {
                    publication: config.postgres.publication.clone(),
                    source: error,
                })
            }
            followed => followed,
        }
    };
    let ended = tokio::select! {
        ended = life => ended,
        () = lost.cancelled() => Err(LifeError::LockLost),
        error = guard => Err(error),
    };
    if let Err(LifeError::SlotGivenUp { slot, .. }) = &ended {
        slot::give_up(slot, GivenUp::TooMuch, &hold, status).await?;
    }
    ended
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
        for session in [&reads, &hole_reads] {
            control.is_same_server(&session.server_started().await?)?;
        }
        let publication = &config.postgres.publication;
        let catalog = Catalog::read(&reads, publication, &config.tables).await?;
        let wal = WalLayout::read(&reads).await?;
        motion.begin(Activity::AskingTopics);
        let topics = Topics::connect(&config.kafka)?;
        topics
            .ensure(&topic_names(config), &checkpoint_topic(config))
            .await?;
        let quarantine = quarantine_topic(config);
        topics.ensure_quarantine(&quarantine).await?;

        let replication = replication_config(config, postgres)?;
        let (taken, producer, mut last) =
            take_in_order(config, status, &replication, &control).await?;
        let server = Server {
            flushed: control.flushed().await?,
            ..taken.server
        };
        let ends = ends_of_topics(config, &topics, last.as_ref()).await?;
        if let Some(last) = &mut last {
            hold_quarantine(config, last, &ends);
        }
        let lasts = epoch::lasts(last.as_ref(), taken.slot, &server, &ends);
        let (mut progress, stream, begun) = match lasts {
            Ok(last) => {
                let tables = catalog.columns_by_table();
                let mut progress = Progress::resume(last, server.identity, &tables);
                progress.log_ended_at(wal.border(control.inserted().await?));
                let added = |table: &&String| !last.tables.contains_key(*table);
                for table in config.tables.iter().filter(added) {
                    if let Some(ends) = ends.get(&table_topic(config, table)) {
                        progress.add(table, ends);
                    }
                }
                (progress, taken.stream, false)
            }
            Err(reason) => {
                let reason = match status.given_up() {
                    Some(why) if matches!(reason, NewEpoch::NoSlot) => NewEpoch::GivenUp(why),
                    _ => reason,
                };
                tracing::warn!(%reason, "a new epoch begins: {reason}");
                motion.begin(Activity::MakingSlot);
                fault::point("connector.begin_epoch").await;
                let beginning = Beginning {
                    catalog: &catalog,
                    last: last.as_ref(),
                    server: &server,
                    ends: &ends,
                };
                let (progress, stream) = beginning
                    .begin_epoch(config, &replication, taken.stream)
                    .await?;
                status.slot_given_up(None);
                (progress, Some(stream), true)
            }
        };
        for table in &config.tables {
            let partitions = ends.get(&table_topic(config, table));
            progress.spread(table, partitions.map_or(0, std::collections::BTreeMap::len));
        }
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
            held: Held::new(ends),
            readable: Readable::new(progress.position()),
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

pub(crate) fn checkpoint_topic(config: &ConnectorConfig) -> String {
    topic::checkpoint(&config.kafka, &config.source)
}

pub(crate) fn quarantine_topic(config: &ConnectorConfig) -> String {
    topic::quarantine(&config.kafka, &config.source)
}

pub(crate) fn table_topic(config: &ConnectorConfig, qualified: &str) -> String {
    let (schema, table) = split_qualified(qualified).unwrap_or(("", qualified));
    topic::table(&config.kafka, &config.source, schema, table)
}

pub(crate) fn topic_names(config: &ConnectorConfig) -> Vec<String> {
    let tables = config.tables.iter();
    tables.map(|table| table_topic(config, table)).collect()
}

/// Those whose keys each have one partition.
fn keyed_topics(config: &ConnectorConfig) -> Vec<String> {
    let mut names = topic_names(config);
    names.push(checkpoint_topic(config));
    names
}
