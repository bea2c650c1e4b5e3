//! Which unified rows a changed mirror row touches: those of its old and of its new state.

use std::collections::BTreeSet;

use service::fault;

use crate::mirror::{Changed, DETAIL, ITEM, LINE, ORDER, PRICE, QUANTITY, Reported, TRANSACTION};

/// A unified table that mirror rows name rows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Named {
    Products,
    Transactions,
    Orders,
}

impl Named {
    pub(crate) const ALL: [Self; 3] = [Self::Products, Self::Transactions, Self::Orders];

    /// Its name in `aggregator.degraded`.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Self::Products => "products",
            Self::Transactions => "transactions",
            Self::Orders => "orders",
        }
    }
}

/// The unified rows that this state of a mirror row is an input of. That the orders of named
/// transactions are touched as well is not said here: see [`super::orders`].
pub(crate) fn named(row: &Reported) -> Vec<(Named, i64)> {
    let table = row.table;
    let names: &[(Named, &str)] = if *table == ITEM {
        &[(Named::Products, "id")]
    } else if *table == PRICE || *table == QUANTITY {
        &[(Named::Products, "item_id")]
    } else if *table == TRANSACTION {
        &[(Named::Transactions, "id"), (Named::Orders, "order_id")]
    } else if *table == DETAIL {
        &[(Named::Transactions, "transaction_id")]
    } else if *table == ORDER {
        &[(Named::Orders, "id")]
    } else if *table == LINE {
        &[(Named::Orders, "order_id"), (Named::Products, "item_id")]
    } else {
        &[]
    };
    names
        .iter()
        .filter_map(|(named, column)| Some((*named, row.integer(column)?)))
        .collect()
}

/// What a step touched.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    pub products: BTreeSet<i64>,
    pub transactions: BTreeSet<i64>,
    pub orders: BTreeSet<i64>,
    pub lines: LineMoves,
}

/// Contributions of order lines to products, as arrays.
#[derive(Debug, Default)]
pub(crate) struct LineMoves {
    pub products: Vec<i64>,
    pub signs: Vec<i64>,
    pub quantities: Vec<Option<i64>>,
    pub unit_prices: Vec<Option<String>>,
}

impl Touched {
    pub(crate) fn add(&mut self, changes: &[Changed]) {
        for change in changes {
            for (row, sign) in [(&change.old, -1), (&change.new, 1)] {
                let Some(row) = row else { continue };
                // Not the design: as if a payment's order never changed.
                let forgets = sign < 0
                    && *row.table == TRANSACTION
                    && !fault::in_force("both_orders_touched");
                for (named, id) in named(row) {
                    if !(forgets && named == Named::Orders) {
                        self.insert(named, id);
                    }
                }
                if *row.table == LINE {
                    self.lines.push(row, sign);
                }
            }
        }
    }

    pub(crate) fn insert(&mut self, named: Named, id: i64) {
        match named {
            Named::Products => self.products.insert(id),
            Named::Transactions => self.transactions.insert(id),
            Named::Orders => self.orders.insert(id),
        };
    }
}

impl LineMoves {
    fn push(&mut self, line: &Reported, sign: i64) {
        if let Some(product) = line.integer("item_id") {
            self.products.push(product);
            self.signs.push(sign);
            self.quantities.push(line.integer("quantity"));
            self.unit_prices
                .push(line.text("unit_price").map(str::to_owned));
        }
    }
}
