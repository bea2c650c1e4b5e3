//! Commands to a connector that runs: it is the one writer, so what is to be done is done by it.
//!
//! `connector read` asks the admin port of the running owner for a table read. The life checks
//! it against the source, writes it into a record, and answers only then: an accepted read
//! survives whoever accepted it. `connector epoch` has it give its slot up and begin anew.
//! `connector status` asks the same port how it goes.
//!
//! ```text
//! cli ──HTTP──▶ port ──▶ accept (in the life's task) ──▶ progress ──▶ record ──▶ the answer
//! ```
//!
//! Commands come from this machine only: the port takes them from loopback addresses.

mod accept;
pub mod cli;
mod condition;
mod port;
mod show;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub(crate) use port::{Commands, Orders};

use crate::progress::RequestError;

/// The body of `POST /reads`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadOrder {
    /// `schema.table`.
    pub table: String,
    /// SQL over the table's columns; none: every row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_per_second_max: Option<u32>,
    /// Are keys that the source no longer has deleted from the topic? None: where the condition
    /// allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<bool>,
}

/// The answer: the read stands in the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadAccepted {
    pub id: u64,
    pub table: String,
    /// Are keys that the source no longer has deleted from the topic?
    pub reconcile: bool,
}

/// The answer to `POST /epochs`: the slot is given up, so that the next life begins an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochEnds {
    /// The epoch that ends.
    pub epoch: u64,
}

/// Why a command is not obeyed. The message is the answer's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "commands are taken from this machine only, over a loopback address; this one came from {0}"
    )]
    NotLocal(String),
    #[error("this connector does not lead now ({0}); ask the one that does, or ask again")]
    NotLeading(String),
    #[error(
        "the connector has not answered within {0} s: it is inside a large transaction, or waits for the source; `connector status` tells what it has accepted"
    )]
    Late(u64),
    #[error(
        "the connector lost the source or Kafka meanwhile; `connector status` tells what it has accepted"
    )]
    Lost,
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the condition cannot be used: {0}")]
    Condition(String),
    #[error(
        "the condition names columns that are not of the primary key, so it cannot tell which deleted keys it means; leave --reconcile out, or name key columns only"
    )]
    NotOfTheKey,
    #[error("rows_per_second_max is 0: such a read never ends")]
    NoRows,
    #[error("the table is locked by its owner now; ask again")]
    Locked,
}

/// A command on its way to the life.
#[derive(Debug)]
pub(crate) enum Asked {
    Read {
        order: ReadOrder,
        reply: Reply<ReadAccepted>,
    },
    Epoch {
        reply: Reply<EpochEnds>,
    },
}

/// The way back to whoever asked.
type Reply<T> = oneshot::Sender<Result<T, Refusal>>;
