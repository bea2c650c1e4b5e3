//! Checkpoints of two sources, of several steps each, are one view transaction; here the second
//! fails within its steps. Triggers note what each committed transaction of the database did.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::rules::order;
use crate::shop::{DETAIL, TRANSACTION};
use crate::source::envelope;
use crate::topics::{Aggregator, Place, wait};

/// Rows of each source from here on are the test's: more than two steps.
const FIRST: i64 = 1000;
const ROWS: i64 = 6;
const STEP_EVENTS: &str = "step_events_max = 2";

/// Whoever moves what, and which rows of the test are written, by transaction of the database.
const NOTES: &str = "
    CREATE TABLE public.noted (
        transaction bigint NOT NULL DEFAULT txid_current(), what text, source text, id bigint
    );
    CREATE FUNCTION public.note_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF new.id >= 1000 THEN
            INSERT INTO public.noted (what, source, id) VALUES ('row', tg_table_schema, new.id);
        END IF;
        RETURN NULL;
    END $$;
    CREATE FUNCTION public.note_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.noted (what, source) VALUES (tg_table_name, new.source);
        RETURN NULL;
    END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON sales.sls_order
        FOR EACH ROW EXECUTE FUNCTION public.note_row();
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON accounting.ac_transaction
        FOR EACH ROW EXECUTE FUNCTION public.note_row();
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON aggregator.standing
        FOR EACH ROW EXECUTE FUNCTION public.note_move();
    CREATE TRIGGER note AFTER UPDATE ON public.positions
        FOR EACH ROW WHEN (old.lsn IS DISTINCT FROM new.lsn)
        EXECUTE FUNCTION public.note_move()";

/// How often each row of the test was written.
const WRITTEN: &str = "SELECT source, count(DISTINCT id) AS rows, count(*) AS times
    FROM public.noted WHERE what = 'row' GROUP BY source ORDER BY source";
/// Rows that were not committed with what says that they are.
const HALF: &str = "SELECT source, id FROM public.noted AS n WHERE what = 'row' AND (
    SELECT count(DISTINCT what) FROM public.noted AS m
    WHERE m.transaction = n.transaction AND m.source = n.source
        AND m.what IN ('standing', 'positions')
    ) <> 2 ORDER BY source, id";
/// Transactions of the database that rows of the test are of.
const TRANSACTIONS: &str =
    "SELECT count(DISTINCT transaction) FROM public.noted WHERE what = 'row'";

/// The applier has the first step of sales in hand and has begun nothing; the first step of
/// accounting is here, too. So accounting's steps follow those of sales once the gate opens.
struct Joint {
    place: Place,
    aggregator: Aggregator,
    gate: PathBuf,
}

impl Joint {
    /// `accounting` commits that source's checkpoint.
    async fn begin(
        seed: u64,
        apply: &str,
        faults: &str,
        accounting: impl AsyncFnOnce(&mut Place) -> Result<()>,
    ) -> Result<Self> {
        let mut place = Place::new(seed).await?;
        place.work().await?;
        let aggregator = place.start("", &[])?;
        place.caught_up(&[&aggregator]).await?;
        drop(aggregator);
        place.database.client.batch_execute(NOTES).await?;
        let gate = place.folder().join("gate");
        let held = gate.display();
        let faults = format!(
            "aggregator.before_fence:hold:1:{held},aggregator.step_queued:hold:1:{held},{faults}"
        );
        let aggregator = place.start_as_shipped(
            &format!("{STEP_EVENTS}\n{apply}"),
            &[("FAULT_POINTS", &faults)],
        )?;
        aggregator.says("follows every source").await?;
        for id in FIRST..FIRST + ROWS {
            order(&mut place.shop, id, id);
            let row = json!({"id": id, "order_id": id});
            place.shop.accounting.put(TRANSACTION, row);
        }
        place.commit("sales").await?;
        aggregator.says("before_fence: holds").await?;
        accounting(&mut place).await?;
        wait("a step of each", &aggregator, || {
            aggregator.log().matches("step_queued: holds").count() == 2
        })
        .await?;
        Ok(Self {
            place,
            aggregator,
            gate,
        })
    }

    fn go_on(&self) -> Result<()> {
        Ok(std::fs::write(&self.gate, "")?)
    }

    /// In the end each row was written once, with its source's offsets and position, and the
    /// view is right.
    async fn is_whole(&mut self, aggregators: &[&Aggregator]) -> Result<()> {
        let place = &mut self.place;
        place.caught_up(aggregators).await?;
        let once = json!([
            {"source": "accounting", "rows": ROWS, "times": ROWS},
            {"source": "sales", "rows": ROWS, "times": ROWS},
        ]);
        assert_eq!(place.database.rows(WRITTEN).await?, once);
        assert_eq!(place.database.rows(HALF).await?, json!([]));
        place.is_right().await
    }

    /// Nothing of what the steps did is to be seen.
    async fn is_as_before(&self) -> Result<()> {
        let noted = "SELECT what, source, id FROM public.noted";
        assert_eq!(self.place.database.rows(noted).await?, json!([]));
        Ok(())
    }
}

async fn commit(place: &mut Place) -> Result<()> {
    place.commit("accounting").await
}

