//! Tables that flood the quarantine are suspended, and read again when they are mended.
//!
//! A suspended table's events are passed over: its mirror stays as it is, and the quarantine does
//! not grow. It stands in `public.quarantine` as a whole, under the key `*`, and `public.positions`
//! names the unified tables that its rows belong to; so none of their rows has to be touched.
//!
//! A resumption applies its events again, to its second copy, while its connector reads the whole
//! table. The checkpoint that covers the last of that brings the mirror to the copy: what was
//! deleted meanwhile is not in it.

use std::collections::{BTreeMap, BTreeSet};

use service::fault;
use tokio_postgres::{Client, Error};

use super::resource::{Kept, Resource};
use super::statements::{SETTINGS_FOR_ALL, Statements};
use super::totals::Of;
use super::unified::RESOURCES;
use super::{Moved, View};
use crate::failure::Failure;
use crate::ingest::{Change, Record};
use crate::mirror::{Side, Table};

/// The key that stands for a whole table.
pub(crate) const WHOLE: &str = "*";

/// By table from which offset in the checkpoint topic on a record covers its re-read.
pub(super) type Resumptions = BTreeMap<&'static Table, Option<i64>>;

impl View {
    /// Suspends a table once more of its keys than this are in quarantine.
    #[must_use]
    pub fn suspending_after(mut self, keys: u32) -> Self {
        self.suspend_after = keys.into();
        self
    }

    /// The tables that are suspended, and whether they are being read again.
    pub fn suspended(&self) -> impl Iterator<Item = (&'static Table, bool)> {
        let tables = self.served.suspended.iter();
        tables.map(|table| (*table, self.resumptions.contains_key(table)))
    }

