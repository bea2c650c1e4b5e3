//! `aggregator.part_paid`: since when an order is paid in part, and when that is too long.
//!
//! Since when follows from what was booked: after the first booking of the last run of bookings
//! that each left the order paid in part. When it is due is stored, and compared with the time
//! until which the positions say that the payments are known: never with a clock of this machine,
//! so that at equal positions the same orders are due. A source at rest repeats its checkpoint, and
//! says in it until when it is known; so that time goes on without a change.

use std::sync::LazyLock;

use service::fault;
use tokio_postgres::{Client, Error, Statement};

use crate::mirror::Time;
use crate::view::positions::Moved;
use crate::view::resource::{Column, Kept, Resource, Rows};

/// Until when all orders and payments are known.
pub(super) const KNOWN_UNTIL: &str = "
    SELECT CASE count(greatest(p.committed_at, p.current_at))
        WHEN 2 THEN min(greatest(p.committed_at, p.current_at)) END
    FROM public.positions AS p WHERE p.source IN ('accounting', 'sales') AND p.epoch IS NOT NULL";

/// The sources that know orders and payments.
const SOURCES: [&str; 2] = ["accounting", "sales"];

pub(crate) static PART_PAID: LazyLock<Resource> = LazyLock::new(|| Resource {
    table: "aggregator.part_paid",
    key: &[("order_id", "bigint")],
    columns: &COLUMNS,
    kept: Kept::Rows(Rows {
        named_by: &[],
        through: &[],
        touched: format!(
            "SELECT id AS order_id FROM ({}) AS t",
            super::orders_touched("$1", "$2")
        )
        .leak(),
        all: "
            SELECT id AS order_id FROM public.orders WHERE payment_status = 'part_paid'
            UNION SELECT order_id FROM aggregator.part_paid",
        computed: COMPUTED,
    }),
});

static COLUMNS: [Column; 2] = [
    Column::new("since", "timestamptz", None),
    Column::new("due", "timestamptz", None),
];

/// Since when an order is paid in part, null where it is not, and when that is due. What is far from
/// our time never is, so that no sum overflows.
const COMPUTED: &str = "
    SELECT t.order_id, b.since IS NOT NULL AS present, b.since,
        CASE WHEN b.since < '200000-01-01' THEN
            b.since + (SELECT part_paid_max FROM aggregator.discrepancy_terms WHERE single)
        ELSE 'infinity' END AS due,
        false AS degraded
    FROM touched AS t
    LEFT JOIN public.orders AS o ON o.id = t.order_id AND o.payment_status = 'part_paid'
    LEFT JOIN LATERAL (
        SELECT min(b.date) AS since
        FROM (
            SELECT b.date, b.place, max(b.place) FILTER (
                WHERE NOT (b.paid > 0 AND b.paid < o.total)
            ) OVER () AS last_other
            FROM (
                SELECT d.date, row_number() OVER bookings AS place,
                    sum(d.sum) OVER bookings AS paid
                FROM accounting.ac_transaction AS x
                CROSS JOIN LATERAL (
                    SELECT * FROM accounting.ac_transactiondetail AS d
                    WHERE d.transaction_id = x.id OFFSET 0
                ) AS d
                WHERE x.order_id = o.id
                WINDOW bookings AS (ORDER BY d.date, d.id)
            ) AS b
        ) AS b
        WHERE b.place > coalesce(b.last_other, 0)
    ) AS b ON true";

/// Orders that are due after a time and order, and until a time; at most so many.
pub(crate) const DUE: &str = "
    SELECT order_id, due FROM aggregator.part_paid
    WHERE (due, order_id + 0) > ($1, $2) AND due <= $3
    ORDER BY due, order_id + 0 LIMIT $4";

/// The time that rules of time have been judged at, and what became due since.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    /// By source until when it is known; no entry: not at all.
    known_until: Vec<(&'static str, Option<Time>)>,
    due: Statement,
}

/// A step of what became due between two times.
#[derive(Debug, Clone)]
pub(super) struct Span {
    after: (Time, i64),
    until: Time,
}

impl Clock {
    pub(super) async fn prepare(client: &Client) -> Result<Self, Error> {
        let sql =
            "SELECT (extract(epoch FROM greatest(committed_at, current_at)) * 1000000)::bigint
            FROM public.positions WHERE source = $1 AND epoch IS NOT NULL";
        let mut known_until = Vec::new();
        for source in SOURCES {
            let row = client.query_opt(sql, &[&source]).await?;
            let us: Option<i64> = row.map_or(Ok(None), |row| row.try_get(0))?;
            known_until.push((source, us.map(Time::of_1970)));
        }
        Ok(Self {
            known_until,
            due: client.prepare(DUE).await?,
        })
    }

    fn at(&self) -> Option<Time> {
        let times: Option<Vec<i64>> = self
            .known_until
            .iter()
            .map(|(_, until)| until.map(|time| time.0))
            .collect();
        times?.into_iter().min().map(Time)
    }

    /// The clock after these moves, and what it passes on the way, whichever way it goes.
    pub(super) fn after(&self, moves: &[Moved]) -> (Self, Option<Span>) {
        let mut later = self.clone();
        for (source, until) in &mut later.known_until {
            let moved = moves.iter().rfind(|moved| moved.source == *source);
            if let Some(moved) = moved {
                let record = &moved.record;
                let us = record.committed_at_us.max(record.current_at_us);
                *until = us.map(Time::of_1970);
            }
        }
        let span = self.at().zip(later.at()).and_then(|(from, to)| {
            let (from, to) = (from.0.min(to.0), from.0.max(to.0));
            // Not the design: as if only what changes could become due.
            let moves = from < to && fault::in_force("due_by_position");
            moves.then_some(Span {
                after: (Time(from), i64::MAX),
                until: Time(to),
            })
        });
        (later, span)
    }

    /// At most `rows_max` orders of the span, and what is left of it.
    pub(super) async fn due(
        &self,
        client: &Client,
        span: Span,
        rows_max: i64,
    ) -> Result<(Vec<i64>, Option<Span>), Error> {
        let (due, order_id) = span.after;
        let rows = client
            .query(&self.due, &[&due, &order_id, &span.until, &rows_max])
            .await?;
        let mut orders = Vec::with_capacity(rows.len());
        let mut rest = None;
        for row in &rows {
            orders.push(row.try_get(0)?);
            if i64::try_from(rows.len()).is_ok_and(|count| count == rows_max) {
                rest = Some(Span {
                    after: (row.try_get(1)?, row.try_get(0)?),
                    until: span.until,
                });
            }
        }
        Ok((orders, rest))
    }
}
