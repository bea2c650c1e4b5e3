//! `/v1/orders`: each order, with its lines and its payments.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::Json;
use utoipa::ToSchema;

use super::one::one;
use super::page::{Page, page};
use super::transactions::Detail;
use crate::Api;
use crate::cursor::SortKey;
use crate::key::{ID, Part, Table};
use crate::parameters::{ListRequest, OneRequest};
use crate::problem::Problem;
use crate::query::Resource;

/// An order of sales and what accounting has of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Order {
    /// The order's id in sales.
    #[schema(example = 1)]
    pub id: i64,
    #[schema(required, example = 17)]
    pub customer_id: Option<i64>,
    /// RFC 3339 in UTC with microseconds.
    #[schema(required, example = "2020-01-01T00:00:00.000000Z")]
    pub ordered_at: Option<String>,
    /// By id.
    #[schema(required)]
    pub lines: Option<Vec<OrderLine>>,
    /// Over the lines; decimal with two places.
    #[schema(required, example = "49.80")]
    pub total: Option<String>,
    /// The payments booked for this order, by id.
    #[schema(required)]
    pub transactions: Option<Vec<Payment>>,
    /// Over the transactions; decimal with two places.
    #[schema(required, example = "49.80")]
    pub paid: Option<String>,
    /// `total` − `paid`; decimal with two places.
    #[schema(required, example = "0.00")]
    pub balance: Option<String>,
    /// `paid` where paid = total, `overpaid` where above, `part_paid` where below and paid > 0,
    /// else `unpaid`.
    #[schema(required, example = "paid")]
    pub payment_status: Option<String>,
    /// Fields that are null because their source was not read yet; mostly empty.
    #[schema(example = json!([]))]
    pub unknown: Vec<String>,
    /// True where an input could not be applied: the row shows its last good state.
    #[schema(example = false)]
    pub degraded: bool,
    /// The view transaction that last changed this row; of two, the later is the greater string.
    #[schema(example = "1763900000-000000000042")]
    pub revision: String,
}

/// One line of an order.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct OrderLine {
    #[schema(example = 1)]
    pub id: i64,
    /// May name a product that no longer exists.
    #[schema(example = 42)]
    pub product_id: i64,
    /// Decimal with two places.
    #[schema(example = "24.90")]
    pub unit_price: String,
    #[schema(example = 2)]
    pub quantity: i64,
    /// Unit price × quantity; decimal with two places.
    #[schema(example = "49.80")]
    pub amount: String,
}

/// A transaction of accounting, inside its order.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Payment {
    #[schema(example = 1)]
    pub id: i64,
    /// Over its details; decimal with two places.
    #[schema(example = "49.80")]
    pub amount: String,
    /// By id.
    pub details: Vec<Detail>,
}

impl Resource for Order {
    const NAME: &'static str = "orders";
    const TABLE: Table = Table {
        name: "public.orders",
        key: ID,
    };
    // RFC 3339 has four digits for a year; beyond, ISO 8601 has a sign, and 1 BC is the year 0.
    const COLUMNS: &'static str = "id, customer_id, \
        CASE WHEN ordered_at >= '10000-01-01 UTC' THEN '+' \
             WHEN ordered_at < '0002-01-01 BC UTC' THEN '-' ELSE '' END || \
        CASE WHEN ordered_at >= '0001-01-01 UTC' \
             THEN to_char(ordered_at AT TIME ZONE 'UTC', 'YYYY') \
             ELSE to_char(-1 - extract(year FROM ordered_at AT TIME ZONE 'UTC'), 'FM0000') END || \
        to_char(ordered_at AT TIME ZONE 'UTC', '-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS ordered_at, \
        lines, round(total, 2)::text AS total, transactions, round(paid, 2)::text AS paid, \
        round(balance, 2)::text AS balance, payment_status, unknown, {degraded}, revision";

    fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let lines: Option<Json<Vec<OrderLine>>> = row.try_get("lines")?;
        let transactions: Option<Json<Vec<Payment>>> = row.try_get("transactions")?;
        Ok(Self {
            id: row.try_get("id")?,
            customer_id: row.try_get("customer_id")?,
            ordered_at: row.try_get("ordered_at")?,
            lines: lines.map(|Json(lines)| lines),
            total: row.try_get("total")?,
            transactions: transactions.map(|Json(transactions)| transactions),
            paid: row.try_get("paid")?,
            balance: row.try_get("balance")?,
            payment_status: row.try_get("payment_status")?,
            unknown: row.try_get("unknown")?,
            degraded: row.try_get("degraded")?,
            revision: row.try_get("revision")?,
        })
    }

    fn sort_key(&self) -> SortKey {
        vec![Part::Number(self.id)]
    }
}

/// Orders by id.
#[utoipa::path(get, path = "/v1/orders", tag = "orders", operation_id = "list_orders",
    responses((status = 200, description = "A page of orders", body = Page<Order>)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    request: ListRequest,
) -> Result<Response, Problem> {
    page::<Order>(&api, &request).await
}

/// One order.
#[utoipa::path(get, path = "/v1/orders/{id}", tag = "orders", operation_id = "get_order",
    responses((status = 200, description = "The order", body = Order)))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    request: OneRequest,
) -> Result<Response, Problem> {
    one::<Order>(&api, &request).await
}
