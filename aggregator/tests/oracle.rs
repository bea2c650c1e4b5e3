//! What the view should hold, written without the product: plain joins over the mirrors, and
//! the mirrors against the sources.

use anyhow::{Result, ensure};
use serde_json::Value as Json;

use crate::Database;
use crate::shop::Shop;
use crate::source::mirror;

/// A time of a four-digit year as JSON has it; stands for `$time(d.date)`.
const TIME: &str = "replace(left((d.date AT TIME ZONE 'UTC')::text, 19), ' ', 'T') || '.'
    || lpad((extract(microseconds FROM d.date)::bigint % 1000000)::text, 6, '0') || 'Z'";

/// A unified table and the SELECT that it must equal, `revision` aside. `$warehouse` and so on
/// stand for whether that source is known.
const JOINS: [(&str, &str); 6] = [
    (
        "SELECT id, order_id, amount, details, unknown FROM public.transactions",
        "SELECT x.id, x.order_id, coalesce(sum(d.sum), 0.00) AS amount,
            coalesce(jsonb_agg(jsonb_build_object('id', d.id, 'amount', d.sum::text, 'booked_at',
                $time(d.date))
                ORDER BY d.id) FILTER (WHERE d.id IS NOT NULL), '[]') AS details,
            '{}'::text[] AS unknown
        FROM accounting.ac_transaction AS x
        LEFT JOIN accounting.ac_transactiondetail AS d ON d.transaction_id = x.id
        WHERE $accounting GROUP BY x.id, x.order_id",
    ),
    (
        "SELECT id, customer_id, ordered_at, lines, total, transactions, paid, balance,
            payment_status, unknown FROM public.orders",
        "SELECT *, CASE WHEN NOT $accounting THEN NULL WHEN balance = 0 THEN 'paid'
                WHEN balance < 0 THEN 'overpaid' WHEN paid > 0 THEN 'part_paid' ELSE 'unpaid' END,
            CASE WHEN $accounting THEN '{}'::text[]
                ELSE '{balance,paid,payment_status,transactions}' END
        FROM (
            SELECT o.id, o.customer_id, o.date,
                coalesce(l.lines, '[]') AS lines, coalesce(l.total, 0) AS total,
                CASE WHEN $accounting THEN coalesce(t.transactions, '[]') END AS transactions,
                CASE WHEN $accounting THEN coalesce(t.paid, 0) END AS paid,
                CASE WHEN $accounting THEN coalesce(l.total, 0) - coalesce(t.paid, 0) END AS balance
            FROM sales.sls_order AS o
            LEFT JOIN (
                SELECT order_id, sum(unit_price * quantity) AS total,
                    jsonb_agg(jsonb_build_object('id', id, 'product_id', item_id,
                        'unit_price', unit_price::text, 'quantity', quantity,
                        'amount', (unit_price * quantity)::text) ORDER BY id) AS lines
                FROM sales.sls_orderdetail GROUP BY order_id
            ) AS l ON l.order_id = o.id
            LEFT JOIN (
                SELECT x.order_id, sum(x.amount) AS paid,
                    jsonb_agg(jsonb_build_object('id', x.id, 'amount', x.amount::text,
                        'details', x.details) ORDER BY x.id) AS transactions
                FROM (
                    SELECT x.id, x.order_id, coalesce(sum(d.sum), 0.00) AS amount,
                        coalesce(jsonb_agg(jsonb_build_object('id', d.id, 'amount', d.sum::text,
                            'booked_at', $time(d.date))
                            ORDER BY d.id) FILTER (WHERE d.id IS NOT NULL), '[]') AS details
                    FROM accounting.ac_transaction AS x
                    LEFT JOIN accounting.ac_transactiondetail AS d ON d.transaction_id = x.id
                    GROUP BY x.id, x.order_id
                ) AS x GROUP BY x.order_id
            ) AS t ON t.order_id = o.id
            WHERE $sales
        ) AS o",
    ),
    (
        "SELECT id, order_count, ordered, paid, balance, unknown FROM public.customers",
        "SELECT customer_id, count(*), sum(total), sum(paid), sum(total - paid),
            CASE WHEN $accounting THEN '{}'::text[] ELSE '{balance,paid}' END
        FROM (
            SELECT o.customer_id,
                (SELECT coalesce(sum(l.unit_price * l.quantity), 0)
                FROM sales.sls_orderdetail AS l WHERE l.order_id = o.id) AS total,
                CASE WHEN $accounting THEN (SELECT coalesce(sum(d.sum), 0)
                FROM accounting.ac_transaction AS x
                JOIN accounting.ac_transactiondetail AS d ON d.transaction_id = x.id
                WHERE x.order_id = o.id) END AS paid
            FROM sales.sls_order AS o WHERE $sales
        ) AS o GROUP BY customer_id",
    ),
    (
        "SELECT id, name, description, country_of_origin, price, quantity_in_stock, units_sold,
            revenue, status, unknown FROM public.products",
        "SELECT id, i.name, i.description, i.country_of_origin, p.price, q.quantity,
            CASE WHEN $sales THEN coalesce(s.units, 0) END,
            CASE WHEN $sales THEN coalesce(s.revenue, 0) END,
            CASE WHEN $warehouse THEN CASE WHEN i.name IS NULL THEN 'delisted' ELSE 'listed' END END,
            ARRAY(SELECT unnest(CASE WHEN $warehouse THEN '{}'::text[] ELSE
                    '{country_of_origin,description,name,price,quantity_in_stock,status}' END
                || CASE WHEN $sales THEN '{}'::text[] ELSE '{revenue,units_sold}' END) ORDER BY 1)
        FROM (SELECT * FROM warehouse.wh_item WHERE $warehouse) AS i
        FULL JOIN (
            SELECT item_id AS id, sum(quantity) AS units, sum(unit_price * quantity) AS revenue
            FROM sales.sls_orderdetail WHERE $sales GROUP BY item_id
        ) AS s USING (id)
        LEFT JOIN (
            SELECT DISTINCT ON (item_id) item_id AS id, price FROM warehouse.wh_price
            WHERE $warehouse ORDER BY item_id, wh_price.id DESC
        ) AS p USING (id)
        LEFT JOIN (
            SELECT DISTINCT ON (item_id) item_id AS id, quantity FROM warehouse.wh_quantity
            WHERE $warehouse ORDER BY item_id, wh_quantity.id DESC
        ) AS q USING (id)",
    ),
    (
        "SELECT day, product_id, orders, units, revenue, unknown FROM public.daily_sales",
        "SELECT date_trunc('day', o.date, 'UTC')::timestamp::date, l.item_id,
            count(DISTINCT o.id), sum(l.quantity), sum(l.unit_price * l.quantity), '{}'::text[]
        FROM sales.sls_orderdetail AS l JOIN sales.sls_order AS o ON o.id = l.order_id
        WHERE $sales GROUP BY 1, 2",
    ),
    (
        "SELECT id, rule, systems, resource, key, detail,
            CASE rule WHEN 'part_paid_too_long' THEN since END AS since, unknown, degraded
        FROM public.discrepancies",
        include_str!("discrepancies.sql"),
    ),
];

