//! `public.customers`: each customer id that has an order.
//!
//! A customer's orders are unbounded, so the totals are not summed again: an order, with its
//! payments, is a contribution, and the totals move by its new minus its old one.

use super::resource::{Column, Known, Resource};

const ACCOUNTING: Option<&str> = Some("accounting");

pub(crate) static CUSTOMERS: Resource = Resource {
    table: "public.customers",
    columns: &[
        Column::new("order_count", "bigint", None),
        Column::new("ordered", "numeric", None),
        Column::new("paid", "numeric", ACCOUNTING),
        Column::new("balance", "numeric", ACCOUNTING),
    ],
    computed: r#"
        SELECT t.id, o.order_count > 0 AS present, o.order_count, o.ordered, o.paid,
            o.ordered - o.paid AS balance, coalesce(o.degraded, false) AS degraded
        FROM touched AS t
        LEFT JOIN LATERAL (
            SELECT count(*) AS order_count, sum(o.total) AS ordered, sum(o.paid) AS paid,
                bool_or(o.degraded) AS degraded
            FROM public.orders AS o WHERE o.customer_id = t.id
        ) AS o ON true"#,
    touched: "SELECT unnest($2::bigint[]) AS id",
    all: "
        SELECT customer_id AS id FROM public.orders WHERE customer_id IS NOT NULL
        UNION SELECT id FROM public.customers",
    returning: None,
};

/// One order's part in a customer's totals, to be added or taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contribution {
    pub customer_id: i64,
    /// 1 or -1.
    pub sign: i64,
    pub total: Option<String>,
    pub paid: Option<String>,
}

/// Moves totals by contributions of orders: revision, customer, sign, total, paid.
pub(crate) fn move_sql(known: &Known) -> String {
    let (paid, balance) = if known.contains("accounting") {
        ("c.paid + m.paid", "c.balance + m.ordered - m.paid")
    } else {
        ("NULL::numeric", "NULL::numeric")
    };
    let (first_paid, first_balance) = if known.contains("accounting") {
        ("m.paid", "m.ordered - m.paid")
    } else {
        ("NULL::numeric", "NULL::numeric")
    };
    format!(
        "WITH contribution AS (
            SELECT * FROM unnest($2::bigint[], $3::bigint[], $4::text[]::numeric[], $5::text[]::numeric[])
                AS c (customer_id, sign, total, paid)
        ),
        moved AS (
            SELECT customer_id AS id, sum(sign)::bigint AS order_count,
                sum(sign * coalesce(total, 0)) AS ordered, sum(sign * coalesce(paid, 0)) AS paid,
                EXISTS (
                    SELECT FROM public.orders AS o WHERE o.customer_id = c.customer_id AND o.degraded
                ) AS degraded
            FROM contribution AS c GROUP BY customer_id
        )
        MERGE INTO public.customers AS c
        USING moved AS m ON c.id = m.id
        WHEN MATCHED AND c.order_count + m.order_count = 0 THEN DELETE
        WHEN MATCHED AND (m.order_count, m.ordered, m.paid, m.degraded)
            IS DISTINCT FROM (0, 0, 0, c.degraded) THEN
            UPDATE SET order_count = c.order_count + m.order_count,
                ordered = c.ordered + m.ordered, paid = {paid}, balance = {balance},
                degraded = m.degraded, revision = $1
        WHEN NOT MATCHED AND m.order_count <> 0 THEN
            INSERT (id, order_count, ordered, paid, balance, unknown, degraded, revision)
            VALUES (m.id, m.order_count, m.ordered, {first_paid}, {first_balance},
                '{{{unknown}}}', m.degraded, $1)",
        unknown = CUSTOMERS.unknown(known).join(","),
    )
}

/// What changed orders mean for their customers.
pub(crate) fn contributions(
    changed: &[tokio_postgres::Row],
) -> Result<Vec<Contribution>, tokio_postgres::Error> {
    let mut contributions = Vec::with_capacity(2 * changed.len());
    for row in changed {
        for (start, sign) in [(0, -1), (3, 1)] {
            if let Some(customer_id) = row.try_get(start)? {
                contributions.push(Contribution {
                    customer_id,
                    sign,
                    total: row.try_get(start + 1)?,
                    paid: row.try_get(start + 2)?,
                });
            }
        }
    }
    Ok(contributions)
}
