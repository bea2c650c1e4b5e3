//! Reading the view's database: every answer from one snapshot.
//!
//! A statement returns its rows together with the positions of all sources, so both come from
//! one snapshot without a transaction around them and in one round trip. The positions stand
//! in the first columns, as arrays, and are followed by the row's; where the row is missing its
//! columns are null and the positions are still there.

mod connect;
mod poll;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{
    Hook, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts,
};
use kafka::Position;
use links::AccessError;
use serde::Serialize;
use service::fault;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use connect::Connector;
pub use poll::{Waited, Waits};

use crate::cache::CachedRow;
use crate::config::ViewConfig;
use crate::cursor::SortKey;
use crate::key::{KeyKind, Part, RowKey, Table};
use crate::measure;
use crate::position::Positions;
use crate::revision::Revision;

/// The positions of all sources, each column in the same order.
const SNAPSHOT: &str = "SELECT array_agg(source) AS snapshot_sources, \
    array_agg(epoch) AS snapshot_epochs, array_agg(lsn) AS snapshot_lsns, \
    array_agg(writer) AS snapshot_writers, array_agg(number) AS snapshot_numbers \
    FROM public.positions";

/// Something that the view has rows of: read one by one, and in pages in a fixed order.
pub trait Resource: Serialize + Sized + Send {
    /// Its name in routes and cursors.
    const NAME: &'static str;
    /// Where its rows are, and whose events evict them.
    const TABLE: Table;
    /// What is selected, money and times as the API writes them; `revision` is among it, and
    /// `{degraded}` in place of that column.
    const COLUMNS: &'static str;
    /// The order of lists, which must be total.
    const ORDER: &'static str = "id";
    /// What comes after the sort key (`$2` and on) in that order.
    const AFTER: &'static str = "id > $2";
    /// What the sort key is made of.
    const SORTED_BY: &'static [KeyKind] = &[KeyKind::Id];
    /// Which rows of the table the list has.
    const FILTER: &'static str = "true";

    /// # Errors
    /// A column that is missing or of another type than expected.
    fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error>;

    /// Where this row stands in the order.
    fn sort_key(&self) -> SortKey;

    /// Of a product: has it been sold?
    fn is_sold(&self) -> bool {
        false
    }

    /// Does this resource have that row of its table?
    fn shows(_row: &CachedRow) -> bool {
        true
    }
}

/// What rows of a page have in a column: a condition, and the value for its `{}`.
#[derive(Debug, Clone)]
pub struct Filter {
    pub condition: &'static str,
    pub value: String,
}

/// What was seen in one snapshot of the view, and how far that was.
#[derive(Debug, Clone)]
pub struct Seen<T> {
    pub found: T,
    pub revision: Revision,
    pub positions: Arc<Positions>,
}

/// An error with its causes: the pool's own message names none.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<_> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}