    /// From now on what comes of a suspended table goes to its second copy, from nothing on. Whether
    /// it is suspended.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn begin_resumption(&mut self, table: &'static Table) -> Result<bool, Failure> {
        if !self.served.suspended.contains(table) {
            return Ok(false);
        }
        self.mirror(Side::Served, table.source, Vec::new()).await?;
        let begun = async {
            let client = &self.session.client;
            empty(client, table).await?;
            let sql = r#"INSERT INTO aggregator.resumptions (source, "table") VALUES ($1, $2)
                ON CONFLICT (source, "table") DO UPDATE SET covered_by = NULL"#;
            client
                .execute(sql, &[&table.source, &table.captured])
                .await?;
            Ok(())
        };
        begun
            .await
            .map_err(Failure::database("begin to read a table again"))?;
        self.finish().await?;
        self.resumptions.insert(table, None);
        self.recount(Side::Rebuilt).await?;
        Ok(true)
    }

    /// The connector has read the table: the checkpoint at this offset of the checkpoint topic, and
    /// each after it, covers that. Whether the table is being read again.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn cover_resumption(
        &mut self,
        table: &'static Table,
        covered_by: i64,
    ) -> Result<bool, Failure> {
        if !self.resumptions.contains_key(table) {
            return Ok(false);
        }
        self.mirror(Side::Served, table.source, Vec::new()).await?;
        let sql = r#"UPDATE aggregator.resumptions SET covered_by = $3
            WHERE source = $1 AND "table" = $2"#;
        let client = &self.session.client;
        client
            .execute(sql, &[&table.source, &table.captured, &covered_by])
            .await
            .map_err(Failure::database("note what covers a table"))?;
        self.finish().await?;
        self.resumptions.insert(table, Some(covered_by));
        Ok(true)
    }

    /// Suspends those of the tables that have more in quarantine than they may; of each its last
    /// record that could not be applied.
    pub(super) async fn suspend_floods(
        &mut self,
        side: Side,
        source: &str,
        last: BTreeMap<&'static Table, Record>,
    ) -> Result<(), Failure> {
        if last.is_empty() || !fault::in_force("flood_is_suspended") {
            return Ok(());
        }
        let revision = self.fence.next().to_string();
        let client = &self.session.client;
        let doing = Failure::database("suspend a table");
        let suspended = async {
            let tables: Vec<_> = last.keys().map(|table| table.captured).collect();
            let records: Vec<_> = last.values().map(ToString::to_string).collect();
            let times: Vec<_> = last.values().map(|record| record.timestamp_ms).collect();
            let reason = format!(
                "more than {} of its keys cannot be applied: suspended until it is mended and read \
                again, aggregator quarantine resume",
                self.suspend_after
            );
            let sql = suspend_sql(side);
            let bound = self.suspend_after;
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 7] = [
                &source, &tables, &reason, &revision, &records, &times, &bound,
            ];
            let rows = client.query(&sql, &parameters).await?;
            let names = rows.iter().map(|row| row.try_get::<_, String>(0));
            let names: Vec<_> = names.collect::<Result<_, Error>>()?;
            let found = names.iter().filter_map(|name| Table::find(source, name));
            Ok(found.collect::<Vec<_>>())
        };
        let suspended = suspended.await.map_err(doing)?;
        for table in &suspended {
            let (captured, bound) = (table.captured, self.suspend_after);
            match side {
                Side::Served => tracing::error!(
                    source,
                    table = captured,
                    "{captured} of {source} is suspended: more than {bound} of its keys cannot be \
                    applied; mend it, then: aggregator quarantine resume --source {source} \
                    --table {captured}"
                ),
                Side::Rebuilt => tracing::error!(
                    source,
                    table = captured,
                    "{captured} of {source} is not mended: more than {bound} of its keys cannot be \
                    applied"
                ),
            }
        }
        let inputs = match side {
            Side::Served => &mut self.served,
            Side::Rebuilt => &mut self.rebuilt,
        };
        let is_any = !suspended.is_empty();
        inputs.suspended.extend(suspended);
        if is_any && side == Side::Served {
            self.tell_degraded(source).await?;
        }
        Ok(())
    }

    /// Says in `public.positions` which unified tables are degraded by suspended tables of a source.
    pub(super) async fn tell_degraded(&self, source: &str) -> Result<(), Failure> {
        let suspended = self.served.suspended.iter();
        let tables = suspended.filter(|table| table.source == source).copied();
        let degraded: Vec<_> = degraded_by(tables).into_iter().collect();
        let sql = "UPDATE public.positions SET degraded = $2 WHERE source = $1 AND degraded <> $2";
        let told = self
            .session
            .client
            .execute(sql, &[&source, &degraded])
            .await;
        told.map_err(Failure::database("say what is degraded"))?;
        Ok(())
    }

    /// Takes out what belongs to tables that are being read again, and applies it to their copies.
    pub(super) async fn fill_copies(
        &mut self,
        source: &str,
        changes: Vec<Change>,
    ) -> Result<Vec<Change>, Failure> {
        if self.resumptions.is_empty() {
            return Ok(changes);
        }
        let is_resumed = |change: &Change| self.resumptions.contains_key(change.table);
        let (copied, others): (Vec<_>, Vec<_>) = changes.into_iter().partition(is_resumed);
        if !copied.is_empty() {
            self.fill(source, copied).await?;
        }
        Ok(others)
    }

    /// Ends the resumptions that these checkpoints cover, in the open view transaction; whether
    /// unified rows were computed for that, all of those that the tables are an input of.
    pub(super) async fn end_resumptions(&mut self, moves: &[Moved]) -> Result<bool, Failure> {
        let covered = self.resumptions.iter().filter(|(table, covered_by)| {
            // Not the design: as if the next checkpoint covered all of it.
            let early = !fault::in_force("resumption_is_covered");
            moves.iter().any(|moved| {
                moved.source == table.source
                    && (early || covered_by.is_some_and(|offset| moved.standing.seen > offset))
            })
        });
        let covered: Vec<_> = covered.map(|(table, _)| *table).collect();
        for table in &covered {
            self.end_resumption(table).await?;
            self.resumptions.remove(table);
        }
        if covered.is_empty() {
            return Ok(false);
        }
        self.compute_fed(covered)
            .await
            .map_err(Failure::database("compute the unified tables"))?;
        Ok(true)
    }

    /// Computes all rows of the unified tables that these mirrors are an input of; how many differed.
    pub(super) async fn compute_fed<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a Table>,
    ) -> Result<u64, Error> {
        // Not the design: what nothing of this source can have changed as well.
        let fed = if fault::in_force("fed_tables_alone") {
            fed_by(tables)
        } else {
            RESOURCES.to_vec()
        };
        let revision = self.fence.next().to_string();
        Statements::compute(&self.session.client, &self.known, &revision, &fed).await
    }

    /// Brings the mirror to its copy, unless the copy flooded as well: then it stays suspended.
    async fn end_resumption(&mut self, table: &'static Table) -> Result<(), Failure> {
        let is_mended = !self.rebuilt.suspended.contains(table);
        let (source, captured) = (table.source, table.captured);
        let ended = async {
            let client = &self.session.client;
            client.batch_execute(SETTINGS_FOR_ALL).await?;
            let mut rows = 0;
            if is_mended {
                rows = bring(client, table).await?;
            }
            bring_quarantine(client, table).await?;
            empty(client, table).await?;
            let sql = r#"DELETE FROM aggregator.resumptions WHERE source = $1 AND "table" = $2"#;
            client.execute(sql, &[&source, &captured]).await?;
            Ok(rows)
        };
        let rows = ended
            .await
            .map_err(Failure::database("end a table's suspension"))?;
        self.recount(Side::Rebuilt).await?;
        self.recount(Side::Served).await?;
        self.tell_degraded(source).await?;
        if is_mended {
            tracing::info!(
                source,
                table = captured,
                rows,
                "{captured} of {source} is read again and suspended no more: {rows} rows differed"
            );
        }
        Ok(())
    }

    /// A rebuild of the whole source begins: it ends what is suspended by itself.
    pub(super) async fn forget_resumptions(&mut self, source: &str) -> Result<(), Failure> {
        let sql = "DELETE FROM aggregator.resumptions WHERE source = $1";
        let forgotten = self.session.client.execute(sql, &[&source]).await;
        forgotten.map_err(Failure::database("forget that a table is read again"))?;
        self.resumptions.retain(|table, _| table.source != source);
        Ok(())
    }

    /// Takes from the database what is in quarantine and suspended.
    pub(super) async fn recount(&mut self, side: Side) -> Result<(), Failure> {
        let inputs = match side {
            Side::Served => &mut self.served,
            Side::Rebuilt => &mut self.rebuilt,
        };
        let counted = inputs.count(&self.session.client, side).await;
        counted.map_err(Failure::database("count what is in quarantine"))
    }
}

