//! The API on a streaming replica of the view's database, as an office has it.

use anyhow::{Context, Result, ensure};
use fixtures::{Postgres, Version};
use tokio_postgres::Client;

use crate::harness::instance::Instance;
use crate::harness::until;
use crate::harness::world::World;

/// Requests that wait for a position.
const WAITS: &str = "api_waits";
const PATHS: [&str; 3] = ["/v1/products/1", "/v1/products", "/v1/status"];

/// A primary with a world on it, a replica, and an API that knows the replica only.
struct Office {
    world: World,
    instance: Instance,
    replica: Client,
    // Held until the test ends; the replica first.
    _standby: Postgres,
    _primary: Postgres,
}

impl Office {
    async fn open() -> Result<Self> {
        let primary = Postgres::start(Version::View18).await?;
        let mut world = World::on(&primary).await?;
        world.change(&[(1, Some("old"))]).await?;
        let standby = primary.replica(None, &[]).await?;
        world.port = standby.port();
        let replica = standby.superuser(&world.database).await?;
        let sql = "SELECT pg_is_in_recovery()";
        ensure!(replica.query_one(sql, &[]).await?.get::<_, bool>(0));
        Ok(Self {
            instance: Instance::start(&world, &[]).await?,
            world,
            replica,
            _standby: standby,
            _primary: primary,
        })
    }

    async fn pause_replay(&self) -> Result<()> {
        self.replica
            .batch_execute("SELECT pg_wal_replay_pause()")
            .await?;
        until("the replay pauses", async || {
            let sql = "SELECT pg_get_wal_replay_pause_state() = 'paused'";
            let paused: bool = self.replica.query_one(sql, &[]).await?.get(0);
            Ok(paused.then_some(()))
        })
        .await
    }

    async fn resume_replay(&self) -> Result<()> {
        let sql = "SELECT pg_wal_replay_resume()";
        Ok(self.replica.batch_execute(sql).await?)
    }
}

#[tokio::test]
async fn a_replica_serves_what_it_has_replayed_and_says_how_far_that_is() -> Result<()> {
    let mut office = Office::open().await?;
    let before = office.world.at;
    let minimum = before.minimum();
    for path in PATHS {
        let headers = [("min-position", minimum.as_str())];
        let path = format!("{path}?max_wait_ms=10000");
        let answer = office.instance.get_with(&path, &headers).await?;
        ensure!(answer.status == 200 && answer.at()? == before, "{answer:?}");
    }
    office.pause_replay().await?;
    office.world.commit(&[(1, Some("new"))]).await?;
    let after = office.world.at;
    let minimum = after.minimum();
    let headers = [("min-position", minimum.as_str())];
    for path in PATHS {
        // Nobody is told that it is further than it is, nor shown less than was asked for.
        let answer = office.instance.get(path).await?;
        ensure!(answer.status == 200 && answer.at()? == before, "{answer:?}");
        let path = format!("{path}?max_wait_ms=200");
        let refused = office.instance.get_with(&path, &headers).await?;
        refused.problem(503, "position_not_reached")?;
        ensure!(refused.at()? == before, "{refused:?}");
    }
    let (name, at) = office.instance.product(1, &[]).await?;
    office.world.truth.check(1, name.as_deref(), at)
}

#[tokio::test]
async fn who_asks_a_replica_for_a_position_waits_for_the_replay() -> Result<()> {
    let mut office = Office::open().await?;
    office.pause_replay().await?;
    office.world.commit(&[(1, Some("new"))]).await?;
    let after = office.world.at;
    let minimum = after.minimum();
    let headers = [("min-position", minimum.as_str())];
    let ask = async |path: &str| {
        let path = format!("{path}?max_wait_ms=10000");
        office.instance.get_with(&path, &headers).await
    };
    let replayed = async {
        until("the requests wait", async || {
            let waits = office.instance.metric(WAITS).await?;
            Ok((waits >= 3.0).then_some(()))
        })
        .await?;
        office.resume_replay().await
    };
    let [one, list, status] = PATHS;
    let (one, list, status, replayed) = tokio::join!(ask(one), ask(list), ask(status), replayed);
    replayed.with_context(|| office.instance.log())?;
    let (one, list, status) = (one?, list?, status?);
    for answer in [&one, &list, &status] {
        ensure!(answer.status == 200 && answer.at()? == after, "{answer:?}");
    }
    ensure!(one.json()?["name"] == "new" && list.json()?["data"][0]["name"] == "new");
    Ok(())
}
