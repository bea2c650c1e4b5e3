//! A source's tables against their mirrors, range by range.
//!
//! The two never stand still at one place, and nothing holds a long snapshot open on a source. So
//! each range is read from the source in a statement of its own, then the WAL position *after*
//! that is taken, and the mirror is read once the view has passed it: it then holds all that the
//! source showed, and perhaps more. Ranges whose hashes agree are equal. In others each row that
//! differs is looked at again ([`super::second_look`]).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kafka::{Lsn, Position};
use tokio_postgres::{Client, Row};

use super::progress::{Place, Progress};
use super::report::{Difference, Report};
use super::row::{hash, quoted, range};
use super::{Slice, VerifyError};
use crate::config::{Config, SourceConfig, VerifyConfig};
use crate::mirror::{TABLES, Table};
use crate::session::Session;

/// How often the view's position is asked for.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// One source.
pub(super) struct Comparison<'a> {
    view: &'a Client,
    session: Session,
    source: &'a str,
    pub(super) config: &'a VerifyConfig,
    epoch: i64,
}

/// A part that could not be compared.
type Failed = (String, VerifyError);

/// Rows in a range, and their hashes summed.
type Digest = (i64, String);

impl<'a> Comparison<'a> {
    pub(super) async fn begin(
        view: &'a Session,
        config: &'a Config,
        source: &'a str,
        way: &SourceConfig,
    ) -> Result<Self, VerifyError> {
        let settings = [
            "TimeZone = 'UTC'",
            "DateStyle = 'ISO'",
            "extra_float_digits = 3",
            "default_transaction_read_only = on",
            "lock_timeout = '2s'",
            "statement_timeout = '60s'",
            // One processor of the source's at a time.
            "max_parallel_workers_per_gather = 0",
        ]
        .map(str::to_owned);
        let session = Session::open_source(way, source, "tributary verify", &settings).await?;
        let row = view
            .client
            .query_opt(
                "SELECT epoch FROM public.positions WHERE source = $1 AND epoch IS NOT NULL",
                &[&source],
            )
            .await
            .map_err(VerifyError::database("read the view's positions"))?;
        let epoch = row.map(|row| row.get(0)).ok_or_else(|| {
            VerifyError::Cannot("the view has not read it for the first time yet".to_owned())
        })?;
        Ok(Self {
            view: &view.client,
            session,
            source,
            config: &config.verify,
            epoch,
        })
    }

    pub(super) async fn run(
        &self,
        progress: &mut Progress,
        report: &mut Report,
        found: &impl Fn(&Difference),
    ) -> Result<(), Failed> {
        for table in TABLES.into_iter().filter(|t| t.source == self.source) {
            let suspended = self.is_suspended(table).await;
            if suspended.map_err(|error| (table.mirror.to_owned(), error))? {
                let why = "it is suspended; mend it, then: aggregator quarantine resume";
                report.not_compared(table.mirror, why);
                continue;
            }
            self.table(table, progress, report, found)
                .await
                .map_err(|error| (table.mirror.to_owned(), error))?;
        }
        Ok(())
    }

    async fn table(
        &self,
        table: &'static Table,
        progress: &mut Progress,
        report: &mut Report,
        found: &impl Fn(&Difference),
    ) -> Result<(), VerifyError> {
        let mut pace = Pace::new(self.config.rows_per_second);
        while let Place::After(after) = progress.place(table.mirror) {
            let Slice { end, rows_read } = self.slice(table, after, report, found).await?;
            pace.read(rows_read).await;
            let place = end.map_or(Place::Done, Place::After);
            progress
                .reached(table.mirror, place, report)
                .map_err(|error| VerifyError::Cannot(format!("{error:#}")))?;
        }
        Ok(())
    }

