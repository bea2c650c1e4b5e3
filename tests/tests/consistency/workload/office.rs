//! A second instance of the API, which reads a streaming replica of the view's database.

use std::path::Path;

use anyhow::{Context, Result};
use fixtures::Postgres;
use fixtures::stack::{Service, Stack};
use toml::{Table, Value};

/// Who follows soon, and is not stopped by what vacuum took away.
const SETTINGS: [(&str, &str); 2] = [
    ("wal_retrieve_retry_interval", "200"),
    ("hot_standby_feedback", "on"),
];

#[derive(Debug)]
pub(super) struct Office {
    service: Service,
    replica: Postgres,
}

impl Office {
    /// Opens it; returns its URL too.
    pub(super) async fn open(stack: &Stack) -> Result<(Self, String)> {
        let service = stack.standby("api")?;
        let config: Table = std::fs::read_to_string(service.config())?.parse()?;
        let listen = config.get("listen").and_then(Value::as_str);
        let url = format!("http://{}", listen.context("an API that does not listen")?);
        let view = stack.view_cluster().lock().await;
        let replica = replica(&view, service.config()).await?;
        service.start()?;
        Ok((Self { service, replica }, url))
    }

    /// From a new copy: one of another timeline does not follow any more.
    pub(super) async fn copies(&mut self, view: &Postgres) -> Result<()> {
        self.service.halt().await?;
        self.replica = replica(view, self.service.config()).await?;
        self.service.start()
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        self.service.kill();
    }
}

/// A replica, which the configuration then names.
async fn replica(view: &Postgres, config: &Path) -> Result<Postgres> {
    let replica = view.replica(None, &SETTINGS).await?;
    let mut table: Table = std::fs::read_to_string(config)?.parse()?;
    let section = table.get_mut("view").and_then(Value::as_table_mut);
    let url = section.and_then(|section| section.get_mut("url"));
    let url = url.context("an API without a database")?;
    let database = url.as_str().and_then(|url| url.rsplit_once('/'));
    let (_, database) = database.context("a URL without a database")?;
    *url = replica.url("api", database).into();
    std::fs::write(config, toml::to_string(&table)?)?;
    Ok(replica)
}
