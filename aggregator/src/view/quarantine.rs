//! `public.quarantine`: what could not be applied, and why.
//!
//! The mirror row keeps its last state, and each unified row that the input belongs to, as far
//! as its old state or what could be read of the new one names it, says `degraded`. The next
//! state of the same key that can be applied ends it.

use std::collections::{BTreeSet, HashMap, HashSet};

use service::fault;
use tokio_postgres::{Client, Error, Statement};

use super::View;
use super::touched::{Touched, named};
use super::unified;
use kafka::Lsn;

use crate::failure::Failure;
use crate::ingest::{Key, Record};
use crate::mirror::{Mirror, Reported, Side, Table, Value};

/// A key whose last event could not be applied.
#[derive(Debug, Clone)]
pub(crate) struct Poison {
    pub record: Record,
    pub reason: String,
    /// What could be read of the row.
    pub row: Option<Vec<Value>>,
    /// Where in the source's log the change stands, if that is known.
    pub lsn: Option<Lsn>,
}

/// What one step says of the quarantine.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub poison: Vec<(&'static Table, Key, Poison)>,
    /// Keys that have an applicable state again, and where in the source's log that stands.
    pub sound: Vec<(&'static Table, i64, Option<Lsn>)>,
}

/// The keys that are in quarantine: as many as tables may have there before they are suspended, and
/// those of a step more.
#[derive(Debug, Default)]
pub(crate) struct Quarantined {
    count: i64,
    /// By mirror. May name one that has left it.
    ids: HashMap<&'static str, HashSet<i64>>,
}

impl Quarantined {
    /// How many there are.
    pub(crate) fn count(&self) -> i64 {
        self.count
    }

    /// If it is false, it is not there.
    pub(crate) fn may_have(&self, table: &Table, id: i64) -> bool {
        // Not the design: as if any could be there while one is.
        if !fault::in_force("quarantined_keys_alone") {
            return self.count > 0;
        }
        let ids = self.ids.get(table.mirror);
        ids.is_some_and(|ids| ids.contains(&id))
    }

    fn insert(&mut self, table: &Table, key: &Key) {
        if let Key::Id(id) = key {
            self.ids.entry(table.mirror).or_default().insert(*id);
        }
    }

