//! The captured tables as the source's catalog describes them.

use std::collections::{BTreeMap, HashMap};

use kafka::Definition;
use tokio_postgres::SimpleQueryRow;

use super::session::{self, Session, SourceError, identifier, literal};
use crate::config::split_qualified;
use crate::encode::envelope::Column;
use crate::encode::{KeyColumn, Kind};

const DOING: &str = "read the catalog";

/// A captured table.
#[derive(Debug, Clone)]
pub struct Table {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// Its published columns, in table order.
    pub columns: Vec<TableColumn>,
    /// The columns of its records' key: of its primary key, or of the index that is its replica
    /// identity; in index order.
    pub key: Vec<KeyColumn>,
    /// What tells it from another under its name.
    pub definition: Definition,
}

/// A published column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumn {
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
    pub kind: Kind,
}

impl Table {
    /// `schema.table` as the configuration has it.
    #[must_use]
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// The table in SQL; ONLY, because a child's rows are the child's.
    #[must_use]
    pub fn sql(&self) -> String {
        format!(
            "ONLY {}.{}",
            identifier(&self.schema),
            identifier(&self.name)
        )
    }

    #[must_use]
    pub fn column_names(&self) -> Vec<String> {
        self.columns.iter().map(|c| c.name.clone()).collect()
    }
}

/// Every captured table by `schema.table`, and the domains met so far.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    pub tables: BTreeMap<String, Table>,
    /// Type → what it is made from, for every type that is not built in.
    bases: HashMap<u32, (u32, i32)>,
}

/// The index of a table `c` whose columns are the key: `i` is that one.
pub(crate) const KEY_INDEX: &str =
    "(CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END)";

/// Types below are PostgreSQL's own.
const FIRST_NORMAL_OID: u32 = 16_384;
/// `character(n)`, padded to its length.
const BPCHAR: u32 = 1042;

impl Catalog {
    /// Reads the tables that exist and are published. What is missing is [`crate::check`]'s.
    ///
    /// # Errors
    /// Where the session is lost.
    pub async fn read(
        session: &Session,
        publication: &str,
        tables: &[String],
    ) -> Result<Self, SourceError> {
        let mut catalog = Self::default();
        for qualified in tables {
            let Some((schema, name)) = split_qualified(qualified) else {
                continue;
            };
            let sql = format!(
                "SELECT c.oid, i.indexrelid, c.relfilenode, coalesce( \
                     (SELECT r.oid FROM pg_publication_rel r JOIN pg_publication p \
                          ON p.oid = r.prpubid WHERE p.pubname = {0} AND r.prrelid = c.oid), \
                     (SELECT s.oid FROM pg_publication_namespace s JOIN pg_publication p \
                          ON p.oid = s.pnpubid WHERE p.pubname = {0} AND s.pnnspid = n.oid), 0), \
                     (SELECT md5(string_agg(concat(a.attnum, ' ', a.xmin), ',' ORDER BY a.attnum)) \
                      FROM pg_attribute a \
                      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) \
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 JOIN pg_index i ON i.indrelid = c.oid AND {KEY_INDEX} \
                 WHERE n.nspname = {1} AND c.relname = {2}",
                literal(publication),
                literal(schema),
                literal(name)
            );
            let Some(row) = session.rows(DOING, &sql).await?.into_iter().next() else {
                continue;
            };
            let oid = session::get(DOING, &row, 0)?;
            let columns = catalog.columns(session, publication, oid).await?;
            let index = session::get(DOING, &row, 1)?;
            let key = catalog.key(session, oid, index).await?;
            let definition = Definition {
                oid,
                published: session::get(DOING, &row, 3)?,
                key: key.iter().map(KeyColumn::named_form).collect(),
                file_node: session::get(DOING, &row, 2)?,
                attributes: session::get(DOING, &row, 4)?,
            };
            let table = Table {
                oid,
                schema: schema.to_owned(),
                name: name.to_owned(),
                columns,
                key,
                definition,
            };
            catalog.tables.insert(qualified.clone(), table);
        }
        Ok(catalog)
    }

    /// A table's published columns, as the session's snapshot has them.
    ///
    /// # Errors
    /// Where the session is lost.
    pub async fn columns(
        &mut self,
        session: &Session,
        publication: &str,
        table: u32,
    ) -> Result<Vec<TableColumn>, SourceError> {
        let rows = session
            .rows(DOING, &columns_sql(publication, table))
            .await?;
        let mut columns = Vec::with_capacity(rows.len());
        for row in rows {
            let (type_oid, type_modifier) =
                (session::get(DOING, &row, 1)?, session::get(DOING, &row, 2)?);
            columns.push(TableColumn {
                name: name(&row, 0)?,
                type_oid,
                type_modifier,
                kind: self.kind(session, type_oid, type_modifier).await?,
            });
        }
        Ok(columns)
    }

