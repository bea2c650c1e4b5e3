//! Definitions that have changed since the unified rows were computed.
//!
//! A new version of the aggregator may define a unified table otherwise, or one that was not there.
//! What that changes in rows is computed from the mirrors that there are, by the first writer
//! with that definition, in one view transaction: readers see the old rows until it commits, and
//! then all the new ones, at positions that are not behind. Rows that come out as they were are not
//! touched.

use std::ptr;

use service::fault;
use tokio_postgres::{Client, Error};

use super::View;
use super::discrepancies;
use super::resource::{Kept, Known, Resource, Rows};
use super::statements::Statements;
use super::totals::{Of, Totals};
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

/// Refuses definitions whose rows would not follow from the mirrors, whatever is changed.
pub(super) fn check() -> Result<(), Failure> {
    unsound(&RESOURCES).map_or(Ok(()), |why| Err(Failure::Prerequisite(why)))
}

/// What is wrong with the first of these definitions that cannot be kept up to date.
///
/// Rows move the totals of them, and nothing else does: a total that another total, or a row, is
/// computed from has no one to tell that of. And each is computed after what it is computed from.
fn unsound(resources: &[&'static Resource]) -> Option<String> {
    resources.iter().enumerate().find_map(|(place, resource)| {
        let before = &resources[..place];
        let why = match &resource.kept {
            Kept::Rows(rows) => unsound_rows(resource, rows, before, resources),
            Kept::Totals(totals) => unsound_total(totals, before),
        };
        why.map(|why| format!("the definition of {} cannot be kept: {why}", resource.table))
    })
}

fn unsound_total(totals: &Totals, before: &[&'static Resource]) -> Option<String> {
    let Of::Rows(of) = totals.of else {
        return None;
    };
    if of.totals().is_some() {
        return Some(format!(
            "it sums {of}, which is a total itself, and what moves that would not move this; sum what \
            {of} sums",
            of = of.table
        ));
    }
    comes_late(of, before)
}

fn unsound_rows(
    resource: &Resource,
    rows: &Rows,
    before: &[&'static Resource],
    all: &[&'static Resource],
) -> Option<String> {
    let is_through = |of: &Resource| rows.through.iter().any(|one| ptr::eq(*one, of));
    let mut read = all.iter().filter(|of| {
        of.table != resource.table && (is_through(of) || mentions(rows.computed, of.table))
    });
    read.find_map(|of| {
        let name = of.table;
        let untold = match &of.kept {
            Kept::Rows(_) => (!is_through(of)).then(|| {
                format!(
                    "it is computed from {name}, which `through` does not name, so that a change \
                    of {name} would not touch it"
                )
            }),
            Kept::Totals(Totals {
                of: Of::Rows(_), ..
            }) => Some(format!(
                "it is computed from {name}, a total of other rows, which moves after it and tells \
                nobody"
            )),
            Kept::Totals(Totals {
                of: Of::Mirror(table),
                ..
            }) => {
                let is_named = rows.named_by.iter().any(|(by, _)| by == table);
                (is_through(of) || !is_named).then(|| {
                    format!(
                        "it is computed from {name}, a total, whose changes only {mirror} tells; \
                        name that in `named_by`, and {name} not in `through`",
                        mirror = table.mirror
                    )
                })
            }
        };
        untold.or_else(|| comes_late(of, before))
    })
}

fn comes_late(of: &Resource, before: &[&'static Resource]) -> Option<String> {
    let is_before = before.iter().any(|one| one.table == of.table);
    (!is_before).then(|| {
        format!(
            "it is computed from {0}, which must stand before it in RESOURCES",
            of.table
        )
    })
}

/// Does the statement name the table?
fn mentions(sql: &str, table: &str) -> bool {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    sql.split(|c| !is_of_name(c)).any(|word| word == table)
}

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

#[cfg(test)]
mod tests {
    use super::super::resource::Column;
    use super::super::unified::named;
    use super::*;
    use crate::mirror::{ORDER, Table};

    const COLUMNS: &[Column] = &[Column::new("customers", "bigint", None)];
    static NAMED_BY: &[(&Table, &str)] = &[(&ORDER, "id")];

    /// A total of another's rows.
    fn total_of(of: &'static Resource) -> &'static Resource {
        Box::leak(Box::new(Resource {
            table: "public.regulars",
            key: &[("order_count", "bigint")],
            columns: COLUMNS,
            kept: Kept::Totals(Totals {
                of: Of::Rows(of),
                takes: &["order_count"],
                contributions: "SELECT p.order_count, 1 AS customers",
                found_by: Some("p.order_count"),
                sums: &["customers"],
                derived: &[],
                degraded: "false",
            }),
        }))
    }

    /// Rows for orders.
    fn rows_of(through: &'static [&'static Resource], computed: &'static str) -> &'static Resource {
        Box::leak(Box::new(Resource {
            table: "public.ranks",
            key: &[("id", "bigint")],
            columns: &[],
            kept: Kept::Rows(Rows {
                named_by: NAMED_BY,
                through,
                touched: "",
                all: "",
                computed,
            }),
        }))
    }

    fn refused(more: &'static Resource) -> String {
        let mut all = RESOURCES.to_vec();
        all.push(more);
        unsound(&all).unwrap_or_default()
    }

    #[test]
    fn the_definitions_can_be_kept() {
        assert_eq!(unsound(&RESOURCES), None);
        let orders = named("orders").unwrap();
        assert_eq!(refused(total_of(orders)), "");
        assert_eq!(
            refused(rows_of(&[], "SELECT FROM public.orders_of_old")),
            ""
        );
    }

    #[test]
    fn a_total_of_a_total_is_refused() {
        let why = refused(total_of(named("customers").unwrap()));
        assert!(
            why.starts_with(
                "the definition of public.regulars cannot be kept: it sums public.customers"
            ),
            "{why}"
        );
    }

    #[test]
    fn a_row_that_nobody_would_tell_of_its_inputs_is_refused() {
        for (computed, why) in [
            ("SELECT FROM public.customers AS c", "moves after it"),
            (
                "SELECT FROM (SELECT FROM public.orders)",
                "`through` does not name",
            ),
            (
                "SELECT FROM aggregator.product_totals",
                "only sales.sls_orderdetail tells",
            ),
        ] {
            let said = refused(rows_of(&[], computed));
            assert!(said.contains(why), "{computed}: {said}");
        }
    }

    #[test]
    fn what_is_computed_before_its_inputs_is_refused() {
        let mut all = RESOURCES.to_vec();
        all.reverse();
        let said = unsound(&all).unwrap_or_default();
        assert!(said.contains("must stand before it in RESOURCES"), "{said}");
    }
}