/// The resumptions that are under way.
pub(super) async fn resumptions(client: &Client) -> Result<Resumptions, Error> {
    let sql = r#"SELECT source, "table", covered_by FROM aggregator.resumptions"#;
    let mut resumptions = Resumptions::new();
    for row in client.query(sql, &[]).await? {
        let (source, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if let Some(table) = Table::find(&source, &name) {
            resumptions.insert(table, row.try_get(2)?);
        }
    }
    Ok(resumptions)
}

/// The tables that are suspended on this side.
pub(super) async fn suspended(
    client: &Client,
    side: Side,
) -> Result<BTreeSet<&'static Table>, Error> {
    let schema = schema(side);
    let sql = format!(r#"SELECT source, "table" FROM {schema}.quarantine WHERE suspended"#);
    let mut suspended = BTreeSet::new();
    for row in client.query(&sql, &[]).await? {
        let (source, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        suspended.extend(Table::find(&source, &name));
    }
    Ok(suspended)
}

fn schema(side: Side) -> &'static str {
    match side {
        Side::Served => "public",
        Side::Rebuilt => "rebuild",
    }
}

fn suspend_sql(side: Side) -> String {
    format!(
        r#"INSERT INTO {schema}.quarantine
            (source, "table", key, reason, record, at, revision, suspended)
        SELECT $1, p."table", '{WHOLE}', $3, p.record, to_timestamp(p.at_ms / 1000.0), $4, true
        FROM unnest($2::text[], $5::text[], $6::bigint[]) AS p ("table", record, at_ms)
        WHERE (
            SELECT count(*) FROM {schema}.quarantine AS q
            WHERE q.source = $1 AND q."table" = p."table" AND NOT q.suspended
        ) > $7::bigint
        ON CONFLICT (source, "table", key) DO UPDATE SET
            reason = excluded.reason, position = NULL, record = excluded.record, at = excluded.at,
            revision = excluded.revision, lsn = NULL, suspended = true
        RETURNING "table""#,
        schema = schema(side)
    )
}

/// The unified tables and private totals that rows of these mirrors are an input of, in the order in
/// which they are computed.
fn fed_by<'a>(tables: impl IntoIterator<Item = &'a Table>) -> Vec<&'static Resource> {
    fn is_fed(resource: &Resource, table: &Table) -> bool {
        match &resource.kept {
            Kept::Rows(rows) => {
                rows.named_by.iter().any(|(by, _)| *by == table)
                    || rows.through.iter().any(|of| is_fed(of, table))
            }
            Kept::Totals(totals) => match totals.of {
                Of::Mirror(of) => of == table,
                Of::Rows(of) => is_fed(of, table),
            },
        }
    }
    let tables: Vec<_> = tables.into_iter().collect();
    RESOURCES
        .into_iter()
        .filter(|resource| tables.iter().any(|table| is_fed(resource, table)))
        .collect()
}

