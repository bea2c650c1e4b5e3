//! What is written: orders of three lines, each with a payment, and how much there is before.
//!
//! Order `n` is the same wherever it is written, so that what the aggregator makes of events, what a
//! peer makes of rows, and what was there before can be held against each other.

/// Products that are sold.
pub(crate) const PRODUCTS: i64 = 1_000;
/// Customers who order.
pub(crate) const CUSTOMERS: i64 = 10_000;
pub(crate) const LINES: i64 = 3;
/// Rows that an order is in sales: itself and its lines.
pub(crate) const SALES_ROWS: i64 = 1 + LINES;
/// Rows that its payment is in accounting: the transaction and its detail.
pub(crate) const ACCOUNTING_ROWS: i64 = 2;
/// Changes that an order with its payment is.
pub(crate) const ROWS: i64 = SALES_ROWS + ACCOUNTING_ROWS;

/// When everything happened.
pub(crate) const DATE: &str = "2025-11-23T10:00:00.000000Z";

/// The order's customer.
pub(crate) fn customer(order: i64) -> i64 {
    order * 7919 % CUSTOMERS + 1
}

/// The `place`th line of an order (0 to 2): id, product, quantity.
pub(crate) fn line(order: i64, place: i64) -> (i64, i64, i64) {
    let id = order * LINES + place;
    (id, id * 31 % PRODUCTS + 1, place + 1)
}

/// Each line's unit price.
pub(crate) const UNIT_PRICE: &str = "2.50";
/// What each order comes to: 2.50 × (1 + 2 + 3). Two thirds of it are paid.
pub(crate) const TOTAL_CENTS: i64 = 1500;
pub(crate) const PAID: &str = "10.00";
pub(crate) const PAID_CENTS: i64 = 1000;

/// Orders and payments `$1` to `$2` as rows of the mirrors, for one INSERT each.
pub(crate) fn rows_sql() -> [(&'static str, String); 4] {
    let orders = "generate_series($1::bigint, $2::bigint) AS o (n)";
    let lines = LINES - 1;
    [
        (
            "sales.sls_order",
            format!("SELECT n, n * 7919 % {CUSTOMERS} + 1, '{DATE}'::timestamptz FROM {orders}"),
        ),
        (
            "sales.sls_orderdetail",
            format!(
                "SELECT n * {LINES} + p, (n * {LINES} + p) * 31 % {PRODUCTS} + 1, {UNIT_PRICE},
                (p + 1)::int, n FROM {orders}, generate_series(0, {lines}) AS p"
            ),
        ),
        (
            "accounting.ac_transaction",
            format!("SELECT n, n FROM {orders}"),
        ),
        (
            "accounting.ac_transactiondetail",
            format!("SELECT n, {PAID}, '{DATE}'::timestamptz, n FROM {orders}"),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orders_lines_have_ids_and_products_of_their_own() {
        let mut seen = std::collections::BTreeSet::new();
        for order in 0..1000 {
            let mut products = std::collections::BTreeSet::new();
            for place in 0..LINES {
                let (id, product, _) = line(order, place);
                assert!(seen.insert(id));
                assert!(products.insert(product));
            }
            assert!((1..=CUSTOMERS).contains(&customer(order)));
        }
    }
}
