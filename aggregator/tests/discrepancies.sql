-- What does not fit, as the joins over the mirrors have it. $sales and so on stand for whether that
-- source is known; 30 days is what an order may be paid in part.
WITH degraded AS (
    SELECT resource, id FROM aggregator.degraded
),
orders AS (
    SELECT o.id, coalesce(l.total, 0.00) AS total
    FROM sales.sls_order AS o
    LEFT JOIN (
        SELECT order_id AS id, sum(unit_price * quantity) AS total
        FROM sales.sls_orderdetail GROUP BY order_id
    ) AS l USING (id)
),
bookings AS (
    SELECT x.order_id, d.id, d.date, d.sum,
        sum(d.sum) OVER (PARTITION BY x.order_id ORDER BY d.date, d.id) AS until_then
    FROM accounting.ac_transaction AS x
    JOIN accounting.ac_transactiondetail AS d ON d.transaction_id = x.id
),
paid AS (
    SELECT o.id, o.total, coalesce(sum(b.sum), 0.00) AS paid
    FROM orders AS o LEFT JOIN bookings AS b ON b.order_id = o.id
    WHERE NOT EXISTS (SELECT FROM degraded AS g WHERE g.resource = 'orders' AND g.id = o.id)
        AND NOT EXISTS (
            SELECT FROM accounting.ac_transaction AS x
            JOIN degraded AS g ON g.resource = 'transactions' AND g.id = x.id
            WHERE x.order_id = o.id
        )
    GROUP BY o.id, o.total
),
-- The earliest booking since which every booking has left the order paid in part.
part_paid AS (
    SELECT p.id, p.total, p.paid, min(b.date) AS since
    FROM paid AS p JOIN bookings AS b ON b.order_id = p.id
    WHERE p.paid > 0 AND p.paid < p.total AND NOT EXISTS (
        SELECT FROM bookings AS later
        WHERE later.order_id = b.order_id AND (later.date, later.id) >= (b.date, b.id)
            AND (later.until_then <= 0 OR later.until_then >= p.total)
    )
    GROUP BY p.id, p.total, p.paid
),
stock AS (
    SELECT DISTINCT ON (item_id) item_id AS id, quantity
    FROM warehouse.wh_quantity ORDER BY item_id, wh_quantity.id DESC
),
known_until AS (
    SELECT least(a.current_at, s.current_at) AS at
    FROM public.positions AS a, public.positions AS s
    WHERE a.source = 'accounting' AND s.source = 'sales'
),
found (id, rule, systems, resource, key, detail, since) AS (
    SELECT item_id * 100 + 1, 'item_missing', '{sales,warehouse}'::text[], 'products', item_id,
        jsonb_build_object('order_lines', count(*)), NULL::timestamptz
    FROM sales.sls_orderdetail
    WHERE $sales AND $warehouse
        AND item_id NOT IN (SELECT id FROM warehouse.wh_item)
        AND item_id NOT IN (SELECT id FROM degraded WHERE resource = 'products')
    GROUP BY item_id
    UNION ALL
    SELECT x.id * 100 + 2, 'payment_without_order', '{accounting,sales}', 'transactions', x.id,
        jsonb_build_object('order_id', x.order_id, 'amount', coalesce((
            SELECT sum(d.sum) FROM accounting.ac_transactiondetail AS d
            WHERE d.transaction_id = x.id
        ), 0.00)::text), NULL
    FROM accounting.ac_transaction AS x
    WHERE $accounting AND $sales
        AND x.order_id NOT IN (SELECT id FROM orders)
        AND x.order_id NOT IN (SELECT id FROM degraded WHERE resource = 'orders')
        AND x.id NOT IN (SELECT id FROM degraded WHERE resource = 'transactions')
    UNION ALL
    SELECT p.id * 100 + 3, 'part_paid_too_long', '{accounting,sales}', 'orders', p.id,
        jsonb_build_object('total', p.total::text, 'paid', p.paid::text,
            'part_paid_since', to_char(p.since AT TIME ZONE 'UTC',
                'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
        p.since + interval '30 days'
    FROM part_paid AS p, known_until AS k
    WHERE $accounting AND $sales AND p.since + interval '30 days' <= k.at
    UNION ALL
    SELECT p.id * 100 + 4, 'overpaid', '{accounting,sales}', 'orders', p.id,
        jsonb_build_object('total', p.total::text, 'paid', p.paid::text), NULL
    FROM paid AS p
    WHERE $accounting AND $sales AND p.paid > p.total
    UNION ALL
    SELECT i.id * 100 + 5, 'negative_stock', '{warehouse}', 'products', i.id,
        jsonb_build_object('quantity_in_stock', s.quantity), NULL
    FROM warehouse.wh_item AS i JOIN stock AS s USING (id)
    WHERE $warehouse AND s.quantity < 0
        AND i.id NOT IN (SELECT id FROM degraded WHERE resource = 'products')
)
SELECT id, rule, systems, resource, key, detail, since, '{}'::text[], false FROM found