/// Those that readers see, without their schema; any rule of discrepancies may look at a row.
fn degraded_by<'a>(tables: impl IntoIterator<Item = &'a Table>) -> BTreeSet<&'static str> {
    let mut names = BTreeSet::new();
    for resource in fed_by(tables) {
        names.insert(super::discrepancies::DISCREPANCIES.name());
        if !resource.is_private() {
            names.insert(resource.name());
        }
    }
    names
}

/// Brings a mirror to its second copy; how many rows differed.
async fn bring(client: &Client, table: &Table) -> Result<u64, Error> {
    let analyze = format!("ANALYZE {}", table.copy(Side::Rebuilt));
    client.batch_execute(&analyze).await?;
    let mut swap = table.swap_sql();
    // Not the design: as if what was deleted meanwhile said so itself.
    if !fault::in_force("resumption_deletes") {
        swap = swap.replace("WHEN NOT MATCHED BY SOURCE THEN DELETE", "");
    }
    client.execute(&swap, &[]).await
}

/// What of the table could not be applied is what could not be applied to its copy.
async fn bring_quarantine(client: &Client, table: &Table) -> Result<(), Error> {
    for (quarantine, copy) in [
        ("public.quarantine", "rebuild.quarantine"),
        ("aggregator.degraded", "rebuild.degraded"),
    ] {
        let which = r#"WHERE source = $1 AND "table" = $2"#;
        for statement in [
            format!("DELETE FROM {quarantine} {which}"),
            format!("INSERT INTO {quarantine} SELECT * FROM {copy} {which}"),
        ] {
            client
                .execute(&statement, &[&table.source, &table.captured])
                .await?;
        }
    }
    Ok(())
}

/// Empties a table's second copy.
async fn empty(client: &Client, table: &Table) -> Result<(), Error> {
    let truncate = format!("TRUNCATE {}", table.copy(Side::Rebuilt));
    client.batch_execute(&truncate).await?;
    for name in ["quarantine", "degraded"] {
        let delete = format!(r#"DELETE FROM rebuild.{name} WHERE source = $1 AND "table" = $2"#);
        client
            .execute(&delete, &[&table.source, &table.captured])
            .await?;
    }
    Ok(())
}

/// The last record of each table that could not be applied.
pub(super) fn last_of(
    poison: &[(
        &'static Table,
        crate::ingest::Key,
        super::quarantine::Poison,
    )],
) -> BTreeMap<&'static Table, Record> {
    let mut last: BTreeMap<&'static Table, Record> = BTreeMap::new();
    for (table, _, poison) in poison {
        let newer = |of: &Record| of.timestamp_ms <= poison.record.timestamp_ms;
        if last.get(table).is_none_or(newer) {
            last.insert(table, poison.record.clone());
        }
    }
    last
}
