//! Three sources that live: random transactions of a shop, with few ids, so that rows meet.

#![expect(
    clippy::unwrap_used,
    reason = "what the tests made themselves is there"
)]

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::source::Source;

pub(crate) const ITEM: &str = "public.wh_item";
pub(crate) const PRICE: &str = "public.wh_price";
pub(crate) const QUANTITY: &str = "public.wh_quantity";
pub(crate) const TRANSACTION: &str = "public.ac_transaction";
pub(crate) const DETAIL: &str = "public.ac_transactiondetail";
pub(crate) const ORDER: &str = "public.sls_order";
pub(crate) const LINE: &str = "public.sls_orderdetail";

/// Ids are taken from 1 to here, and taken again once they are free.
const IDS: i64 = 9;
const YEAR_US: i64 = 31_557_600_000_000;

pub(crate) struct Shop {
    pub(crate) random: StdRng,
    pub(crate) warehouse: Source,
    pub(crate) accounting: Source,
    pub(crate) sales: Source,
}

impl Shop {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            warehouse: Source::new("warehouse"),
            accounting: Source::new("accounting"),
            sales: Source::new("sales"),
        }
    }

    pub(crate) fn source(&mut self, name: &str) -> &mut Source {
        match name {
            "warehouse" => &mut self.warehouse,
            "accounting" => &mut self.accounting,
            _ => &mut self.sales,
        }
    }

    /// Some transactions in one source, and its checkpoint.
    pub(crate) fn work(&mut self, name: &str) {
        for _ in 0..self.random.random_range(0..4) {
            match name {
                "warehouse" => self.stock(),
                "accounting" => self.book(),
                _ => self.sell(),
            }
        }
        if self.random.random_bool(0.2) {
            let (table, id) = (self.table_of(name), self.id());
            self.source(name).read_again(table, id);
        }
        // Its clock goes back and forth, past what becomes due and before it.
        if self.random.random_bool(0.5) {
            let decades = self.random.random_range(-6..2);
            self.source(name).known_until_us = decades * 10 * YEAR_US;
        }
        self.source(name).checkpoint();
    }

    /// Warehouse: a row of any of its tables appears, changes, goes.
    fn stock(&mut self) {
        let (id, item, number) = (self.id(), self.id(), self.random.random_range(0..5));
        let lone = self.random.random_bool(0.5);
        match self.random.random_range(0..7) {
            0 | 1 => self.warehouse.put(
                ITEM,
                json!({
                    "id": id, "name": format!("item “{number}” 🧦"),
                    "description": "d".repeat(number), "country_of_origin": "PT",
                }),
            ),
            2 => self.warehouse.delete(ITEM, id, lone),
            3 => self.warehouse.put(
                PRICE,
                json!({"id": id, "price": format!("{number}.50"), "item_id": item}),
            ),
            4 => self.warehouse.delete(PRICE, id, lone),
            5 => self.warehouse.put(
                QUANTITY,
                json!({"id": id, "quantity": 3 - i64::try_from(number).unwrap(), "item_id": item}),
            ),
            _ => self.warehouse.delete(QUANTITY, id, lone),
        }
    }

    /// Accounting: transactions for orders that may not exist, details that wander.
    fn book(&mut self) {
        let (id, other) = (self.id(), self.id());
        let (number, lone) = (
            self.random.random_range(-2..5),
            self.random.random_bool(0.5),
        );
        match self.random.random_range(0..6) {
            0 | 1 => self
                .accounting
                .put(TRANSACTION, json!({"id": id, "order_id": other})),
            2 => self.accounting.delete(TRANSACTION, id, lone),
            3 | 4 => self.accounting.put(
                DETAIL,
                json!({
                    "id": id, "sum": format!("{number}.00"),
                    "date": format!("19{}0-01-02T03:04:05.000006Z", number + 3),
                    "transaction_id": other,
                }),
            ),
            _ => self.accounting.delete(DETAIL, id, lone),
        }
    }

    /// Sales: orders change customers, lines move between orders and items.
    fn sell(&mut self) {
        let (id, order, item) = (self.id(), self.id(), self.id());
        let (number, lone) = (self.random.random_range(0..5), self.random.random_bool(0.5));
        match self.random.random_range(0..6) {
            0 | 1 => self.sales.put(
                ORDER,
                json!({
                    "id": id, "customer_id": self.random.random_range(1..4),
                    // The last microsecond of a day in UTC, or the first of the next.
                    "date": if number > 2 { "2020-02-28T23:59:59.999999Z" } else { "2020-02-29T00:00:00.000000Z" },
                }),
            ),
            2 => self.sales.delete(ORDER, id, lone),
            3 | 4 => self.sales.put(
                LINE,
                json!({
                    "id": id, "item_id": item, "unit_price": format!("{number}.00"),
                    "quantity": number, "order_id": order,
                }),
            ),
            _ => self.sales.delete(LINE, id, lone),
        }
    }

    fn table_of(&mut self, name: &str) -> &'static str {
        let tables: Vec<_> = self.source(name).tables.keys().copied().collect();
        tables.choose(&mut self.random).copied().unwrap()
    }

    fn id(&mut self) -> i64 {
        self.random.random_range(1..=IDS)
    }
}
