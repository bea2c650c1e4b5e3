//! The connector on a real PostgreSQL and a real Kafka. See README.md beside this file.

#[cfg(feature = "faults")]
mod alterations;
#[cfg(feature = "faults")]
mod crashes;
#[cfg(feature = "faults")]
mod epochs;
mod harness;
#[cfg(feature = "faults")]
mod holes;
mod replication;
#[cfg(feature = "faults")]
mod startup;
mod streaming;
#[cfg(feature = "faults")]
mod zombies;
