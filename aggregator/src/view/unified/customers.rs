//! `public.customers`: each customer id that has an order.
//!
//! A customer's orders are unbounded, so the totals are not summed again: an order, with its
//! payments, is a contribution.

use super::orders::ORDERS;
use crate::view::resource::{Column, Kept, Resource};
use crate::view::totals::{Of, Totals};

const ACCOUNTING: Option<&str> = Some("accounting");

pub(crate) static CUSTOMERS: Resource = Resource {
    table: "public.customers",
    key: &[("id", "bigint")],
    columns: &[
        Column::new("order_count", "bigint", None),
        Column::new("ordered", "numeric", None),
        Column::new("paid", "numeric", ACCOUNTING),
        Column::new("balance", "numeric", ACCOUNTING),
    ],
    kept: Kept::Totals(Totals {
        of: Of::Rows(&ORDERS),
        takes: &["customer_id", "total", "paid"],
        contributions: "
            SELECT p.customer_id AS id, 1 AS order_count, p.total AS ordered, p.paid
            WHERE p.customer_id IS NOT NULL",
        found_by: Some("p.customer_id"),
        sums: &["order_count", "ordered", "paid"],
        derived: &[("balance", "t.ordered - t.paid")],
        degraded: "EXISTS (
            SELECT FROM public.orders AS o WHERE o.customer_id = t.id AND o.degraded
        )",
    }),
};
