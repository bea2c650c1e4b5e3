//! Kafka decides to commit, dies before anybody can read it, and never ends the transaction.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use fixtures::markers::MarkedKafka;
use kafka::Lsn;

use crate::harness::{Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 50) g";

/// How often a broker may be in time before the test says that it has seen nothing.
const ROUNDS_MAX: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_read_is_not_confirmed_and_not_lost() -> Result<()> {
    let mut broker = MarkedKafka::start().await?;
    let mut rig = Rig::new(&[ITEM], DDL).await?;
    rig.bootstrap = broker.kafka.bootstrap();
    let connector = rig.connector().start()?;
    connector.ready().await?;
    let mut journal = rig.journal()?;
    equals_source(&rig, &mut journal, &[ITEM]).await?;
    let epoch = connector.status().await?["epoch"].clone();

    // Mostly something hangs then, and is ended; a broker that has its leaders in time ends it itself.
    let mut ended = None;
    for round in 1..=ROUNDS_MAX {
        broker.markers.down();
        let change = format!("UPDATE item SET n = -n; DELETE FROM item WHERE id <= {round}");
        rig.run(&format!("BEGIN; {change}; COMMIT")).await?;
        let written = rig.wal_lsn().await?;
        eventually("Kafka has decided", || async {
            let position = connector.status().await?["position"].clone();
            let position = serde_json::from_value::<Lsn>(position)?;
            Ok((position >= written).then_some(()))
        })
        .await?;
        // What it tells PostgreSQL of this it has told three statuses later.
        for _ in 0..3 {
            rig.replies().await?;
        }
        let confirmed = rig.confirmed().await?.unwrap_or(Lsn::ZERO);
        ensure!(
            confirmed < written,
            "PostgreSQL may forget up to {confirmed}, and nobody can read up to {written}"
        );

        broker.crash().await?;
        equals_source(&rig, &mut journal, &[ITEM]).await?;
        eventually("PostgreSQL may forget it", || async {
            let confirmed = rig.confirmed().await?;
            Ok((confirmed >= Some(written)).then_some(()))
        })
        .await?;
        ended = connector
            .metric("connector_hanging_partitions_total")
            .await?;
        if ended > Some(0.0) {
            break;
        }
    }
    ensure!(ended > Some(0.0), "nothing hung in {ROUNDS_MAX} rounds");
    assert_eq!(connector.status().await?["epoch"], epoch);
    Ok(())
}

/// The folder in which a partition stands alone.
fn disk_of(folder: &Path, partition: &str) -> Result<std::path::PathBuf> {
    for disk in std::fs::read_dir(folder)? {
        let disk = disk?.path();
        if disk.join(partition).exists() {
            return Ok(disk);
        }
    }
    anyhow::bail!("{partition} stands nowhere")
}

/// A disk of the broker's fails, and with it the leader of one partition. Whether its markers are
/// there nobody can say; a new life could not take over without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_lost_after_a_commit_is_said_and_the_source_keeps_its_wal() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // More than there are partitions: a broker puts each where there are the fewest.
    let disks = (0..16).map(|disk| folder.path().join(disk.to_string()).display().to_string());
    let properties = [
        ("log.dirs", &*disks.collect::<Vec<_>>().join(",")),
        ("transaction.state.log.num.partitions", "1"),
        // A failed disk is noticed when something is written to it.
        ("log.flush.offset.checkpoint.interval.ms", "200"),
    ];
    let broker = MarkedKafka::start_with(&properties).await?;
    let mut rig = Rig::new(&[ITEM], DDL).await?;
    rig.bootstrap = broker.kafka.bootstrap();
    // Before it has to use the same transactional id again, which waits for those markers, too.
    let soon = "stall_ms = 2000\nheartbeat_ms = 60000";
    let connector = rig.connector().stream(soon).start()?;
    connector.ready().await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await?;
    let disk = disk_of(folder.path(), &format!("{}-0", rig.topic(ITEM)))?;

    broker.markers.down();
    rig.run("UPDATE item SET n = -n").await?;
    let written = rig.wal_lsn().await?;
    eventually("Kafka has decided", || async {
        let position = connector.status().await?["position"].clone();
        let position = serde_json::from_value::<Lsn>(position)?;
        Ok((position >= written).then_some(()))
    })
    .await?;
    std::fs::rename(&disk, folder.path().join("gone")).context("the disk")?;
    let said = eventually("it says that nobody can tell", || async {
        let status = connector.status().await?;
        let reason = status["reason"].as_str().unwrap_or_default().to_owned();
        let said = status["state"] == "stalled" && reason.contains("does not show what was");
        Ok(said.then_some(reason))
    })
    .await
    .with_context(|| connector.log())?;
    ensure!(said.contains("cannot ask Kafka"), "{said}");
    connector.logged("does not show what was committed").await?;
    let behind = connector.metric("connector_unconfirmed_bytes").await?;
    ensure!(behind > Some(0.0), "{behind:?} bytes behind");
    let confirmed = rig.confirmed().await?.unwrap_or(Lsn::ZERO);
    ensure!(confirmed < written, "PostgreSQL may forget {confirmed}");
    let lives = connector.metric("connector_lives_total").await?;
    assert_eq!(lives, Some(1.0));
    Ok(())
}
