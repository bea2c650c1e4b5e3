//! A connector as it is asked to read rows of its source again.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::config::Config;
use crate::mirror::Table;

/// How often a connector is asked whether it has read.
const POLL: Duration = Duration::from_millis(200);
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// A connector's admin port.
#[derive(Debug)]
pub(crate) struct Connector {
    client: reqwest::Client,
    url: String,
}

impl Connector {
    pub(crate) fn of(config: &Config, source: &str) -> anyhow::Result<Self> {
        let url = config.verify.connectors.get(source).with_context(|| {
            format!("verify.connectors.{source} is not set: its admin port, http://HOST:PORT")
        })?;
        let client = reqwest::Client::builder()
            .timeout(ANSWERED_WITHIN)
            .no_proxy()
            .build()?;
        Ok(Self {
            client,
            url: url.trim_end_matches('/').to_owned(),
        })
    }

    /// Has rows read again, and those deleted from the topic that the source does not have;
    /// returns once that is in the topics.
    pub(crate) async fn read(&self, table: &Table, keys: &[i64]) -> anyhow::Result<()> {
        let keys: Vec<_> = keys.iter().map(ToString::to_string).collect();
        let condition = format!("id IN ({})", keys.join(", "));
        let order = json!({ "table": table.captured, "condition": condition });
        self.obey(table, order).await
    }

    /// The same of a whole table.
    pub(crate) async fn read_all(&self, table: &Table) -> anyhow::Result<()> {
        self.obey(table, json!({ "table": table.captured })).await
    }

    async fn obey(&self, table: &Table, order: Value) -> anyhow::Result<()> {
        let request = self.client.post(format!("{}/reads", self.url)).json(&order);
        let accepted = self.answer(request).await?;
        let id = &accepted["id"];
        loop {
            tokio::time::sleep(POLL).await;
            let request = self.client.get(format!("{}/status", self.url));
            // A connector that is started again goes on with it.
            let Ok(status) = self.answer(request).await else {
                continue;
            };
            if status["epoch"].is_null() {
                continue;
            }
            let is_it = |request: &&Value| request["id"] == *id;
            let mut failed = status["failed_requests"].as_array().into_iter().flatten();
            if let Some(failed) = failed.find(is_it) {
                bail!("the connector gave the read up: {}", failed["reason"]);
            }
            let open = status["tables"][table.captured]["requests"].as_array();
            if !open.into_iter().flatten().any(|request| is_it(&request)) {
                return Ok(());
            }
        }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let answer = request
            .send()
            .await
            .with_context(|| format!("no connector answers on {}", self.url))?;
        let is_good = answer.status().is_success();
        let body: Value = answer.json().await.unwrap_or_default();
        if !is_good {
            let error = body["error"].as_str().unwrap_or("refused");
            bail!("the connector on {}: {error}", self.url);
        }
        Ok(body)
    }
}
