//! Links that nobody reads or forges, and secrets that are nowhere to be read.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use fixtures::broker::{Kafka, Listener, Security};
use fixtures::certificates::{Authority, Certificate};
use fixtures::postgres::{Encrypted, TEST_PASSWORD};
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::harness::{Plan, Rig, equals_source};

const ITEM: &str = "public.item";
const DDL: &str = "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL)";

/// Looks like a number, and is none.
const KAFKA_PASSWORD: &str = "00481516234200";

/// On a server that has TLS.
struct Source(Encrypted);

impl Source {
    async fn start() -> Result<Self> {
        Ok(Self(Encrypted::start().await?))
    }

    /// From now on everybody but the owner comes in by these rules of `pg_hba.conf`.
    async fn rig(&mut self, rules: &str) -> Result<Rig> {
        self.0.admit(rules).await?;
        Rig::on(&self.0.server, &[ITEM], DDL).await
    }

    /// With the host's name.
    fn url(&self, rig: &Rig) -> String {
        let (role, port, database) = (&rig.role, self.0.server.port(), &rig.database);
        format!("postgres://{role}@localhost:{port}/{database}")
    }

    fn tls(&self, mode: &str) -> String {
        tls("postgres", mode, &self.0.authority.certificate())
    }
}

const TLS_ONLY: &str = "hostssl all all 127.0.0.1/32 scram-sha-256\n\
                        hostssl all all ::1/128 scram-sha-256";

fn tls(link: &str, mode: &str, authority: &Path) -> String {
    format!(
        "[{link}.tls]\nmode = \"{mode}\"\nca_file = \"{}\"\n",
        authority.display()
    )
}

fn shown(certificate: &Certificate) -> String {
    format!(
        "certificate_file = \"{}\"\nkey_file = \"{}\"\n",
        certificate.certificate.display(),
        certificate.key.display()
    )
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no UTF-8")
}

/// The codes of a check.
async fn codes(plan: &Plan<'_>) -> Result<(Option<i32>, Vec<String>, String)> {
    let (code, output) = plan.command(&["check", "--json"]).await?;
    let report: Value = serde_json::from_str(&output).with_context(|| output.clone())?;
    let findings = report["findings"].as_array().into_iter().flatten();
    let codes = findings.filter_map(|one| one["code"].as_str().map(str::to_owned));
    Ok((code, codes.collect(), output))
}

async fn streams(plan: &Plan<'_>, rig: &Rig) -> Result<()> {
    let connector = plan.start()?;
    connector.ready().await?;
    rig.run("INSERT INTO item SELECT coalesce(max(id), 0) + 1, 1 FROM item")
        .await?;
    equals_source(rig, &mut rig.journal()?, &[ITEM]).await
}

