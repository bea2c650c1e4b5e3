//! What the tests over the whole stack share: the API as a client sees it, the topics as a data
//! team sees them, and the oracle that says what both should show.

pub mod api;
pub mod bench;
pub mod fuzz;
pub mod machine;
pub mod oracle;
pub mod raw;
pub mod rest;
pub mod session;
pub mod topics;
