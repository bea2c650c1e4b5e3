//! Links to the view's database and to the sources that it is compared with, which nobody on the
//! way reads.

use std::path::Path;

use aggregator::config::{Config, ViewConfig};
use aggregator::verify::{Options, Report, verify};
use anyhow::{Context, Result, ensure};
use fixtures::certificates::Authority;
use fixtures::postgres::{Encrypted, Front, TEST_PASSWORD};
use fixtures::servers;
use links::{TlsConfig, TlsMode};

use crate::Database;
use crate::oracle::unified_tables_equal_joins;
use crate::rules::{apply, begin, order};

const ROLE: &str = "compares";

/// What [`begin`] has of sales.
const ROWS: &str = "
    CREATE TABLE sls_order (id bigint PRIMARY KEY, customer_id int, date timestamptz);
    CREATE TABLE sls_orderdetail (
        id bigint PRIMARY KEY, item_id int, unit_price numeric(8, 2), quantity int, order_id bigint
    );
    INSERT INTO sls_order VALUES (1, 1, '2024-01-01T00:00:00Z'), (2, 2, '2024-01-01T00:00:00Z');
    INSERT INTO sls_orderdetail VALUES (1, 1, 6, 1, 1), (2, 2, 4, 1, 1);
    GRANT SELECT ON ALL TABLES IN SCHEMA public TO compares";

/// A view that says it is past all that its source holds.
async fn view() -> Result<Database> {
    let database = Database::new().await?;
    drop(begin(&database).await?);
    let past = "UPDATE public.positions SET lsn = '7FFFFFF/0' WHERE source = 'sales'";
    database.client.batch_execute(past).await?;
    Ok(database)
}

/// Compares the mirrors of sales with this source.
async fn compared(database: &Database, source: &str) -> Result<Report> {
    use secrecy::ExposeSecret as _;
    let file = tempfile::NamedTempFile::new()?;
    let text = format!(
        "sources = [\"sales\"]\n[view]\nurl = {:?}\n[kafka]\nbootstrap = \"127.0.0.1:1\"\n\
        [admin]\nlisten = \"127.0.0.1:1\"\n[verify.sources.sales]\n{source}",
        database.config.url.expose_secret()
    );
    std::fs::write(file.path(), text)?;
    let config: Config = service::config::load(file.path())?;
    let options = Options {
        sources: vec!["sales".to_owned()],
        ..Options::default()
    };
    verify(&config, &options, |_| ()).await
}

fn is_equal(report: &Report) {
    assert!(report.not_compared.is_empty(), "{report:?}");
    assert_eq!(report.difference_count, 0, "{report:?}");
    assert_eq!(report.rows.values().sum::<u64>(), 4, "{report:?}");
}

fn tls(mode: &str, authority: &Path) -> String {
    let authority = authority.display();
    format!("[verify.sources.sales.tls]\nmode = \"{mode}\"\nca_file = \"{authority}\"\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_compared_by_encrypted_sessions_only_and_is_who_it_should_be() -> Result<()> {
    let database = view().await?;
    let mut source = Encrypted::start().await?;
    let owner = source.server.superuser("postgres").await?;
    let create = format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{TEST_PASSWORD}'");
    owner.batch_execute(&create).await?;
    let name = servers::database(&source.server, "sales").await?;
    let owner = source.server.superuser(&name).await?;
    owner.batch_execute(ROWS).await?;
    let scram = "hostssl all all 127.0.0.1/32 scram-sha-256\nhostssl all all ::1/128 scram-sha-256";
    source.admit(scram).await?;
    let (port, trusted) = (source.server.port(), source.authority.certificate());
    let way = |host: &str| format!("url = \"postgres://{ROLE}@{host}:{port}/{name}\"\n");
    let password = tempfile::NamedTempFile::new()?;
    std::fs::write(password.path(), format!("{TEST_PASSWORD}\n"))?;
    let password = format!("password_file = \"{}\"\n", password.path().display());
    let by_name = format!("{}{password}", way("localhost"));
    let whole = format!("{by_name}{}", tls("verify-full", &trusted));
    is_equal(&compared(&database, &whole).await?);

    let stranger = Authority::new()?;
    let by_number = format!("{}{password}", way("127.0.0.1"));
    for (refused, why) in [
        (by_name.clone(), "no encryption"),
        (
            format!("{by_name}{}", tls("verify-ca", &stranger.certificate())),
            "certificate verify failed",
        ),
        (
            format!("{by_number}{}", tls("verify-full", &trusted)),
            "certificate verify failed",
        ),
    ] {
        let report = compared(&database, &refused).await?;
        let first = report.not_compared.first().context("it was compared")?;
        ensure!(first.why.contains(why), "{why}: {first:?}");
        ensure!(
            first.why.contains("verify.sources.sales"),
            "{why}: {first:?}"
        );
        ensure!(report.rows.is_empty(), "{report:?}");
    }

    source
        .admit("hostssl all all 127.0.0.1/32 cert\nhostssl all all ::1/128 cert")
        .await?;
    let mine = source.authority.issue(ROLE, &[])?;
    let shown = format!(
        "{}{}certificate_file = \"{}\"\nkey_file = \"{}\"\n",
        way("localhost"),
        tls("verify-full", &trusted),
        mine.certificate.display(),
        mine.key.display()
    );
    is_equal(&compared(&database, &shown).await?);
    Ok(())
}

/// The view's server speaks nothing but TLS.
#[tokio::test(flavor = "multi_thread")]
async fn the_view_is_written_by_encrypted_sessions_only() -> Result<()> {
    let mut database = Database::new().await?;
    let front = Front::of(fixtures::servers().view().await?.port()).await?;
    let (port, name) = (front.port(), &database.name);
    let password = tempfile::NamedTempFile::new()?;
    std::fs::write(password.path(), TEST_PASSWORD)?;
    let plain = ViewConfig {
        url: format!("postgres://postgres@localhost:{port}/{name}").into(),
        password_file: Some(password.path().to_owned()),
        ..ViewConfig::default()
    };
    let trusting = |authority: &Authority| ViewConfig {
        tls: TlsConfig {
            mode: TlsMode::VerifyFull,
            ca_file: Some(authority.certificate()),
            ..TlsConfig::default()
        },
        ..plain.clone()
    };
    let stranger = Authority::new()?;
    for refused in [plain.clone(), trusting(&stranger)] {
        database.config = refused;
        ensure!(database.open().await.is_err());
    }
    database.config = trusting(&front.authority);
    let (mut view, mut shop) = begin(&database).await?;
    order(&mut shop, 3, 3);
    apply(&mut view, &mut shop, "sales").await?;
    unified_tables_equal_joins(&database, &aggregator::SOURCES).await
}
