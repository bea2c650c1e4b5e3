//! Kafka decides to commit, dies before anybody can read it, and never ends the transaction.

use anyhow::{Result, ensure};
use fixtures::markers::MarkedKafka;
use kafka::Lsn;

use crate::harness::{Rig, equals_source, eventually};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO item SELECT g, g FROM generate_series(1, 50) g";

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

    broker.markers.down();
    rig.run("BEGIN; UPDATE item SET n = -n; DELETE FROM item WHERE id < 10; COMMIT")
        .await?;
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
    let ended = connector
        .metric("connector_hanging_partitions_total")
        .await?;
    ensure!(ended > Some(0.0), "{ended:?} partitions hung");
    assert_eq!(connector.status().await?["epoch"], epoch);
    Ok(())
}
