//! What must hold before a connector starts: each fault one sentence that says what to do, with
//! the SQL for the source's owner where it is theirs to do.

use std::fmt::Write as _;

use tokio_postgres::SimpleQueryRow;
use tokio_postgres::error::SqlState;

use super::session::{self, Session, SourceError, identifier, literal};
use crate::config::{ConnectorConfig, split_qualified};
use crate::encode::Kind;
use crate::source::catalog::Catalog;

const DOING: &str = "check the source";

/// The oldest version that has all we use.
const VERSION_MIN: u32 = 150_000;

/// Something that somebody has to put right; trying again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// A check could not be ended, or was and found faults.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("{}", sentences(.0))]
    Faults(Vec<Fault>),
    #[error(transparent)]
    Source(#[from] SourceError),
}

fn sentences(faults: &[Fault]) -> String {
    let texts: Vec<_> = faults.iter().map(|fault| fault.0.as_str()).collect();
    texts.join("\n")
}

/// Looks at everything that a connector needs of the source. Changes nothing.
///
/// # Errors
/// All faults at once; or where the source cannot be asked now.
pub async fn check(config: &ConnectorConfig) -> Result<(), CheckError> {
    let postgres = config
        .postgres
        .parse()
        .map_err(|error| one(format!("postgres.url is no URL of PostgreSQL: {error}; write postgres://user:password@host:port/database")))?;
    if postgres.get_ssl_mode() == tokio_postgres::config::SslMode::Require {
        return Err(one(
            "postgres.url has sslmode=require, which is not supported yet; use sslmode=prefer or disable on a trusted network".to_owned(),
        ));
    }
    let session = match Session::connect(&postgres, &[]).await {
        Ok(session) => session,
        Err(error) => return Err(refused(&postgres, error)),
    };
    let mut faults = Vec::new();
    server(&session, &mut faults).await?;
    role(&session, &postgres, &mut faults).await?;
    slot(&session, config, &mut faults).await?;
    let published = publication(&session, config, &mut faults).await?;
    for table in &config.tables {
        table_faults(&session, config, table, published, &mut faults).await?;
    }
    if faults.is_empty() {
        key_types(&session, config, &mut faults).await?;
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(CheckError::Faults(faults))
    }
}

fn one(sentence: String) -> CheckError {
    CheckError::Faults(vec![Fault(sentence)])
}

/// A refused connection is a fault if the same would be refused later, too.
fn refused(postgres: &tokio_postgres::Config, error: SourceError) -> CheckError {
    let user = postgres.get_user().unwrap_or_default();
    let database = postgres.get_dbname().unwrap_or(user);
    let said = error.to_string();
    match error.sql_state() {
        Some(state) if *state == SqlState::INVALID_PASSWORD => one(format!(
            "the source refuses the password of user {user}; correct postgres.url, or let the owner run: ALTER ROLE {} WITH LOGIN PASSWORD '…';",
            identifier(user)
        )),
        Some(state) if *state == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => one(format!(
            "the source does not let user {user} in: {said}; let the owner run: ALTER ROLE {} WITH LOGIN; and allow the connection in pg_hba.conf",
            identifier(user)
        )),
        Some(state) if *state == SqlState::INVALID_CATALOG_NAME => one(format!(
            "the source has no database {database}; correct postgres.url, or let the owner run: CREATE DATABASE {};",
            identifier(database)
        )),
        Some(state) if *state == SqlState::INSUFFICIENT_PRIVILEGE => one(format!(
            "user {user} may not connect to database {database}; let the owner run: GRANT CONNECT ON DATABASE {} TO {};",
            identifier(database),
            identifier(user)
        )),
        _ if said.contains("password missing") => one(format!(
            "the source asks for a password of user {user}, but postgres.url has none; write postgres://{user}:password@host:port/{database}"
        )),
        _ => CheckError::Source(error),
    }
}

