//! What a connector needs of each table.

use tokio_postgres::SimpleQueryRow;

use super::finding::Finding;
use super::source::DOING;
use super::{is_true, name};
use crate::config::{ConnectorConfig, split_qualified};
use crate::encode::Kind;
use crate::source::Catalog;
use crate::source::catalog::{KEY_INDEX, PUBLISHED_COLUMN, named, published};
use crate::source::session::{Session, SourceError, identifier};

/// A table of the configuration, and who looks at it.
struct Table<'a> {
    qualified: &'a str,
    schema: &'a str,
    /// In SQL.
    quoted: String,
    publication: &'a str,
    user: String,
}

/// Everything that is wrong with the configured tables, in their order.
pub(super) async fn tables(
    session: &Session,
    config: &ConnectorConfig,
    published: bool,
) -> Result<Vec<Finding>, SourceError> {
    let Some(sql) = tables_sql(config) else {
        return Ok(Vec::new());
    };
    let rows = session.rows(DOING, &sql).await?;
    // Only a published table's key is in the catalog.
    let catalog = match published {
        true => Catalog::read(session, &config.postgres.publication, &config.tables).await?,
        false => Catalog::default(),
    };
    let mut findings = Vec::new();
    for qualified in &config.tables {
        let Some((schema, relation)) = split_qualified(qualified) else {
            continue;
        };
        let of = |row: &&SimpleQueryRow| name(row, 14) == schema && name(row, 15) == relation;
        let place = format!("table {qualified}");
        let Some(row) = rows.iter().find(of) else {
            let cause = format!("the source has no table {qualified}");
            let finding = Finding::wrong("no_table", place, cause);
            findings.push(finding.setting("tables", "correct the key tables"));
            continue;
        };
        if name(row, 0) != "r" || name(row, 9) != "p" {
            let cause = format!(
                "{qualified} is no ordinary table (partitioned, foreign and unlogged ones and views are not captured)"
            );
            let finding = Finding::wrong("not_ordinary", place, cause);
            findings.push(finding.setting("tables", "take it out of the key tables"));
            continue;
        }
        let table = Table {
            qualified,
            schema,
            quoted: sql_name(qualified),
            publication: &config.postgres.publication,
            user: name(row, 10).to_owned(),
        };
        let mut found: Vec<_> = table.identity(row).into_iter().collect();
        found.extend(table.rights(row));
        if published {
            found.extend(table.publication(row));
            found.extend(table.generated_key(row));
        }
        if found.is_empty() {
            found.extend(table.key_types(&catalog));
        }
        findings.extend(found);
    }
    Ok(findings)
}

/// Before version 18 no publication has generated columns, although the catalog may name them.
const PUBLISHES_NONE: &str = "current_setting('server_version_num')::int4 < 180000";

fn tables_sql(config: &ConnectorConfig) -> Option<String> {
    let named = named(&config.tables)?;
    Some(format!(
        "SELECT c.relkind, c.relreplident, i.indexrelid IS NOT NULL, \
             has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'), \
             row_security_active(c.oid), p.entry IS NOT NULL, p.filtered, \
             (SELECT bool_and({PUBLISHED_COLUMN}) FROM pg_attribute a \
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
              AND a.attgenerated = ''), \
             c.relpersistence, current_user, i.indimmediate, \
             (SELECT string_agg(a.attname, ', ' ORDER BY a.attnum) FROM pg_attribute a \
              WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[]) \
              AND a.attgenerated <> '' AND NOT {PUBLISHED_COLUMN}), \
             {PUBLISHES_NONE}, t.schema, t.name \
         FROM {named} JOIN pg_namespace n ON n.nspname = t.schema \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name \
         LEFT JOIN pg_index i ON i.indrelid = c.oid AND {KEY_INDEX} \
         LEFT JOIN {} ON true",
        published(&config.postgres.publication)
    ))
}

