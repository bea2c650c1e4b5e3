//! `/v1/sold-items`: products that were sold, most sold first.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use tokio_postgres::Row;

use super::one::one;
use super::page::{Page, page};
use super::products::Product;
use crate::Api;
use crate::cache::CachedRow;
use crate::cursor::SortKey;
use crate::key::{KeyKind, Part, Table};
use crate::parameters::{ListRequest, OneRequest};
use crate::problem::Problem;
use crate::query::Resource;

/// A product with `units_sold` above 0. One of them and that product share a cached row.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct SoldItem(Product);

impl Resource for SoldItem {
    const NAME: &'static str = "sold-items";
    const TABLE: Table = Product::TABLE;
    const COLUMNS: &'static str = Product::COLUMNS;
    const ORDER: &'static str = "units_sold DESC, id";
    const AFTER: &'static str = "units_sold <= $2 AND (units_sold < $2 OR id > $3)";
    const SORTED_BY: &'static [KeyKind] = &[KeyKind::Id, KeyKind::Id];
    const FILTER: &'static str = "units_sold > 0";

    fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Product::from_row(row).map(Self)
    }

    fn sort_key(&self) -> SortKey {
        let units_sold = self.0.units_sold.unwrap_or(0);
        vec![Part::Number(units_sold), Part::Number(self.0.id)]
    }

    fn is_sold(&self) -> bool {
        self.0.is_sold()
    }

    fn shows(row: &CachedRow) -> bool {
        row.is_sold
    }
}

/// Products that were sold, most sold first, then by id.
///
/// Paging is stable while rows come and go. A product whose `units_sold` changes between two
/// pages moves in the order: it can then show twice or not at all.
#[utoipa::path(get, path = "/v1/sold-items", tag = "sold-items", operation_id = "list_sold_items",
    responses((status = 200, description = "A page of products", body = Page<Product>)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    request: ListRequest,
) -> Result<Response, Problem> {
    page::<SoldItem>(&api, &request).await
}

/// One product, if it was sold.
#[utoipa::path(get, path = "/v1/sold-items/{id}", tag = "sold-items", operation_id = "get_sold_item",
    responses((status = 200, description = "The product", body = Product)))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    request: OneRequest,
) -> Result<Response, Problem> {
    one::<SoldItem>(&api, &request).await
}
