//! A source with tables of the test's own, a connector process over it, and its topics read back.

mod journal;
mod rig;

pub(crate) use journal::{Journal, Row, Tables};
pub(crate) use rig::{Connector, Rig, eventually};
