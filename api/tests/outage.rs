//! What is answered while something that the API needs is away, and how it stops.

use anyhow::{Result, ensure};
use fixtures::postgres::{Postgres, Version};
use nix::sys::signal::Signal;

use crate::harness::instance::Instance;
use crate::harness::until;
use crate::harness::world::World;

#[tokio::test]
async fn without_the_database_cached_rows_are_answered_and_marked_stale() -> Result<()> {
    let mut server = Postgres::start(Version::View18).await?;
    let mut world = World::on(&server).await?;
    world.change(&[(1, Some("cached"))]).await?;
    let instance = Instance::start(&world, &[]).await?;
    instance.wait_until_fed(world.at).await?;
    let fresh = instance.get("/v1/products/1").await?;
    ensure!(fresh.header("view-stale").is_none(), "{fresh:?}");
    instance
        .get("/v1/products/404")
        .await?
        .problem(404, "not_found")?;

    server.stop().await;
    let stale = until("the answer is marked stale", async || {
        let answer = instance.get("/v1/products/1").await?;
        Ok(answer.header("view-stale").is_some().then_some(answer))
    })
    .await?;
    ensure!(
        stale.status == 200 && stale.text == fresh.text && stale.at()? == world.at,
        "{stale:?}"
    );
    instance
        .get("/v1/products/404")
        .await?
        .problem(404, "not_found")?;
    instance
        .get("/v1/products/2")
        .await?
        .problem(503, "view_unavailable")?;
    let list = instance.get("/v1/products").await?;
    list.problem(503, "view_unavailable")?;
    ensure!(list.header("retry-after") == Some("1"), "{list:?}");
    ensure!(
        !list.text.to_lowercase().contains("postgres"),
        "a database speaks: {list:?}"
    );
    let status = instance.get("/v1/status").await?;
    ensure!(
        status.header("view-stale") == Some("true") && status.at()? == world.at,
        "{status:?}"
    );
    ensure!(
        instance.admin("/readyz").await?.status == 200,
        "it still answers"
    );

    server.restart().await?;
    until("the database is read again", async || {
        let answer = instance.get("/v1/products/2").await?;
        Ok((answer.status == 404).then_some(()))
    })
    .await?;
    let fresh = instance.get("/v1/products/1").await?;
    ensure!(fresh.header("view-stale").is_none(), "{fresh:?}");
    Ok(())
}

#[tokio::test]
async fn with_a_silent_feed_cached_rows_are_not_answered_for_long() -> Result<()> {
    let mut world = World::new().await?;
    world.change(&[(1, Some("old"))]).await?;
    let instance = Instance::start(&world, &[("TRIBUTARY_CACHE__SILENCE_MAX_MS", "500")]).await?;
    world.feed.checkpoint(true).await?;
    instance.wait_until_fed(world.at).await?;
    let state = async || -> Result<_> {
        Ok(instance.get("/v1/status").await?.json()?["feed"]["state"].clone())
    };
    instance.product(1, &[]).await?;
    // Nobody tells the feed.
    world.commit(&[(1, Some("new"))]).await?;
    until("the feed is silent", async || {
        Ok((state().await? == "silent").then_some(()))
    })
    .await?;
    let (name, at) = instance.product(1, &[]).await?;
    ensure!(
        name.as_deref() == Some("new") && at == world.at,
        "{name:?} at {at:?}"
    );
    world.feed.checkpoint(true).await?;
    until("the feed is live", async || {
        Ok((state().await? == "live").then_some(()))
    })
    .await
}

#[tokio::test]
async fn without_kafka_every_answer_comes_from_the_database() -> Result<()> {
    let mut world = World::new().await?;
    world.change(&[(1, Some("old"))]).await?;
    world.kafka.bootstrap = "127.0.0.1:1".to_owned();
    let instance = Instance::start(&world, &[]).await?;
    for name in ["new", "newer"] {
        world.commit(&[(1, Some(name))]).await?;
        let (answered, at) = instance.product(1, &[]).await?;
        ensure!(
            answered.as_deref() == Some(name) && at == world.at,
            "{answered:?} at {at:?}"
        );
    }
    ensure!(instance.get("/v1/status").await?.json()?["feed"]["state"] == "starting");
    Ok(())
}

