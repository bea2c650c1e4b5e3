//! Each rule of the cache on its own: the one order of things in which its absence shows.
//!
//! An answer names its state of the view, and [`Truth::check`] knows every state, so most tests
//! end with a look that must be true. `README.md` says which rule each one shows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::harness::instance::Instance;
use crate::harness::until;
use crate::harness::world::{At, Truth, World};

const HITS: &str = "api_cache_looks_total{result=\"hit\"}";
const CHECKPOINTS: &str = "api_feed_checkpoints_total";
const READS: &str = "api_view_reads_total{what=\"products\",result=\"ok\"}";

/// A world at its first state, and an instance whose feed is there.
async fn begin(environment: &[(&str, &str)]) -> Result<(World, Arc<Instance>)> {
    let mut world = World::new().await?;
    world
        .change(&[(1, Some("old")), (2, Some("other"))])
        .await?;
    let instance = Instance::start(&world, environment).await?;
    instance.wait_until_fed(world.at).await?;
    Ok((world, Arc::new(instance)))
}

/// Asks for a product; the answer must be true at the position it says.
async fn look(truth: &Truth, instance: &Instance, id: i64) -> Result<(Option<String>, At)> {
    let (name, at) = instance.product(id, &[]).await?;
    truth.check(id, name.as_deref(), at)?;
    Ok((name, at))
}

/// Has the instance cache a product, and proves that it did.
async fn cache(truth: &Truth, instance: &Instance, id: i64) -> Result<()> {
    look(truth, instance, id).await?;
    let before = instance.metric(HITS).await?;
    look(truth, instance, id).await?;
    ensure!(instance.metric(HITS).await? > before, "it was not cached");
    Ok(())
}

/// Looks at product 1 beside the test.
fn begin_to_look(
    world: &World,
    instance: &Arc<Instance>,
) -> JoinHandle<Result<(Option<String>, At)>> {
    let (truth, instance) = (world.truth.clone(), instance.clone());
    tokio::spawn(async move { look(&truth, &instance, 1).await })
}

/// A day is a text in a path and a number in an event, and still names one row.
#[tokio::test]
async fn an_event_evicts_the_row_that_its_day_and_product_name() -> Result<()> {
    let (mut world, instance) = begin(&[]).await?;
    world
        .view
        .batch_execute(
            "INSERT INTO public.daily_sales
            VALUES ('2018-01-01', 144, 1, 6, 49.08, '{}', false, '')",
        )
        .await?;
    let units = async || -> Result<Option<i64>> {
        let answer = instance.get("/v1/daily-sales/2018-01-01/144").await?;
        Ok(answer.json()?["units"].as_i64())
    };
    ensure!(units().await? == Some(6));
    world
        .view
        .batch_execute("UPDATE public.daily_sales SET units = 7")
        .await?;
    ensure!(units().await? == Some(6), "it was not cached");
    let key = json!({"day": 17_532, "product_id": 144}).to_string();
    let event = json!({"before": null, "after": {"units": 7}, "op": "u"}).to_string();
    world.feed.send("daily_sales", &key, Some(&event)).await?;
    let at = world.change(&[(1, Some("new"))]).await?;
    instance.wait_until_fed(at).await?;
    ensure!(units().await? == Some(7), "it was not evicted");
    Ok(())
}

async fn exceeds(instance: &Instance, metric: &str, before: f64) -> Result<()> {
    until(&format!("{metric} exceeds {before}"), async || {
        Ok((instance.metric(metric).await? > before).then_some(()))
    })
    .await
}

/// With the rule in force a point that only its absence passes never holds.
async fn is_held_if_off(rule: &str, instance: &Instance) -> Result<()> {
    let is_off = std::env::var("RULES_OFF").is_ok_and(|off| off.split(',').any(|off| off == rule));
    if is_off {
        instance.is_held().await
    } else {
        Ok(())
    }
}

