//! The mirrored tables: the sources' names, and of each what its changes are reported by.

use super::value::Kind::{Id, Integer, Numeric, Text, Time};
use super::{Column, Table};

const ID: Column = Column::reported("id", Id);

pub(crate) static ITEM: Table = Table {
    source: "warehouse",
    captured: "public.wh_item",
    mirror: "warehouse.wh_item",
    columns: &[
        ID,
        Column::new("name", Text),
        Column::new("description", Text),
        Column::new("country_of_origin", Text),
    ],
};

pub(crate) static PRICE: Table = Table {
    source: "warehouse",
    captured: "public.wh_price",
    mirror: "warehouse.wh_price",
    columns: &[
        ID,
        Column::new("price", Numeric),
        Column::reported("item_id", Id),
    ],
};

pub(crate) static QUANTITY: Table = Table {
    source: "warehouse",
    captured: "public.wh_quantity",
    mirror: "warehouse.wh_quantity",
    columns: &[
        ID,
        Column::new("quantity", Integer),
        Column::reported("item_id", Id),
    ],
};

pub(crate) static TRANSACTION: Table = Table {
    source: "accounting",
    captured: "public.ac_transaction",
    mirror: "accounting.ac_transaction",
    columns: &[ID, Column::reported("order_id", Id)],
};

pub(crate) static DETAIL: Table = Table {
    source: "accounting",
    captured: "public.ac_transactiondetail",
    mirror: "accounting.ac_transactiondetail",
    columns: &[
        ID,
        Column::new("sum", Numeric),
        Column::new("date", Time),
        Column::reported("transaction_id", Id),
    ],
};

pub(crate) static ORDER: Table = Table {
    source: "sales",
    captured: "public.sls_order",
    mirror: "sales.sls_order",
    columns: &[
        ID,
        Column::new("customer_id", Id),
        Column::new("date", Time),
    ],
};

pub(crate) static LINE: Table = Table {
    source: "sales",
    captured: "public.sls_orderdetail",
    mirror: "sales.sls_orderdetail",
    columns: &[
        ID,
        Column::reported("item_id", Id),
        Column::reported("unit_price", Numeric),
        Column::reported("quantity", Integer),
        Column::reported("order_id", Id),
    ],
};

/// Every mirrored table.
pub static TABLES: [&Table; 7] = [
    &ITEM,
    &PRICE,
    &QUANTITY,
    &TRANSACTION,
    &DETAIL,
    &ORDER,
    &LINE,
];