    /// Compares the rows behind this key, as many as one hash covers.
    pub(super) async fn slice(
        &self,
        table: &'static Table,
        after: i64,
        report: &mut Report,
        found: &impl Fn(&Difference),
    ) -> Result<Slice<i64>, VerifyError> {
        let (digest, last) = self.digest_of_source(table, after).await?;
        let rows = u64::try_from(digest.0).unwrap_or_default();
        let mut rows_read = rows;
        let whole = rows == u64::from(self.config.chunk_rows);
        // The last range has no end: the mirror must have nothing behind it either.
        let end = last.filter(|_| whole);
        let at = self.passed().await?;
        if self.digest_of_mirror(table, after, end).await? != digest {
            let suspects = self.suspects(table, after, end).await?;
            rows_read += rows;
            let differing = self.differing(table, suspects, report).await?;
            let quarantined = self.quarantined(table).await?;
            for (id, difference) in differing {
                if quarantined.contains(&id) {
                    report.quarantined += 1;
                } else {
                    report.differs(difference, found);
                }
            }
        }
        report.compared(table.mirror, rows);
        report
            .positions
            .insert(self.source.to_owned(), at.to_string());
        Ok(Slice { end, rows_read })
    }

    /// Do some of these rows differ, but for those in quarantine?
    pub(super) async fn differs(
        &self,
        table: &'static Table,
        keys: Vec<i64>,
    ) -> Result<bool, VerifyError> {
        let quarantined = self.quarantined(table).await?;
        let mut report = Report::default();
        let differing = self.differing(table, keys, &mut report).await?;
        let differing = differing.iter().any(|(id, _)| !quarantined.contains(id));
        Ok(differing || !report.not_compared.is_empty())
    }

    /// Digest of the next rows of the source, and their last key.
    async fn digest_of_source(
        &self,
        table: &Table,
        after: i64,
    ) -> Result<(Digest, Option<i64>), VerifyError> {
        let rows = format!(
            "SELECT id, {hash} AS hash FROM {captured} WHERE id > {after} ORDER BY id LIMIT {limit}",
            hash = hash(table),
            captured = quoted(table.captured),
            limit = self.config.chunk_rows,
        );
        let sql =
            format!("SELECT count(*), coalesce(sum(hash), 0)::text, max(id) FROM ({rows}) AS r");
        let row = one(self.of_source(&sql).await?)?;
        Ok(((row.get(0), row.get(1)), row.get(2)))
    }

    async fn digest_of_mirror(
        &self,
        table: &Table,
        after: i64,
        end: Option<i64>,
    ) -> Result<Digest, VerifyError> {
        let sql = format!(
            "SELECT count(*), coalesce(sum({hash}), 0)::text FROM {mirror} WHERE {range}",
            hash = hash(table),
            mirror = table.mirror,
            range = range(after, end),
        );
        let row = one(self.of_view(&sql).await?)?;
        Ok((row.get(0), row.get(1)))
    }

    /// The keys of a range whose rows have other hashes, or stand on one side only.
    async fn suspects(
        &self,
        table: &Table,
        after: i64,
        end: Option<i64>,
    ) -> Result<Vec<i64>, VerifyError> {
        let sql = |from: &str| {
            format!(
                "SELECT id::bigint, ({})::text FROM {from} WHERE {}",
                hash(table),
                range(after, end)
            )
        };
        let read = |rows: Vec<Row>| -> BTreeSet<(i64, String)> {
            rows.iter().map(|row| (row.get(0), row.get(1))).collect()
        };
        let source = read(self.of_source(&sql(&quoted(table.captured))).await?);
        self.passed().await?;
        let mirror = read(self.of_view(&sql(table.mirror)).await?);
        let keys: BTreeSet<i64> = source
            .symmetric_difference(&mirror)
            .map(|(id, _)| *id)
            .collect();
        Ok(keys.into_iter().collect())
    }

    /// Does the mirror stand still?
    pub(super) async fn is_suspended(&self, table: &Table) -> Result<bool, VerifyError> {
        let sql = "SELECT EXISTS (SELECT FROM public.quarantine
            WHERE source = $1 AND \"table\" = $2 AND suspended)";
        let row = self
            .view
            .query_one(sql, &[&self.source, &table.captured])
            .await;
        let row = row.map_err(VerifyError::database("read the quarantine"))?;
        Ok(row.get(0))
    }