    async fn key(
        &mut self,
        session: &Session,
        table: u32,
        index: u32,
    ) -> Result<Vec<KeyColumn>, SourceError> {
        let sql = format!(
            "SELECT a.attname, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod) \
             FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place) \
             JOIN pg_attribute a ON a.attrelid = {table} AND a.attnum = k.attnum \
             WHERE i.indexrelid = {index} AND k.place <= i.indnkeyatts \
             ORDER BY k.place"
        );
        let mut key = Vec::new();
        for row in session.rows(DOING, &sql).await? {
            let (type_oid, modifier) =
                (session::get(DOING, &row, 1)?, session::get(DOING, &row, 2)?);
            key.push(KeyColumn {
                name: name(&row, 0)?,
                kind: self.kind(session, type_oid, modifier).await?,
                type_name: name(&row, 3)?,
            });
        }
        Ok(key)
    }

    /// The form of a column's values, a domain's being that of what it is made from.
    ///
    /// # Errors
    /// Where the session is lost.
    pub async fn kind(
        &mut self,
        session: &Session,
        type_oid: u32,
        type_modifier: i32,
    ) -> Result<Kind, SourceError> {
        if type_oid < FIRST_NORMAL_OID {
            return Ok(Kind::of(type_oid, type_modifier));
        }
        if let Some((base, modifier)) = self.bases.get(&type_oid) {
            return Ok(Kind::of(*base, *modifier));
        }
        let sql = format!(
            "WITH RECURSIVE made AS ( \
                 SELECT oid, typtype, typbasetype, typtypmod FROM pg_type WHERE oid = {type_oid} \
                 UNION ALL SELECT t.oid, t.typtype, t.typbasetype, \
                     CASE WHEN m.typtypmod >= 0 THEN m.typtypmod ELSE t.typtypmod END \
                 FROM made m JOIN pg_type t ON t.oid = m.typbasetype) \
             SELECT CASE WHEN typtype = 'e' THEN 25 ELSE oid::int8 END, typtypmod \
             FROM made WHERE typtype <> 'd'"
        );
        // An enum's label is a text like any other; a type that is gone is known as none.
        let (base, modifier) = match session.rows(DOING, &sql).await?.first() {
            Some(row) => (session::get(DOING, row, 0)?, session::get(DOING, row, 1)?),
            None => (0, -1),
        };
        self.bases.insert(type_oid, (base, modifier));
        Ok(Kind::of(base, modifier))
    }

    /// The columns of each table, by `schema.table`.
    #[must_use]
    pub fn columns_by_table(&self) -> BTreeMap<String, Vec<String>> {
        self.tables
            .iter()
            .map(|(name, table)| (name.clone(), table.column_names()))
            .collect()
    }
}

impl TableColumn {
    #[must_use]
    pub fn type_pair(&self) -> (u32, i32) {
        (self.type_oid, self.type_modifier)
    }

    /// Do values of both look the same in a key? Numbers show their scale, `character` its length.
    #[must_use]
    pub fn has_key_form_of(&self, other: &Self) -> bool {
        let shows_modifier = self.kind == Kind::Numeric || self.type_oid == BPCHAR;
        self.kind == other.kind
            && (self.type_oid == BPCHAR) == (other.type_oid == BPCHAR)
            && (!shows_modifier || self.type_modifier == other.type_modifier)
    }

    #[must_use]
    pub fn encoded(&self) -> Column {
        Column::new(&self.name, self.kind)
    }
}

/// Published columns of a table in its order: name, type, modifier. `pg_attribute` is read in
/// the query's snapshot, so in a read's session it is as old as the rows.
#[must_use]
pub fn columns_sql(publication: &str, table: u32) -> String {
    format!(
        "SELECT a.attname, a.atttypid, a.atttypmod FROM pg_attribute a \
         WHERE a.attrelid = {table} AND a.attnum > 0 AND NOT a.attisdropped AND a.attname = ANY (( \
             SELECT p.attnames FROM pg_publication_tables p \
             JOIN pg_class c ON c.relname = p.tablename \
             JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = p.schemaname \
             WHERE p.pubname = {} AND c.oid = {table})::name[]) \
         ORDER BY a.attnum",
        literal(publication)
    )
}

fn name(row: &SimpleQueryRow, column: usize) -> Result<String, SourceError> {
    session::text(row, column)
        .map(str::to_owned)
        .ok_or(SourceError::Answer { doing: DOING })
}
