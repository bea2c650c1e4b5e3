//! Statements that find unified rows, and private totals, that are not what the mirrors say.

use super::customers::CUSTOMERS;
use super::orders::ORDERS;
use super::products::PRODUCTS;
use super::resource::{Known, Resource};
use super::transactions::TRANSACTIONS;

/// A unified table, as far as it is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compared(&'static Resource);

/// In the order in which they are computed.
pub(crate) const COMPARED: [Compared; 4] = [
    Compared(&PRODUCTS),
    Compared(&TRANSACTIONS),
    Compared(&ORDERS),
    Compared(&CUSTOMERS),
];

/// The private totals that products are made of.
pub(crate) const TOTALS: &str = "aggregator.product_totals";

/// Totals that are not the sum of the order lines: key, what differs.
pub(crate) const TOTALS_SQL: &str = "
    SELECT coalesce(t.product_id, l.product_id), CASE
            WHEN t.product_id IS NULL THEN '{missing}'::text[]
            WHEN l.product_id IS NULL THEN '{surplus}'
            ELSE array_remove(ARRAY[
                CASE WHEN t.line_count <> l.line_count THEN 'line_count' END,
                CASE WHEN t.units_sold <> l.units_sold THEN 'units_sold' END,
                CASE WHEN t.revenue <> l.revenue THEN 'revenue' END], NULL)
        END
    FROM aggregator.product_totals AS t
    FULL JOIN (
        SELECT item_id AS product_id, count(*) AS line_count,
            coalesce(sum(quantity), 0) AS units_sold,
            coalesce(sum(quantity * unit_price), 0) AS revenue
        FROM sales.sls_orderdetail WHERE item_id IS NOT NULL GROUP BY item_id
    ) AS l USING (product_id)
    WHERE (t.line_count, t.units_sold, t.revenue) IS DISTINCT FROM
        (l.line_count, l.units_sold, l.revenue)
    ORDER BY 1";

impl Compared {
    pub(crate) fn table(self) -> &'static str {
        self.0.table
    }

    /// Of the keys above `after` and up to `end` (none: all above) those whose row is not what
    /// the mirrors say: key, what differs.
    pub(crate) fn differences_sql(self, known: &Known, after: i64, end: Option<i64>) -> String {
        self.0.differences_sql(known, after, end)
    }
}
