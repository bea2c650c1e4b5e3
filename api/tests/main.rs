//! The API against a real PostgreSQL and a real Kafka, as a process of its own.
//!
//! The tests play aggregator and connector themselves (see [`harness::world`]), so that they
//! decide what the database shows, what the feed has told, and which of the two comes first.
//! `README.md` beside this file says which test shows which rule.

mod document;
mod encrypted;
mod harness;
mod needed;
mod outage;
mod position;
mod problems;
mod race;
mod replica;
mod routes;
mod rules;
mod stack;
