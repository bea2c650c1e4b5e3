//! The aggregator: checkpoints of three sources become transactions of one view.
//!
//! The path of the data: [`ingest`] follows each source's topics by checkpoints and reads their
//! events; [`mirror`] brings copies of the source tables to the events' last states and reports
//! what that changed; [`view`] brings the unified rows that this touches to what the mirrors
//! say, and commits all of it with the position.
//!
//! A unified row is a pure function of mirror rows, so events may come again, late, or in
//! another order between sources, and the rows come out right. Rejected: computing unified rows
//! from events in flight (a late or repeated event then has to be recognized), consumer groups
//! (their offsets do not commit with the data), materialized views (a change would cost what all
//! orders cost).

pub mod command;
pub mod config;
pub mod control;
pub mod failure;
pub mod ingest;
pub mod life;
mod lock;
mod migrations;
pub mod mirror;
mod session;
mod telemetry;
pub mod verify;
pub mod view;

pub use telemetry::describe as describe_metrics;

/// The sources that the view joins.
pub const SOURCES: [&str; 3] = ["accounting", "sales", "warehouse"];
