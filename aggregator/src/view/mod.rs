//! The unified tables, and their one writer: how it takes over, and what it knows.
//!
//! How checkpoints become view transactions says [`transaction`].

mod definitions;
pub(crate) mod discrepancies;
mod fence;
mod inputs;
mod positions;
mod quarantine;
mod rebuild;
mod recompute;
mod reduce;
pub(crate) mod resource;
mod statements;
mod suspension;
mod totals;
mod touched;
mod transaction;
pub(crate) mod unified;

use std::collections::BTreeMap;
use std::time::Duration;

use kafka::Position;
use kafka::follower::Standing;
use tokio_postgres::Client;

pub use discrepancies::{RULES, Rule};
pub use positions::{Moved, Revision};
pub use rebuild::Differences;
pub(crate) use recompute::KEYS_MAX;
pub use recompute::{Keys, Named, NotAKey};
pub(crate) use suspension::WHOLE as WHOLE_TABLE;
pub use transaction::Part;

use crate::config::{DiscrepanciesConfig, QuarantineConfig, ViewConfig};
use crate::failure::Failure;
use crate::migrations::migrate;
use crate::mirror::Side;
use crate::session::Session;
use discrepancies::judge::Judge;
use fence::Fence;
use inputs::Inputs;
use resource::Known;
use statements::Statements;
use suspension::Resumptions;
use touched::Touched;

/// The writer of the view.
#[derive(Debug)]
pub struct View {
    session: Session,
    fence: Fence,
    known: Known,
    statements: Statements,
    judge: Judge,
    served: Inputs,
    rebuilt: Inputs,
    standings: BTreeMap<String, Standing>,
    /// Of the sources that are served.
    positions: BTreeMap<String, Position>,
    /// Where rebuilds stand.
    rebuilds: BTreeMap<String, Standing>,
    /// Of suspended tables.
    resumptions: Resumptions,
    /// Keys of a table in quarantine, at most.
    suspend_after: i64,
    open: bool,
    /// What the open view transaction touched and has not brought to what the mirrors say.
    touched: Touched,
}

impl View {
    /// Connects, migrates and takes over; the caller holds the lock. From here on whoever wrote
    /// before fails at the fence.
    ///
    /// # Errors
    /// What the database refuses.
    pub async fn open(
        config: &ViewConfig,
        discrepancies: &DiscrepanciesConfig,
        sources: &[String],
        silence_max: Duration,
    ) -> Result<Self, Failure> {
        definitions::check()?;
        let mut settings = statements::SETTINGS.map(str::to_owned).to_vec();
        // A paused writer must not keep the fence's row locked.
        let silence_max_ms = silence_max.as_millis();
        settings.push(format!(
            "idle_in_transaction_session_timeout = {silence_max_ms}"
        ));
        let session = Session::open(config, "aggregator", &settings).await?;
        migrate(&session.client, &config.readers, &config.replicators).await?;
        let mut view = Self::take_over(session, sources).await?;
        view.agree(discrepancies).await?;
        view.fill_changed().await?;
        Ok(view)
    }

    async fn take_over(session: Session, sources: &[String]) -> Result<Self, Failure> {
        let doing = Failure::database("take the view over");
        let taken = async {
            let client = &session.client;
            let fence = Fence::claim(client, sources).await?;
            let positions = positions::served(client).await?;
            let known: Known = positions.keys().cloned().collect();
            Ok(Self {
                fence,
                statements: Statements::prepare(client, &known).await?,
                judge: Judge::prepare(client, &known).await?,
                known,
                served: Inputs::prepare(client, Side::Served).await?,
                rebuilt: Inputs::prepare(client, Side::Rebuilt).await?,
                standings: read_standings(client, "aggregator.standing").await?,
                positions,
                rebuilds: rebuild::standings(client).await?,
                resumptions: suspension::resumptions(client).await?,
                suspend_after: QuarantineConfig::default().suspend_after.into(),
                open: false,
                touched: Touched::default(),
                session,
            })
        };
        taken.await.map_err(doing)
    }

    /// Where to go on reading a source.
    #[must_use]
    pub fn standing(&self, source: &str) -> Standing {
        self.standings.get(source).cloned().unwrap_or_default()
    }

    /// Has a whole checkpoint of it been applied?
    #[must_use]
    pub fn serves(&self, source: &str) -> bool {
        self.known.contains(source)
    }

    /// The view transaction made last.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.fence.last()
    }

    /// Keys that are in quarantine.
    #[must_use]
    pub fn quarantined(&self) -> i64 {
        self.served.quarantined.count()
    }
}

async fn read_standings(
    client: &Client,
    table: &str,
) -> Result<BTreeMap<String, Standing>, tokio_postgres::Error> {
    let rows = client
        .query(&format!("SELECT source, standing FROM {table}"), &[])
        .await?;
    rows.iter()
        .map(|row| {
            let tokio_postgres::types::Json(standing) = row.try_get(1)?;
            Ok((row.try_get(0)?, standing))
        })
        .collect()
}
