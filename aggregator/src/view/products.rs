//! `public.products`: each item of the warehouse, and each item id that sales sold.
//!
//! How often a product was sold is a total over unbounded inputs: each order line contributes
//! to a private row, which moves by the line's new minus its old contribution.

use super::resource::{Column, Resource};

const WAREHOUSE: Option<&str> = Some("warehouse");
const SALES: Option<&str> = Some("sales");

pub(crate) static PRODUCTS: Resource = Resource {
    table: "public.products",
    columns: &[
        Column::new("name", "text", WAREHOUSE),
        Column::new("description", "text", WAREHOUSE),
        Column::new("country_of_origin", "text", WAREHOUSE),
        Column::new("price", "numeric", WAREHOUSE),
        Column::new("quantity_in_stock", "bigint", WAREHOUSE),
        Column::new("units_sold", "bigint", SALES),
        Column::new("revenue", "numeric", SALES),
        Column::new("status", "text", WAREHOUSE),
    ],
    computed: r#"
        SELECT t.id, i.id IS NOT NULL OR s.product_id IS NOT NULL AS present,
            i.name, i.description, i.country_of_origin,
            (
                SELECT round(p.price, 2) FROM warehouse.wh_price AS p
                WHERE p.item_id = t.id ORDER BY p.id DESC LIMIT 1
            ) AS price,
            (
                SELECT q.quantity::bigint FROM warehouse.wh_quantity AS q
                WHERE q.item_id = t.id ORDER BY q.id DESC LIMIT 1
            ) AS quantity_in_stock,
            coalesce(s.units_sold, 0) AS units_sold,
            round(coalesce(s.revenue, 0), 2) AS revenue,
            CASE WHEN i.id IS NULL THEN 'delisted' ELSE 'listed' END AS status,
            EXISTS (
                SELECT FROM aggregator.degraded AS g WHERE g.resource = 'products' AND g.id = t.id
            ) AS degraded
        FROM touched AS t
        LEFT JOIN warehouse.wh_item AS i ON i.id = t.id AND {warehouse}
        LEFT JOIN aggregator.product_totals AS s ON s.product_id = t.id AND {sales}"#,
    touched: "SELECT unnest($2::bigint[]) AS id",
    all: "
        SELECT id FROM warehouse.wh_item
        UNION SELECT product_id FROM aggregator.product_totals
        UNION SELECT id FROM public.products",
    returning: None,
};

/// Moves totals by contributions of order lines: product, sign, quantity, unit price.
pub(crate) const MOVE_TOTALS: &str = "
    WITH moved AS (
        SELECT product_id, sum(sign)::bigint AS line_count,
            sum(sign * coalesce(quantity, 0))::bigint AS units_sold,
            sum(sign * coalesce(quantity * unit_price, 0)) AS revenue
        FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[]::numeric[])
            AS contribution (product_id, sign, quantity, unit_price)
        GROUP BY product_id
    )
    MERGE INTO aggregator.product_totals AS t
    USING moved AS m ON t.product_id = m.product_id
    WHEN MATCHED AND t.line_count + m.line_count = 0 THEN DELETE
    WHEN MATCHED AND (m.line_count, m.units_sold, m.revenue) IS DISTINCT FROM (0, 0, 0) THEN
        UPDATE SET line_count = t.line_count + m.line_count,
            units_sold = t.units_sold + m.units_sold,
            revenue = t.revenue + m.revenue
    WHEN NOT MATCHED AND m.line_count <> 0 THEN
        INSERT (product_id, line_count, units_sold, revenue)
        VALUES (m.product_id, m.line_count, m.units_sold, m.revenue)";

/// The totals of all order lines, afresh.
pub(crate) const ALL_TOTALS: &str = "
    DELETE FROM aggregator.product_totals;
    INSERT INTO aggregator.product_totals (product_id, line_count, units_sold, revenue)
    SELECT item_id, count(*), coalesce(sum(quantity), 0), coalesce(sum(quantity * unit_price), 0)
    FROM sales.sls_orderdetail WHERE item_id IS NOT NULL GROUP BY item_id";
