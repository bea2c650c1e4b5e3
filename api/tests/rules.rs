//! Each rule of the cache on its own: the one order of things in which its absence shows.
//!
//! An answer names its state of the view, and [`Truth::check`] knows every state, so most tests
//! end with a look that must be true. `README.md` says which rule each one shows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
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

async fn exceeds(instance: &Instance, metric: &str, before: f64) -> Result<()> {
    until(&format!("{metric} exceeds {before}"), async || {
        Ok((instance.metric(metric).await? > before).then_some(()))
    })
    .await
}

/// A read of the old row is under way while the row changes and is evicted: the old row must
/// not come back.
async fn a_change_overtakes_a_read(slow: &str) -> Result<()> {
    let (mut world, instance) = begin(&[("FAULT_POINTS", slow)]).await?;
    let slow_read = begin_to_look(&world, &instance);
    exceeds(&instance, READS, 0.0).await?;
    world.change(&[(1, Some("new"))]).await?;
    instance.wait_until_fed(world.at).await?;
    slow_read.await??;
    let (name, at) = look(&world.truth, &instance, 1).await?;
    ensure!(
        name.as_deref() == Some("new") && at == world.at,
        "answered {name:?} at {at:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_read_that_a_change_overtakes_is_not_cached() -> Result<()> {
    a_change_overtakes_a_read("api.between_read_and_insert:sleep:1:1500").await
}

#[tokio::test]
async fn nothing_comes_between_looking_at_a_mark_and_inserting() -> Result<()> {
    a_change_overtakes_a_read("api.between_look_and_insert:sleep:1:1500").await
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
    let slow = "api.after_position_moves:sleep:1:1500";
    let (mut world, instance) = begin(&[("FAULT_POINTS", slow)]).await?;
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
    let slow = "api.between_look_and_position:sleep:2:1500";
    let (mut world, instance) = begin(&[("FAULT_POINTS", slow)]).await?;
    cache(&world.truth, &instance, 1).await?;
    let slow_look = begin_to_look(&world, &instance);
    // Nothing tells when a look has begun; it is at once, and this is the slow way.
    world.change(&[(2, Some("later"))]).await?;
    world.change(&[(1, Some("new"))]).await?;
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
    let slow = "api.between_row_and_positions:sleep:1:1500";
    let (mut world, instance) = begin(&[("FAULT_POINTS", slow)]).await?;
    let slow_read = begin_to_look(&world, &instance);
    exceeds(&instance, READS, 0.0).await?;
    world.commit(&[(1, Some("new"))]).await?;
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
    cache(&world.truth, &instance, 1).await?;
    let next = world.commit(&[(1, Some("new"))]).await?;
    let taken = instance.metric(CHECKPOINTS).await?;
    // The checkpoint is there first, but it is taken when more has been written behind it.
    instance.signal(Signal::SIGSTOP)?;
    world.feed.checkpoint(true).await?;
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let telling = tokio::spawn(async move {
        let waiting = async move { drop(told.await) };
        world.feed.tell_in_two(&next, waiting).await.map(|()| world)
    });
    let continued = async {
        // Long enough for the first half to be committed: it takes some milliseconds.
        tokio::time::sleep(Duration::from_secs(1)).await;
        instance.signal(Signal::SIGCONT)?;
        exceeds(&instance, CHECKPOINTS, taken).await?;
        instance.product(1, &[]).await
    };
    let (name, at) = continued.await?;
    tell.send(()).ok();
    let world = telling.await??;
    world.truth.check(1, name.as_deref(), at)?;
    ensure!(
        name.as_deref() == Some("old"),
        "the cached row was evicted early: {name:?}"
    );
    instance.wait_until_fed(world.at).await?;
    look(&world.truth, &instance, 1).await?;
    Ok(())
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
    let lateness = Duration::from_secs(2);
    let (mut world, instance) = begin(&[("TRIBUTARY_KAFKA__LATENESS_MAX_MS", "2000")]).await?;
    cache(&world.truth, &instance, 1).await?;
    instance.signal(Signal::SIGSTOP)?;
    let stopped = Instant::now();
    world.change(&[(1, Some("new"))]).await?;
    tokio::time::sleep((lateness + Duration::from_millis(200)).saturating_sub(stopped.elapsed()))
        .await;
    instance.signal(Signal::SIGCONT)?;
    until("the feed goes on", async || {
        // Only young checkpoints are taken.
        world.feed.checkpoint(true).await?;
        Ok((instance.fed_to().await? == Some(world.at)).then_some(()))
    })
    .await?;
    let (name, _) = look(&world.truth, &instance, 1).await?;
    ensure!(name.as_deref() == Some("new"), "answered {name:?}");
    Ok(())
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