/// Why the view could not be read. Not for clients: it is logged here once.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("the pool of connections to the view cannot be made: {0}")]
    Build(#[source] deadpool_postgres::BuildError),
    #[error("no connection to the view: {}; check view.url and the database", chain(.0))]
    Connect(#[source] deadpool_postgres::PoolError),
    #[error("cannot read {what} from the view: {source}")]
    Read {
        what: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("the view's positions cannot be read: {0}")]
    Positions(String),
}

/// The view's database.
#[derive(Debug)]
pub struct View {
    pool: Pool,
    sources: Vec<String>,
    /// Did it answer when it was asked last?
    answers: AtomicBool,
}

impl View {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// A URL that does not parse, or a file that is not what it should be.
    pub fn new(config: &ViewConfig, sources: &[String]) -> Result<Self, ViewError> {
        let connector = Connector::new(config)?;
        let manager = Manager::from_connect(
            connector.address(),
            connector,
            ManagerConfig {
                recycling_method: RecyclingMethod::Fast,
            },
        );
        let pool = Pool::builder(manager)
            .max_size(config.connections_max)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(Duration::from_millis(config.acquire_timeout_ms)),
                create: Some(Duration::from_millis(config.connect_timeout_ms)),
                recycle: Some(Duration::from_millis(config.connect_timeout_ms)),
            })
            .post_create(Hook::sync_fn(|_, _| {
                tracing::debug!("connected to the view");
                Ok(())
            }))
            .build()
            .map_err(ViewError::Build)?;
        Ok(Self {
            pool,
            sources: sources.to_vec(),
            answers: AtomicBool::new(false),
        })
    }

    /// Did the database answer when it was asked last? It is asked often.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// One row by its key.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn one<R: Resource>(&self, key: &RowKey) -> Result<Seen<Option<R>>, ViewError> {
        let statement = format!(
            "SELECT s.*, r.* FROM ({SNAPSHOT}) s \
             LEFT JOIN (SELECT {} FROM {} WHERE {}) r ON true",
            columns::<R>(),
            R::TABLE.name,
            R::TABLE.condition()
        );
        let rows = self.read(R::NAME, &statement, &key.parameters()).await?;
        let mut seen = self.seen(&rows)?;
        if !fault::in_force("one_snapshot") {
            fault::point("api.between_row_and_positions").await;
            seen = self.positions().await?;
        }
        let found = rows.first().map(found::<R>).transpose();
        let found = found.map_err(|source| ViewError::Read {
            what: R::NAME,
            source,
        })?;
        Ok(seen.with(found.flatten()))
    }

    /// At most `rows_max` rows after `after` (none: the first) in the resource's order that all
    /// filters let through.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn page<R: Resource>(
        &self,
        after: Option<&[Part]>,
        rows_max: i64,
        filters: &[Filter],
    ) -> Result<Seen<Vec<R>>, ViewError> {
        let after_key = after.map_or("true", |_| R::AFTER);
        let mut conditions = format!("{} AND {after_key}", R::FILTER);
        for (place, filter) in filters.iter().enumerate() {
            let place = after.map_or(0, <[Part]>::len) + 2 + place;
            conditions += " AND ";
            conditions += &filter.condition.replace("{}", &format!("${place}"));
        }
        // The join promises no order, so the rows are sorted again behind it.
        let statement = format!(
            "SELECT s.*, r.* FROM ({SNAPSHOT}) s LEFT JOIN \
             (SELECT {} FROM {} WHERE {conditions} ORDER BY {order} LIMIT $1) r ON true \
             ORDER BY {order}",
            columns::<R>(),
            R::TABLE.name,
            order = R::ORDER
        );
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&rows_max];
        parameters.extend(after.into_iter().flatten().map(Part::parameter));
        for filter in filters {
            parameters.push(&filter.value);
        }
        let rows = self.read(R::NAME, &statement, &parameters).await?;
        let seen = self.seen(&rows)?;
        let found: Result<Vec<Option<R>>, _> = rows.iter().map(found::<R>).collect();
        let found = found.map_err(|source| ViewError::Read {
            what: R::NAME,
            source,
        })?;
        Ok(seen.with(found.into_iter().flatten().collect()))
    }

    /// How far the view is.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn positions(&self) -> Result<Seen<()>, ViewError> {
        let rows = self.read("positions", SNAPSHOT, &[]).await?;
        self.seen(&rows)
    }

    /// The rows of a statement that begins with the snapshot's columns, as they are.
    pub(crate) async fn rows(
        &self,
        what: &'static str,
        select: &str,
    ) -> Result<Seen<Vec<Row>>, ViewError> {
        let statement =
            format!("SELECT s.*, r.* FROM ({SNAPSHOT}) s LEFT JOIN ({select}) r ON true");
        let rows = self.read(what, &statement, &[]).await?;
        Ok(self.seen(&rows)?.with(rows))
    }

    /// Runs one statement, which is one snapshot; says whether the database answers.
    async fn read(
        &self,
        what: &'static str,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, ViewError> {
        let started = std::time::Instant::now();
        let read = async {
            let connection: Object = self.pool.get().await.map_err(ViewError::Connect)?;
            let read = async {
                let statement = connection.prepare_cached(statement).await?;
                connection.query(&statement, parameters).await
            };
            read.await
                .map_err(|source| ViewError::Read { what, source })
        };
        let result = read.await;
        measure::view_read(what, started.elapsed(), result.is_ok());
        self.answers.store(result.is_ok(), Ordering::Relaxed);
        result
    }

    fn seen(&self, rows: &[Row]) -> Result<Seen<()>, ViewError> {
        let row = rows
            .first()
            .ok_or_else(|| ViewError::Positions("no row".to_owned()))?;
        seen(row, &self.sources).map_err(|error| ViewError::Positions(error.to_string()))
    }
}

