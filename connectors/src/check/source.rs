//! What a connector needs of the server, the role, the slot and the publication.

use links::Endpoint;
use tokio_postgres::SimpleQueryRow;
use tokio_postgres::error::SqlState;

use super::finding::Finding;
use super::publication::publication;
use super::table::tables;
use super::{is_true, name};
use crate::config::ConnectorConfig;
use crate::source::session::{self, Session, SourceError, identifier, literal};

pub(super) const DOING: &str = "check the source";

/// The oldest version that has all we use, and the newest that this was tested with.
const VERSION_MIN: u32 = 150_000;
const VERSION_TESTED: u32 = 189_999;

/// Less WAL for a slot makes a short outage a new epoch, bytes.
const SLOT_WAL_MIN: i64 = 1 << 30;

/// Everything that a session can tell.
pub(super) async fn examine(
    session: &Session,
    config: &ConnectorConfig,
) -> Result<Vec<Finding>, SourceError> {
    let mut findings = server(session).await?;
    findings.extend(role(session).await?);
    findings.extend(slot(session, config).await?);
    let (published, found) = publication(session, config).await?;
    findings.extend(found);
    findings.extend(tables(session, config, published).await?);
    Ok(findings)
}

/// A connection that was not made.
pub(crate) fn refused(postgres: &Endpoint, error: &SourceError) -> Finding {
    let user = postgres.get_user().unwrap_or_default();
    let database = postgres.get_dbname().unwrap_or(user);
    let said = error.to_string();
    let wrong = |code, cause| Finding::wrong(code, "postgres.url", cause);
    match error.sql_state() {
        Some(state) if *state == SqlState::INVALID_PASSWORD => wrong(
            "password",
            format!("the source refuses the password of user {user}"),
        )
        .setting(
            "postgres.password",
            "correct postgres.password, its file, or postgres.url",
        )
        .sql(format!(
            "ALTER ROLE {} WITH LOGIN PASSWORD '…';",
            identifier(user)
        ))
        .note("(CREATE ROLE … LOGIN REPLICATION where there is no such role: the source does not tell)"),
        Some(state)
            if *state == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
                && said.contains("client certificate") =>
        {
            wrong(
                "tls_client_certificate",
                format!("the source does not let user {user} in: {said}"),
            )
            .setting(
                "postgres.tls.certificate_file",
                "set certificate_file and key_file in [postgres.tls]",
            )
        }
        // pg_hba.conf lets nobody in here who speaks without TLS.
        Some(state)
            if *state == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
                && said.contains("no encryption")
                && !postgres.is_encrypted() =>
        {
            wrong(
                "tls_wanted",
                format!("the source does not let user {user} in without TLS: {said}"),
            )
            .setting(
                "postgres.tls.mode",
                "set mode = \"verify-full\" in [postgres.tls], and ca_file to who signed the source's certificate",
            )
        }
        Some(state) if *state == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => wrong(
            "login",
            format!("the source does not let user {user} in: {said}"),
        )
        .sql(format!("ALTER ROLE {} WITH LOGIN;", identifier(user)))
        .note("and allow the connection in pg_hba.conf"),
        Some(state) if *state == SqlState::INVALID_CATALOG_NAME => {
            wrong("database", format!("the source has no database {database}"))
                .setting("postgres.url", "correct postgres.url")
                .sql(format!("CREATE DATABASE {};", identifier(database)))
        }
        Some(state) if *state == SqlState::INSUFFICIENT_PRIVILEGE => wrong(
            "connect",
            format!("user {user} may not connect to database {database}"),
        )
        .sql(format!(
            "GRANT CONNECT ON DATABASE {} TO {};",
            identifier(database),
            identifier(user)
        )),
        Some(state) if *state == SqlState::TOO_MANY_CONNECTIONS => wrong("connections", said)
            .advice("wait, or let the owner raise max_connections")
            .passing(),
        _ if said.contains("password missing") => wrong(
            "password_missing",
            format!("the source asks for a password of user {user}, but none is configured"),
        )
        .setting(
            "postgres.password",
            "set postgres.password_file, TRIBUTARY_POSTGRES__PASSWORD, or postgres.password",
        ),
        _ if said.contains("server does not support TLS") => wrong("tls_missing", said)
            .setting("postgres.tls.mode", "set mode = \"disable\" in [postgres.tls] on a trusted network")
            .sql("ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf();")
            .note("with a certificate in ssl_cert_file"),
        // Neither side changes its mind; a handshake that merely broke is another matter.
        _ if ["certificate verify failed", " alert "].iter().any(|word| said.contains(word)) => wrong("tls_refused", said).setting(
            "postgres.tls",
            "set ca_file in [postgres.tls] to who signed the source's certificate, connect to a \
             host that it names, and show the certificate that pg_hba.conf asks for",
        ),
        _ => wrong("unreachable", said)
            .setting(
                "postgres.url",
                "start the server, open the way to it, or correct postgres.url",
            )
            .passing(),
    }
}

