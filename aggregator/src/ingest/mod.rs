//! From topics to changes: one task a source follows its checkpoints and reads their events,
//! ahead of the applier by a bounded number of steps.

mod decode;
mod feed;

pub use decode::{Change, Key, Record, What, decode};
pub use feed::changes;
pub(crate) use feed::{Feeds, Item, Options, Purpose};
