//! `/v1/transactions`: each transaction of accounting.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::Json;
use utoipa::ToSchema;

use super::one::one;
use super::page::{Page, page};
use crate::Api;
use crate::cursor::SortKey;
use crate::key::{ID, Part, Table};
use crate::parameters::{ListRequest, OneRequest};
use crate::problem::Problem;
use crate::query::Resource;

/// A transaction of accounting.
#[derive(Debug, Serialize, ToSchema)]
pub struct Transaction {
    /// The transaction's id in accounting.
    #[schema(example = 1)]
    pub id: i64,
    /// May name an order that does not exist, or not yet.
    #[schema(required, example = 1)]
    pub order_id: Option<i64>,
    /// Over the details; decimal with two places.
    #[schema(required, example = "49.80")]
    pub amount: Option<String>,
    /// By id.
    #[schema(required)]
    pub details: Option<Vec<Detail>>,
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

/// One booking of a transaction.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Detail {
    #[schema(example = 1)]
    pub id: i64,
    /// Decimal with two places.
    #[schema(example = "49.80")]
    pub amount: String,
    /// RFC 3339 in UTC with microseconds.
    #[schema(example = "2020-01-01T00:00:00.000000Z")]
    pub booked_at: String,
}

impl Resource for Transaction {
    const NAME: &'static str = "transactions";
    const TABLE: Table = Table {
        name: "public.transactions",
        key: ID,
    };
    const COLUMNS: &'static str =
        "id, order_id, round(amount, 2)::text AS amount, details, unknown, {degraded}, revision";

    fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let details: Option<Json<Vec<Detail>>> = row.try_get("details")?;
        Ok(Self {
            id: row.try_get("id")?,
            order_id: row.try_get("order_id")?,
            amount: row.try_get("amount")?,
            details: details.map(|Json(details)| details),
            unknown: row.try_get("unknown")?,
            degraded: row.try_get("degraded")?,
            revision: row.try_get("revision")?,
        })
    }

    fn sort_key(&self) -> SortKey {
        vec![Part::Number(self.id)]
    }
}

/// Transactions by id.
#[utoipa::path(get, path = "/v1/transactions", tag = "transactions",
    operation_id = "list_transactions",
    responses((status = 200, description = "A page of transactions", body = Page<Transaction>)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    request: ListRequest,
) -> Result<Response, Problem> {
    page::<Transaction>(&api, &request).await
}

/// One transaction.
#[utoipa::path(get, path = "/v1/transactions/{id}", tag = "transactions",
    operation_id = "get_transaction",
    responses((status = 200, description = "The transaction", body = Transaction)))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    request: OneRequest,
) -> Result<Response, Problem> {
    one::<Transaction>(&api, &request).await
}
