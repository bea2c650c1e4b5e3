//! The unified tables against the mirrors, range by range, each in a snapshot of its own: in any
//! snapshot of the view the two agree.

use tokio_postgres::Row;

use super::VerifyError;
use super::progress::{Place, Progress};
use super::report::{Difference, Report};
use crate::config::Config;
use crate::session::Session;
use crate::view::drift::{COMPARED, Compared, TOTALS, TOTALS_SQL};
use crate::view::resource::Known;

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
    for compared in COMPARED {
        if let Err(error) = comparison.table(compared).await {
            let why = error.in_words();
            comparison.report.not_compared(compared.table(), why);
        }
    }
    if let Err(error) = comparison.totals().await {
        let why = error.in_words();
        comparison.report.not_compared(TOTALS, why);
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
    async fn table(&mut self, compared: Compared) -> Result<(), VerifyError> {
        let table = compared.table();
        while let Place::After(after) = self.progress.place(table) {
            let known = self.known().await?;
            let rows = self
                .query(&format!(
                    "SELECT count(*), max(id) FROM (SELECT id FROM {table} WHERE id > {after}
                    ORDER BY id LIMIT {}) AS r",
                    self.chunk_rows
                ))
                .await?;
            let (count, last): (i64, Option<i64>) = rows
                .first()
                .map_or((0, None), |row| (row.get(0), row.get(1)));
            // The last range has no end: rows may be missing behind the last one there is.
            let end = last.filter(|_| count == i64::from(self.chunk_rows));
            let sql = compared.differences_sql(&known, after, end);
            let differing = self.query(&sql).await?;
            self.differ(table, &differing);
            self.report
                .compared(table, u64::try_from(count).unwrap_or_default());
            self.reached(table, end.map_or(Place::Done, Place::After))?;
        }
        Ok(())
    }

    async fn totals(&mut self) -> Result<(), VerifyError> {
        if self.progress.place(TOTALS) == Place::Done {
            return Ok(());
        }
        let rows = self
            .query(&format!("SELECT count(*) FROM {TOTALS}"))
            .await?;
        let count: i64 = rows.first().map_or(0, |row| row.get(0));
        let differing = self.query(TOTALS_SQL).await?;
        self.differ(TOTALS, &differing);
        self.report
            .compared(TOTALS, u64::try_from(count).unwrap_or_default());
        self.reached(TOTALS, Place::Done)
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
                key: row.get(0),
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
