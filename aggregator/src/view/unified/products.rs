//! `public.products`: each item of the warehouse, and each item id that sales sold.
//!
//! How often a product was sold is a total over unbounded inputs: see [`super::product_totals`].

use crate::mirror::{ITEM, LINE, PRICE, QUANTITY};
use crate::view::resource::{Column, Kept, Resource, Rows};

const WAREHOUSE: Option<&str> = Some("warehouse");
const SALES: Option<&str> = Some("sales");

pub(crate) static PRODUCTS: Resource = Resource {
    table: "public.products",
    key: &[("id", "bigint")],
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
    kept: Kept::Rows(Rows {
        named_by: &[
            (&ITEM, "id"),
            (&PRICE, "item_id"),
            (&QUANTITY, "item_id"),
            (&LINE, "item_id"),
        ],
        through: &[],
        touched: "SELECT unnest($2::bigint[]) AS id",
        all: "
            SELECT id FROM warehouse.wh_item
            UNION SELECT product_id FROM aggregator.product_totals
            UNION SELECT id FROM public.products",
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
    }),
};
