//! `/v1/daily-sales`: what each product sold on each day.

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
use crate::key::{KeyColumn, KeyKind, Part, Table};
use crate::parameters::{ListRequest, OneRequest};
use crate::problem::Problem;
use crate::query::Resource;

/// What a product sold on a day, over the lines of that day's orders.
#[derive(Debug, Serialize, ToSchema)]
pub struct DailySales {
    /// Of the orders' dates, in UTC.
    #[schema(example = "2018-01-01", format = Date)]
    pub day: String,
    /// May name a product that no longer exists.
    #[schema(example = 144)]
    pub product_id: i64,
    /// Orders of that day with a line of the product.
    #[schema(required, example = 2)]
    pub orders: Option<i64>,
    #[schema(required, example = 3)]
    pub units: Option<i64>,
    /// Unit price × quantity; decimal with two places.
    #[schema(required, example = "74.70")]
    pub revenue: Option<String>,
    /// Fields that are null because their source was not read yet; mostly empty.
    #[schema(example = json!([]))]
    pub unknown: Vec<String>,
    /// True where an input of one of these orders could not be applied: the row shows its last
    /// good state.
    #[schema(example = false)]
    pub degraded: bool,
    /// The view transaction that last changed this row; of two, the later is the greater string.
    #[schema(example = "1763900000-000000000042")]
    pub revision: String,
    #[serde(skip)]
    days_since_1970: i64,
}

impl Resource for DailySales {
    const NAME: &'static str = "daily-sales";
    const TABLE: Table = Table {
        name: "public.daily_sales",
        key: &[
            KeyColumn {
                name: "day",
                kind: KeyKind::Day,
            },
            KeyColumn {
                name: "product_id",
                kind: KeyKind::Id,
            },
        ],
    };
    // As of orders' times: beyond four digits a year has a sign, and 1 BC is the year 0.
    const COLUMNS: &'static str = "day, (day - '1970-01-01'::date)::bigint AS days_since_1970, \
        CASE WHEN day >= '10000-01-01' THEN '+' WHEN day < '0002-01-01 BC' THEN '-' ELSE '' END || \
        CASE WHEN day >= '0001-01-01' THEN to_char(day, 'YYYY') \
             ELSE to_char(-1 - extract(year FROM day), 'FM0000') END || \
        to_char(day, '-MM-DD') AS day_text, \
        product_id, orders, units, round(revenue, 2)::text AS revenue, \
        unknown, {degraded}, revision";
    const ORDER: &'static str = "day, product_id";
    const SORTED_BY: &'static [KeyKind] = &[KeyKind::Day, KeyKind::Id];
    const AFTER: &'static str =
        "(day, product_id) > ('1970-01-01'::date + $2::bigint::integer, $3::bigint)";

    fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            day: row.try_get("day_text")?,
            product_id: row.try_get("product_id")?,
            orders: row.try_get("orders")?,
            units: row.try_get("units")?,
            revenue: row.try_get("revenue")?,
            unknown: row.try_get("unknown")?,
            degraded: row.try_get("degraded")?,
            revision: row.try_get("revision")?,
            days_since_1970: row.try_get("days_since_1970")?,
        })
    }

    fn sort_key(&self) -> SortKey {
        vec![
            Part::Number(self.days_since_1970),
            Part::Number(self.product_id),
        ]
    }
}

/// Daily sales by day, then by product.
#[utoipa::path(get, path = "/v1/daily-sales", tag = "daily-sales",
    operation_id = "list_daily_sales",
    responses((status = 200, description = "A page of daily sales", body = Page<DailySales>)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    request: ListRequest,
) -> Result<Response, Problem> {
    page::<DailySales>(&api, &request).await
}

/// What one product sold on one day.
#[utoipa::path(get, path = "/v1/daily-sales/{day}/{product_id}", tag = "daily-sales",
    operation_id = "get_daily_sales",
    params(
        ("day" = String, Path, format = Date, description = "In UTC.", example = "2018-01-01"),
        ("product_id" = i64, Path, description = "Which product.", example = 144),
    ),
    responses((status = 200, description = "The product's sales", body = DailySales)))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    request: OneRequest,
) -> Result<Response, Problem> {
    one::<DailySales>(&api, &request).await
}