/// Every unified table equals its join, where these sources are known.
pub(crate) async fn unified_tables_equal_joins(view: &Database, known: &[&str]) -> Result<()> {
    for (table, join) in JOINS {
        let mut join = join.replace("$time(d.date)", TIME);
        for source in aggregator::SOURCES {
            let is_known = known.contains(&source).to_string();
            join = join.replace(&format!("${source}"), &is_known);
        }
        let difference = difference(view, table, &join).await?;
        ensure!(difference == "[]", "{table}\ndiffers: {difference}");
    }
    Ok(())
}

/// The source's mirrors hold its rows of the newest checkpoint.
pub(crate) async fn mirrors_equal_source(
    view: &Database,
    shop: &mut Shop,
    name: &str,
) -> Result<()> {
    for (table, rows) in &shop.source(name).checkpointed {
        let mirror = mirror(name, table);
        let rows = Json::Array(rows.values().cloned().collect());
        let rows = rows.to_string().replace('\'', "''");
        let expected = format!("SELECT * FROM jsonb_populate_recordset(NULL::{mirror}, '{rows}')");
        let difference = difference(view, &format!("SELECT * FROM {mirror}"), &expected).await?;
        ensure!(difference == "[]", "{mirror} differs: {difference}");
    }
    Ok(())
}

async fn difference(view: &Database, found: &str, expected: &str) -> Result<String> {
    view.one(&format!(
        "WITH found AS ({found}), expected AS ({expected})
        SELECT coalesce(jsonb_agg(d), '[]')::text FROM (
            SELECT 'too much' AS what, to_jsonb(f) AS row FROM (
                SELECT * FROM found EXCEPT ALL SELECT * FROM expected) AS f
            UNION ALL
            SELECT 'missing', to_jsonb(e) FROM (
                SELECT * FROM expected EXCEPT ALL SELECT * FROM found) AS e
        ) AS d"
    ))
    .await
}