async fn server(session: &Session, faults: &mut Vec<Fault>) -> Result<(), SourceError> {
    let row = session
        .row(
            DOING,
            "SELECT current_setting('server_version_num'), current_setting('wal_level'), \
             current_setting('max_slot_wal_keep_size'), current_setting('server_encoding'), \
             current_setting('server_version')",
        )
        .await?;
    if session::get::<u32>(DOING, &row, 0)? < VERSION_MIN {
        fault(
            faults,
            format_args!(
                "the source runs PostgreSQL {}; upgrade it to 15 or newer",
                name(&row, 4)
            ),
        );
    }
    if name(&row, 1) != "logical" {
        fault(
            faults,
            format_args!(
                "the source's wal_level is {}, not logical; let the owner run: ALTER SYSTEM SET wal_level = 'logical'; and restart the server",
                name(&row, 1)
            ),
        );
    }
    if name(&row, 2) == "-1" {
        fault(
            faults,
            format_args!(
                "the source would keep WAL for a slot without limit and could fill its disk; let the owner run: ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'; SELECT pg_reload_conf(); with what the disk can spare"
            ),
        );
    }
    if name(&row, 3) == "SQL_ASCII" {
        fault(
            faults,
            format_args!(
                "the source's database has the encoding SQL_ASCII, in which text has no meaning; let the owner move it to a database with ENCODING 'UTF8'"
            ),
        );
    }
    Ok(())
}

async fn role(
    session: &Session,
    postgres: &tokio_postgres::Config,
    faults: &mut Vec<Fault>,
) -> Result<(), SourceError> {
    let row = session
        .row(
            DOING,
            "SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user",
        )
        .await?;
    if !is_true(&row, 0) {
        let user = postgres.get_user().unwrap_or_default();
        fault(
            faults,
            format_args!(
                "user {user} may not replicate; let the owner run: ALTER ROLE {} REPLICATION;",
                identifier(user)
            ),
        );
    }
    Ok(())
}

async fn slot(
    session: &Session,
    config: &ConnectorConfig,
    faults: &mut Vec<Fault>,
) -> Result<(), SourceError> {
    let slot = &config.postgres.slot;
    let sql = format!(
        "SELECT slot_type, plugin, concat_ws(', ', slot_type, plugin, database), \
             database = current_database() FROM pg_replication_slots \
         WHERE slot_name = {}",
        literal(slot)
    );
    let Some(row) = session.rows(DOING, &sql).await?.into_iter().next() else {
        return Ok(());
    };
    if name(&row, 0) != "logical" || name(&row, 1) != "pgoutput" || !is_true(&row, 3) {
        fault(
            faults,
            format_args!(
                "the replication slot {slot} belongs to something else ({}); set another name in postgres.slot, or if nobody needs it let the owner run: SELECT pg_drop_replication_slot({});",
                name(&row, 2),
                literal(slot)
            ),
        );
    }
    Ok(())
}

/// True if the publication is there.
async fn publication(
    session: &Session,
    config: &ConnectorConfig,
    faults: &mut Vec<Fault>,
) -> Result<bool, SourceError> {
    let publication = &config.postgres.publication;
    let sql = format!(
        "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot \
         FROM pg_publication WHERE pubname = {}",
        literal(publication)
    );
    let tables = config.tables.iter().map(|table| sql_name(table));
    let tables = tables.collect::<Vec<_>>().join(", ");
    let quoted = identifier(publication);
    let Some(row) = session.rows(DOING, &sql).await?.into_iter().next() else {
        fault(
            faults,
            format_args!(
                "the source has no publication {publication}; let the owner run: CREATE PUBLICATION {quoted} FOR TABLE {tables};"
            ),
        );
        return Ok(false);
    };
    if is_true(&row, 0) {
        fault(
            faults,
            format_args!(
                "the publication {publication} is FOR ALL TABLES, so a table without a primary key would refuse its owner's UPDATEs; let the owner run: DROP PUBLICATION {quoted}; CREATE PUBLICATION {quoted} FOR TABLE {tables};"
            ),
        );
    }
    if !is_true(&row, 1) {
        fault(
            faults,
            format_args!(
                "the publication {publication} leaves out some kinds of changes; let the owner run: ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate');"
            ),
        );
    }
    Ok(true)
}