async fn server(session: &Session) -> Result<Vec<Finding>, SourceError> {
    let row = session
        .row(
            DOING,
            "SELECT current_setting('server_version_num'), current_setting('wal_level'), \
             current_setting('max_slot_wal_keep_size'), current_setting('server_encoding'), \
             current_setting('server_version'), pg_is_in_recovery(), \
             pg_size_bytes(nullif(current_setting('max_slot_wal_keep_size'), '-1'))",
        )
        .await?;
    let version: u32 = session::get(DOING, &row, 0)?;
    let mut findings = Vec::new();
    if version < VERSION_MIN {
        let cause = format!("the source runs PostgreSQL {}", name(&row, 4));
        let finding = Finding::wrong("version", "source", cause);
        findings.push(finding.advice("upgrade it to 15 or newer"));
    }
    if version > VERSION_TESTED {
        let cause = format!(
            "the source runs PostgreSQL {}, newer than this connector was tested with",
            name(&row, 4)
        );
        let finding = Finding::warning("version_untested", "source", cause);
        findings.push(finding.advice("try it on a copy first, or use a newer connector"));
    }
    if is_true(&row, 5) {
        let cause = "the source is a standby, which cannot keep the lock and the slot";
        let finding = Finding::wrong("standby", "source", cause);
        findings.push(
            finding
                .setting("postgres.url", "point postgres.url to the primary")
                .passing(),
        );
    }
    if name(&row, 1) != "logical" {
        let cause = format!("the source's wal_level is {}, not logical", name(&row, 1));
        findings.push(
            Finding::wrong("wal_level", "source", cause)
                .sql("ALTER SYSTEM SET wal_level = 'logical';")
                .note("and restart the server"),
        );
    }
    findings.extend(slot_wal(&row));
    if name(&row, 3) == "SQL_ASCII" {
        let cause =
            "the source's database has the encoding SQL_ASCII, in which text has no meaning";
        findings.push(
            Finding::wrong("encoding", "source", cause)
                .advice("let the owner move it to a database with ENCODING 'UTF8'"),
        );
    }
    Ok(findings)
}

fn slot_wal(row: &SimpleQueryRow) -> Option<Finding> {
    let bytes: Option<i64> = session::get(DOING, row, 6).ok();
    let set = |size: &str| {
        format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{size}'; SELECT pg_reload_conf();")
    };
    match bytes {
        None => Some(
            Finding::wrong(
                "slot_wal_unbounded",
                "source",
                "the source would keep WAL for a slot without limit and could fill its disk",
            )
            .sql(set("10GB"))
            .note("with what the disk can spare"),
        ),
        Some(bytes) if bytes < SLOT_WAL_MIN => Some(
            Finding::warning(
                "slot_wal_small",
                "source",
                format!(
                    "the source keeps at most {} of WAL for a slot: an outage that writes more \
                     costs the slot, and all tables are read again",
                    name(row, 2)
                ),
            )
            .sql(set("10GB"))
            .note("with what the disk can spare"),
        ),
        Some(_) => None,
    }
}

