//! Definitions that have changed since the unified rows were computed.
//!
//! A new version of the aggregator may define a unified table otherwise, or one that was not there.
//! What that changes in rows is computed from the mirrors that there are, by the first writer
//! with that definition, in one view transaction: readers see the old rows until it commits, and
//! then all the new ones, at positions that are not behind. Rows that come out as they were are not
//! touched.

use service::fault;
use tokio_postgres::{Client, Error};

use super::View;
use super::discrepancies;
use super::resource::{Known, Resource};
use super::statements::Statements;
use super::unified::RESOURCES;
use crate::failure::Failure;
use crate::mirror::Side;

/// Those whose rows were computed by another definition, of the two arrays of names and texts.
const CHANGED: &str = "
    SELECT d.resource FROM unnest($1::text[], $2::text[]) AS d (resource, sql)
    LEFT JOIN aggregator.definitions AS f USING (resource)
    WHERE f.checksum IS DISTINCT FROM encode(sha256(convert_to(d.sql, 'UTF8')), 'hex')";

const NOTE: &str = "
    INSERT INTO aggregator.definitions (resource, checksum)
    SELECT d.resource, encode(sha256(convert_to(d.sql, 'UTF8')), 'hex')
    FROM unnest($1::text[], $2::text[]) AS d (resource, sql)
    ON CONFLICT (resource) DO UPDATE SET checksum = excluded.checksum";

impl View {
    /// Computes what changed definitions say of the sources that are served.
    pub(super) async fn fill_changed(&mut self) -> Result<(), Failure> {
        let doing = "compute what has a new definition";
        let changed = changed(&self.session.client)
            .await
            .map_err(Failure::database(doing))?;
        let Some(changed) = changed else {
            return Ok(());
        };
        self.mirror(Side::Served, "", Vec::new()).await?;
        let revision = self.fence.next().to_string();
        let is_filled = !self.known.is_empty() && fault::in_force("definitions_filled");
        let filled = async {
            let client = &self.session.client;
            let mut rows = 0;
            if is_filled {
                rows = Statements::compute(client, &self.known, &revision, &changed).await?;
            }
            let (names, texts) = definitions();
            client.execute(NOTE, &[&names, &texts]).await?;
            Ok(rows)
        };
        let mut rows = filled.await.map_err(Failure::database(doing))?;
        if is_filled {
            rows += self.judge_all().await?;
        }
        self.finish().await?;
        self.prepare_judge().await?;
        tracing::info!(
            rows,
            "computed what has a new definition: {rows} rows changed"
        );
        Ok(())
    }
}

/// What is defined otherwise than it was, and all that may be computed from it; discrepancies are
/// in any case.
async fn changed(client: &Client) -> Result<Option<Vec<&'static Resource>>, Error> {
    let (names, texts) = definitions();
    let rows = client.query(CHANGED, &[&names, &texts]).await?;
    let changed: Vec<&str> = rows
        .iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()?;
    if changed.is_empty() {
        return Ok(None);
    }
    let first = RESOURCES
        .iter()
        .position(|resource| changed.contains(&resource.name()));
    Ok(Some(
        first.map_or(Vec::new(), |first| RESOURCES[first..].to_vec()),
    ))
}

/// Each name, and the statement that computes all its rows once every source is known.
fn definitions() -> (Vec<&'static str>, Vec<String>) {
    let known: Known = crate::SOURCES.map(str::to_owned).into();
    RESOURCES
        .into_iter()
        .chain(discrepancies::compared())
        .map(|resource| (resource.name(), resource.all_sql(&known)))
        .unzip()
}
