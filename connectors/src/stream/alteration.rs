//! Looks at the source's catalog: at the start, each minute, and when the log says that a table
//! has changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::Lsn;
use service::fault::{self, in_force};

use crate::check::{CheckError, check};
use crate::error::LifeError;
use crate::life::{Life, table_topic};
use crate::snapshot::view::View;
use crate::source::catalog::Catalog;
use crate::watch::Activity;

/// Between two tries for a snapshot that shows the transaction which altered a table.
const VISIBLE_RETRY: Duration = Duration::from_millis(5);

impl Life<'_> {
    /// Is it time to look?
    pub(super) fn is_look_due(&self) -> bool {
        !self.progress.in_transaction() && Instant::now() >= self.look_at
    }

    /// Something may have changed: looks when the transaction has come to its end.
    pub(super) fn look_soon(&mut self) {
        self.look_at = Instant::now();
    }

    /// Checks the source as before a life, and compares its tables with what the topics were
    /// written from. `altered_by` is a transaction that the look must show: what is streamed may
    /// not be visible yet.
    pub(super) async fn look(&mut self, altered_by: Option<u64>) -> Result<(), LifeError> {
        // It must not outlast an open Kafka transaction.
        self.record_if_any().await?;
        self.status.motion().begin(Activity::Checking);
        match check(self.config).await {
            Ok(_) => {}
            Err(error @ CheckError::Faults(_)) => return Err(error.into()),
            Err(error @ (CheckError::NotNow(_) | CheckError::Source(_))) => {
                tracing::debug!(%error, "the source cannot be checked now");
            }
        }
        self.status.motion().begin(Activity::AskingSource);
        self.catalog = self.catalog_showing(altered_by).await?;
        let looked_at = self.wal.border(self.control.inserted().await?);
        self.compare(looked_at).await?;
        tracing::debug!("the catalog was looked at");
        self.look_at = Instant::now() + Duration::from_millis(self.config.postgres.check_ms);
        self.status.motion().begin(Activity::Streaming);
        Ok(())
    }

    async fn catalog_showing(&mut self, xid: Option<u64>) -> Result<Catalog, LifeError> {
        let session = Arc::clone(&self.reads);
        loop {
            let view = View::open(&session).await?;
            if xid.is_none_or(|xid| !view.snapshot.running(xid)) {
                let publication = &self.config.postgres.publication;
                let catalog = Catalog::read(&session, publication, &self.config.tables).await?;
                View::close(&session).await?;
                return Ok(catalog);
            }
            View::close(&session).await?;
            self.record_if_old().await?;
            tokio::time::sleep(VISIBLE_RETRY).await;
        }
    }

    /// Compares the catalog, of a look that was ended at `looked_at`, with what the topics were
    /// written from.
    pub(crate) async fn compare(&mut self, looked_at: Lsn) -> Result<(), LifeError> {
        let tables: Vec<_> = self.catalog.tables.keys().cloned().collect();
        for name in tables {
            let Some(table) = self.catalog.tables.get(&name) else {
                continue;
            };
            let (now, columns) = (table.definition.clone(), table.columns.clone());
            match self.progress.alteration(&name, &now) {
                None => self.progress.define(&name, now),
                Some(alteration) => {
                    tracing::warn!(table = name, "{name} {alteration}; it is read anew");
                    if alteration.forgets_rows() {
                        self.forget(&name, looked_at).await?;
                    } else {
                        self.progress.forget_values(&name, now, looked_at);
                    }
                }
            }
            if self.progress.learn_from_look(&name, &columns, looked_at) {
                tracing::info!(table = name, "{name} has other columns; it is read again");
            }
        }
        fault::point("connector.after_look").await;
        Ok(())
    }

    /// A relation of the log is one that the table no longer is: of before it was made again, or
    /// with another key. Its changes are not sent, so the table must be read after them all.
    pub(super) async fn pass_over(&mut self, name: &str) -> Result<(), LifeError> {
        if self.progress.holds(name) || !in_force("altered_table_is_read") {
            return Ok(());
        }
        tracing::warn!(
            table = name,
            "{name} was another table when this was logged; it is read anew"
        );
        let looked_at = self.wal.border(self.control.inserted().await?);
        self.forget(name, looked_at).await
    }

    /// Everything of a table is read, and what else its topic holds is deleted.
    async fn forget(&mut self, name: &str, looked_at: Lsn) -> Result<(), LifeError> {
        let Some(table) = self.catalog.tables.get(name) else {
            return Ok(());
        };
        let now = table.definition.clone();
        self.drop_view().await?;
        self.scan = None;
        // What has been sent must lie below the ends.
        self.record_if_any().await?;
        let ends = self.topics.ends(&table_topic(self.config, name)).await?;
        self.progress.forget(name, now, &ends, looked_at);
        Ok(())
    }
}
