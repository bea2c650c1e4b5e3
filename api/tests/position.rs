//! `Min-Position`: waiting for it, and giving up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::harness::instance::Instance;
use crate::harness::until;
use crate::harness::world::{At, World};

async fn begin(environment: &[(&str, &str)]) -> Result<(World, Instance, At)> {
    let mut world = World::new().await?;
    world.change(&[(1, Some("old"))]).await?;
    let instance = Instance::start(&world, environment).await?;
    let next = At {
        number: world.at.number + 1,
        ..world.at
    };
    Ok((world, instance, next))
}

const WAITS: &str = "api_waits";

#[tokio::test]
async fn ones_lists_and_the_status_wait_until_the_view_is_there() -> Result<()> {
    let (mut world, instance, next) = begin(&[]).await?;
    let minimum = next.minimum();
    let headers = [("min-position", minimum.as_str())];
    let asked = async {
        tokio::join!(
            instance.get_with("/v1/products/1?max_wait_ms=10000", &headers),
            instance.get_with("/v1/products?max_wait_ms=10000", &headers),
            instance.get_with("/v1/status?max_wait_ms=10000", &headers),
        )
    };
    let written = async {
        until("three requests wait", async || {
            Ok((instance.metric(WAITS).await? >= 3.0).then_some(()))
        })
        .await?;
        // Only the database has it: that is sooner than the feed.
        world.commit(&[(1, Some("new"))]).await
    };
    let ((one, list, status), committed) = tokio::join!(asked, written);
    committed?;
    let (one, list, status) = (one?, list?, status?);
    for answer in [&one, &list, &status] {
        ensure!(answer.status == 200 && answer.at()? == next, "{answer:?}");
    }
    ensure!(one.json()?["name"] == "new" && list.json()?["data"][0]["name"] == "new");
    Ok(())
}

/// An office's replica lags behind the feed: what is cached can be answered before it.
#[tokio::test]
async fn the_feed_may_be_there_before_the_database() -> Result<()> {
    let (mut world, instance, next) = begin(&[]).await?;
    world.change(&[(2, Some("other"))]).await?;
    instance.wait_until_fed(world.at).await?;
    ensure!(instance.product(1, &[]).await?.0.as_deref() == Some("old"));
    let ahead = At {
        number: next.number + 1,
        ..next
    };
    let told = world.invent(ahead, &[(2, Some("ahead"))])?;
    let minimum = ahead.minimum();
    let headers = [("min-position", minimum.as_str())];
    let asked = instance.get_with("/v1/products/1?max_wait_ms=10000", &headers);
    let telling = async {
        until("the request waits", async || {
            Ok((instance.metric(WAITS).await? >= 1.0).then_some(()))
        })
        .await?;
        world.feed.tell(&told).await
    };
    let (answer, told) = tokio::join!(asked, telling);
    told?;
    let answer = answer?;
    ensure!(answer.status == 200 && answer.at()? == ahead, "{answer:?}");
    ensure!(answer.json()?["name"] == "old");
    // What is not cached waits for the replica, and does not turn in circles meanwhile.
    let reads = "api_view_reads_total{what=\"products\",result=\"ok\"}";
    let before = instance.metric(reads).await?;
    let missing = instance
        .get_with("/v1/products/2?max_wait_ms=300", &headers)
        .await?;
    missing.problem(503, "position_not_reached")?;
    ensure!(
        instance.metric(reads).await? - before <= 2.0,
        "it read again and again"
    );
    Ok(())
}

#[tokio::test]
async fn who_waits_in_vain_is_told_how_far_the_view_is() -> Result<()> {
    let (world, instance, next) = begin(&[]).await?;
    let minimum = next.minimum();
    let headers = [("min-position", minimum.as_str())];
    for path in ["/v1/products/1", "/v1/products", "/v1/status"] {
        let started = Instant::now();
        let answer = instance
            .get_with(&format!("{path}?max_wait_ms=200"), &headers)
            .await?;
        let elapsed = started.elapsed();
        let problem = answer.problem(503, "position_not_reached")?;
        ensure!(
            elapsed >= Duration::from_millis(200),
            "{path}: after {elapsed:?}"
        );
        ensure!(answer.at()? == world.at && answer.header("retry-after") == Some("1"));
        ensure!(
            problem["view_position"].as_str() == answer.header("view-position"),
            "{problem}"
        );
    }
    // Nothing is left behind that waits, or polls.
    until("nobody waits", async || {
        Ok((instance.metric(WAITS).await? == 0.0).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_view_position_can_be_sent_back_as_it_came() -> Result<()> {
    let (_world, instance, _) = begin(&[]).await?;
    let first = instance.get("/v1/products/1").await?;
    let position = first.header("view-position").context("a position")?;
    ensure!(
        position.contains("sales=none"),
        "one source was not read yet: {position}"
    );
    let again = instance
        .get_with("/v1/products/1", &[("min-position", position)])
        .await?;
    ensure!(
        again.status == 200 && again.at()? == first.at()?,
        "{again:?}"
    );
    let unread = [("min-position", "sales=0/0")];
    let unread = instance
        .get_with("/v1/products/1?max_wait_ms=0", &unread)
        .await?;
    unread.problem(503, "position_not_reached")?;
    Ok(())
}

#[tokio::test]
async fn more_waits_than_allowed_are_refused_at_once() -> Result<()> {
    let (_world, instance, next) = begin(&[("TRIBUTARY_LIMITS__WAITS_MAX", "1")]).await?;
    let minimum = next.minimum();
    let headers = [("min-position", minimum.as_str())];
    let waiting = instance.get_with("/v1/products?max_wait_ms=10000", &headers);
    let refused = async {
        until("one request waits", async || {
            Ok((instance.metric(WAITS).await? >= 1.0).then_some(()))
        })
        .await?;
        instance
            .get_with("/v1/products?max_wait_ms=10000", &headers)
            .await
    };
    tokio::select! {
        waited = waiting => anyhow::bail!("the first did not wait: {waited:?}"),
        refused = refused => refused?.problem(503, "too_many_waits")?,
    };
    Ok(())
}
