//! `public.orders`: each order of sales with its lines, and the transactions of accounting that
//! name it.
//!
//! The transactions come from `public.transactions`, itself a pure function of the mirrors,
//! which is therefore brought up to date first.
//!
//! Lines and transactions are looked for only where the order is there: what names one that is not may
//! be a history without end (a source that writes 0 for none).

use super::transactions::TRANSACTIONS;
use crate::mirror::{LINE, ORDER, TRANSACTION};
use crate::view::resource::{Column, Kept, Resource, Rows};

const ACCOUNTING: Option<&str> = Some("accounting");

pub(crate) static ORDERS: Resource = Resource {
    table: "public.orders",
    key: &[("id", "bigint")],
    columns: &[
        Column::new("customer_id", "bigint", None),
        Column::new("ordered_at", "timestamptz", None),
        Column::new("lines", "jsonb", None),
        Column::new("total", "numeric", None),
        Column::new("transactions", "jsonb", ACCOUNTING),
        Column::new("paid", "numeric", ACCOUNTING),
        Column::new("balance", "numeric", ACCOUNTING),
        Column::new("payment_status", "text", ACCOUNTING),
    ],
    kept: Kept::Rows(Rows {
        named_by: &[
            (&ORDER, "id"),
            (&LINE, "order_id"),
            (&TRANSACTION, "order_id"),
        ],
        through: &[&TRANSACTIONS],
        // Besides the orders named: those of the transactions named.
        touched: "
            SELECT unnest($2::bigint[]) AS id
            UNION
            SELECT order_id FROM public.transactions
            WHERE id = ANY($3::bigint[]) AND order_id IS NOT NULL",
        all: "SELECT id FROM sales.sls_order UNION SELECT id FROM public.orders",
        computed: r#"
            SELECT o.*, o.total - o.paid AS balance,
                CASE
                    WHEN o.paid = o.total THEN 'paid'
                    WHEN o.paid > o.total THEN 'overpaid'
                    WHEN o.paid > 0 THEN 'part_paid'
                    ELSE 'unpaid'
                END AS payment_status
            FROM (
                SELECT t.id, o.id IS NOT NULL AS present, o.customer_id, o.date AS ordered_at,
                    coalesce(l.lines, '[]') AS lines,
                    round(coalesce(l.total, 0), 2) AS total,
                    coalesce(x.transactions, '[]') AS transactions,
                    round(coalesce(x.paid, 0), 2) AS paid,
                    coalesce(x.degraded, false) OR EXISTS (
                        SELECT FROM aggregator.degraded AS g WHERE g.resource = 'orders' AND g.id = t.id
                    ) AS degraded
                FROM touched AS t
                LEFT JOIN sales.sls_order AS o ON o.id = t.id AND {sales}
                LEFT JOIN LATERAL (
                    SELECT sum(d.unit_price * d.quantity) AS total,
                        jsonb_agg(
                            jsonb_build_object(
                                'id', d.id,
                                'product_id', d.item_id,
                                'unit_price', round(d.unit_price, 2)::text,
                                'quantity', d.quantity,
                                'amount', round(d.unit_price * d.quantity, 2)::text
                            ) ORDER BY d.id
                        ) AS lines
                    FROM sales.sls_orderdetail AS d WHERE d.order_id = o.id
                ) AS l ON true
                LEFT JOIN LATERAL (
                    SELECT sum(x.amount) AS paid, bool_or(x.degraded) AS degraded,
                        jsonb_agg(
                            jsonb_build_object('id', x.id, 'amount', x.amount::text, 'details', x.details)
                            ORDER BY x.id
                        ) AS transactions
                    FROM public.transactions AS x WHERE x.order_id = o.id
                ) AS x ON true
            ) AS o"#,
    }),
};
