//! The routes, and the document that describes them.

pub mod customers;
pub mod daily_sales;
pub mod discrepancies;
pub mod one;
pub mod openapi;
pub mod orders;
pub mod page;
pub mod products;
pub mod sold_items;
pub mod status;
pub mod transactions;

use std::sync::Arc;

use axum::Router;
use axum::extract::OriginalUri;
use axum::http::header;
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::Api;
use crate::key::Table;
use crate::problem::Problem;
use crate::query::Resource as _;

/// The tables of the view that have cached rows.
pub const TABLES: [Table; 6] = [
    products::Product::TABLE,
    orders::Order::TABLE,
    customers::Customer::TABLE,
    transactions::Transaction::TABLE,
    daily_sales::DailySales::TABLE,
    discrepancies::Discrepancy::TABLE,
];

/// The resources and their OpenAPI document.
fn resources() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(openapi::document())
        .routes(routes!(products::list))
        .routes(routes!(products::get))
        .routes(routes!(orders::list))
        .routes(routes!(orders::get))
        .routes(routes!(customers::list))
        .routes(routes!(customers::get))
        .routes(routes!(transactions::list))
        .routes(routes!(transactions::get))
        .routes(routes!(discrepancies::list))
        .routes(routes!(discrepancies::get))
        .routes(routes!(sold_items::list))
        .routes(routes!(sold_items::get))
        .routes(routes!(daily_sales::list))
        .routes(routes!(daily_sales::get))
        .routes(routes!(status::get))
}

/// The OpenAPI document of this build.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = resources().into_openapi();
    openapi::add_what_all_share(&mut document);
    document
}

/// Every route, with answers for what is not one.
pub fn router() -> Router<Arc<Api>> {
    let (router, _) = resources().split_for_parts();
    let json = document().to_pretty_json().unwrap_or_default();
    let json = bytes::Bytes::from(json);
    let ui = Config::from("/openapi.json")
        .try_it_out_enabled(true)
        .display_request_duration(true);
    router
        .route(
            "/openapi.json",
            get(move || async move { ([(header::CONTENT_TYPE, "application/json")], json) }),
        )
        .merge(SwaggerUi::new("/docs").config(ui))
        .route("/", get(|| async { Redirect::to("/docs/") }))
        .fallback(|OriginalUri(uri): OriginalUri| async move {
            Problem::NoSuchRoute {
                path: uri.path().chars().take(200).collect(),
            }
            .into_response()
        })
        .method_not_allowed_fallback(|| async { Problem::MethodNotAllowed })
}
