//! Judging: what a view transaction touched, and what became due, at its end.

use std::collections::{BTreeMap, BTreeSet};

use service::fault;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Statement};

use super::part_paid::{Clock, PART_PAID};
use super::{DISCREPANCIES, JUDGED, LOOKED_FOR, RULES, touched_sql};
use crate::config::DiscrepanciesConfig;
use crate::failure::Failure;
use crate::mirror::Side;
use crate::view::positions::Moved;
use crate::view::resource::Known;
use crate::view::statements::SETTINGS_FOR_ALL;
use crate::view::touched::{Touched, Turned};
use crate::view::{View, unified};

/// Rows of each unified table that are judged at once, at most.
const STEP_ROWS_MAX: usize = 10_000;
/// Rows that a view transaction remembers, at most: about 20 MB.
const PENDING_MAX: usize = 1_000_000;

/// Rows to be judged when the view transaction commits.
#[derive(Debug, Default)]
struct Pending {
    /// Of [`JUDGED`], then of [`LOOKED_FOR`] those that came or went.
    rows: [BTreeSet<i64>; JUDGED.len() + LOOKED_FOR.len()],
    /// Are there more in `aggregator.judged_later`?
    is_put_aside: bool,
}

impl Pending {
    fn len(&self) -> usize {
        self.rows.iter().map(BTreeSet::len).sum()
    }

    /// Takes as many as are judged at once, the first of each: an order and its payments are about as
    /// old, and are judged together then.
    fn take_step(&mut self) -> Self {
        Self {
            rows: self.rows.each_mut().map(first_of),
            is_put_aside: std::mem::take(&mut self.is_put_aside),
        }
    }

    fn of(&mut self, name: &str) -> Option<&mut BTreeSet<i64>> {
        let place = JUDGED.iter().position(|judged| *judged == name)?;
        self.rows.get_mut(place)
    }

    /// Those that came or went.
    fn turned(&mut self, name: &str) -> Option<&mut BTreeSet<i64>> {
        let place = LOOKED_FOR.iter().position(|other| *other == name)?;
        self.rows.get_mut(JUDGED.len() + place)
    }
}

/// Takes as many of them as are judged at once.
fn first_of(ids: &mut BTreeSet<i64>) -> BTreeSet<i64> {
    let rest = match ids.iter().nth(STEP_ROWS_MAX).copied() {
        Some(first) => ids.split_off(&first),
        None => BTreeSet::new(),
    };
    std::mem::replace(ids, rest)
}

/// The one who judges.
#[derive(Debug)]
pub(in crate::view) struct Judge {
    part_paid: Statement,
    judge: Statement,
    put_aside: Statement,
    clock: Clock,
    pending: Pending,
    /// Open ones by rule.
    open: BTreeMap<String, i64>,
}

impl Judge {
    /// For the sources known now.
    pub(in crate::view) async fn prepare(client: &Client, known: &Known) -> Result<Self, Error> {
        let [part_paid, judge] = touched_sql(known);
        Ok(Self {
            part_paid: client.prepare(&part_paid).await?,
            judge: client.prepare(&judge).await?,
            put_aside: client
                .prepare(
                    "INSERT INTO aggregator.judged_later (resource, id)
                    SELECT $1, unnest($2::bigint[]) ON CONFLICT DO NOTHING",
                )
                .await?,
            clock: Clock::prepare(client).await?,
            pending: Pending::default(),
            open: count(client).await?,
        })
    }

    /// Open discrepancies by rule.
    pub(in crate::view) fn open(&self) -> &BTreeMap<String, i64> {
        &self.open
    }

    /// To be judged when the view transaction commits.
    pub(in crate::view) async fn add(
        &mut self,
        client: &Client,
        touched: &Touched,
    ) -> Result<(), Error> {
        for name in JUDGED {
            let ids = unified::named(name).map(|of| touched.ids(of));
            if let (Some(rows), Some(ids)) = (self.pending.of(name), ids) {
                rows.extend(&ids);
                // Not the design: as if whatever touches an order could bring it or take it away.
                if let Some(turned) = self.pending.turned(name)
                    && !fault::in_force("payments_of_turned_orders")
                {
                    turned.extend(ids);
                }
            }
        }
        self.add_turned(client, touched.turned()).await
    }

    /// Those that came or went: rows that look for them are to be judged as well. What is more than
    /// can be remembered is put aside in the database.
    pub(in crate::view) async fn add_turned(
        &mut self,
        client: &Client,
        turned: &Turned,
    ) -> Result<(), Error> {
        let pending = &mut self.pending;
        for (name, ids) in turned {
            if let Some(rows) = pending.turned(name) {
                rows.extend(ids);
            }
        }
        if pending.len() > PENDING_MAX {
            let turned = LOOKED_FOR.map(super::turned);
            let names = JUDGED.into_iter().chain(turned.iter().map(String::as_str));
            for (name, rows) in names.zip(&mut pending.rows) {
                let ids: Vec<_> = std::mem::take(rows).into_iter().collect();
                client.execute(&self.put_aside, &[&name, &ids]).await?;
            }
            pending.is_put_aside = true;
        }
        Ok(())
    }

    /// The view transaction is undone.
    pub(in crate::view) fn forget(&mut self) {
        self.pending = Pending::default();
    }

