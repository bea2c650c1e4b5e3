//! What unified rows are computed from: mirrors, and what of the topics could not be applied to
//! them. There are two copies, each with its statements.

use std::collections::HashMap;

use tokio_postgres::{Client, Error};

use super::quarantine::Quarantine;
use crate::mirror::{Mirror, Side, TABLES};

#[derive(Debug)]
pub(crate) struct Inputs {
    /// By the name of the served mirror.
    pub mirrors: HashMap<&'static str, Mirror>,
    pub quarantine: Quarantine,
    /// Keys in quarantine; while there are none nobody asks.
    pub quarantined: i64,
}

impl Inputs {
    pub(crate) async fn prepare(client: &Client, side: Side) -> Result<Self, Error> {
        let mut mirrors = HashMap::new();
        for table in TABLES {
            mirrors.insert(table.mirror, Mirror::prepare(client, table, side).await?);
        }
        let quarantine = Quarantine::prepare(client, side).await?;
        Ok(Self {
            mirrors,
            quarantined: quarantine.count(client).await?,
            quarantine,
        })
    }
}
