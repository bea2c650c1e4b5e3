//! A source read again from the first record of its topics, while the view serves what it has.
//!
//! The events fill a second copy of the source's mirrors, in transactions of their own. At a
//! checkpoint that is not behind the served position, one view transaction brings the mirrors to
//! the copy, and every unified row that follows from them to the mirrors. Rows that were right are
//! not touched: what readers and subscribers see of a rebuild is what was wrong before.

use std::collections::{BTreeMap, BTreeSet};

use kafka::Position;
use kafka::follower::Standing;
use tokio_postgres::{Client, Error};

use super::statements::SETTINGS_FOR_ALL;
use super::touched::Touched;
use super::{Part, View};
use crate::failure::Failure;
use crate::ingest::Change;
use crate::mirror::{Side, TABLES, Table};

/// How many rows were not what the topics say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Differences {
    pub mirror_rows: u64,
    pub unified_rows: u64,
}

impl View {
    /// Where each rebuild that is under way stands, by source.
    #[must_use]
    pub fn rebuilds(&self) -> &BTreeMap<String, Standing> {
        &self.rebuilds
    }

    /// How far the view is in a source; none: it is not served.
    #[must_use]
    pub fn position(&self, source: &str) -> Option<Position> {
        self.positions.get(source).copied()
    }

    /// Begins to rebuild a source, from nothing; drops what an earlier attempt has loaded.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn begin_rebuild(&mut self, source: &str, standing: Standing) -> Result<(), Failure> {
        let doing = "begin a rebuild";
        self.mirror(Side::Served, source, Vec::new()).await?;
        self.forget_resumptions(source).await?;
        let client = &self.session.client;
        empty(client, source)
            .await
            .map_err(Failure::database(doing))?;
        stand(client, source, &standing)
            .await
            .map_err(Failure::database(doing))?;
        self.finish().await?;
        self.rebuilds.insert(source.to_owned(), standing);
        self.recount(Side::Rebuilt).await
    }

    /// Events of a source that is being rebuilt, in a transaction of their own.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn load_rebuilt(
        &mut self,
        source: &str,
        changes: Vec<Change>,
        standing: Standing,
    ) -> Result<(), Failure> {
        self.fill(source, changes).await?;
        stand(&self.session.client, source, &standing)
            .await
            .map_err(Failure::database("write where the rebuild stands"))?;
        self.finish().await?;
        self.rebuilds.insert(source.to_owned(), standing);
        Ok(())
    }

    /// The last part of a checkpoint that is not behind the served position: from now on the
    /// view is what was rebuilt.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn finish_rebuild(&mut self, part: Part) -> Result<Differences, Failure> {
        let Part { moved, changes } = part;
        let source = moved.source.clone();
        self.fill(&source, changes).await?;
        let client = &self.session.client;
        let doing = Failure::database("serve what was rebuilt");
        let served = async {
            client.batch_execute(SETTINGS_FOR_ALL).await?;
            let mirror_rows = swap(client, &source, &self.rebuilt.suspended).await?;
            let unified_rows = self.compute_fed(of(&source)).await?;
            empty(client, &source).await?;
            Ok(Differences {
                mirror_rows,
                unified_rows,
            })
        };
        let mut differences = served.await.map_err(doing)?;
        self.recount(Side::Served).await?;
        self.tell_degraded(&source).await?;
        differences.unified_rows += self.commit_all(moved).await?;
        self.rebuilds.remove(&source);
        self.recount(Side::Rebuilt).await?;
        Ok(differences)
    }

    pub(super) async fn fill(&mut self, source: &str, changes: Vec<Change>) -> Result<(), Failure> {
        let (_, findings) = self.mirror(Side::Rebuilt, source, changes).await?;
        let nothing = &mut Touched::default();
        self.isolate(Side::Rebuilt, source, findings, nothing).await
    }
}

/// Standings of the rebuilds that are under way.
pub(super) async fn standings(client: &Client) -> Result<BTreeMap<String, Standing>, Error> {
    super::read_standings(client, "rebuild.standing").await
}

async fn stand(client: &Client, source: &str, standing: &Standing) -> Result<(), Error> {
    let standing = tokio_postgres::types::Json(standing);
    client
        .execute(
            "INSERT INTO rebuild.standing (source, standing) VALUES ($1, $2)
            ON CONFLICT (source) DO UPDATE SET standing = excluded.standing",
            &[&source, &standing],
        )
        .await?;
    Ok(())
}

/// Brings mirrors and quarantine to the rebuilt copies, but for mirrors whose copies are suspended;
/// how many mirror rows differed.
async fn swap(
    client: &Client,
    source: &str,
    suspended: &BTreeSet<&'static Table>,
) -> Result<u64, Error> {
    let mut rows = 0;
    for table in of(source).filter(|table| !suspended.contains(table)) {
        let analyze = format!("ANALYZE {}", table.copy(Side::Rebuilt));
        client.batch_execute(&analyze).await?;
        rows += client.execute(&table.swap_sql(), &[]).await?;
    }
    for statement in QUARANTINE {
        client.execute(statement, &[&source]).await?;
    }
    Ok(rows)
}

/// What stands in quarantine already with the same record keeps its position and revision.
const QUARANTINE: [&str; 4] = [
    r#"DELETE FROM public.quarantine AS q WHERE q.source = $1 AND NOT EXISTS (
        SELECT FROM rebuild.quarantine AS r
        WHERE r.source = q.source AND r."table" = q."table" AND r.key = q.key)"#,
    r#"INSERT INTO public.quarantine AS q SELECT * FROM rebuild.quarantine AS r WHERE r.source = $1
    ON CONFLICT (source, "table", key) DO UPDATE SET reason = excluded.reason, position = NULL,
        record = excluded.record, at = excluded.at, revision = excluded.revision,
        lsn = excluded.lsn, suspended = excluded.suspended
    WHERE (q.reason, q.record) IS DISTINCT FROM (excluded.reason, excluded.record)"#,
    "DELETE FROM aggregator.degraded WHERE source = $1",
    "INSERT INTO aggregator.degraded SELECT * FROM rebuild.degraded WHERE source = $1",
];

/// Empties the second copy of a source.
async fn empty(client: &Client, source: &str) -> Result<(), Error> {
    for table in of(source) {
        let truncate = format!("TRUNCATE {}", table.copy(Side::Rebuilt));
        client.batch_execute(&truncate).await?;
    }
    for table in ["standing", "quarantine", "degraded"] {
        let delete = format!("DELETE FROM rebuild.{table} WHERE source = $1");
        client.execute(&delete, &[&source]).await?;
    }
    Ok(())
}

fn of(source: &str) -> impl Iterator<Item = &'static Table> {
    TABLES
        .into_iter()
        .filter(move |table| table.source == source)
}