#[tokio::test]
async fn what_cannot_be_applied_of_the_second_is_set_aside_and_both_are_served_at_once()
-> Result<()> {
    let mut joint = Joint::begin(21, "", "", async |place: &mut Place| {
        for id in FIRST..FIRST + ROWS {
            let date = "2024-01-01T00:00:00.000000Z";
            let row = json!({"id": id, "sum": "NaN", "date": date, "transaction_id": id});
            let event = envelope("c", None, Some(row));
            place.shop.accounting.send(DETAIL, id, Some(event));
        }
        commit(place).await
    })
    .await?;
    joint.go_on()?;
    let aggregator = joint.aggregator.log();
    joint.place.caught_up(&[&joint.aggregator]).await?;
    let database = &joint.place.database;
    assert_eq!(database.one::<i64>(TRANSACTIONS).await?, 1, "{aggregator}");
    assert_eq!(database.rows(HALF).await?, json!([]));
    let quarantined = "SELECT count(*) FROM public.quarantine AS q JOIN public.positions AS p
        USING (source) WHERE q.revision = p.revision AND q.\"table\" = 'public.ac_transactiondetail'";
    assert_eq!(database.one::<i64>(quarantined).await?, ROWS);
    let degraded = "SELECT count(*) FROM public.orders WHERE id >= 1000 AND degraded";
    assert_eq!(database.one::<i64>(degraded).await?, ROWS);
    joint.place.is_right().await
}

/// The database refuses a row of the second source's last step, for a while.
#[tokio::test]
async fn steps_are_one_transaction_when_the_database_refuses_one_of_the_second() -> Result<()> {
    let mut joint = Joint::begin(22, "", "", commit).await?;
    joint
        .place
        .database
        .client
        .batch_execute(
            "CREATE TABLE public.refused (id bigint);
            INSERT INTO public.refused VALUES (1004), (1005);
            CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF EXISTS (SELECT FROM public.refused AS r WHERE r.id = new.id) THEN
                    RAISE 'refused';
                END IF;
                RETURN new;
            END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON accounting.ac_transaction
                FOR EACH ROW EXECUTE FUNCTION public.refuse()",
        )
        .await?;
    joint.go_on()?;
    let refused = "cannot bring the mirrors up to date: db error: ERROR: refused";
    joint.aggregator.says(refused).await?;
    // Of sales all is there by now, or nothing.
    assert_eq!(joint.place.database.rows(HALF).await?, json!([]));
    let heal = "DELETE FROM public.refused";
    joint.place.database.client.batch_execute(heal).await?;
    let aggregator = joint.place.start(STEP_EVENTS, &[])?;
    drop(std::mem::replace(&mut joint.aggregator, aggregator));
    joint.is_whole(&[]).await
}

#[tokio::test]
async fn killed_within_the_steps_of_the_second_it_has_done_both_or_none() -> Result<()> {
    // Sales has three steps, and so has accounting.
    for (point, is_done) in [
        ("after_mirror:kill:4", false),
        ("after_mirror:kill:6", false),
        ("before_commit:kill:1", false),
        ("after_commit:kill:1", true),
    ] {
        let mut joint = Joint::begin(23, "", &format!("aggregator.{point}"), commit).await?;
        joint.go_on()?;
        let ended = joint.aggregator.process.exited().await;
        ended.context("no status")?;
        ensure!(joint.aggregator.log().contains("SIGKILL"), "{point}");
        if is_done {
            let transactions: i64 = joint.place.database.one(TRANSACTIONS).await?;
            assert_eq!(transactions, 1, "{point}");
        } else {
            joint.is_as_before().await?;
        }
        let aggregator = joint.place.start(STEP_EVENTS, &[])?;
        joint.is_whole(&[&aggregator]).await.context(point)?;
    }
    Ok(())
}

#[tokio::test]
async fn overtaken_within_the_steps_of_the_second_it_has_done_neither() -> Result<()> {
    let faults = "aggregator.after_mirror:stop:5";
    let mut joint = Joint::begin(24, "", faults, commit).await?;
    joint.go_on()?;
    wait("SIGSTOP", &joint.aggregator, || {
        joint.aggregator.log().contains("SIGSTOP")
    })
    .await?;
    let second = joint.place.start(STEP_EVENTS, &[])?;
    joint.is_whole(&[&second]).await?;
    joint.aggregator.process.signal(Signal::SIGCONT);
    joint.aggregator.says("starts anew").await?;
    let standby = "standby: another aggregator holds the lock";
    joint.aggregator.says(standby).await?;
    joint.is_whole(&[&second]).await
}

/// The second source's checkpoint names records that are not there: its steps are undone, and
/// with them those of the first, which is to be read again though nothing was wrong with it.
#[tokio::test]
async fn undone_steps_come_again_when_the_second_stalls() -> Result<()> {
    let stalls = "silence_max_ms = 1000";
    let mut joint = Joint::begin(25, stalls, "", async |place: &mut Place| {
        let ahead = |record: &mut kafka::Checkpoint| {
            let last = record.offsets.last_entry();
            for end in last
                .into_iter()
                .flat_map(|topic| topic.into_mut().values_mut())
            {
                *end += 1000;
            }
        };
        place.commit_as("accounting", ahead).await
    })
    .await?;
    joint.go_on()?;
    let stalled = "accounting stalled within a checkpoint";
    joint.aggregator.says(stalled).await?;
    joint
        .place
        .stands_at(&["sales"], &[&joint.aggregator])
        .await?;
    commit(&mut joint.place).await?;
    joint.place.caught_up(&[&joint.aggregator]).await?;
    let log = joint.aggregator.log();
    ensure!(!log.contains("starts anew"), "{log}");
    joint.is_whole(&[]).await
}
