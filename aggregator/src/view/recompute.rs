//! Unified rows that are brought to what the mirrors say by command, because a comparison found them
//! different: those that are named, or all.

use std::collections::BTreeMap;

use service::fault;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error};

use super::resource::Resource;
use super::statements::{SETTINGS_FOR_ALL, Statements};
use super::totals::Of;
use super::unified::RESOURCES;
use super::{View, discrepancies};
use crate::failure::Failure;
use crate::mirror::Side;

/// Keys by `schema.table` of the view, each column of a key as text.
pub type Keys = BTreeMap<String, Vec<Vec<String>>>;

/// Keys that are computed at once, at most.
pub(crate) const KEYS_MAX: usize = 1000;

/// What cannot be a row's key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAKey {
    #[error("{0} is no unified table")]
    Table(String),
    #[error("{key} is no key of {table}")]
    Key { table: String, key: String },
    #[error("{0} keys are more than {KEYS_MAX}, which are computed at once at most")]
    TooMany(usize),
}

impl View {
    /// Brings every unified row to what the mirrors say, in one view transaction; how many
    /// differed.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn recompute(&mut self) -> Result<u64, Failure> {
        self.mirror(Side::Served, "", Vec::new()).await?;
        let revision = self.fence.next().to_string();
        let client = &self.session.client;
        let rows = Statements::compute_all(client, &self.known, &revision)
            .await
            .map_err(Failure::database("compute the unified tables"))?;
        let rows = rows + self.judge_all().await?;
        self.finish().await?;
        self.prepare_judge().await?;
        Ok(rows)
    }

    /// What these keys name.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn named(&self, keys: &Keys) -> Result<Result<Named, NotAKey>, Failure> {
        let named = named(&self.session.client, keys).await;
        named.map_err(Failure::database("look at keys"))
    }

    /// Brings the named rows to what the mirrors and the other rows say, in one view transaction;
    /// how many differed. Rows that are computed from these are to be named as well: what is compared
    /// is compared with what it is computed from.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn recompute_rows(&mut self, named: Named) -> Result<u64, Failure> {
        // Not the design: as if who names rows had asked for all.
        if !fault::in_force("named_rows_alone") {
            return self.recompute().await;
        }
        self.mirror(Side::Served, "", Vec::new()).await?;
        let revision = self.fence.next().to_string();
        let mut rows = 0;
        for (resource, columns) in named.0 {
            let client = &self.session.client;
            if reads_a_mirror(resource) {
                let set = client.batch_execute(SETTINGS_FOR_ALL).await;
                set.map_err(Failure::database("compute unified rows"))?;
            }
            let sql = resource.named_sql(&self.known);
            let mut parameters: Vec<&(dyn ToSql + Sync)> = Vec::new();
            if !resource.is_private() {
                parameters.push(&revision);
            }
            parameters.extend(columns.iter().map(|column| column as &(dyn ToSql + Sync)));
            let changed = client.execute(&sql, &parameters).await;
            rows += changed.map_err(Failure::database("compute unified rows"))?;
        }
        self.finish().await?;
        self.prepare_judge().await?;
        Ok(rows)
    }
}

/// Are its contributions found only by reading all of a mirror? No index names the total that a row
/// contributes to: what moves it costs nothing of that.
fn reads_a_mirror(resource: &Resource) -> bool {
    let totals = resource.totals();
    totals.is_some_and(|totals| matches!(totals.of, Of::Mirror(_)))
}

/// Tables in the order in which they are computed, each with the values of each column of its key.
#[derive(Debug)]
pub struct Named(Vec<(&'static Resource, Vec<Vec<String>>)>);

/// What the database would not take as a key is
/// found here, where that ends nothing.
async fn named(client: &Client, keys: &Keys) -> Result<Result<Named, NotAKey>, Error> {
    let count = keys.values().map(Vec::len).sum();
    if count > KEYS_MAX {
        return Ok(Err(NotAKey::TooMany(count)));
    }
    let all: Vec<_> = RESOURCES
        .into_iter()
        .chain(discrepancies::compared())
        .collect();
    let is_none = |name: &&String| all.iter().all(|resource| resource.table != name.as_str());
    if let Some(name) = keys.keys().find(is_none) {
        return Ok(Err(NotAKey::Table(name.clone())));
    }
    let mut named = Vec::new();
    for resource in all {
        let Some(keys) = keys.get(resource.table) else {
            continue;
        };
        let not_a_key = |key: &[String]| NotAKey::Key {
            table: resource.table.to_owned(),
            key: key.join("/"),
        };
        if let Some(key) = keys.iter().find(|key| key.len() != resource.key.len()) {
            return Ok(Err(not_a_key(key)));
        }
        let mut columns = Vec::new();
        for (place, (_, sql)) in resource.key.iter().enumerate() {
            let values: Vec<String> = keys.iter().map(|key| key[place].clone()).collect();
            let invalid = "SELECT place - 1 FROM unnest($1::text[])
                WITH ORDINALITY AS v (value, place)
                WHERE NOT pg_input_is_valid(value, $2) LIMIT 1";
            let found = client.query_opt(invalid, &[&values, sql]).await?;
            if let Some(row) = found {
                let place = usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or_default();
                return Ok(Err(not_a_key(&keys[place])));
            }
            columns.push(values);
        }
        named.push((resource, columns));
    }
    Ok(Ok(Named(named)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{DiscrepanciesConfig, ViewConfig};
    use crate::view::resource::Known;
    use crate::view::statements::SETTINGS;

    /// A few rows of large tables: no statement for them reads a table as a whole, but for private
    /// totals.
    #[tokio::test]
    async fn named_rows_are_computed_by_index() -> anyhow::Result<()> {
        let server = fixtures::servers().view().await?;
        let name = fixtures::servers::database(server, "named").await?;
        let config = ViewConfig {
            url: server.superuser_url(&name).into(),
            ..ViewConfig::default()
        };
        let sources = crate::SOURCES.map(str::to_owned);
        let terms = DiscrepanciesConfig::default();
        drop(View::open(&config, &terms, &sources, Duration::from_secs(5)).await?);
        let client = server.superuser(&name).await?;
        for setting in SETTINGS {
            client.batch_execute(&format!("SET {setting}")).await?;
        }
        let known: Known = sources.into_iter().collect();
        let all = RESOURCES.into_iter().chain(discrepancies::compared());
        for resource in all.filter(|resource| !reads_a_mirror(resource)) {
            let sql = resource.named_sql(&known);
            let explain = format!("EXPLAIN (GENERIC_PLAN) {sql}");
            let rows = client.simple_query(&explain).await?;
            let lines = rows.iter().filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            });
            let plan = lines.collect::<Vec<_>>().join("\n");
            assert!(!plan.contains("Seq Scan"), "{plan}\nof {sql}");
        }
        Ok(())
    }
}
