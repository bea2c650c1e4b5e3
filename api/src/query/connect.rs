//! How the pool gets into the view's database.

use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deadpool_postgres::Connect;
use links::{AccessError, Endpoint};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error};

use crate::config::ViewConfig;

/// Makes connections, each by what the files of secrets and certificates hold then.
#[derive(Debug)]
pub(super) struct Connector {
    config: ViewConfig,
    /// For when a file cannot be read: who replaces it may be half done.
    last: Mutex<Endpoint>,
}

type Connected = (Client, JoinHandle<()>);

impl Connector {
    /// # Errors
    /// A URL that does not parse, or a file that is not what it should be.
    pub(super) fn new(config: &ViewConfig) -> Result<Self, AccessError> {
        Ok(Self {
            last: Mutex::new(endpoint(config)?),
            config: config.clone(),
        })
    }

    /// What the pool takes beside a connector, and does not look at.
    pub(super) fn address(&self) -> Config {
        Config::clone(&self.last())
    }

    fn last(&self) -> Endpoint {
        let last = self.last.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now(&self) -> Endpoint {
        match endpoint(&self.config) {
            Ok(endpoint) => {
                let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                last.clone_from(&endpoint);
                endpoint
            }
            Err(error) => {
                tracing::warn!(%error, "connects as the last time: {error}");
                self.last()
            }
        }
    }
}

impl Connect for Connector {
    fn connect(
        &self,
        _: &Config,
    ) -> Pin<Box<dyn Future<Output = Result<Connected, Error>> + Send + '_>> {
        Box::pin(async {
            let (client, connection) = self.now().connect().await?;
            // Ends with the client; who asks it next is told why.
            let connection = tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to the view ended");
                }
            });
            Ok((client, connection))
        })
    }
}

fn endpoint(config: &ViewConfig) -> Result<Endpoint, AccessError> {
    let mut endpoint = config.access().endpoint()?;
    let postgres = endpoint.postgres_mut();
    // Read-only twice: the role may read `public` only, and every session says so.
    let options = format!(
        "{} -c default_transaction_read_only=on -c statement_timeout={} -c TimeZone=UTC",
        postgres.get_options().unwrap_or_default(),
        config.statement_timeout_ms
    );
    postgres
        .options(options.trim())
        .application_name("tributary-api")
        .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
        .tcp_user_timeout(Duration::from_millis(
            config.statement_timeout_ms + config.connect_timeout_ms,
        ));
    Ok(endpoint)
}