/// On 15 only: the PostgreSQL 18 that tests run is built without TLS.
#[tokio::test(flavor = "multi_thread")]
async fn every_session_with_a_source_is_encrypted() -> Result<()> {
    let mut source = Source::start().await?;
    let rig = source.rig(TLS_ONLY).await?;
    rig.run("INSERT INTO item SELECT n, n FROM generate_series(1, 500) n")
        .await?;
    let password = tempfile::NamedTempFile::new()?;
    std::fs::write(password.path(), format!("{TEST_PASSWORD}\n"))?;
    let plan = rig
        .connector()
        .url(&source.url(&rig))
        .postgres(&format!("password_file = \"{}\"", text(password.path())?))
        .sections(&source.tls("verify-full"));
    let (code, findings, output) = codes(&plan).await?;
    assert_eq!((code, findings), (Some(0), vec![]), "{output}");
    let connector = plan.start()?;
    connector.ready().await?;
    rig.run("UPDATE item SET n = n + 1").await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await?;
    let row = rig
        .db
        .query_one(
            "SELECT count(*), count(*) FILTER (WHERE s.ssl), \
                 count(*) FILTER (WHERE a.backend_type = 'walsender') \
             FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) WHERE a.usename = $1",
            &[&rig.role],
        )
        .await?;
    let (sessions, encrypted, senders): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert!(sessions >= 3 && senders == 1, "{sessions} {senders}");
    assert_eq!(sessions, encrypted);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_not_who_it_should_be_is_refused() -> Result<()> {
    let mut source = Source::start().await?;
    let rig = source.rig(TLS_ONLY).await?;
    let stranger = Authority::new()?;
    let by_name = rig
        .connector()
        .url(&source.url(&rig))
        .postgres(&format!("password = \"{TEST_PASSWORD}\""));
    let by_number = rig.connector();
    let ca = |mode| tls("postgres", mode, &stranger.certificate());
    for (plan, expected) in [
        (by_name.clone(), Some("tls_wanted")),
        (
            by_name.clone().sections(&ca("verify-ca")),
            Some("tls_refused"),
        ),
        (by_name.clone().sections(&ca("require")), None),
        (by_name.clone().sections(&source.tls("verify-full")), None),
        // The certificate is for localhost.
        (
            by_number.clone().sections(&source.tls("verify-full")),
            Some("tls_refused"),
        ),
        (by_number.sections(&source.tls("verify-ca")), None),
    ] {
        let (code, findings, output) = codes(&plan).await?;
        match expected {
            None => assert_eq!((code, findings), (Some(0), vec![]), "{output}"),
            Some(expected) => {
                assert_eq!(
                    (code, findings),
                    (Some(2), vec![expected.to_owned()]),
                    "{output}"
                );
                // A start ends likewise, and does not go round in a circle.
                let (code, log) = plan.start()?.ended().await?;
                assert_eq!(code, Some(2), "{log}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_has_no_tls_gets_no_password() -> Result<()> {
    let rig = Rig::new(&[ITEM], DDL).await?;
    let authority = Authority::new()?;
    let plan = rig
        .connector()
        .sections(&tls("postgres", "require", &authority.certificate()));
    let (code, findings, output) = codes(&plan).await?;
    assert_eq!(
        (code, findings),
        (Some(2), vec!["tls_missing".to_owned()]),
        "{output}"
    );
    // The URL's word means the same.
    let server = fixtures::servers().source().await?;
    let url = format!("{}?sslmode=require", server.url(&rig.role, &rig.database));
    let (_, findings, output) = codes(&rig.connector().url(&url)).await?;
    assert_eq!(findings, ["tls_missing"], "{output}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_lets_in_without_a_password() -> Result<()> {
    let mut source = Source::start().await?;
    let rig = source
        .rig("hostssl all all 127.0.0.1/32 cert\nhostssl all all ::1/128 cert")
        .await?;
    let plan = rig.connector().url(&source.url(&rig));
    let bare = plan.clone().sections(&source.tls("verify-full"));
    let (code, findings, output) = codes(&bare).await?;
    assert_eq!(
        (code, findings),
        (Some(2), vec!["tls_client_certificate".to_owned()]),
        "{output}"
    );
    let mine = source.0.authority.issue(&rig.role, &[])?;
    let section = format!("{}{}", source.tls("verify-full"), shown(&mine));
    streams(&plan.clone().sections(&section), &rig).await?;
    // The key of another certificate.
    let other = source.0.authority.issue("other", &[])?;
    let mixed = Certificate {
        key: other.key,
        ..mine
    };
    let section = format!("{}{}", source.tls("verify-full"), shown(&mixed));
    let (code, findings, output) = codes(&plan.sections(&section)).await?;
    assert_eq!(
        (code, findings),
        (Some(2), vec!["tls".to_owned()]),
        "{output}"
    );
    Ok(())
}

/// A broker with a listener for each way in.
struct Broker {
    kafka: Kafka,
    authority: Authority,
    encrypted: u16,
    mutual: u16,
    sasl: u16,
}

async fn broker() -> Result<&'static Broker> {
    static BROKER: OnceCell<Broker> = OnceCell::const_new();
    BROKER.get_or_try_init(start_broker).await
}

async fn start_broker() -> Result<Broker> {
    let authority = Authority::new()?;
    let certificate = authority.issue("broker", &["DNS:localhost", "IP:127.0.0.1"])?;
    let (keystore, truststore) = (authority.joined(&certificate)?, authority.certificate());
    let free = fixtures::place::free_port;
    let (encrypted, mutual, sasl) = (free()?, free()?, free()?);
    let listener = |name: &str, protocol: &str, port| Listener {
        name: name.to_owned(),
        protocol: protocol.to_owned(),
        port,
        advertised: None,
    };
    let user = |mechanism| format!("{mechanism}=[name=connector,password={KAFKA_PASSWORD}]");
    let module = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    let kafka = Kafka::start_secured(
        &[
            ("ssl.keystore.type", "PEM"),
            ("ssl.keystore.location", text(&keystore)?),
            ("ssl.truststore.type", "PEM"),
            ("ssl.truststore.location", text(&truststore)?),
            ("listener.name.mutual.ssl.client.auth", "required"),
            ("sasl.enabled.mechanisms", "SCRAM-SHA-256,SCRAM-SHA-512"),
            ("listener.name.sasl.scram-sha-256.sasl.jaas.config", module),
            ("listener.name.sasl.scram-sha-512.sasl.jaas.config", module),
        ],
        Security {
            listeners: vec![
                listener("ENCRYPTED", "SSL", encrypted),
                listener("MUTUAL", "SSL", mutual),
                listener("SASL", "SASL_SSL", sasl),
            ],
            users: vec![user("SCRAM-SHA-256"), user("SCRAM-SHA-512")],
        },
    )
    .await?;
    Ok(Broker {
        kafka,
        authority,
        encrypted,
        mutual,
        sasl,
    })
}

impl Broker {
    /// A source whose topics are this broker's.
    async fn rig(&self) -> Result<Rig> {
        let mut rig = Rig::new(&[ITEM], DDL).await?;
        rig.bootstrap = self.kafka.bootstrap();
        Ok(rig)
    }

    fn tls(&self) -> String {
        tls("kafka", "verify-full", &self.authority.certificate())
    }
}

fn at(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_reached_with_tls_and_with_certificates() -> Result<()> {
    let broker = broker().await?;
    let rig = broker.rig().await?;
    let encrypted = rig.connector().bootstrap(&at(broker.encrypted));
    streams(&encrypted.clone().sections(&broker.tls()), &rig).await?;

    let mine = broker.authority.issue("connector", &[])?;
    let section = format!("{}{}", broker.tls(), shown(&mine));
    let mutual = rig.connector().bootstrap(&at(broker.mutual));
    streams(&mutual.clone().sections(&section), &rig).await?;

    let stranger = Authority::new()?;
    let strange = tls("kafka", "verify-full", &stranger.certificate());
    for (plan, reason) in [
        (encrypted.clone().sections(&strange), "certificate"),
        (mutual.sections(&broker.tls()), "SSL"),
        // Not spoken to in TLS at all.
        (encrypted, "127.0.0.1"),
    ] {
        let (code, findings, output) = codes(&plan).await?;
        assert_eq!(
            (code, findings),
            (Some(2), vec!["kafka_refused".to_owned()]),
            "{output}"
        );
        assert!(output.contains(reason), "{output}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_knows_a_user_by_scram() -> Result<()> {
    let broker = broker().await?;
    let rig = broker.rig().await?;
    let plan = rig
        .connector()
        .bootstrap(&at(broker.sasl))
        .sections(&broker.tls());
    let sasl = |mechanism: &str, rest: &str| {
        plan.clone().sections(&format!(
            "[kafka.sasl]\nmechanism = \"{mechanism}\"\nusername = \"connector\"\n{rest}"
        ))
    };
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), format!("{KAFKA_PASSWORD}\n"))?;
    let from_file = format!("password_file = \"{}\"", text(file.path())?);
    streams(&sasl("SCRAM-SHA-512", &from_file), &rig).await?;
    let from_environment =
        sasl("SCRAM-SHA-256", "").variable("TRIBUTARY_KAFKA__SASL__PASSWORD", KAFKA_PASSWORD);
    streams(&from_environment, &rig).await?;

    let (code, findings, output) = codes(&sasl("SCRAM-SHA-512", "password = \"wrong\"")).await?;
    assert_eq!(
        (code, findings),
        (Some(2), vec!["kafka_refused".to_owned()]),
        "{output}"
    );
    assert!(output.contains("uthentication"), "{output}");
    let (code, findings, output) = codes(&sasl("SCRAM-SHA-512", "")).await?;
    assert_eq!(
        (code, findings),
        (Some(2), vec!["configuration".to_owned()]),
        "{output}"
    );
    assert!(output.contains("no password"), "{output}");
    Ok(())
}

/// Planted wherever a secret may stand, and looked for wherever one must not.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_a_log_or_an_error() -> Result<()> {
    const SECRET: &str = "Xyzzy-4711-hush";
    let broker = broker().await?;
    let rig = broker.rig().await?;
    rig.run(&format!("ALTER ROLE {} PASSWORD '{SECRET}'", rig.role))
        .await?;
    let port = fixtures::servers().source().await?.port();
    let url =
        |password: &str, port| fixtures::postgres::url(&rig.role, password, port, &rig.database);
    let right = rig
        .connector()
        .url(&url(SECRET, port))
        .variable("RUST_LOG", "trace");
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), SECRET)?;
    let in_file = format!("password_file = \"{}\"", text(file.path())?);
    let sasl = |lines: &str| {
        right
            .clone()
            .bootstrap(&at(broker.sasl))
            .sections(&broker.tls())
            .sections(&format!("[kafka.sasl]\nusername = \"connector\"\n{lines}"))
    };
    let dead = fixtures::place::free_port()?;
    let plans = [
        right.clone(),
        // Refused, unreachable, given twice.
        rig.connector().url(&url("Xyzzy-4711-hush-hush", port)),
        rig.connector().url(&url(SECRET, dead)),
        right.clone().postgres(&format!("password = \"{SECRET}\"")),
        right.clone().postgres(&in_file),
        // A URL that is none, a quote forgotten, a section that is a secret.
        rig.connector()
            .url(&format!("postgres://u:{SECRET}@h:port/d")),
        rig.connector().postgres(&format!("password = \"{SECRET}")),
        rig.connector().sections(&format!("kafka = \"{SECRET}\"")),
        rig.connector()
            .variable("TRIBUTARY_KAFKA__SASL", &format!("password={SECRET}")),
        sasl(&format!("password = \"{SECRET}\"")),
        sasl(&in_file),
    ];
    for (number, plan) in plans.iter().enumerate() {
        for command in ["check", "plan"] {
            for json in [&[command][..], &[command, "--json"]] {
                let (_, output) = plan.command(json).await?;
                ensure!(!output.is_empty(), "plan {number} says nothing");
                ensure!(!output.contains(SECRET), "plan {number}: {output}");
            }
        }
    }
    let connector = right.start()?;
    connector.ready().await?;
    rig.run("INSERT INTO item VALUES (1, 1)").await?;
    equals_source(&rig, &mut rig.journal()?, &[ITEM]).await?;
    let status = connector.status().await?.to_string();
    let log = connector.log();
    ensure!(!log.contains(SECRET) && !status.contains(SECRET), "{log}");
    connector.kill().await;
    let refused = sasl(&format!("password = \"{SECRET}\"")).start()?;
    refused.logged("uthentication").await?;
    ensure!(!refused.log().contains(SECRET), "{}", refused.log());
    Ok(())
}
