//! `aggregator.product_totals`: how often each product was sold, what `public.products` shows.
//!
//! A product's order lines are unbounded, so each contributes to a private row.

use crate::mirror::LINE;
use crate::view::resource::{Column, Kept, Resource};
use crate::view::totals::{Of, Totals};

pub(crate) static PRODUCT_TOTALS: Resource = Resource {
    table: "aggregator.product_totals",
    key: &[("product_id", "bigint")],
    columns: &[
        Column::new("line_count", "bigint", None),
        Column::new("units_sold", "bigint", None),
        Column::new("revenue", "numeric", None),
    ],
    kept: Kept::Totals(Totals {
        of: Of::Mirror(&LINE),
        takes: &["item_id", "quantity", "unit_price"],
        contributions: "
            SELECT p.item_id AS product_id, 1 AS line_count, p.quantity AS units_sold,
                p.quantity * p.unit_price AS revenue
            WHERE p.item_id IS NOT NULL",
        found_by: None,
        sums: &["line_count", "units_sold", "revenue"],
        derived: &[],
        degraded: "false",
    }),
};
