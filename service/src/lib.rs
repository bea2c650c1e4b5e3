//! What every binary of this workspace does the same way: it reads a configuration, writes
//! logs and metrics, answers `/livez`, `/readyz` and `/metrics`, and stops when it is told to.
//!
//! Nothing here knows what the binary is for. A framework that owns `main` was rejected: each
//! binary calls these few functions in the order it needs.

pub mod admin;
pub mod config;
pub mod fault;
pub mod shutdown;
pub mod telemetry;
