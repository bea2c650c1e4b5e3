//! Who writes to the sources while a run goes on, and how much.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use fixtures::legacy::System;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tests::session::Session;

use super::shop::Shop;
use super::writers::random;
use super::{Outcome, Tasks, owners, watchers, writers};

/// One who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    Writer(Writer),
    /// Reads what it wrote.
    OwnWrites(System),
}

/// One who only writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// Moves money between guarded rows.
    MovesInSales,
    MovesInAccounting,
    /// The legacy application.
    Application(System),
}

/// Who takes part in a run.
#[derive(Debug, Clone)]
pub(super) struct Workload {
    pub(super) clients: Vec<Client>,
    /// How many transactions each tries at most: with the faults and the busiest the run ends. None:
    /// as many as there is time for.
    pub(super) each: Option<u64>,
    /// The run does not wait longer for that, from its begin on.
    pub(super) within: Option<Duration>,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Writer(Writer::MovesInSales) => f.write_str("moves-in-sales"),
            Self::Writer(Writer::MovesInAccounting) => f.write_str("moves-in-accounting"),
            Self::Writer(Writer::Application(system)) => f.write_str(system.name()),
            Self::OwnWrites(system) => write!(f, "own-writes-in-{}", system.name()),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clients: Vec<_> = self.clients.iter().map(ToString::to_string).collect();
        match clients.as_slice() {
            [] => f.write_str("nobody")?,
            clients => f.write_str(&clients.join(", "))?,
        }
        match self.each {
            None => Ok(()),
            Some(each) => write!(f, "; {each} transactions each at most"),
        }
    }
}

impl Client {
    pub(super) const ALL: [Self; 8] = [
        Self::Writer(Writer::MovesInSales),
        Self::Writer(Writer::MovesInAccounting),
        Self::Writer(Writer::Application(System::Warehouse)),
        Self::Writer(Writer::Application(System::Accounting)),
        Self::Writer(Writer::Application(System::Sales)),
        Self::OwnWrites(System::Warehouse),
        Self::OwnWrites(System::Accounting),
        Self::OwnWrites(System::Sales),
    ];

    /// Its place among all, by which its decisions differ from the others'.
    fn task(self) -> u64 {
        let place = Self::ALL.iter().position(|one| *one == self);
        place.unwrap_or_default() as u64
    }
}

impl Workload {
    /// Has everybody begin.
    pub(super) fn begins(&self, tasks: &Tasks, shop: &Arc<Shop>, seed: u64) {
        for client in self.clients.iter().copied() {
            let (shop, each) = (shop.clone(), self.each);
            tasks.spawn(async move {
                let count = match client {
                    Client::OwnWrites(system) => {
                        watchers::read_own_writes(&shop, system, each).await
                    }
                    Client::Writer(writer) => {
                        let random = |number| random(seed, client.task(), number);
                        writes(&shop, writer, random, each).await
                    }
                };
                Ok(Outcome::Count(client.to_string(), count?))
            });
        }
    }
}

impl Writer {
    fn system(self) -> System {
        match self {
            Self::MovesInSales => System::Sales,
            Self::MovesInAccounting => System::Accounting,
            Self::Application(system) => system,
        }
    }

    /// Between two transactions, milliseconds.
    fn pace(self) -> std::ops::Range<u64> {
        match self {
            Self::MovesInSales => 5..60,
            Self::MovesInAccounting => 20..120,
            Self::Application(_) => 10..150,
        }
    }
}

/// One transaction after the other. What each decides follows from the seed and its number alone,
/// whatever became of those before it. Returns how many were not cut off.
async fn writes(
    shop: &Shop,
    writer: Writer,
    random: impl Fn(u64) -> ChaCha8Rng,
    each: Option<u64>,
) -> Result<u64> {
    let mut session = Session::new(shop.stack.source_url(writer.system()));
    let (mut number, mut done, mut own) = (0, 0, Vec::new());
    while !shop.stop.is_cancelled() && each.is_none_or(|each| number < each) {
        let open = shop.open().await;
        let Some(to) = session.client().await? else {
            continue;
        };
        let mut random = random(number);
        let written = match writer {
            Writer::MovesInSales => {
                let large = number % 40 == 39;
                shop.guarded.move_in_sales(&mut random, to, large).await
            }
            Writer::MovesInAccounting => shop.guarded.move_in_accounting(&mut random, to).await,
            Writer::Application(System::Warehouse) => writers::warehouse(&mut random, to).await,
            Writer::Application(System::Sales) => writers::sales(&mut random, to, &mut own).await,
            Writer::Application(System::Accounting) => {
                writers::accounting(&mut random, to, &mut own).await
            }
        };
        number += 1;
        shop.tried(number);
        let written = written.or_else(|error| match owners::is_of_renaming(&error) {
            true => Ok(()),
            false => Err(error),
        });
        done += u64::from(session.settle(written)?.is_some());
        drop(open);
        // The load's rhythm; nothing waits for it.
        tokio::time::sleep(Duration::from_millis(random.random_range(writer.pace()))).await;
    }
    Ok(done)
}