async fn table_faults(
    session: &Session,
    config: &ConnectorConfig,
    qualified: &str,
    published: bool,
    faults: &mut Vec<Fault>,
) -> Result<(), SourceError> {
    let Some((schema, table)) = split_qualified(qualified) else {
        return Ok(());
    };
    let sql = format!(
        "SELECT c.relkind, c.relreplident, i.indexrelid IS NOT NULL, \
             has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'), \
             row_security_active(c.oid), p.pubname IS NOT NULL, p.rowfilter IS NOT NULL, \
             (SELECT bool_and(a.attname = ANY (p.attnames)) FROM pg_attribute a \
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
              AND a.attgenerated = ''), \
             c.relpersistence, current_user, (i.indisreplident AND c.relreplident = 'i') \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary \
         LEFT JOIN pg_publication_tables p \
             ON p.pubname = {} AND p.schemaname = n.nspname AND p.tablename = c.relname \
         WHERE n.nspname = {} AND c.relname = {}",
        literal(&config.postgres.publication),
        literal(schema),
        literal(table)
    );
    let (quoted, publication) = (
        sql_name(qualified),
        identifier(&config.postgres.publication),
    );
    let Some(row) = session.rows(DOING, &sql).await?.into_iter().next() else {
        fault(
            faults,
            format_args!("the source has no table {qualified}; correct the key tables"),
        );
        return Ok(());
    };
    if name(&row, 0) != "r" || name(&row, 9) != "p" {
        fault(
            faults,
            format_args!(
                "{qualified} is no ordinary table (partitioned, foreign and unlogged ones and views are not captured); take it out of the key tables"
            ),
        );
        return Ok(());
    }
    if !is_true(&row, 2) {
        fault(
            faults,
            format_args!(
                "the table {qualified} has no primary key, so its rows cannot be told apart; let the owner run: ALTER TABLE {quoted} ADD PRIMARY KEY (…);"
            ),
        );
        return Ok(());
    }
    if !matches!(name(&row, 1), "d" | "f") && !is_true(&row, 11) {
        fault(
            faults,
            format_args!(
                "the table {qualified} does not log its primary key on UPDATE and DELETE; let the owner run: ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT;"
            ),
        );
    }
    let user = identifier(name(&row, 10));
    if !is_true(&row, 3) {
        fault(
            faults,
            format_args!(
                "user {} may not use the schema {schema}; let the owner run: GRANT USAGE ON SCHEMA {} TO {user};",
                name(&row, 10),
                identifier(schema)
            ),
        );
    }
    if !is_true(&row, 4) {
        fault(
            faults,
            format_args!(
                "user {} may not read the table {qualified}; let the owner run: GRANT SELECT ON {quoted} TO {user};",
                name(&row, 10)
            ),
        );
    } else if is_true(&row, 5) {
        fault(
            faults,
            format_args!(
                "row security hides rows of {qualified} from user {}; let the owner run: ALTER ROLE {user} BYPASSRLS;",
                name(&row, 10)
            ),
        );
    }
    if published && !is_true(&row, 6) {
        fault(
            faults,
            format_args!(
                "the publication {} lacks the table {qualified}; let the owner run: ALTER PUBLICATION {publication} ADD TABLE {quoted};",
                config.postgres.publication
            ),
        );
    } else if published && is_true(&row, 7) {
        fault(
            faults,
            format_args!(
                "the publication {} filters the rows of {qualified}; let the owner run: ALTER PUBLICATION {publication} DROP TABLE {quoted}; ALTER PUBLICATION {publication} ADD TABLE {quoted};",
                config.postgres.publication
            ),
        );
    } else if published && !is_true(&row, 8) {
        fault(
            faults,
            format_args!(
                "the publication {} leaves out columns of {qualified}; let the owner run: ALTER PUBLICATION {publication} DROP TABLE {quoted}; ALTER PUBLICATION {publication} ADD TABLE {quoted};",
                config.postgres.publication
            ),
        );
    }
    Ok(())
}

/// A key must be found again from a record's key, or a reconciliation could not ask for it.
async fn key_types(
    session: &Session,
    config: &ConnectorConfig,
    faults: &mut Vec<Fault>,
) -> Result<(), SourceError> {
    let catalog = Catalog::read(session, &config.postgres.publication, &config.tables).await?;
    for (qualified, table) in &catalog.tables {
        for column in table
            .key
            .iter()
            .filter(|column| !column.kind.is_invertible())
        {
            let kind = match column.kind {
                Kind::Float => "a float is no exact value",
                _ => "its values have no form of their own in a record's key",
            };
            fault(
                faults,
                format_args!(
                    "the primary key column {} of {qualified} is of type {}, which cannot be captured: {kind}; take the table out of the key tables",
                    column.name, column.type_name
                ),
            );
        }
    }
    Ok(())
}

fn fault(faults: &mut Vec<Fault>, sentence: std::fmt::Arguments<'_>) {
    let mut text = String::new();
    _ = text.write_fmt(sentence);
    faults.push(Fault(text));
}

fn sql_name(qualified: &str) -> String {
    match split_qualified(qualified) {
        Some((schema, table)) => format!("{}.{}", identifier(schema), identifier(table)),
        None => identifier(qualified),
    }
}

fn is_true(row: &SimpleQueryRow, column: usize) -> bool {
    session::text(row, column) == Some("t")
}

fn name(row: &SimpleQueryRow, column: usize) -> &str {
    session::text(row, column).unwrap_or_default()
}
