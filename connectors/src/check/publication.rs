//! What a connector needs of the publication, and what a publication does to its owner.

use super::finding::Finding;
use super::source::DOING;
use super::table::sql_name;
use super::{is_true, name};
use crate::config::{ConnectorConfig, split_qualified};
use crate::source::catalog::published;
use crate::source::session::{Session, SourceError, identifier, literal};

/// Is the publication there, and what is wrong with it?
pub(super) async fn publication(
    session: &Session,
    config: &ConnectorConfig,
) -> Result<(bool, Vec<Finding>), SourceError> {
    let publication = &config.postgres.publication;
    let sql = format!(
        "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate \
         FROM pg_publication WHERE pubname = {}",
        literal(publication)
    );
    let tables = config.tables.iter().map(|table| sql_name(table));
    let tables = tables.collect::<Vec<_>>().join(", ");
    let (quoted, place) = (
        identifier(publication),
        format!("publication {publication}"),
    );
    let Some(row) = session.rows(DOING, &sql).await?.into_iter().next() else {
        let cause = format!("the source has no publication {publication}");
        let finding = Finding::wrong("no_publication", place, cause)
            .sql(format!("CREATE PUBLICATION {quoted} FOR TABLE {tables};"));
        return Ok((false, vec![finding]));
    };
    let mut findings = Vec::new();
    if is_true(&row, 0) {
        let cause = format!(
            "the publication {publication} is FOR ALL TABLES, so a table without a primary key would refuse its owner's UPDATEs"
        );
        findings.push(Finding::wrong("all_tables", &place, cause).sql(format!(
            "DROP PUBLICATION {quoted}; CREATE PUBLICATION {quoted} FOR TABLE {tables};"
        )));
    }
    if !is_true(&row, 1) {
        let cause = format!("the publication {publication} leaves out some kinds of changes");
        findings.push(Finding::wrong("operations", &place, cause).sql(format!(
            "ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate');"
        )));
    }
    if !is_true(&row, 0) {
        findings.extend(schemas(session, config, &place).await?);
        findings.extend(unlisted(session, config, &place).await?);
    }
    Ok((true, findings))
}

/// Schemas that are published as a whole, with tables that are still to come.
async fn schemas(
    session: &Session,
    config: &ConnectorConfig,
    place: &str,
) -> Result<Vec<Finding>, SourceError> {
    let publication = &config.postgres.publication;
    let sql = format!(
        "SELECT n.nspname FROM pg_publication_namespace p \
         JOIN pg_publication b ON b.oid = p.pnpubid JOIN pg_namespace n ON n.oid = p.pnnspid \
         WHERE b.pubname = {} ORDER BY 1",
        literal(publication)
    );
    let rows = session.rows(DOING, &sql).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (schema, quoted) = (name(row, 0), identifier(publication));
            let listed = config.tables.iter().filter(|table| {
                split_qualified(table).is_some_and(|(of, _)| of == schema)
            });
            let mut mend = format!(
                "ALTER PUBLICATION {quoted} DROP TABLES IN SCHEMA {};",
                identifier(schema)
            );
            for table in listed {
                mend += &format!(" ALTER PUBLICATION {quoted} ADD TABLE {};", sql_name(table));
            }
            let cause = format!(
                "the publication {publication} has the schema {schema} as a whole, so a table of it \
                 without a primary key refuses its owner's UPDATEs"
            );
            Finding::warning("published_schema", place, cause).sql(mend)
        })
        .collect())
}

/// Tables that are published and not captured: the source decodes and sends them for nothing.
async fn unlisted(
    session: &Session,
    config: &ConnectorConfig,
    place: &str,
) -> Result<Vec<Finding>, SourceError> {
    let publication = &config.postgres.publication;
    // Without a replica identity the source refuses UPDATE and DELETE of whatever is published.
    let sql = format!(
        "SELECT n.nspname || '.' || c.relname, \
             EXISTS (SELECT FROM pg_publication_rel r WHERE r.oid = p.entry), \
             c.relreplident <> 'f' AND i.indexrelid IS NULL \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN {} ON true \
         LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indimmediate AND i.indisvalid \
             AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident \
                 ELSE false END \
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' ORDER BY 1",
        published(publication)
    );
    let rows = session.rows(DOING, &sql).await?;
    let is_listed = |table: &str| config.tables.iter().any(|listed| listed == table);
    let others = rows.iter().filter(|row| !is_listed(name(row, 0)));
    Ok(others
        .filter_map(|row| {
            let (table, by_itself) = (name(row, 0), is_true(row, 1));
            match is_true(row, 2) {
                true => Some(refuses_updates(publication, table, by_itself)),
                // What came with its schema goes with it.
                false => by_itself.then(|| not_listed(publication, table, place)),
            }
        })
        .collect())
}

fn refuses_updates(publication: &str, table: &str, by_itself: bool) -> Finding {
    let cause = format!(
        "the source refuses its owner's UPDATE and DELETE of {table}: it is in the publication \
         {publication}, and has no key that the log could tell"
    );
    let finding = Finding::wrong("updates_refused", format!("table {table}"), cause);
    let finding = match by_itself {
        true => finding.sql(drop_table(publication, table)),
        false => finding
            .sql(format!(
                "ALTER TABLE {} REPLICA IDENTITY FULL;",
                sql_name(table)
            ))
            .note("or take its schema out of the publication"),
    };
    finding.harms_others()
}

fn not_listed(publication: &str, table: &str, place: &str) -> Finding {
    let cause = format!(
        "the publication {publication} has the table {table}, which is sent for nothing because \
         the key tables does not name it"
    );
    Finding::warning("table_not_listed", place, cause)
        .setting("tables", format!("add \"{table}\" to the key tables"))
        .sql(drop_table(publication, table))
}

fn drop_table(publication: &str, table: &str) -> String {
    let (publication, table) = (identifier(publication), sql_name(table));
    format!("ALTER PUBLICATION {publication} DROP TABLE {table};")
}
