//! The unified tables, each defined in a file of its own; nothing else of the view names one.

mod customers;
mod daily_sales;
mod orders;
mod product_totals;
mod products;
mod transactions;

use super::resource::Resource;

/// Every unified table and private total, in the order in which they are computed: what another
/// is computed from comes first.
pub(crate) static RESOURCES: [&Resource; 6] = [
    &product_totals::PRODUCT_TOTALS,
    &products::PRODUCTS,
    &transactions::TRANSACTIONS,
    &orders::ORDERS,
    &customers::CUSTOMERS,
    &daily_sales::DAILY_SALES,
];

/// The unified table of this name, without its schema.
pub(crate) fn named(name: &str) -> Option<&'static Resource> {
    RESOURCES
        .into_iter()
        .find(|resource| resource.name() == name)
}
