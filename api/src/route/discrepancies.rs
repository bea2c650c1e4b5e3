//! `/v1/discrepancies`: what does not fit between the systems, open ones only.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::Json;
use utoipa::ToSchema;

use super::one::one;
use super::page::{Page, page_of};
use crate::Api;
use crate::cursor::SortKey;
use crate::key::{ID, Part, Table};
use crate::parameters::{DiscrepanciesRequest, OneRequest};
use crate::problem::Problem;
use crate::query::{Filter, Resource};

/// The rules that there are; `docs/discrepancies.md` says what each means.
pub const RULES: [&str; 5] = [
    "item_missing",
    "payment_without_order",
    "part_paid_too_long",
    "overpaid",
    "negative_stock",
];

/// The item that is gone, of the data that `make run` begins with.
pub(super) const EXAMPLE_ID: i64 = 20_101;

/// Something that does not fit between the systems. It leaves when it is mended.
#[derive(Debug, Serialize, ToSchema)]
pub struct Discrepancy {
    /// The same as long as the rule is broken for that row; and again, if it is broken again.
    #[schema(example = 20101)]
    pub id: i64,
    /// `item_missing`: an order line names an item that the warehouse does not have.
    /// `payment_without_order`: a payment names an order that sales does not have.
    /// `part_paid_too_long`: an order has been paid in part for longer than it may be.
    /// `overpaid`: more has been paid for an order than it costs.
    /// `negative_stock`: the warehouse counts less than nothing of an item.
    /// There may be more rules later.
    #[schema(example = "item_missing")]
    pub rule: String,
    /// The systems that do not fit.
    #[schema(example = json!(["sales", "warehouse"]))]
    pub systems: Vec<String>,
    /// The resource that `key` is a row of: `products`, `orders` or `transactions`. Of a missing
    /// item it is the delisted product.
    #[schema(example = "products")]
    pub resource: String,
    /// The id of the row that breaks the rule.
    #[schema(example = 201)]
    pub key: i64,
    /// The commit time of the position at which it was there first; of `part_paid_too_long` when it
    /// was too long. RFC 3339 in UTC with microseconds.
    #[schema(example = "2020-01-01T00:00:00.000000Z")]
    pub since: String,
    /// What the rule compared; its fields are the rule's.
    #[schema(value_type = Object, example = json!({"order_lines": 1}))]
    pub detail: serde_json::Value,
    /// Always empty: where a source was not read yet, nothing is claimed.
    #[schema(example = json!([]))]
    pub unknown: Vec<String>,
    /// Always false: where an input could not be applied, nothing is claimed.
    #[schema(example = false)]
    pub degraded: bool,
    /// The view transaction that last changed this row; of two, the later is the greater string.
    #[schema(example = "1763900000-000000000042")]
    pub revision: String,
}

impl Resource for Discrepancy {
    const NAME: &'static str = "discrepancies";
    const TABLE: Table = Table {
        name: "public.discrepancies",
        key: ID,
    };
    const COLUMNS: &'static str = "id, rule, systems, resource, key, \
        to_char(since, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS since, detail, unknown, {degraded}, \
        revision";

    fn from_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let Json(detail) = row.try_get("detail")?;
        Ok(Self {
            id: row.try_get("id")?,
            rule: row.try_get("rule")?,
            systems: row.try_get("systems")?,
            resource: row.try_get("resource")?,
            key: row.try_get("key")?,
            since: row.try_get("since")?,
            detail,
            unknown: row.try_get("unknown")?,
            degraded: row.try_get("degraded")?,
            revision: row.try_get("revision")?,
        })
    }

    fn sort_key(&self) -> SortKey {
        vec![Part::Number(self.id)]
    }
}

/// Open discrepancies by id.
#[utoipa::path(get, path = "/v1/discrepancies", tag = "discrepancies",
    operation_id = "list_discrepancies",
    params(
        ("rule" = Option<String>, Query, description = "Only those of this rule.",
            example = "item_missing"),
        ("system" = Option<String>, Query,
            description = "Only those that concern this system.", example = "sales"),
    ),
    responses((status = 200, description = "A page of discrepancies", body = Page<Discrepancy>)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    request: DiscrepanciesRequest,
) -> Result<Response, Problem> {
    let filters = [
        ("rule = {}", request.rule),
        ("systems @> ARRAY[{}]", request.system),
    ];
    let filters: Vec<_> = filters
        .into_iter()
        .filter_map(|(condition, value)| value.map(|value| Filter { condition, value }))
        .collect();
    page_of::<Discrepancy>(&api, &request.list, &filters).await
}

/// One open discrepancy.
#[utoipa::path(get, path = "/v1/discrepancies/{id}", tag = "discrepancies",
    operation_id = "get_discrepancy",
    responses((status = 200, description = "The discrepancy", body = Discrepancy)))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    request: OneRequest,
) -> Result<Response, Problem> {
    one::<Discrepancy>(&api, &request).await
}
