//! A source with tables of the test's own, a connector process over it, and its topics read back.

mod check;
mod connector;
mod evidence;
mod journal;
mod plan;
mod rig;

pub(crate) use check::{always, equals_source, sum};
pub(crate) use connector::{Connector, eventually};
pub(crate) use fixtures::proxy::Proxy;
pub(crate) use journal::{Journal, Record, Tables};
pub(crate) use plan::Plan;
pub(crate) use rig::Rig;