#[tokio::test]
#[cfg_attr(not(feature = "faults"), ignore = "needs --features faults")]
async fn a_read_that_a_change_overtakes_is_not_cached() -> Result<()> {
    let held = "api.between_read_and_insert:hold:1:GATE";
    let (mut world, instance) = begin(&[("FAULT_POINTS", held)]).await?;
    let slow_read = begin_to_look(&world, &instance);
    instance.is_held().await?;
    world.change(&[(1, Some("new"))]).await?;
    instance.wait_until_fed(world.at).await?;
    instance.release()?;
    slow_read.await??;
    is_new(&world, &instance).await
}

#[tokio::test]
#[cfg_attr(not(feature = "faults"), ignore = "needs --features faults")]
async fn nothing_comes_between_looking_at_a_mark_and_inserting() -> Result<()> {
    let held = "api.between_look_and_insert:hold:1:GATE";
    let (mut world, instance) = begin(&[("FAULT_POINTS", held)]).await?;
    let slow_read = begin_to_look(&world, &instance);
    is_held_if_off("look_and_insert_are_one", &instance).await?;
    exceeds(&instance, READS, 0.0).await?;
    world.change(&[(1, Some("new"))]).await?;
    instance.wait_until_fed(world.at).await?;
    instance.release()?;
    slow_read.await??;
    is_new(&world, &instance).await
}

/// At rest a product is answered as it was changed last, at the view's position.
async fn is_new(world: &World, instance: &Instance) -> Result<()> {
    let (name, at) = look(&world.truth, instance, 1).await?;
    ensure!(
        name.as_deref() == Some("new") && at == world.at,
        "answered {name:?} at {at:?}"
    );
    Ok(())
}

#[tokio::test]
async fn an_older_event_does_not_bring_an_older_row_back() -> Result<()> {
    let (mut world, instance) = begin(&[]).await?;
    let newer = world.commit(&[(1, Some("newer"))]).await?;
    world.commit(&[(1, Some("newest"))]).await?;
    cache(&world.truth, &instance, 1).await?;
    world.feed.tell(&newer).await?;
    instance.wait_until_fed(newer.at).await?;
    look(&world.truth, &instance, 1).await?;
    Ok(())
}