#[tokio::test]
async fn without_a_view_it_is_not_ready_and_becomes_so() -> Result<()> {
    let world = World::new().await?;
    world
        .view
        .batch_execute("ALTER TABLE public.positions RENAME TO not_yet")
        .await?;
    let instance = Instance::start_unready(&world, &[]).await?;
    until("it says that it is not ready", async || {
        let ready = instance.admin("/readyz").await?;
        Ok((ready.status == 503).then_some(()))
    })
    .await?;
    instance
        .get("/v1/products")
        .await?
        .problem(503, "view_unavailable")?;
    world
        .view
        .batch_execute("ALTER TABLE public.not_yet RENAME TO positions")
        .await?;
    until("it is ready", async || {
        Ok((instance.admin("/readyz").await?.status == 200).then_some(()))
    })
    .await
}

#[tokio::test]
async fn what_is_open_ends_before_it_stops() -> Result<()> {
    let mut world = World::new().await?;
    world.change(&[(1, Some("old"))]).await?;
    let mut instance = Instance::start(&world, &[]).await?;
    let mut next = world.at;
    next.number += 1;
    let minimum = next.minimum();
    let headers = [("min-position", minimum.as_str())];
    let asked = instance.get_with("/v1/products/1?max_wait_ms=10000", &headers);
    let stopping = async {
        until("the request waits", async || {
            Ok((instance.metric("api_waits").await? >= 1.0).then_some(()))
        })
        .await?;
        instance.signal(Signal::SIGTERM)?;
        until("it is not ready any more", async || {
            Ok((instance.admin("/readyz").await?.status == 503).then_some(()))
        })
        .await?;
        world.commit(&[(1, Some("new"))]).await
    };
    let (answer, stopped) = tokio::join!(asked, stopping);
    stopped?;
    let answer = answer?;
    ensure!(answer.status == 200 && answer.at()? == next, "{answer:?}");
    ensure!(instance.exited().await?.success(), "{}", instance.log());
    Ok(())
}

#[tokio::test]
async fn beyond_its_limits_an_instance_refuses_at_once_and_gives_up_in_time() -> Result<()> {
    let mut world = World::new().await?;
    world.change(&[(1, Some("old"))]).await?;
    let limits = [
        ("TRIBUTARY_LIMITS__REQUESTS_MAX", "1"),
        ("TRIBUTARY_LIMITS__REQUEST_TIMEOUT_MS", "1000"),
    ];
    let instance = Instance::start(&world, &limits).await?;
    let mut next = world.at;
    next.number += 1;
    let minimum = next.minimum();
    let headers = [("min-position", minimum.as_str())];
    let given_up = instance.get_with("/v1/products/1?max_wait_ms=10000", &headers);
    let refused = async {
        until("the request waits", async || {
            Ok((instance.metric("api_waits").await? >= 1.0).then_some(()))
        })
        .await?;
        instance.get("/v1/products/1").await
    };
    let (given_up, refused) = tokio::join!(given_up, refused);
    refused?.problem(503, "too_many_requests")?;
    given_up?.problem(504, "timed_out")?;
    ensure!(instance.get("/v1/products/1").await?.status == 200);
    Ok(())
}

#[tokio::test]
async fn an_admin_port_that_is_taken_ends_it_with_a_sentence() -> Result<()> {
    let world = World::new().await?;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = taken.local_addr()?.to_string();
    let environment = [("TRIBUTARY_ADMIN__LISTEN", address.as_str())];
    let output = Instance::run_to_its_end(&world, &environment).await?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code() == Some(1) && said.contains("admin.listen"),
        "{output:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_wrong_configuration_is_said_in_a_sentence_and_ends_with_2() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("api.toml");
    let shipped = include_str!("../api.toml");
    for (text, said) in [
        (
            shipped.replace("connections_max = 16", "conections_max = 16"),
            "conections_max",
        ),
        (
            shipped.replace("waits_max = 256", "waits_max = 0"),
            "limits.waits_max",
        ),
        (shipped.replace("postgres://api", "nonsense://api"), "URL"),
    ] {
        std::fs::write(&file, text)?;
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_api"))
            .arg("--config")
            .arg(&file)
            .output()?;
        let mut told = String::from_utf8_lossy(&output.stderr).into_owned();
        told.push_str(&String::from_utf8_lossy(&output.stdout));
        ensure!(
            output.status.code() == Some(2) && told.contains(said),
            "{said}: {output:?}"
        );
    }
    Ok(())
}
