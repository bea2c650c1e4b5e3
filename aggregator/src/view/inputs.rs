//! What unified rows are computed from: mirrors, and what of the topics could not be applied to
//! them. There are two copies, each with its statements.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::{Client, Error};

use super::quarantine::{Quarantine, Quarantined};
use super::suspension;
use crate::mirror::{Mirror, Side, TABLES, Table};

#[derive(Debug)]
pub(crate) struct Inputs {
    /// By the name of the served mirror.
    pub mirrors: HashMap<&'static str, Mirror>,
    pub quarantine: Quarantine,
    /// Keys in quarantine; of others nobody asks.
    pub quarantined: Quarantined,
    /// Tables whose events are passed over.
    pub suspended: BTreeSet<&'static Table>,
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
            quarantined: quarantine.keys(client).await?,
            quarantine,
            suspended: suspension::suspended(client, side).await?,
        })
    }

    /// Takes from the database what is in quarantine and suspended.
    pub(crate) async fn count(&mut self, client: &Client, side: Side) -> Result<(), Error> {
        self.quarantined = self.quarantine.keys(client).await?;
        self.suspended = suspension::suspended(client, side).await?;
        Ok(())
    }
}
