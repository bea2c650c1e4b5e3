//! `/v1/products`: each item of the warehouse, and each item id that sales sold.

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

/// An item of the warehouse, or one that is only known because sales sold it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Product {
    /// The item's id in the warehouse.
    #[schema(example = 1)]
    pub id: i64,
    /// Null when delisted.
    #[schema(required, example = "Oak shelf")]
    pub name: Option<String>,
    /// Null when delisted.
    #[schema(required, example = "A shelf of solid oak")]
    pub description: Option<String>,
    /// Null when delisted.
    #[schema(required, example = "Norway")]
    pub country_of_origin: Option<String>,
    /// Decimal with two places, of the price with the highest id; null without one.
    #[schema(required, example = "24.90")]
    pub price: Option<String>,
    /// Of the quantity with the highest id; null without one.
    #[schema(required, example = 12)]
    pub quantity_in_stock: Option<i64>,
    /// Over all order lines.
    #[schema(required, example = 3)]
    pub units_sold: Option<i64>,
    /// Over all order lines unit price × quantity; decimal with two places.
    #[schema(required, example = "74.70")]
    pub revenue: Option<String>,
    /// `listed`: in the warehouse; `delisted`: not, or no longer.
    #[schema(required, example = "listed")]
    pub status: Option<String>,
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

impl Resource for Product {
    const NAME: &'static str = "products";
    const TABLE: Table = Table {
        name: "public.products",
        key: ID,
    };
    const COLUMNS: &'static str = "id, name, description, country_of_origin, \
        round(price, 2)::text AS price, quantity_in_stock, units_sold, \
        round(revenue, 2)::text AS revenue, status, unknown, {degraded}, revision";

    fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            description: row.try_get("description")?,
            country_of_origin: row.try_get("country_of_origin")?,
            price: row.try_get("price")?,
            quantity_in_stock: row.try_get("quantity_in_stock")?,
            units_sold: row.try_get("units_sold")?,
            revenue: row.try_get("revenue")?,
            status: row.try_get("status")?,
            unknown: row.try_get("unknown")?,
            degraded: row.try_get("degraded")?,
            revision: row.try_get("revision")?,
        })
    }

    fn sort_key(&self) -> SortKey {
        vec![Part::Number(self.id)]
    }

    fn is_sold(&self) -> bool {
        self.units_sold.is_some_and(|units| units > 0)
    }
}

/// Products by id.
#[utoipa::path(get, path = "/v1/products", tag = "products", operation_id = "list_products",
    responses((status = 200, description = "A page of products", body = Page<Product>)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    request: ListRequest,
) -> Result<Response, Problem> {
    page::<Product>(&api, &request).await
}

/// One product.
#[utoipa::path(get, path = "/v1/products/{id}", tag = "products", operation_id = "get_product",
    responses((status = 200, description = "The product", body = Product)))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    request: OneRequest,
) -> Result<Response, Problem> {
    one::<Product>(&api, &request).await
}
