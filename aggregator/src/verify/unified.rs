//! The unified tables against the mirrors, range by range, each in a snapshot of its own: in any
//! snapshot of the view the two agree.

use tokio_postgres::Row;

use super::VerifyError;
use super::progress::{Place, Progress};
use super::report::{Difference, Key, Report};
use crate::config::Config;
use crate::session::Session;
use crate::view::discrepancies::compared;
use crate::view::resource::{Known, Resource};
use crate::view::unified::RESOURCES;

/// Compares all of them; what could not be compared is in the report.
pub(super) async fn compare(
    view: &Session,
    config: &Config,
    progress: &mut Progress,
    report: &mut Report,
    found: &impl Fn(&Difference),
) {
    let mut comparison = Comparison {
        view,
        chunk_rows: config.verify.chunk_rows,
        progress,
        report,
        found,
    };
    for resource in RESOURCES.into_iter().chain(compared()) {
        if let Err(error) = comparison.table(resource).await {
            let why = error.in_words();
            comparison.report.not_compared(resource.table, why);
        }
    }
}

struct Comparison<'a, F> {
    view: &'a Session,
    chunk_rows: u32,
    progress: &'a mut Progress,
    report: &'a mut Report,
    found: &'a F,
}

impl<F: Fn(&Difference)> Comparison<'_, F> {
    async fn table(&mut self, resource: &Resource) -> Result<(), VerifyError> {
        let table = resource.table;
        loop {
            let after = match self.progress.place(table) {
                Place::Done => return Ok(()),
                Place::Behind(key) => Some(key),
                Place::After(_) => None,
            };
            let known = self.known().await?;
            let rows = self
                .query(&resource.range_sql(after.as_deref(), self.chunk_rows))
                .await?;
            let (count, last): (i64, Option<Vec<String>>) = rows
                .first()
                .map_or((0, None), |row| (row.get(0), Some(row.get(1))));
            // The last range has no end: rows may be missing behind the last one there is.
            let end = last.filter(|_| count == i64::from(self.chunk_rows));
            let sql = resource.differences_sql(&known, after.as_deref(), end.as_deref());
            let differing = self.query(&sql).await?;
            self.differ(table, &differing);
            self.report
                .compared(table, u64::try_from(count).unwrap_or_default());
            self.reached(table, end.map_or(Place::Done, Place::Behind))?;
        }
    }

    /// A source that is served from now on changes what rows should be.
    async fn known(&self) -> Result<Known, VerifyError> {
        let sql = "SELECT source FROM public.positions WHERE epoch IS NOT NULL";
        let rows = self.query(sql).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    fn differ(&mut self, table: &str, rows: &[Row]) {
        for row in rows {
            let difference = Difference {
                table: table.to_owned(),
                key: Key::from(row.get::<_, Vec<String>>(0)),
                columns: row.get(1),
            };
            self.report.differs(difference, self.found);
        }
    }

    fn reached(&mut self, table: &str, place: Place) -> Result<(), VerifyError> {
        self.progress
            .reached(table, place, self.report)
            .map_err(|error| VerifyError::Cannot(format!("{error:#}")))
    }

    async fn query(&self, sql: &str) -> Result<Vec<Row>, VerifyError> {
        let rows = self.view.client.query(sql, &[]).await;
        rows.map_err(VerifyError::database("read the view"))
    }
}
