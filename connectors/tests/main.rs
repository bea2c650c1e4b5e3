//! Integration tests of the connector, on real servers.

mod replication;