#[tokio::test]
async fn the_position_moves_after_the_rows_it_covers_are_evicted() -> Result<()> {
    let held = "api.after_position_moves:hold:1:GATE";
    let (mut world, instance) = begin(&[("FAULT_POINTS", held)]).await?;
    cache(&world.truth, &instance, 1).await?;
    world.change(&[(1, Some("new"))]).await?;
    until("answers are at the new position", async || {
        let (_, at) = look(&world.truth, &instance, 1).await?;
        Ok((at == world.at).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_cached_row_has_the_position_from_before_the_look() -> Result<()> {
    let held = "api.between_look_and_position:hold:2:GATE";
    let (mut world, instance) = begin(&[("FAULT_POINTS", held)]).await?;
    cache(&world.truth, &instance, 1).await?;
    let slow_look = begin_to_look(&world, &instance);
    is_held_if_off("position_before_look", &instance).await?;
    world.change(&[(1, Some("new"))]).await?;
    instance.wait_until_fed(world.at).await?;
    instance.release()?;
    slow_look.await??;
    Ok(())
}

#[tokio::test]
async fn a_row_newer_than_the_feed_has_its_own_position() -> Result<()> {
    let (mut world, instance) = begin(&[]).await?;
    world.commit(&[(1, Some("new"))]).await?;
    cache(&world.truth, &instance, 1).await?;
    let (name, at) = look(&world.truth, &instance, 1).await?;
    ensure!(
        name.as_deref() == Some("new") && at == world.at,
        "answered {name:?} at {at:?}"
    );
    Ok(())
}

#[tokio::test]
async fn row_and_positions_are_of_one_snapshot() -> Result<()> {
    let held = "api.between_row_and_positions:hold:1:GATE";
    let (mut world, instance) = begin(&[("FAULT_POINTS", held)]).await?;
    let slow_read = begin_to_look(&world, &instance);
    is_held_if_off("one_snapshot", &instance).await?;
    world.commit(&[(1, Some("new"))]).await?;
    instance.release()?;
    slow_read.await??;
    Ok(())
}

#[tokio::test]
async fn no_answer_is_below_its_min_position() -> Result<()> {
    let (world, instance) = begin(&[]).await?;
    let next = At {
        number: world.at.number + 1,
        ..world.at
    };
    let minimum = next.minimum();
    let answer = instance
        .get_with(
            "/v1/products/1?max_wait_ms=50",
            &[("min-position", &minimum)],
        )
        .await?;
    answer.problem(503, "position_not_reached")?;
    Ok(())
}

#[tokio::test]
async fn the_feed_takes_nothing_beyond_a_checkpoint() -> Result<()> {
    let (mut world, instance) = begin(&[]).await?;
    // Both sources have moved, so checkpoints name every partition that has their positions.
    world.change(&[(2, Some("later"))]).await?;
    instance.wait_until_fed(world.at).await?;
    cache(&world.truth, &instance, 1).await?;
    let next = world.commit(&[(1, Some("new"))]).await?;
    let taken = instance.metric(CHECKPOINTS).await?;
    // The checkpoint is there first, but it is taken when more has been written behind it.
    instance.signal(Signal::SIGSTOP)?;
    world.feed.checkpoint(true).await?;
    world.feed.tell_first_half(&next).await?;
    instance.signal(Signal::SIGCONT)?;
    exceeds(&instance, CHECKPOINTS, taken).await?;
    let (name, at) = look(&world.truth, &instance, 1).await?;
    ensure!(
        name.as_deref() == Some("old"),
        "answered {name:?} at {at:?} before its checkpoint"
    );
    world.feed.tell_second_half(&next).await?;
    instance.wait_until_fed(world.at).await?;
    is_new(&world, &instance).await
}

/// As in an office: the database is a replica that lags behind the feed.
#[tokio::test]
async fn what_a_lagging_replica_shows_is_not_cached() -> Result<()> {
    let mut world = World::new().await?;
    world.change(&[(1, Some("old"))]).await?;
    let old = world.at;
    let ahead = At {
        number: old.number + 1,
        ..old
    };
    let changed = world.invent(ahead, &[(1, Some("new"))])?;
    world.feed.tell(&changed).await?;
    let instance = Instance::start(&world, &[]).await?;
    exceeds(&instance, CHECKPOINTS, 0.0).await?;
    let (name, at) = look(&world.truth, &instance, 1).await?;
    ensure!(
        name.as_deref() == Some("old") && at == old,
        "the replica showed {name:?} at {at:?}"
    );
    world.show(ahead).await?;
    world.change(&[(2, Some("later"))]).await?;
    let taken = instance.metric(CHECKPOINTS).await?;
    world.feed.checkpoint(true).await?;
    exceeds(&instance, CHECKPOINTS, taken).await?;
    let (name, _) = look(&world.truth, &instance, 1).await?;
    ensure!(name.as_deref() == Some("new"), "still answered {name:?}");
    Ok(())
}

/// The instance is away for longer than its topics keep what it needs.
#[tokio::test]
async fn a_gap_in_the_feed_starts_the_cache_over() -> Result<()> {
    const LATENESS: Duration = Duration::from_secs(4);
    let mut world = World::new().await?;
    world.change(&[(1, Some("old"))]).await?;
    let lateness = LATENESS.as_millis().to_string();
    let lateness = [("TRIBUTARY_KAFKA__LATENESS_MAX_MS", lateness.as_str())];
    let instance = Instance::start(&world, &lateness).await?;
    is_fed_young_checkpoints(&mut world, &instance).await?;
    cache(&world.truth, &instance, 1).await?;
    instance.signal(Signal::SIGSTOP)?;
    let stopped = Instant::now();
    world.change(&[(1, Some("new"))]).await?;
    // Being away is what this is about, so this wait is for a time.
    tokio::time::sleep((LATENESS + Duration::from_millis(100)).saturating_sub(stopped.elapsed()))
        .await;
    world.feed.checkpoint(true).await?;
    instance.signal(Signal::SIGCONT)?;
    is_fed_young_checkpoints(&mut world, &instance).await?;
    is_new(&world, &instance).await
}

/// A reader takes only checkpoints younger than half of the lateness: it gets some.
async fn is_fed_young_checkpoints(world: &mut World, instance: &Instance) -> Result<()> {
    until("the feed has the view's position", async || {
        world.feed.checkpoint(true).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok((instance.fed_to().await? == Some(world.at)).then_some(()))
    })
    .await
}

/// The view was restored from a backup and lost a transaction that the feed had not told yet;
/// its connector begins an epoch.
#[tokio::test]
async fn a_new_epoch_of_the_feed_starts_the_cache_over() -> Result<()> {
    let (mut world, instance) = begin(&[]).await?;
    let kept = world.at;
    world.commit(&[(7, Some("lost"))]).await?;
    cache(&world.truth, &instance, 7).await?;
    world.restore(kept).await?;
    let taken = instance.metric(CHECKPOINTS).await?;
    world.feed.epoch += 1;
    world.feed.checkpoint(true).await?;
    exceeds(&instance, CHECKPOINTS, taken).await?;
    let (name, at) = look(&world.truth, &instance, 7).await?;
    ensure!(
        name.is_none() && at == kept,
        "what was lost is answered: {name:?} at {at:?}"
    );
    Ok(())
}

/// The same, where the next writer of the view is the first that tells of it.
#[tokio::test]
async fn a_new_writer_of_the_view_starts_the_cache_over() -> Result<()> {
    let (mut world, instance) = begin(&[]).await?;
    let kept = world.at;
    world.commit(&[(7, Some("lost"))]).await?;
    cache(&world.truth, &instance, 7).await?;
    world.restore(kept).await?;
    let next = At {
        writer: kept.writer + 1,
        number: kept.number + 1,
    };
    let changed = world.write_as(next, &[(1, Some("new"))]).await?;
    world.feed.tell(&changed).await?;
    instance.wait_until_fed(changed.at).await?;
    let (name, at) = look(&world.truth, &instance, 7).await?;
    ensure!(
        name.is_none() && at == changed.at,
        "what was lost is answered: {name:?} at {at:?}"
    );
    Ok(())
}

/// No row of a suspended table is touched, and all that come of it say so, cached ones too; so in the
/// same way when it is back.
#[tokio::test]
async fn a_table_that_is_suspended_degrades_cached_rows() -> Result<()> {
    let (mut world, instance) = begin(&[]).await?;
    for (degraded, is_degraded) in [
        ("{orders,products}", true),
        ("{orders}", false),
        ("{}", false),
    ] {
        cache(&world.truth, &instance, 1).await?;
        // Each source is told once.
        for name in ["one", "two"] {
            let changed = world.commit(&[(2, Some(name))]).await?;
            let sql = "UPDATE public.positions SET degraded = $1::text::text[]";
            world.view.execute(sql, &[&degraded]).await?;
            world.feed.degraded = degraded.to_owned();
            world.feed.tell(&changed).await?;
            instance.wait_until_fed(changed.at).await?;
        }
        for _ in 0..2 {
            let product = instance.get("/v1/products/1").await?.json()?;
            ensure!(product["degraded"] == is_degraded, "{product}");
        }
        let list = instance.get("/v1/products").await?.json()?;
        ensure!(
            list["data"][0]["degraded"] == is_degraded && list["data"][1]["id"] == 2,
            "{list}"
        );
    }
    Ok(())
}

/// A restored view uses numbers again: the number alone does not say which row is newer.
#[tokio::test]
async fn a_later_writer_is_newer_than_a_greater_number() -> Result<()> {
    let (mut world, instance) = begin(&[]).await?;
    let kept = world.at;
    world.change(&[(2, Some("lost"))]).await?;
    world.change(&[(2, Some("lost too"))]).await?;
    instance.wait_until_fed(world.at).await?;
    world.restore(kept).await?;
    let next = At {
        writer: kept.writer + 1,
        number: kept.number + 1,
    };
    world.write_as(next, &[(1, Some("new"))]).await?;
    look(&world.truth, &instance, 1).await?;
    let (name, at) = look(&world.truth, &instance, 1).await?;
    ensure!(
        name.as_deref() == Some("new") && at == next,
        "answered {name:?} at {at:?}"
    );
    Ok(())
}
