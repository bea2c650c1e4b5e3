//! `public.daily_sales`: what each product sold on each day, in UTC.
//!
//! An order with its lines is a contribution: one to each product that it names, at the day of
//! its date. So an order counts once for a product however many of its lines name it, an order
//! that moves to another day takes its lines along, and a line whose order is not there (yet, or
//! any more) counts nowhere, because it has no day.
//!
//! It is degraded where one of its orders is, be it by a payment: the order, not the line, is what
//! contributes.

use super::orders::ORDERS;
use crate::view::resource::{Column, Kept, Resource};
use crate::view::totals::{Of, Totals};

pub(crate) static DAILY_SALES: Resource = Resource {
    table: "public.daily_sales",
    key: &[("day", "date"), ("product_id", "bigint")],
    columns: &[
        Column::new("orders", "bigint", None),
        Column::new("units", "bigint", None),
        Column::new("revenue", "numeric", None),
    ],
    kept: Kept::Totals(Totals {
        of: Of::Rows(&ORDERS),
        takes: &["ordered_at", "lines"],
        contributions: "
            SELECT (p.ordered_at AT TIME ZONE 'UTC')::date AS day, l.product_id, 1 AS orders,
                sum(l.quantity) AS units, sum(l.amount) AS revenue
            FROM jsonb_to_recordset(p.lines)
                AS l (product_id bigint, quantity bigint, amount numeric)
            WHERE p.ordered_at IS NOT NULL AND l.product_id IS NOT NULL
            GROUP BY l.product_id",
        found_by: Some("(p.ordered_at AT TIME ZONE 'UTC')::date"),
        sums: &["orders", "units", "revenue"],
        derived: &[],
        degraded: "EXISTS (
            SELECT FROM public.orders AS o
            WHERE o.degraded AND (o.ordered_at AT TIME ZONE 'UTC')::date = t.day
                AND o.lines @> jsonb_build_array(jsonb_build_object('product_id', t.product_id))
        )",
    }),
};