    #[cfg(test)]
    pub(crate) fn with(table: &Table, ids: &[i64]) -> Self {
        Self {
            count: i64::try_from(ids.len()).unwrap_or(i64::MAX),
            ids: HashMap::from([(table.mirror, ids.iter().copied().collect())]),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Quarantine {
    release: Statement,
    remaining: Statement,
    forget: Statement,
    take: Statement,
    name: Statement,
    place: Statement,
    keys: Statement,
}

impl Quarantine {
    pub(crate) async fn prepare(client: &Client, side: Side) -> Result<Self, Error> {
        let (quarantine, degraded) = match side {
            Side::Served => ("public.quarantine", "aggregator.degraded"),
            Side::Rebuilt => ("rebuild.quarantine", "rebuild.degraded"),
        };
        Ok(Self {
            release: client
                .prepare(&format!(
                    r#"DELETE FROM {quarantine} AS q
                    USING unnest($2::text[], $3::text[], $4::text[]) AS k ("table", key, lsn)
                    WHERE q.source = $1 AND q."table" = k."table" AND q.key = k.key
                        AND NOT q.suspended
                        AND (q.lsn IS NULL OR k.lsn IS NULL OR k.lsn::pg_lsn >= q.lsn)"#
                ))
                .await?,
            remaining: client
                .prepare(&format!(
                    r#"SELECT q."table", q.key FROM {quarantine} AS q
                    JOIN unnest($2::text[], $3::text[]) AS k ("table", key)
                        ON q."table" = k."table" AND q.key = k.key
                    WHERE q.source = $1"#
                ))
                .await?,
            forget: client
                .prepare(&format!(
                    r#"DELETE FROM {degraded} AS g
                    USING unnest($2::text[], $3::text[]) AS k ("table", key)
                    WHERE g.source = $1 AND g."table" = k."table" AND g.key = k.key
                    RETURNING g.resource, g.id"#
                ))
                .await?,
            take: client
                .prepare(&format!(
                    r#"INSERT INTO {quarantine} AS q
                        (source, "table", key, reason, record, at, revision, lsn)
                    SELECT $1, p."table", p.key, p.reason, p.record,
                        to_timestamp(p.at_ms / 1000.0), $7, p.lsn::pg_lsn
                    FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                        $8::text[]) AS p ("table", key, reason, record, at_ms, lsn)
                    ON CONFLICT (source, "table", key) DO UPDATE SET
                        reason = excluded.reason, position = NULL, record = excluded.record,
                        at = excluded.at, revision = excluded.revision, lsn = excluded.lsn
                    WHERE q.lsn IS NULL OR excluded.lsn IS NULL OR excluded.lsn >= q.lsn
                    RETURNING old.key IS NULL"#
                ))
                .await?,
            name: client
                .prepare(&format!(
                    r#"INSERT INTO {degraded} (resource, id, source, "table", key)
                    SELECT n.resource, n.id, $1, n."table", n.key
                    FROM unnest($2::text[], $3::bigint[], $4::text[], $5::text[])
                        AS n (resource, id, "table", key)
                    ON CONFLICT DO NOTHING"#
                ))
                .await?,
            place: client
                .prepare(&format!(
                    "UPDATE {quarantine} SET position = $2, revision = $3
                    WHERE source = $1 AND position IS NULL"
                ))
                .await?,
            keys: client
                .prepare(&format!(
                    r#"SELECT source, "table", key FROM {quarantine} WHERE NOT suspended"#
                ))
                .await?,
        })
    }

    /// Brings the quarantine to what the step found, and adds the unified rows that this
    /// concerns to `touched`.
    pub(crate) async fn apply(
        &self,
        client: &Client,
        source: &str,
        revision: &str,
        findings: Findings,
        mirrors: &HashMap<&'static str, Mirror>,
        (quarantined, touched): (&mut Quarantined, &mut Touched),
    ) -> Result<(), Error> {
        let (released, kept) = self
            .release(client, source, &findings.sound, touched)
            .await?;
        quarantined.count -= released;
        for (table, id, _) in &findings.sound {
            if let Some(ids) = quarantined.ids.get_mut(table.mirror)
                && !kept.contains(&(*table, *id))
            {
                ids.remove(id);
            }
        }
        for (table, key, _) in &findings.poison {
            quarantined.insert(table, key);
        }
        if findings.poison.is_empty() && kept.is_empty() {
            return Ok(());
        }
        let poison = findings.poison.iter();
        let poisoned = poison.map(|(table, key, _)| (table.captured, key.to_string()));
        let (tables, keys): (Vec<_>, Vec<_>) = poisoned.unzip();
        self.forget(client, source, &tables, &keys, touched).await?;
        let each = || findings.poison.iter().map(|(_, _, poison)| poison);
        let reasons: Vec<_> = each().map(|poison| poison.reason.as_str()).collect();
        let records: Vec<_> = each().map(|poison| poison.record.to_string()).collect();
        let times: Vec<_> = each().map(|poison| poison.record.timestamp_ms).collect();
        let lsns: Vec<_> = each()
            .map(|poison| poison.lsn.map(|lsn| lsn.to_string()))
            .collect();
        let taken = client
            .query(
                &self.take,
                &[
                    &source, &tables, &keys, &reasons, &records, &times, &revision, &lsns,
                ],
            )
            .await?;
        for row in taken {
            quarantined.count += i64::from(row.try_get::<_, bool>(0)?);
        }
        let poison = findings.poison.iter();
        let poison = poison.map(|(table, key, poison)| (*table, key.clone(), poison.row.as_ref()));
        let kept = kept.iter().map(|(table, id)| (*table, Key::Id(*id), None));
        let names = names(client, poison.chain(kept), mirrors).await?;
        let (mut resources, mut ids, mut tables, mut keys) = (vec![], vec![], vec![], vec![]);
        for (resource, id, table, key) in names {
            if let Some(resource) = unified::named(resource) {
                touched.turn(resource, id);
            }
            resources.push(resource);
            ids.push(id);
            tables.push(table);
            keys.push(key);
        }
        client
            .execute(&self.name, &[&source, &resources, &ids, &tables, &keys])
            .await?;
        Ok(())
    }

    /// Ends the quarantine of a key, whatever its row is; whether it was there.
    pub(crate) async fn discard(
        &self,
        client: &Client,
        source: &str,
        table: &str,
        key: &str,
        touched: &mut Touched,
    ) -> Result<bool, Error> {
        let (tables, keys) = ([table], [key.to_owned()]);
        let whenever: [Option<String>; 1] = [None];
        let discarded = client
            .execute(
                &self.release,
                &[
                    &source,
                    &tables.as_slice(),
                    &keys.as_slice(),
                    &whenever.as_slice(),
                ],
            )
            .await?;
        self.forget(client, source, &tables, &keys, touched).await?;
        Ok(discarded > 0)
    }

    /// Ends the quarantine of keys that are sound again. How many that were, and the keys that
    /// stay in it because what is there is newer.
    async fn release(
        &self,
        client: &Client,
        source: &str,
        sound: &[(&'static Table, i64, Option<Lsn>)],
        touched: &mut Touched,
    ) -> Result<(i64, Vec<(&'static Table, i64)>), Error> {
        if sound.is_empty() {
            return Ok((0, Vec::new()));
        }
        let key = |id: i64| Key::Id(id).to_string();
        let tables: Vec<_> = sound.iter().map(|(table, ..)| table.captured).collect();
        let keys: Vec<_> = sound.iter().map(|(_, id, _)| key(*id)).collect();
        let lsns: Vec<_> = sound
            .iter()
            .map(|(.., lsn)| lsn.map(|lsn| lsn.to_string()))
            .collect();
        let released = client
            .execute(&self.release, &[&source, &tables, &keys, &lsns])
            .await?;
        let remaining: BTreeSet<(String, String)> = client
            .query(&self.remaining, &[&source, &tables, &keys])
            .await?
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<_, Error>>()?;
        let is_kept = |table: &Table, id: i64| {
            let name = (table.captured.to_owned(), key(id));
            remaining.contains(&name)
        };
        let sound = sound.iter().map(|(table, id, _)| (*table, *id));
        let (kept, gone): (Vec<_>, Vec<_>) = sound.partition(|(table, id)| is_kept(table, *id));
        let tables: Vec<_> = gone.iter().map(|(table, _)| table.captured).collect();
        let keys: Vec<_> = gone.iter().map(|(_, id)| key(*id)).collect();
        self.forget(client, source, &tables, &keys, touched).await?;
        Ok((i64::try_from(released).unwrap_or(i64::MAX), kept))
    }

    async fn forget(
        &self,
        client: &Client,
        source: &str,
        tables: &[&str],
        keys: &[String],
        touched: &mut Touched,
    ) -> Result<(), Error> {
        let forgotten = client
            .query(&self.forget, &[&source, &tables, &keys])
            .await?;
        for row in forgotten {
            if let Some(resource) = unified::named(row.try_get(0)?) {
                touched.turn(resource, row.try_get(1)?);
            }
        }
        Ok(())
    }

    /// The checkpoint that covers what was taken in since the last one.
    pub(crate) async fn place(
        &self,
        client: &Client,
        source: &str,
        position: &str,
        revision: &str,
    ) -> Result<(), Error> {
        client
            .execute(&self.place, &[&source, &position, &revision])
            .await?;
        Ok(())
    }

    /// The keys that are in it now.
    pub(crate) async fn keys(&self, client: &Client) -> Result<Quarantined, Error> {
        let mut keys = Quarantined::default();
        for row in client.query(&self.keys, &[]).await? {
            keys.count += 1;
            let (source, table): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
            if let Some(table) = Table::find(source, table) {
                keys.insert(table, &Key::decode(row.try_get::<_, &str>(2)?.as_bytes()));
            }
        }
        Ok(keys)
    }
}

impl View {
    /// Takes a key out of quarantine: its row stays as it is, and nothing is degraded by it any
    /// more. Whether it was there.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn discard(&mut self, source: &str, table: &str, key: &str) -> Result<bool, Failure> {
        self.mirror(Side::Served, source, Vec::new()).await?;
        let mut touched = Touched::default();
        let discarded = self
            .served
            .quarantine
            .discard(&self.session.client, source, table, key, &mut touched)
            .await
            .map_err(Failure::database("take a key out of quarantine"))?;
        self.served.quarantined.count -= i64::from(discarded);
        self.unify(source, touched).await?;
        self.judge_touched(&[]).await?;
        self.finish().await?;
        Ok(discarded)
    }
}

/// The unified rows that the poison belongs to, by its readable part and by the mirror's row.
async fn names(
    client: &Client,
    poison: impl Iterator<Item = (&'static Table, Key, Option<&Vec<Value>>)>,
    mirrors: &HashMap<&'static str, Mirror>,
) -> Result<BTreeSet<(&'static str, i64, &'static str, String)>, Error> {
    let mut names = BTreeSet::new();
    let mut ids: HashMap<&'static str, Vec<i64>> = HashMap::new();
    let mut add = |row: &Reported, key: String| {
        for (resource, id) in named(row) {
            names.insert((resource.name(), id, row.table.captured, key.clone()));
        }
    };
    for (table, key, row) in poison {
        if let Key::Id(id) = key {
            ids.entry(table.mirror).or_default().push(id);
        }
        if let Some(row) = row {
            add(&Reported::of(table, row), key.to_string());
        }
    }
    for (table, ids) in ids {
        let Some(mirror) = mirrors.get(table) else {
            continue;
        };
        for row in mirror.look(client, &ids).await? {
            if let Some(id) = row.integer("id") {
                add(&row, Key::Id(id).to_string());
            }
        }
    }
    Ok(names)
}
