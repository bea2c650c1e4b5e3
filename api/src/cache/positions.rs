//! The view's rows about its sources, as the feed tells them.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka::Position;
use serde::{Deserialize, Serialize};

use crate::position::Positions;
use crate::query;
use crate::revision::Revision;

/// A row of `public.positions` in an event of the feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRow {
    pub source: String,
    pub epoch: Option<i64>,
    pub lsn: Option<String>,
    pub lag_bytes: Option<i64>,
    /// RFC 3339 in UTC.
    pub current_at: Option<String>,
    pub writer: i64,
    pub number: i64,
    /// The unified tables that suspended tables of the source degrade, as PostgreSQL writes arrays;
    /// none: not told.
    #[serde(default)]
    pub degraded: Option<String>,
}

impl SourceRow {
    fn position(&self) -> anyhow::Result<Option<Position>> {
        query::position(self.epoch, self.lsn.as_deref())
    }
}

/// The table `public.positions` as far as the feed has read it.
#[derive(Debug, Clone, Default)]
pub(super) struct PositionsTable(BTreeMap<String, SourceRow>);

impl PositionsTable {
    pub(super) fn put(&mut self, row: SourceRow) {
        self.0.insert(row.source.clone(), row);
    }

    pub(super) fn remove(&mut self, source: &str) {
        self.0.remove(source);
    }

    /// The view's revision: that of the row that was written last.
    pub(super) fn revision(&self) -> Revision {
        let revisions = self.0.values().map(|row| Revision {
            writer: row.writer,
            number: row.number,
        });
        revisions.max().unwrap_or_default()
    }

    pub(super) fn positions(&self, sources: &[String]) -> anyhow::Result<Positions> {
        let known: anyhow::Result<Vec<_>> = self
            .0
            .values()
            .map(|row| Ok((row.source.clone(), row.position()?)))
            .collect();
        Ok(Positions::new(sources, known?))
    }

    /// By source the unified tables that are degraded as a whole.
    pub(super) fn degraded(&self) -> BTreeMap<String, String> {
        let told = self.0.values();
        let told = told.filter_map(|row| Some((row.source.clone(), row.degraded.clone()?)));
        told.filter(|(_, degraded)| degraded != "{}").collect()
    }

    pub(super) fn rows(&self) -> Arc<Vec<SourceRow>> {
        Arc::new(self.0.values().cloned().collect())
    }
}
