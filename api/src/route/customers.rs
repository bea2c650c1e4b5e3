//! `/v1/customers`: each customer id that has an order.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use tokio_postgres::Row;
use utoipa::ToSchema;

use super::one::one;
use super::page::{Page, page};
use crate::Api;
use crate::cursor::SortKey;
use crate::key::{ID, Part, Table};
use crate::parameters::{ListRequest, OneRequest};
use crate::problem::Problem;
use crate::query::Resource;

/// Who ordered: known by the orders alone.
#[derive(Debug, Serialize, ToSchema)]
pub struct Customer {
    /// The customer id that orders name.
    #[schema(example = 1)]
    pub id: i64,
    #[schema(required, example = 4)]
    pub order_count: Option<i64>,
    /// Over the orders' totals; decimal with two places.
    #[schema(required, example = "199.20")]
    pub ordered: Option<String>,
    /// Over the orders' payments; decimal with two places.
    #[schema(required, example = "149.40")]
    pub paid: Option<String>,
    /// `ordered` − `paid`; decimal with two places.
    #[schema(required, example = "49.80")]
    pub balance: Option<String>,
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

impl Resource for Customer {
    const NAME: &'static str = "customers";
    const TABLE: Table = Table {
        name: "public.customers",
        key: ID,
    };
    const COLUMNS: &'static str = "id, order_count, round(ordered, 2)::text AS ordered, \
        round(paid, 2)::text AS paid, round(balance, 2)::text AS balance, \
        unknown, {degraded}, revision";

    fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            order_count: row.try_get("order_count")?,
            ordered: row.try_get("ordered")?,
            paid: row.try_get("paid")?,
            balance: row.try_get("balance")?,
            unknown: row.try_get("unknown")?,
            degraded: row.try_get("degraded")?,
            revision: row.try_get("revision")?,
        })
    }

    fn sort_key(&self) -> SortKey {
        vec![Part::Number(self.id)]
    }
}

/// Customers by id.
#[utoipa::path(get, path = "/v1/customers", tag = "customers", operation_id = "list_customers",
    responses((status = 200, description = "A page of customers", body = Page<Customer>)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    request: ListRequest,
) -> Result<Response, Problem> {
    page::<Customer>(&api, &request).await
}

/// One customer.
#[utoipa::path(get, path = "/v1/customers/{id}", tag = "customers", operation_id = "get_customer",
    responses((status = 200, description = "The customer", body = Customer)))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    request: OneRequest,
) -> Result<Response, Problem> {
    one::<Customer>(&api, &request).await
}
