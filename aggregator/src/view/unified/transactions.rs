//! `public.transactions`: each transaction of accounting with its details; those of one that is not
//! there are not looked for, however many they are.

use crate::mirror::{DETAIL, TRANSACTION};
use crate::view::resource::{Column, Kept, Resource, Rows};

pub(crate) static TRANSACTIONS: Resource = Resource {
    table: "public.transactions",
    key: &[("id", "bigint")],
    columns: &[
        Column::new("order_id", "bigint", None),
        Column::new("amount", "numeric", None),
        Column::new("details", "jsonb", None),
    ],
    kept: Kept::Rows(Rows {
        named_by: &[(&TRANSACTION, "id"), (&DETAIL, "transaction_id")],
        through: &[],
        touched: "SELECT unnest($2::bigint[]) AS id",
        all: "SELECT id FROM accounting.ac_transaction UNION SELECT id FROM public.transactions",
        computed: r#"
            SELECT t.id, x.id IS NOT NULL AS present, x.order_id,
                round(coalesce(d.amount, 0), 2) AS amount,
                coalesce(d.details, '[]') AS details,
                EXISTS (
                    SELECT FROM aggregator.degraded AS g WHERE g.resource = 'transactions' AND g.id = t.id
                ) AS degraded
            FROM touched AS t
            LEFT JOIN accounting.ac_transaction AS x ON x.id = t.id AND {accounting}
            LEFT JOIN LATERAL (
                SELECT sum(d.sum) AS amount,
                    jsonb_agg(
                        jsonb_build_object(
                            'id', d.id,
                            'amount', round(d.sum, 2)::text,
                            'booked_at', aggregator.iso_time(d.date)
                        ) ORDER BY d.id
                    ) AS details
                FROM accounting.ac_transactiondetail AS d WHERE d.transaction_id = x.id
            ) AS d ON true"#,
    }),
};
