//! A source with tables of the test's own, a connector process over it, and its topics read back.

mod check;
mod journal;
mod proxy;
mod rig;

pub(crate) use check::{always, equals_source, sum};
pub(crate) use journal::{Journal, Tables};
pub(crate) use proxy::Proxy;
pub(crate) use rig::{Connector, Plan, Rig, eventually};
