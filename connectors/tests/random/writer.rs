//! One who moves money, and knows what the source had at each moment.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use fixtures::postgres::connect;
use kafka::Lsn;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::IDS;

/// Id → amount and version, of one writer.
pub(super) type State = BTreeMap<i64, (i64, i64)>;

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
        let ids = (1..=8).map(|n| (number * IDS + n, (100, 0)));
        let begun = Committed {
            state: ids.collect(),
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

    /// A transfer, mostly; else an account that is opened, closed (as often: tables stay small), or
    /// everything at once.
    fn change(&mut self, state: &mut State, sql: &mut Vec<String>) {
        let ids: Vec<_> = state.keys().copied().collect();
        let from = ids[self.random.random_range(0..ids.len())];
        let to = ids[self.random.random_range(0..ids.len())];
        let mut add = |state: &mut State, id: i64, amount: i64| {
            let row = state.entry(id).or_default();
            *row = (row.0 + amount, row.1 + 1);
            sql.push(format!(
                "UPDATE account SET amount = {}, version = {} WHERE id = {id}",
                row.0, row.1
            ));
        };
        match self.random.random_range(0..20) {
            0..=1 => {
                add(state, from, -7);
                self.next_id += 1;
                let id = self.next_id;
                state.insert(id, (7, 0));
                sql.push(format!("INSERT INTO account VALUES ({id}, 7, 0)"));
            }
            2..=3 if state.len() > 4 && from != to => {
                let left = state.remove(&from).unwrap_or_default().0;
                add(state, to, left);
                sql.push(format!("DELETE FROM account WHERE id = {from}"));
            }
            4 => {
                for id in ids {
                    add(state, id, 0);
                }
            }
            _ => {
                add(state, from, -1);
                add(state, to, 1);
            }
        }
    }
}

async fn lsn(db: &Client, function: &str) -> Result<Lsn> {
    let row = db
        .query_one(&format!("SELECT {function}::text"), &[])
        .await?;
    Ok(row.get::<_, String>(0).parse()?)
}
