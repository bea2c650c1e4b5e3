//! The admin port: `/livez`, `/readyz`, `/metrics`, and what a binary adds.

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// Where the admin port listens.
#[derive(Debug, Clone, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Address and port, `127.0.0.1:9100` for example; port 0 takes a free one.
    pub listen: SocketAddr,
}

/// Whether this process can do its work now, and if not, why. Clones share one state.
#[derive(Debug, Clone)]
pub struct Health(Arc<RwLock<Option<String>>>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(RwLock::new(Some("starting".to_owned()))))
    }
}

impl Health {
    /// From now on `/readyz` answers 200.
    pub fn ready(&self) {
        self.set(None);
    }

    /// From now on `/readyz` answers 503 with this reason.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    /// `None` when ready, else the reason why not.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.0
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    fn set(&self, reason: Option<String>) {
        *self
            .0
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = reason;
    }
}

/// Serves the admin port until `shutdown`. `extra` adds a binary's own routes.
///
/// # Errors
/// Where the address cannot be bound.
pub async fn serve(
    config: AdminConfig,
    health: Health,
    metrics: PrometheusHandle,
    extra: Router,
    shutdown: CancellationToken,
) -> Result<(), AdminError> {
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .map_err(|source| AdminError {
            listen: config.listen,
            source,
        })?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "admin port listens on {address}");
    }
    let router = router(health, metrics, extra);
    axum::serve(
        listener,
        router.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .with_graceful_shutdown(shutdown.cancelled_owned())
    .await
    .map_err(|source| AdminError {
        listen: config.listen,
        source,
    })
}

fn router(health: Health, metrics: PrometheusHandle, extra: Router) -> Router {
    Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(readyz).with_state(health))
        .route(
            "/metrics",
            get(|State(metrics): State<PrometheusHandle>| async move {
                metrics.run_upkeep();
                metrics.render()
            })
            .with_state(metrics),
        )
        .merge(extra)
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    match health.reason() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {reason}\n"),
        ),
    }
}

/// The admin port could not be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the admin port on {listen}: {source}; free it or set admin.listen")]
pub struct AdminError {
    listen: SocketAddr,
    #[source]
    source: std::io::Error,
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tower::ServiceExt;

    use super::*;

    async fn status(router: &Router, path: &str) -> StatusCode {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let Ok(response) = router.clone().oneshot(request).await;
        response.status()
    }

    #[tokio::test]
    async fn readiness_follows_health_and_liveness_does_not() {
        let health = Health::default();
        let handle = PrometheusBuilder::new().build_recorder().handle();
        let router = router(health.clone(), handle, Router::new());
        assert_eq!(status(&router, "/livez").await, StatusCode::OK);
        assert_eq!(
            status(&router, "/readyz").await,
            StatusCode::SERVICE_UNAVAILABLE
        );
        health.ready();
        assert_eq!(status(&router, "/readyz").await, StatusCode::OK);
        health.not_ready("the source is gone");
        assert_eq!(
            status(&router, "/readyz").await,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(status(&router, "/livez").await, StatusCode::OK);
        assert_eq!(status(&router, "/metrics").await, StatusCode::OK);
    }
}
