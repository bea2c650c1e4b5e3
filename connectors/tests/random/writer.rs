//! One who moves money, and knows what the source had at each moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use fixtures::postgres::connect;
use kafka::Lsn;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::IDS;

/// What one writer has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    /// By id.
    pub(super) accounts: BTreeMap<i64, Account>,
    /// Ids; the first writer's only.
    pub(super) page: BTreeSet<i64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) amount: i64,
    pub(super) version: i64,
    /// The version at which its note was written, which the note says.
    pub(super) noted: i64,
}

/// A writer's transaction number N is at place N.
pub(super) struct Committed {
    pub(super) state: State,
    /// The WAL ended here before it began.
    pub(super) after: Lsn,
    /// Everything up to here contains it.
    pub(super) by: Lsn,
}

/// One who moves money between accounts of its own, and remembers.
pub(super) struct Writer {
    number: i64,
    url: String,
    db: Client,
    random: StdRng,
    /// Between two transactions, at most.
    pause_ms: u64,
    next_id: i64,
    truth: Vec<Committed>,
}

impl Writer {
    pub(super) async fn new(number: i64, url: &str, seed: u64, pause_ms: u64) -> Result<Self> {
        let rich = Account {
            amount: 100,
            ..Account::default()
        };
        let accounts = (1..=8).map(|n| (number * IDS + n, rich));
        let begun = Committed {
            state: State {
                accounts: accounts.collect(),
                ..State::default()
            },
            after: Lsn::ZERO,
            by: Lsn::ZERO,
        };
        Ok(Self {
            number,
            url: url.to_owned(),
            db: connect(url).await?,
            random: StdRng::seed_from_u64(seed ^ number.unsigned_abs()),
            pause_ms,
            next_id: number * IDS + 100,
            truth: vec![begun],
        })
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<Vec<Committed>> {
        while !stop.is_cancelled() {
            self.transact().await?;
            let pause = self.random.random_range(0..self.pause_ms);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Ok(self.truth)
    }

    async fn transact(&mut self) -> Result<()> {
        let n = self.truth.len();
        let mut state = self.truth[n - 1].state.clone();
        let mut sql = vec!["BEGIN".to_owned()];
        self.change(&mut state, &mut sql);
        sql.push(format!(
            "UPDATE clock SET n = {n} WHERE id = {}",
            self.number
        ));
        sql.push("COMMIT".to_owned());
        let sql = sql.join("; ");
        let (mut after, mut doubtful) = (None, false);
        let by = loop {
            match self.attempt(n, &sql, doubtful, &mut after).await {
                Ok(by) => break by,
                Err(_) => {
                    // The server crashed: whether it has committed it will say itself.
                    doubtful = true;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if let Ok(db) = connect(&self.url).await {
                        self.db = db;
                    }
                }
            }
        };
        self.truth.push(Committed {
            state,
            after: after.unwrap_or_default(),
            by,
        });
        Ok(())
    }

    async fn attempt(
        &self,
        n: usize,
        sql: &str,
        doubtful: bool,
        after: &mut Option<Lsn>,
    ) -> Result<Lsn> {
        let clock = "SELECT n FROM clock WHERE id = $1";
        let done = doubtful && {
            let row = self.db.query_one(clock, &[&self.number]).await?;
            usize::try_from(row.get::<_, i32>(0))? == n
        };
        if after.is_none() {
            *after = Some(lsn(&self.db, "pg_current_wal_insert_lsn()").await?);
        }
        if !done {
            self.db.batch_execute(sql).await?;
        }
        lsn(&self.db, "pg_current_wal_lsn()").await
    }

    /// A transfer, mostly; else an account that is opened, closed (as often: tables stay small), gets
    /// another id, another note, or everything at once.
    fn change(&mut self, state: &mut State, sql: &mut Vec<String>) {
        self.write_page(state, sql);
        let accounts = &mut state.accounts;
        let ids: Vec<_> = accounts.keys().copied().collect();
        let from = ids[self.random.random_range(0..ids.len())];
        let to = ids[self.random.random_range(0..ids.len())];
        let mut set = |accounts: &mut BTreeMap<i64, Account>, id: i64, amount: i64, more: &str| {
            let row = accounts.entry(id).or_default();
            (row.amount, row.version) = (row.amount + amount, row.version + 1);
            let (amount, version) = (row.amount, row.version);
            sql.push(format!(
                "UPDATE account SET amount = {amount}, version = {version}{more} WHERE id = {id}"
            ));
        };
        match self.random.random_range(0..24) {
            0..=1 => {
                set(accounts, from, -7, "");
                let id = self.fresh_id();
                let row = Account {
                    amount: 7,
                    ..Account::default()
                };
                accounts.insert(id, row);
                sql.push(format!(
                    "INSERT INTO account VALUES ({id}, 7, 0, {})",
                    note(id, 0)
                ));
            }
            2..=3 if accounts.len() > 4 && from != to => {
                let left = accounts.remove(&from).unwrap_or_default().amount;
                set(accounts, to, left, "");
                sql.push(format!("DELETE FROM account WHERE id = {from}"));
            }
            4 => {
                for id in ids {
                    set(accounts, id, 0, "");
                }
            }
            5..=6 => {
                let id = self.fresh_id();
                set(accounts, from, 0, &format!(", id = {id}"));
                let row = accounts.remove(&from).unwrap_or_default();
                accounts.insert(id, row);
            }
            7..=8 => {
                let version = accounts[&from].version + 1;
                set(
                    accounts,
                    from,
                    0,
                    &format!(", note = {}", note(from, version)),
                );
                accounts.entry(from).or_default().noted = version;
            }
            _ => {
                set(accounts, from, -1, "");
                set(accounts, to, 1, "");
            }
        }
    }

    /// A row more, or none any more.
    fn write_page(&mut self, state: &mut State, sql: &mut Vec<String>) {
        if self.number != 0 {
            return;
        }
        let what = self.random.random_range(0..100);
        if what == 0 {
            state.page.clear();
            sql.push("TRUNCATE page".to_owned());
        }
        if what < 30 {
            let id = self.fresh_id();
            state.page.insert(id);
            sql.push(format!("INSERT INTO page VALUES ({id})"));
        }
    }

    fn fresh_id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id
    }
}

/// SQL for a note that says this version. Every fourth is too long to stand in line.
fn note(id: i64, version: i64) -> String {
    let bytes = if id % 4 == 0 { 3000 } else { 8 };
    format!("lpad('{version}', {bytes}, '0')")
}

async fn lsn(db: &Client, function: &str) -> Result<Lsn> {
    let row = db
        .query_one(&format!("SELECT {function}::text"), &[])
        .await?;
    Ok(row.get::<_, String>(0).parse()?)
}
