//! Tests of the whole stack that try to break what must always hold, with processes killed,
//! paused and cut off. Each has databases, topics and processes of its own.

mod contract;
mod oracle;
mod quarantine;
mod servers;
mod slot;
mod suspension;
mod sweep;
mod verify;
mod workload;
mod zombie;