impl<T> Seen<T> {
    /// The same snapshot, with what was found in it.
    pub fn with<Found>(self, found: Found) -> Seen<Found> {
        Seen {
            found,
            revision: self.revision,
            positions: self.positions,
        }
    }
}

/// What is selected. Besides what a row says of itself it is degraded while a table that it is made
/// from is suspended: that stands with the positions, so that none of the rows is touched.
fn columns<R: Resource>() -> String {
    debug_assert!(
        R::COLUMNS.contains("{degraded}"),
        "{} cannot be degraded",
        R::NAME
    );
    let table = R::TABLE.name.trim_start_matches("public.");
    let suspended =
        format!("EXISTS (SELECT FROM public.positions WHERE '{table}' = ANY (degraded))");
    R::COLUMNS.replace(
        "{degraded}",
        &format!("degraded OR {suspended} AS degraded"),
    )
}

/// The row of the resource, unless the join found none.
fn found<R: Resource>(row: &Row) -> Result<Option<R>, tokio_postgres::Error> {
    match row.try_get::<_, Option<&str>>("revision")? {
        Some(_) => R::from_row(row).map(Some),
        None => Ok(None),
    }
}

/// The snapshot's columns; all are null where there are no positions yet.
fn seen(row: &Row, sources: &[String]) -> anyhow::Result<Seen<()>> {
    let names: Vec<String> = column(row, "snapshot_sources")?;
    let epochs: Vec<Option<i64>> = column(row, "snapshot_epochs")?;
    let lsns: Vec<Option<String>> = column(row, "snapshot_lsns")?;
    let writers: Vec<i64> = column(row, "snapshot_writers")?;
    let numbers: Vec<i64> = column(row, "snapshot_numbers")?;
    let known = names
        .into_iter()
        .zip(epochs.into_iter().zip(lsns))
        .map(|(name, (epoch, lsn))| Ok((name, position(epoch, lsn.as_deref())?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let revisions = writers.into_iter().zip(numbers);
    let newest = revisions
        .map(|(writer, number)| Revision { writer, number })
        .max();
    Ok(Seen {
        found: (),
        revision: newest.unwrap_or_default(),
        positions: Arc::new(Positions::new(sources, known)),
    })
}

fn column<'a, T>(row: &'a Row, name: &str) -> Result<Vec<T>, tokio_postgres::Error>
where
    Option<Vec<T>>: tokio_postgres::types::FromSql<'a>,
{
    Ok(row.try_get::<_, Option<Vec<T>>>(name)?.unwrap_or_default())
}

/// A source's position, none where it was not read yet.
pub(crate) fn position(epoch: Option<i64>, lsn: Option<&str>) -> anyhow::Result<Option<Position>> {
    Ok(match (epoch, lsn) {
        (Some(epoch), Some(lsn)) => Some(Position {
            epoch: u64::try_from(epoch)?,
            lsn: lsn.parse()?,
        }),
        _ => None,
    })
}