impl Table<'_> {
    fn wrong(&self, code: &'static str, cause: String) -> Finding {
        Finding::wrong(code, format!("table {}", self.qualified), cause)
    }

    /// Can a row be told from the others, in the log too?
    fn identity(&self, row: &SimpleQueryRow) -> Option<Finding> {
        let (qualified, quoted) = (self.qualified, &self.quoted);
        let identity = name(row, 1);
        if identity == "i" && !is_true(row, 2) {
            let cause = format!("the index that is the replica identity of {qualified} is gone");
            let finding = self.wrong("replica_identity", cause);
            return Some(finding.sql(format!("ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT;")));
        }
        if !is_true(row, 2) {
            let cause = format!(
                "the table {qualified} has no primary key, so its rows cannot be told apart"
            );
            let finding = self.wrong("no_primary_key", cause);
            let finding = finding.sql(format!("ALTER TABLE {quoted} ADD PRIMARY KEY (…);"));
            return Some(finding.note(&format!(
                "or, with a unique index over columns that are not null, \
                 ALTER TABLE {quoted} REPLICA IDENTITY USING INDEX …;"
            )));
        }
        if identity == "d" && !is_true(row, 11) {
            let cause = format!(
                "the primary key of {qualified} is deferrable and cannot be its replica identity, \
                 so a publication makes the source refuse its UPDATEs"
            );
            let finding = self.wrong("deferrable_key", cause);
            return Some(finding.sql(format!("ALTER TABLE {quoted} REPLICA IDENTITY FULL;")));
        }
        (identity == "n").then(|| {
            let cause =
                format!("the table {qualified} does not log its primary key on UPDATE and DELETE");
            self.wrong("replica_identity", cause)
                .sql(format!("ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT;"))
        })
    }

    /// May it be read, all of it?
    fn rights(&self, row: &SimpleQueryRow) -> Vec<Finding> {
        let (user, role) = (&self.user, identifier(&self.user));
        let (qualified, schema) = (self.qualified, self.schema);
        let mut findings = Vec::new();
        if !is_true(row, 3) {
            let cause = format!("user {user} may not use the schema {schema}");
            findings.push(self.wrong("schema_right", cause).sql(format!(
                "GRANT USAGE ON SCHEMA {} TO {role};",
                identifier(schema)
            )));
        }
        if !is_true(row, 4) {
            let cause = format!("user {user} may not read the table {qualified}");
            let finding = self.wrong("select_right", cause);
            findings.push(finding.sql(format!("GRANT SELECT ON {} TO {role};", self.quoted)));
        } else if is_true(row, 5) {
            let cause = format!("row security hides rows of {qualified} from user {user}");
            let finding = self.wrong("row_security", cause);
            findings.push(finding.sql(format!("ALTER ROLE {role} BYPASSRLS;")));
        }
        findings
    }

    /// Does the publication have it, all of it?
    fn publication(&self, row: &SimpleQueryRow) -> Option<Finding> {
        let (qualified, quoted, publication) = (self.qualified, &self.quoted, self.publication);
        let named = identifier(publication);
        let again = format!(
            "ALTER PUBLICATION {named} DROP TABLE {quoted}; ALTER PUBLICATION {named} ADD TABLE {quoted};"
        );
        if !is_true(row, 6) {
            let cause = format!("the publication {publication} lacks the table {qualified}");
            let finding = self.wrong("not_published", cause);
            Some(finding.sql(format!("ALTER PUBLICATION {named} ADD TABLE {quoted};")))
        } else if is_true(row, 7) {
            let cause = format!("the publication {publication} filters the rows of {qualified}");
            Some(self.wrong("row_filter", cause).sql(again))
        } else if !is_true(row, 8) {
            let cause = format!("the publication {publication} leaves out columns of {qualified}");
            Some(self.wrong("column_list", cause).sql(again))
        } else {
            None
        }
    }

    /// Does the log tell the whole key? It leaves out generated columns that are not published.
    fn generated_key(&self, row: &SimpleQueryRow) -> Option<Finding> {
        let columns = Some(name(row, 12)).filter(|columns| !columns.is_empty())?;
        let (qualified, quoted) = (self.qualified, &self.quoted);
        let cause = format!(
            "the key of {qualified} has a generated column ({columns}), which the log does not tell"
        );
        let finding = self.wrong("generated_key", cause);
        let other_index = format!("ALTER TABLE {quoted} REPLICA IDENTITY USING INDEX …;");
        let other_index_note =
            "with a unique index over columns that are not null and not generated";
        if is_true(row, 13) {
            return Some(finding.sql(other_index).note(other_index_note));
        }
        let publication = identifier(self.publication);
        let publish = "publish_generated_columns = stored";
        let finding = finding.sql(format!("ALTER PUBLICATION {publication} SET ({publish});"));
        Some(finding.note(&format!("or, {other_index_note}, {other_index}")))
    }

    /// A key must be found again from a record's key, or a reconciliation could not ask for it.
    fn key_types(&self, catalog: &Catalog) -> Vec<Finding> {
        let table = catalog.tables.get(self.qualified);
        let columns = table.into_iter().flat_map(|table| &table.key);
        columns
            .filter(|column| !column.kind.is_invertible())
            .map(|column| {
                let kind = match column.kind {
                    Kind::Float => "a float is no exact value",
                    _ => "its values have no form of their own in a record's key",
                };
                let cause = format!(
                    "the primary key column {} of {} is of type {}, which cannot be captured: {kind}",
                    column.name, self.qualified, column.type_name
                );
                self.wrong("key_type", cause)
                    .setting("tables", "take the table out of the key tables")
            })
            .collect()
    }
}

pub(super) fn sql_name(qualified: &str) -> String {
    match split_qualified(qualified) {
        Some((schema, table)) => format!("{}.{}", identifier(schema), identifier(table)),
        None => identifier(qualified),
    }
}