    /// Judges what was touched, and what the moves make due, which stand in `public.positions` by
    /// now.
    pub(in crate::view) async fn judge(
        &mut self,
        client: &Client,
        revision: &str,
        moves: &[Moved],
    ) -> Result<(), Error> {
        let (clock, mut span) = self.clock.after(moves);
        let mut pending = std::mem::take(&mut self.pending);
        loop {
            let mut some = pending.take_step();
            if let Some(due) = span {
                let rows_max = i64::try_from(STEP_ROWS_MAX).unwrap_or(i64::MAX);
                let (orders, rest) = clock.due(client, due, rows_max).await?;
                if let Some(rows) = some.of("orders") {
                    rows.extend(orders);
                }
                span = rest;
            }
            self.step(client, revision, &some).await?;
            if span.is_none() && pending.len() == 0 {
                self.clock = clock;
                return Ok(());
            }
        }
    }

    async fn step(
        &mut self,
        client: &Client,
        revision: &str,
        pending: &Pending,
    ) -> Result<(), Error> {
        if pending.len() == 0 && !pending.is_put_aside {
            return Ok(());
        }
        let lists = pending.rows.each_ref();
        let [products, transactions, orders, turned] =
            lists.map(|ids| ids.iter().copied().collect::<Vec<_>>());
        let due: [&(dyn ToSql + Sync); 2] = [&orders, &transactions];
        let touched: [&(dyn ToSql + Sync); 5] =
            [&revision, &products, &transactions, &orders, &turned];
        // Sent in this order without waiting in between: what is due is read by the rules.
        let (_, changed) = futures_util::try_join!(
            client.execute(&self.part_paid, &due),
            client.query(&self.judge, &touched),
        )?;
        for row in changed {
            let (rule, more): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            *self.open.entry(rule).or_default() += more;
        }
        if pending.is_put_aside {
            client
                .batch_execute("TRUNCATE aggregator.judged_later")
                .await?;
        }
        Ok(())
    }

    /// Judges every row, with the statements of the sources that are known from now on; how many
    /// discrepancies differed.
    pub(in crate::view) async fn judge_all(
        client: &Client,
        known: &Known,
        revision: &str,
    ) -> Result<u64, Error> {
        client.batch_execute(SETTINGS_FOR_ALL).await?;
        client.execute(&PART_PAID.all_sql(known), &[]).await?;
        client
            .execute(&DISCREPANCIES.all_sql(known), &[&revision])
            .await
    }
}

impl View {
    /// Where discrepancies were computed with other terms, computes them with these.
    pub(in crate::view) async fn agree(
        &mut self,
        config: &DiscrepanciesConfig,
    ) -> Result<(), Failure> {
        let doing = "agree on the terms of discrepancies";
        let agrees = agrees(&self.session.client, config).await;
        if agrees.map_err(Failure::database(doing))? {
            return Ok(());
        }
        self.mirror(Side::Served, "", Vec::new()).await?;
        agree(&self.session.client, config)
            .await
            .map_err(Failure::database(doing))?;
        self.judge_all().await?;
        self.finish().await?;
        self.prepare_judge().await
    }

    /// Open discrepancies by rule.
    #[must_use]
    pub fn discrepancies(&self) -> &BTreeMap<String, i64> {
        self.judge.open()
    }

    pub(in crate::view) async fn judge_touched(&mut self, moves: &[Moved]) -> Result<(), Failure> {
        let revision = self.fence.next().to_string();
        self.judge
            .judge(&self.session.client, &revision, moves)
            .await
            .map_err(Failure::database("judge what does not fit"))
    }

    pub(in crate::view) async fn judge_all(&self) -> Result<u64, Failure> {
        let revision = self.fence.next().to_string();
        Judge::judge_all(&self.session.client, &self.known, &revision)
            .await
            .map_err(Failure::database("judge what does not fit"))
    }

    pub(in crate::view) async fn prepare_judge(&mut self) -> Result<(), Failure> {
        self.judge = Judge::prepare(&self.session.client, &self.known)
            .await
            .map_err(Failure::database("prepare statements"))?;
        Ok(())
    }
}

async fn count(client: &Client) -> Result<BTreeMap<String, i64>, Error> {
    let rows = client
        .query(
            "SELECT rule, count(*) FROM public.discrepancies GROUP BY rule",
            &[],
        )
        .await?;
    let counts = rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    let mut open: BTreeMap<_, _> = counts.collect::<Result<_, Error>>()?;
    for rule in &RULES {
        open.entry(rule.name.to_owned()).or_default();
    }
    Ok(open)
}

/// Were the rows that there are computed with the terms that the configuration sets?
async fn agrees(client: &Client, config: &DiscrepanciesConfig) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM aggregator.discrepancy_terms
        WHERE part_paid_max = $1::bigint * interval '1 second')";
    client
        .query_one(sql, &[&config.part_paid_max_s()])
        .await?
        .try_get(0)
}

/// From now on the terms are the configuration's.
async fn agree(client: &Client, config: &DiscrepanciesConfig) -> Result<(), Error> {
    client
        .execute(
            "INSERT INTO aggregator.discrepancy_terms (part_paid_max)
            VALUES ($1::bigint * interval '1 second')
            ON CONFLICT (single) DO UPDATE SET part_paid_max = excluded.part_paid_max",
            &[&config.part_paid_max_s()],
        )
        .await?;
    Ok(())
}
