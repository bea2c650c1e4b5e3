//! What all who take part in a run share.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use fixtures::disk::SmallDisk;
use fixtures::legacy::{PerSystem, System};
use fixtures::stack::Stack;
use tokio::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard, watch};
use tokio_util::sync::CancellationToken;

use super::guarded::Guarded;
use super::office::Office;
use super::watchers::Probe;

/// The stack, and who may do what to it.
#[derive(Debug)]
pub(super) struct Shop {
    pub(super) stack: Stack,
    /// In a soak: a second instance of the API.
    pub(super) office: Option<Mutex<Office>>,
    /// The URLs of the API's instances.
    pub(super) apis: Vec<String>,
    /// The view's, where it may be filled.
    pub(super) disk: Option<SmallDisk>,
    pub(super) guarded: Guarded,
    pub(super) probes: PerSystem<Probe>,
    /// Who takes part ends then.
    pub(super) stop: CancellationToken,
    /// Who has not had enough yet ends as well then.
    pub(super) failed: CancellationToken,
    /// Held by each who writes to a source, for one transaction.
    open: RwLock<()>,
    /// Counts up before and after a source is put back.
    put_back: PerSystem<watch::Sender<u64>>,
    /// How many transactions the busiest of those who write has tried.
    tries: watch::Sender<u64>,
    /// Keys in quarantine that somebody accepted as they are, or may have.
    accepted: std::sync::Mutex<BTreeSet<String>>,
}

impl Shop {
    pub(super) fn new(
        stack: Stack,
        office: Option<(Office, String)>,
        disk: Option<SmallDisk>,
        guarded: Guarded,
        probes: PerSystem<Probe>,
    ) -> Self {
        let (office, url) = office.unzip();
        Self {
            apis: [stack.api_url()].into_iter().chain(url).collect(),
            stack,
            office: office.map(Mutex::new),
            disk,
            guarded,
            probes,
            stop: CancellationToken::new(),
            failed: CancellationToken::new(),
            open: RwLock::new(()),
            put_back: PerSystem::new(|_| watch::Sender::new(0)),
            tries: watch::Sender::new(0),
            accepted: std::sync::Mutex::default(),
        }
    }

    /// Somebody has tried this many transactions.
    pub(super) fn tried(&self, number: u64) {
        self.tries.send_modify(|most| *most = number.max(*most));
    }

    /// How many the busiest has tried.
    pub(super) fn tries(&self) -> u64 {
        *self.tries.borrow()
    }

    /// Waits until the busiest has tried so many.
    pub(super) async fn has_tried(&self, number: u64) {
        let mut tries = self.tries.subscribe();
        // The sender lives as long as this.
        _ = tries.wait_for(|most| *most >= number).await;
    }

    /// What was written to the source since this changed last may be gone.
    pub(super) fn put_back(&self, system: System) -> watch::Receiver<u64> {
        self.put_back.of(system).subscribe()
    }

    /// Before a source is put back, and again once it is.
    pub(super) fn puts_back(&self, system: System) {
        self.put_back.of(system).send_modify(|times| *times += 1);
    }

    pub(super) fn accept(&self, key: String) {
        let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.insert(key);
    }

    pub(super) fn is_accepted(&self, key: &str) -> bool {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.contains(key)
    }

    /// Before each transaction in a source, and held to its end.
    pub(super) async fn open(&self) -> RwLockReadGuard<'_, ()> {
        self.open.read().await
    }

    /// As long as this is held nobody writes to a source.
    pub(super) async fn closed(&self) -> RwLockWriteGuard<'_, ()> {
        self.open.write().await
    }
}
