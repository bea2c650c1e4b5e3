//! The aggregator against a real view database, and a real broker where it is followed.

mod compared;
mod definitions;
mod discrepancies;
mod encrypted;
#[cfg(feature = "faults")]
mod faults;
#[cfg(feature = "faults")]
mod joint;
mod migrations;
mod oracle;
mod quarantine;
mod rebuild;
mod recompute;
mod rules;
mod shop;
mod source;
mod speed;
mod stalls;
mod steps;
mod suspension;
mod takeover;
mod topics;
mod unknown;
mod workload;

use std::time::Duration;

use aggregator::config::{DiscrepanciesConfig, ViewConfig};
use aggregator::view::View;
use anyhow::Result;
use tokio_postgres::Client;

/// The sources, as a configuration names them.
fn sources() -> Vec<String> {
    aggregator::SOURCES.map(str::to_owned).to_vec()
}

/// A view database of a test's own.
struct Database {
    name: String,
    config: ViewConfig,
    /// Looks at the view beside its writer.
    client: Client,
}

impl Database {
    async fn new() -> Result<Self> {
        let server = fixtures::servers().view().await?;
        let name = fixtures::servers::database(server, "view").await?;
        let config = ViewConfig {
            url: server.superuser_url(&name).into(),
            ..ViewConfig::default()
        };
        let client = server.superuser(&name).await?;
        client.batch_execute("SET TimeZone = 'UTC'").await?;
        Ok(Self {
            name,
            config,
            client,
        })
    }

    /// A writer that takes the view over.
    async fn open(&self) -> Result<View> {
        let silence_max = Duration::from_secs(5);
        Ok(View::open(
            &self.config,
            &DiscrepanciesConfig::default(),
            &sources(),
            silence_max,
        )
        .await?)
    }

    /// One value of one row.
    async fn one<T>(&self, sql: &str) -> Result<T>
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        let row = self.client.query_one(sql, &[]).await;
        let row = row.map_err(|error| fixtures::postgres::describe(&error))?;
        Ok(row.try_get(0)?)
    }

    /// A query's rows as one JSON array, in their order.
    async fn rows(&self, sql: &str) -> Result<serde_json::Value> {
        self.one(&format!(
            "SELECT coalesce(jsonb_agg(to_jsonb(r)), '[]') FROM ({sql}) AS r"
        ))
        .await
    }
}
