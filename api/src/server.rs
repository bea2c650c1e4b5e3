//! Connections: accepted up to a limit, slow ones closed, drained within a bound.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use service::admin::Health;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::Api;
use crate::config::LimitsConfig;
use crate::measure;
use crate::middleware;

/// After accepting failed (out of file descriptors, mostly) it is not tried at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Streams of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 128;

/// # Errors
/// The address cannot be bound.
pub async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}; free it or set listen"))
}

/// Serves until `shutdown`; then `/readyz` says so, nothing new is accepted, and what is open
/// may end within the drain timeout.
pub async fn serve(
    listener: TcpListener,
    api: Arc<Api>,
    health: Health,
    shutdown: CancellationToken,
) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "the API listens on http://{address}");
    }
    let limits = api.config.limits.clone();
    let service = TowerToHyperService::new(middleware::around(api));
    let builder = builder(&limits);
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let graceful = GracefulShutdown::new();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = shutdown.cancelled() => break,
        };
        let Some((stream, place)) = accepted else {
            continue;
        };
        let connection = builder.serve_connection(TokioIo::new(stream), service.clone());
        let connection = graceful.watch(connection.into_owned());
        connections.spawn(async move {
            measure::connections(1.0);
            if let Err(error) = connection.await {
                // A client that went away or sent no HTTP: its affair, not ours.
                tracing::debug!(error, "a connection ended: {error}");
            }
            measure::connections(-1.0);
            drop(place);
        });
    }
    health.not_ready("stopping");
    drop(listener);
    let drain = Duration::from_millis(limits.drain_timeout_ms);
    if tokio::time::timeout(drain, graceful.shutdown())
        .await
        .is_err()
    {
        let open = connections.len();
        tracing::warn!(
            open,
            "{open} connections did not end within the drain timeout"
        );
    }
    connections.shutdown().await;
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // An answer is one write; waiting to fill a packet only delays it.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
            Some((stream, place))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

fn builder(limits: &LimitsConfig) -> auto::Builder<TokioExecutor> {
    let header_timeout = Duration::from_millis(limits.header_timeout_ms);
    let header_bytes_max = limits.header_bytes_max;
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Also ends connections that stay idle between requests.
        .header_read_timeout(header_timeout)
        .max_buf_size(header_bytes_max)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(header_timeout)
        .keep_alive_timeout(header_timeout)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(header_bytes_max).unwrap_or(u32::MAX));
    builder
}
