//! A view transaction and its steps.
//!
//! It moves the fence, brings mirrors to the covered events' last states, brings the unified rows
//! that this touches to what the mirrors say, and moves positions and standing: all of it or
//! nothing. It may do so in several steps, each of bounded size.
//!
//! A source of which no whole checkpoint has been applied is not served: its mirrors fill in
//! transactions of their own, and with the first checkpoint all unified rows are computed at
//! once.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use futures_util::try_join;
use kafka::follower::Standing;
use service::fault;

use super::inputs::Inputs;
use super::quarantine::Findings;
use super::reduce::reduce;
use super::statements::Statements;
use super::touched::Touched;
use super::{Moved, View, suspension};
use crate::failure::Failure;
use crate::ingest::Change;
use crate::mirror::{Changed, Side};

/// Touched rows that a view transaction remembers, at most: about 20 MB.
const TOUCHED_MAX: usize = 1_000_000;
/// Contributions that it remembers, at most: about 10 MB.
const CONTRIBUTIONS_MAX: usize = 50_000;

/// A checkpoint of a source, or the last part of one, with its events.
#[derive(Debug)]
pub struct Part {
    pub moved: Moved,
    pub changes: Vec<Change>,
}

impl View {
    /// One view transaction, or the rest of the open one: the checkpoints of served sources.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn apply(&mut self, parts: Vec<Part>) -> Result<(), Failure> {
        if !fault::in_force("one_view_transaction") {
            return self.apply_by_partition(parts).await;
        }
        let mut moves = Vec::new();
        for Part { moved, changes } in parts {
            self.stand_early(&moved).await?;
            self.take_in(&moved.source, changes).await?;
            moves.push(moved);
        }
        self.commit(moves).await
    }

    /// A part of a checkpoint that is too large for one step: opens the view transaction, or goes
    /// on with it; [`View::apply`] completes it.
    ///
    /// The rows that steps touch are computed at the end, each once: a checkpoint is read partition by
    /// partition, so that an order and its lines come in different steps.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn step(&mut self, source: &str, changes: Vec<Change>) -> Result<(), Failure> {
        self.take_in(source, changes).await?;
        // Not the design: each step by itself.
        if !fault::in_force("steps_are_one_transaction") {
            self.finish().await?;
        }
        Ok(())
    }

    async fn take_in(&mut self, source: &str, changes: Vec<Change>) -> Result<(), Failure> {
        let changes = self.fill_copies(source, changes).await?;
        let (changed, findings) = self.mirror(Side::Served, source, changes).await?;
        fault::point("aggregator.after_mirror").await;
        let mut touched = Touched::default();
        touched.add(&changed);
        self.isolate(Side::Served, source, findings, &mut touched)
            .await?;
        self.touched.absorb(touched);
        if self.touched.rows() > TOUCHED_MAX {
            let touched = std::mem::take(&mut self.touched);
            self.unify(source, touched).await
        } else if self.touched.contributions() > CONTRIBUTIONS_MAX {
            let contributions = self.touched.take_contributions();
            self.unify(source, contributions).await
        } else {
            Ok(())
        }
    }

    /// Keeps the open view transaction, which the server ends when nothing is heard.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn stay(&self) -> Result<(), Failure> {
        let client = &self.session.client;
        let said = client.batch_execute("SELECT 1").await;
        said.map_err(Failure::database("keep a view transaction"))
    }

    /// Undoes the steps since the last view transaction.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn undo(&mut self) -> Result<(), Failure> {
        if self.open {
            let undone = self.session.client.batch_execute("ROLLBACK").await;
            undone.map_err(Failure::database("undo a view transaction"))?;
            self.recount(Side::Served).await?;
            self.recount(Side::Rebuilt).await?;
            self.judge.forget();
            self.open = false;
            self.touched = Touched::default();
        }
        Ok(())
    }

    /// A part of the first checkpoint of a source that is not served yet: mirrors and standing
    /// only, in a transaction of its own.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn load(
        &mut self,
        source: &str,
        changes: Vec<Change>,
        standing: Standing,
    ) -> Result<(), Failure> {
        let (_, findings) = self.mirror(Side::Served, source, changes).await?;
        self.isolate(Side::Served, source, findings, &mut Touched::default())
            .await?;
        self.stand(source, &standing).await?;
        self.finish().await?;
        self.standings.insert(source.to_owned(), standing);
        Ok(())
    }

    /// The last part of a source's first checkpoint: from now on it is served.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn serve(&mut self, part: Part) -> Result<(), Failure> {
        let Part { moved, changes } = part;
        let source = moved.source.clone();
        let (_, findings) = self.mirror(Side::Served, &source, changes).await?;
        self.isolate(Side::Served, &source, findings, &mut Touched::default())
            .await?;
        let mut known = self.known.clone();
        known.insert(source);
        let revision = self.fence.next().to_string();
        Statements::compute_all(&self.session.client, &known, &revision)
            .await
            .map_err(Failure::database("compute the unified tables"))?;
        self.known = known;
        self.commit_all(moved).await?;
        self.statements = Statements::prepare(&self.session.client, &self.known)
            .await
            .map_err(Failure::database("prepare statements"))?;
        Ok(())
    }

    /// Drops what was loaded of a source that is not served.
    ///
    /// # Errors
    /// After any, the view is to be dropped.
    pub async fn forget(&mut self, source: &str) -> Result<(), Failure> {
        self.mirror(Side::Served, source, Vec::new()).await?;
        self.statements
            .forget(&self.session.client, source)
            .await
            .map_err(Failure::database("drop what was loaded"))?;
        self.recount(Side::Served).await?;
        self.tell_degraded(source).await?;
        self.finish().await?;
        self.standings.remove(source);
        Ok(())
    }

    /// Opens the view transaction if none is open, and brings the mirrors to the changes' last
    /// states; what really changed, and what could not be applied.
    pub(super) async fn mirror(
        &mut self,
        side: Side,
        source: &str,
        changes: Vec<Change>,
    ) -> Result<(Vec<Changed>, Findings), Failure> {
        let inputs = self.inputs(side);
        let mut changes = changes;
        if !inputs.suspended.is_empty() {
            changes.retain(|change| !inputs.suspended.contains(change.table));
        }
        let (states, findings) = reduce(changes, &inputs.quarantined);
        if !self.open {
            fault::point("aggregator.before_fence").await;
        }
        let begin = self.begin(source);
        let client = &self.session.client;
        // The fence is sent first, the rest without waiting for its answer: the server works
        // through them in this order. So nothing in `begin` may wait before it is sent.
        let mirrors = try_join_all(states.iter().filter_map(|(name, states)| {
            let mirror = inputs.mirrors.get(name)?;
            Some(mirror.apply(client, states))
        }));
        let changed = try_join!(begin, async {
            mirrors
                .await
                .map_err(Failure::database("bring the mirrors up to date"))
        });
        let (_, changed) = changed?;
        self.open = true;
        Ok((changed.into_iter().flatten().collect(), findings))
    }

    fn inputs(&self, side: Side) -> &Inputs {
        match side {
            Side::Served => &self.served,
            Side::Rebuilt => &self.rebuilt,
        }
    }

    async fn begin(&self, source: &str) -> Result<(), Failure> {
        if self.open {
            return Ok(());
        }
        let client = &self.session.client;
        let (begun, moved) = futures_util::join!(
            client.batch_execute("BEGIN"),
            self.fence.move_on(client, source)
        );
        begun
            .and(moved)
            .map_err(Failure::database("move the fence"))
            .and_then(|moved| if moved { Ok(()) } else { Err(Failure::Fenced) })
    }

    /// Sets poison aside, and releases what is sound again.
    pub(super) async fn isolate(
        &mut self,
        side: Side,
        source: &str,
        findings: Findings,
        touched: &mut Touched,
    ) -> Result<(), Failure> {
        if findings.poison.is_empty() && findings.sound.is_empty() {
            return Ok(());
        }
        for (table, key, poison) in &findings.poison {
            tracing::warn!(
                source, table = table.captured, %key, record = %poison.record,
                "{key} of {} goes to quarantine: {}", table.captured, poison.reason
            );
        }
        let revision = self.fence.next().to_string();
        let last = suspension::last_of(&findings.poison);
        let (client, inputs) = match side {
            Side::Served => (&self.session.client, &mut self.served),
            Side::Rebuilt => (&self.session.client, &mut self.rebuilt),
        };
        let mirrors = &inputs.mirrors;
        let quarantined = &mut inputs.quarantined;
        inputs
            .quarantine
            .apply(
                client,
                source,
                &revision,
                findings,
                mirrors,
                (quarantined, touched),
            )
            .await
            .map_err(Failure::database("set poison aside"))?;
        self.suspend_floods(side, source, last).await
    }

    /// Brings the touched unified rows to what the mirrors say.
    pub(super) async fn unify(&mut self, source: &str, touched: Touched) -> Result<(), Failure> {
        let client = &self.session.client;
        let revision = self.fence.next().to_string();
        let unified = async {
            self.judge.add(client, &touched).await?;
            let statements = &self.statements;
            let turned = statements.unify(client, source, &revision, touched);
            self.judge.add_turned(client, &turned.await?).await
        };
        unified
            .await
            .map_err(Failure::database("bring the unified rows up to date"))
    }

    /// Moves positions and standing, and completes the view transaction.
    async fn commit(&mut self, moves: Vec<Moved>) -> Result<(), Failure> {
        let touched = std::mem::take(&mut self.touched);
        let source = moves.first().map_or("", |moved| &moved.source);
        self.unify(source, touched).await?;
        let is_computed = self.end_resumptions(&moves).await?;
        self.stand_at(&moves).await?;
        self.judge_touched(&moves).await?;
        if is_computed {
            self.judge_all().await?;
        }
        self.finish().await?;
        self.moved(moves);
        if is_computed {
            self.prepare_judge().await?;
        }
        Ok(())
    }

    /// The same, where every unified row was computed: with every discrepancy. How many of these
    /// differed.
    pub(super) async fn commit_all(&mut self, moved: Moved) -> Result<u64, Failure> {
        let moves = vec![moved];
        self.stand_at(&moves).await?;
        let rows = self.judge_all().await?;
        self.finish().await?;
        self.moved(moves);
        self.prepare_judge().await?;
        Ok(rows)
    }

    /// Moves positions and standing.
    async fn stand_at(&self, moves: &[Moved]) -> Result<(), Failure> {
        let client = &self.session.client;
        let revision = self.fence.next();
        let (statements, inputs) = (&self.statements, &self.served);
        let positions = try_join_all(moves.iter().map(|moved| async move {
            let Moved {
                source,
                record,
                standing,
                ..
            } = moved;
            let positions = &statements.positions;
            try_join!(
                positions.write(client, moved, revision),
                positions.stand(client, source, standing),
                async {
                    if inputs.quarantined.count() == 0 {
                        return Ok(());
                    }
                    let (position, revision) = (record.at().to_string(), revision.to_string());
                    let quarantine = &inputs.quarantine;
                    quarantine.place(client, source, &position, &revision).await
                }
            )
        }));
        positions
            .await
            .map_err(Failure::database("move the view's positions"))?;
        Ok(())
    }

    fn moved(&mut self, moves: Vec<Moved>) {
        for moved in moves {
            self.fence.moved(&moved.source);
            self.positions
                .insert(moved.source.clone(), moved.record.at());
            self.standings.insert(moved.source, moved.standing);
        }
    }

    async fn stand(&self, source: &str, standing: &Standing) -> Result<(), Failure> {
        self.statements
            .positions
            .stand(&self.session.client, source, standing)
            .await
            .map_err(Failure::database("write where the aggregator stands"))
    }

    pub(super) async fn finish(&mut self) -> Result<(), Failure> {
        fault::point("aggregator.before_commit").await;
        self.session
            .client
            .batch_execute("COMMIT")
            .await
            .map_err(Failure::database("commit a view transaction"))?;
        self.open = false;
        self.fence.committed();
        fault::point("aggregator.after_commit").await;
        Ok(())
    }

    /// Not the design: offsets in a transaction of their own, before the data.
    async fn stand_early(&mut self, moved: &Moved) -> Result<(), Failure> {
        if !fault::in_force("offsets_with_data") && !self.open {
            self.stand(&moved.source, &moved.standing).await?;
        }
        Ok(())
    }

    /// Not the design: a view transaction a partition.
    async fn apply_by_partition(&mut self, parts: Vec<Part>) -> Result<(), Failure> {
        for Part { moved, changes } in parts {
            let mut partitions: BTreeMap<_, Vec<Change>> = BTreeMap::new();
            for change in changes {
                let record = &change.record;
                let partition = (record.topic.clone(), record.partition);
                partitions.entry(partition).or_default().push(change);
            }
            let mut standing = self.standing(&moved.source);
            for ((topic, partition), changes) in partitions {
                let end = moved.standing.offsets.get(&*topic);
                let end = end.and_then(|ends| ends.get(&partition)).copied();
                let ends = standing.offsets.entry(topic.to_string()).or_default();
                ends.extend(end.map(|end| (partition, end)));
                self.take_in(&moved.source, changes).await?;
                let standing = standing.clone();
                self.commit(vec![Moved {
                    standing,
                    ..moved.clone()
                }])
                .await?;
            }
            self.take_in(&moved.source, Vec::new()).await?;
            self.commit(vec![moved]).await?;
        }
        Ok(())
    }
}
