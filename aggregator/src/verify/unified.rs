//! The unified tables against the mirrors, range by range, each in a snapshot of its own: in any
//! snapshot of the view the two agree.

use service::fault;
use tokio_postgres::Row;

use super::progress::{Place, Progress};
use super::report::{Difference, Key, Report};
use super::{Slice, VerifyError};
use crate::config::Config;
use crate::session::Session;
use crate::view::discrepancies;
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
    for resource in resources() {
        if let Err(error) = comparison.table(resource).await {
            let why = error.in_words();
            comparison.report.not_compared(resource.table, why);
        }
    }
}

/// All that is compared with the mirrors.
pub(super) fn resources() -> impl Iterator<Item = &'static Resource> {
    RESOURCES.into_iter().chain(discrepancies::compared())
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
            let (view, after) = (self.view, after.as_deref());
            let slice = slice(
                view,
                resource,
                after,
                self.chunk_rows,
                self.report,
                self.found,
            );
            let Slice { end, .. } = slice.await?;
            self.reached(table, end.map_or(Place::Done, Place::Behind))?;
        }
    }

    fn reached(&mut self, table: &str, place: Place) -> Result<(), VerifyError> {
        self.progress
            .reached(table, place, self.report)
            .map_err(|error| VerifyError::Cannot(format!("{error:#}")))
    }
}

/// Compares the rows behind this key, so many at most (of totals: until the first column of their key
/// changes), in one snapshot: a source that is served from now on changes what rows should be.
pub(super) async fn slice(
    view: &Session,
    resource: &Resource,
    after: Option<&[String]>,
    rows_max: u32,
    report: &mut Report,
    found: &impl Fn(&Difference),
) -> Result<Slice<Vec<String>>, VerifyError> {
    if !fault::in_force("compared_in_one_snapshot") {
        return compared(view, resource, after, rows_max, report, found).await;
    }
    let doing = "read the view in one snapshot";
    let say = async |sql| {
        view.client
            .batch_execute(sql)
            .await
            .map_err(VerifyError::database(doing))
    };
    say("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    let slice = compared(view, resource, after, rows_max, report, found).await;
    say(if slice.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    slice
}

async fn compared(
    view: &Session,
    resource: &Resource,
    after: Option<&[String]>,
    rows_max: u32,
    report: &mut Report,
    found: &impl Fn(&Difference),
) -> Result<Slice<Vec<String>>, VerifyError> {
    let known = known(view).await?;
    let rows = query(view, &resource.range_sql(after, rows_max)).await?;
    let (count, last): (i64, Option<Vec<String>>) = rows
        .first()
        .map_or((0, None), |row| (row.get(0), row.get(1)));
    // The last range has no end: rows may be missing behind the last one there is.
    let end = last.filter(|_| count >= i64::from(rows_max));
    let sql = resource.differences_sql(&known, after, end.as_deref());
    for row in query(view, &sql).await? {
        let difference = Difference {
            table: resource.table.to_owned(),
            key: Key::from(row.get::<_, Vec<String>>(0)),
            columns: row.get(1),
        };
        report.differs(difference, found);
    }
    let rows_read = u64::try_from(count).unwrap_or_default();
    report.compared(resource.table, rows_read);
    Ok(Slice { end, rows_read })
}

async fn known(view: &Session) -> Result<Known, VerifyError> {
    let sql = "SELECT source FROM public.positions WHERE epoch IS NOT NULL";
    let rows = query(view, sql).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn query(view: &Session, sql: &str) -> Result<Vec<Row>, VerifyError> {
    let rows = view.client.query(sql, &[]).await;
    rows.map_err(VerifyError::database("read the view"))
}