    /// Keys whose last state could not be applied: the mirror keeps the one before.
    async fn quarantined(&self, table: &Table) -> Result<BTreeSet<i64>, VerifyError> {
        let sql = "SELECT key FROM public.quarantine WHERE source = $1 AND \"table\" = $2";
        let rows = self.view.query(sql, &[&self.source, &table.captured]).await;
        let rows = rows.map_err(VerifyError::database("read the quarantine"))?;
        let keys = rows.iter().filter_map(|row| {
            let key: serde_json::Value = serde_json::from_str(row.get(0)).ok()?;
            key["id"].as_i64()
        });
        Ok(keys.collect())
    }

    /// Waits until the view has passed all that the source shows now; where it is then.
    async fn passed(&self) -> Result<Position, VerifyError> {
        let lsn = self.lsn().await?;
        let deadline = self.deadline();
        loop {
            if let (at, true) = self.is_past(lsn, deadline).await? {
                return Ok(at);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.config.wait_max()
    }

    /// Nothing that the source has shown so far lies above it.
    pub(super) async fn lsn(&self) -> Result<Lsn, VerifyError> {
        let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint";
        let lsn: i64 = one(self.of_source(sql).await?)?.get(0);
        Ok(Lsn(lsn.cast_unsigned()))
    }

    /// Where the view is, and whether that is far enough.
    pub(super) async fn is_past(
        &self,
        lsn: Lsn,
        deadline: Instant,
    ) -> Result<(Position, bool), VerifyError> {
        let sql = format!(
            "SELECT epoch, (lsn::pg_lsn - '0/0')::bigint FROM public.positions
            WHERE source = '{}'",
            self.source
        );
        let row = one(self.of_view(&sql).await?)?;
        let (epoch, reached): (i64, i64) = (row.get(0), row.get(1));
        if epoch != self.epoch {
            return Err(VerifyError::Cannot(
                "a new epoch of the source began meanwhile; verify again".to_owned(),
            ));
        }
        let at = Position {
            epoch: epoch.cast_unsigned(),
            lsn: Lsn(reached.cast_unsigned()),
        };
        if at.lsn < lsn && Instant::now() > deadline {
            return Err(VerifyError::Cannot(format!(
                "the view did not reach {lsn} of the source within {} ms (verify.wait_max_ms); \
                is its connector running?",
                self.config.wait_max_ms
            )));
        }
        Ok((at, at.lsn >= lsn))
    }

    pub(super) async fn of_source(&self, sql: &str) -> Result<Vec<Row>, VerifyError> {
        let doing = format!("read {}", self.source);
        let rows = self.session.client.query(sql, &[]).await;
        rows.map_err(VerifyError::database(doing))
    }

    pub(super) async fn of_view(&self, sql: &str) -> Result<Vec<Row>, VerifyError> {
        let rows = self.view.query(sql, &[]).await;
        rows.map_err(VerifyError::database("read the view"))
    }
}

fn one(rows: Vec<Row>) -> Result<Row, VerifyError> {
    let row = rows.into_iter().next();
    row.ok_or_else(|| VerifyError::Cannot("a query gave no row".to_owned()))
}

/// Keeps below so many rows a second.
struct Pace {
    rows_per_second: u32,
    began: Instant,
    rows: u64,
}

impl Pace {
    fn new(rows_per_second: u32) -> Self {
        Self {
            rows_per_second,
            began: Instant::now(),
            rows: 0,
        }
    }

    async fn read(&mut self, rows: u64) {
        self.rows += rows;
        let due_ms = self.rows * 1000 / u64::from(self.rows_per_second);
        let due = self.began + Duration::from_millis(due_ms);
        tokio::time::sleep_until(due.into()).await;
    }
}
