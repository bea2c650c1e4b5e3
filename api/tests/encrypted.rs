//! The link to the view's database, which nobody on the way reads.

use anyhow::{Result, ensure};
use fixtures::certificates::Authority;
use fixtures::postgres::{Front, TEST_PASSWORD};

use crate::harness::instance::Instance;
use crate::harness::until;
use crate::harness::world::World;

/// The database speaks nothing but TLS. A secret that is replaced needs no restart.
#[tokio::test(flavor = "multi_thread")]
async fn the_view_is_read_by_encrypted_connections_only() -> Result<()> {
    let mut world = World::new().await?;
    world.change(&[(1, Some("one"))]).await?;
    let front = Front::of(world.port).await?;
    let (port, database) = (front.port(), &world.database);
    let url = format!("postgres://api@localhost:{port}/{database}");
    let password = tempfile::NamedTempFile::new()?;
    std::fs::write(password.path(), TEST_PASSWORD)?;
    let stranger = Authority::new()?;
    let file = password.path().to_string_lossy();
    let plain = [
        ("TRIBUTARY_VIEW__URL", url.as_str()),
        ("TRIBUTARY_VIEW__PASSWORD_FILE", &file),
    ];
    let trusting = |authority: &Authority| {
        let trusted = authority.certificate().display().to_string();
        [
            ("TRIBUTARY_VIEW__TLS__MODE", "verify-full".to_owned()),
            ("TRIBUTARY_VIEW__TLS__CA_FILE", trusted),
        ]
    };
    let with = |tls: &[(&'static str, String)]| {
        let plain = plain.iter().map(|(key, value)| (*key, (*value).to_owned()));
        plain.chain(tls.iter().cloned()).collect::<Vec<_>>()
    };
    let start = async |variables: Vec<(&'static str, String)>| {
        let variables = variables.iter().map(|(key, value)| (*key, value.as_str()));
        Instance::start_unready(&world, &variables.collect::<Vec<_>>()).await
    };
    for refused in [with(&[]), with(&trusting(&stranger))] {
        let instance = start(refused).await?;
        instance
            .get("/v1/products/1")
            .await?
            .problem(503, "view_unavailable")?;
    }
    std::fs::write(password.path(), "another")?;
    let instance = start(with(&trusting(&front.authority))).await?;
    let answer = instance.get("/v1/products/1").await?;
    ensure!(answer.status == 503, "{answer:?}");
    std::fs::write(password.path(), TEST_PASSWORD)?;
    until("the new password is taken", async || {
        let answer = instance.get("/v1/products/1").await?;
        Ok((answer.status == 200).then_some(()))
    })
    .await
}
