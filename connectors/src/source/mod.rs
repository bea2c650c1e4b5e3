//! The source's side of SQL: sessions, the lock, the catalog.
//!
//! Every query goes through the simple protocol, so that values come as PostgreSQL's output
//! functions write them, exactly as `pgoutput` sends them.

pub mod catalog;
pub mod control;
pub mod session;
pub mod snapshot;
pub mod wal;

pub use catalog::{Catalog, Table};
pub use control::{Control, Hold, Pulse, SlotNow, SlotWal};
pub use session::{Session, SourceError, identifier, literal};
pub use snapshot::{Snapshot, Unsettled};
pub use wal::WalLayout;