async fn role(session: &Session) -> Result<Vec<Finding>, SourceError> {
    let sql = "SELECT rolreplication, rolsuper, rolname FROM pg_roles WHERE rolname = current_user";
    let row = session.row(DOING, sql).await?;
    let (user, mut findings) = (name(&row, 2), Vec::new());
    let quoted = identifier(user);
    if is_true(&row, 1) {
        let cause = format!("user {user} is a superuser, and a connector needs far less");
        findings.push(
            Finding::warning("superuser", format!("role {user}"), cause)
                .sql(format!("ALTER ROLE {quoted} NOSUPERUSER REPLICATION;"))
                .note("and grant SELECT on the captured tables"),
        );
    } else if !is_true(&row, 0) {
        let cause = format!("user {user} may not replicate");
        findings.push(
            Finding::wrong("replication_right", format!("role {user}"), cause)
                .sql(format!("ALTER ROLE {quoted} REPLICATION;")),
        );
    }
    Ok(findings)
}

/// The slot as it stands, or the room for it.
async fn slot(session: &Session, config: &ConnectorConfig) -> Result<Vec<Finding>, SourceError> {
    let slot = &config.postgres.slot;
    let sql = format!(
        "SELECT slot_type, plugin, concat_ws(', ', slot_type, plugin, database), \
             database = current_database(), wal_status, \
             to_jsonb(s) ->> 'invalidation_reason', safe_wal_size, \
             pg_size_bytes(nullif(current_setting('max_slot_wal_keep_size'), '-1')) \
         FROM pg_replication_slots s WHERE slot_name = {}",
        literal(slot)
    );
    let Some(row) = session.rows(DOING, &sql).await?.into_iter().next() else {
        return room(session).await;
    };
    let place = format!("slot {slot}");
    if name(&row, 0) != "logical" || name(&row, 1) != "pgoutput" || !is_true(&row, 3) {
        let finding = Finding::wrong(
            "foreign_slot",
            place,
            format!(
                "the replication slot {slot} belongs to something else ({})",
                name(&row, 2)
            ),
        );
        let drop = format!("SELECT pg_drop_replication_slot({});", literal(slot));
        return Ok(vec![finding.sql(&drop).setting(
            "postgres.slot",
            format!(
                "set another name in postgres.slot, or if nobody needs it let the owner run: {drop}"
            ),
        )]);
    }
    if name(&row, 4) == "lost" || session::text(&row, 5).is_some() {
        let why = session::text(&row, 5).unwrap_or("its WAL was removed");
        let cause = format!("the replication slot {slot} is invalid ({why})");
        return Ok(vec![Finding::warning("slot_lost", place, cause).advice(
            "nothing needs to be done: the next start makes it anew, reads all tables again and \
             deletes what is gone; raise max_slot_wal_keep_size if outages last that long",
        )]);
    }
    let (left, limit): (Option<i64>, Option<i64>) = (
        session::get(DOING, &row, 6).ok(),
        session::get(DOING, &row, 7).ok(),
    );
    Ok(match (left, limit) {
        (Some(left), Some(limit)) if left < limit / 2 => {
            let cause = format!(
                "the replication slot {slot} holds back more than half of the WAL that the \
                 source grants it: {} MiB are left of {} MiB",
                left >> 20,
                limit >> 20
            );
            vec![Finding::warning("slot_wal_used", place, cause).advice(
                "start the connector or see what keeps it; once nothing is left, all tables are \
                 read again",
            )]
        }
        _ => Vec::new(),
    })
}

/// There is no slot yet: can one be made?
async fn room(session: &Session) -> Result<Vec<Finding>, SourceError> {
    let row = session
        .row(
            DOING,
            "SELECT (SELECT count(*) FROM pg_replication_slots), \
             current_setting('max_replication_slots')",
        )
        .await?;
    let (taken, most): (u32, u32) = (session::get(DOING, &row, 0)?, session::get(DOING, &row, 1)?);
    if taken < most {
        return Ok(Vec::new());
    }
    let cause = format!("all {most} replication slots of the source are taken");
    Ok(vec![
        Finding::wrong("no_free_slot", "source", cause)
            .sql(format!(
                "ALTER SYSTEM SET max_replication_slots = {};",
                most.saturating_add(4)
            ))
            .note("and restart the server, or drop a slot that nobody needs")
            .passing(),
    ])
}
