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
    /// Reads the tables that exist and are published, in as many statements however many they are.
    /// What is missing is [`crate::check`]'s.
    ///
    /// # Errors
    /// Where the session is lost.
    pub async fn read(
        session: &Session,
        publication: &str,
        tables: &[String],
    ) -> Result<Self, SourceError> {
        let mut catalog = Self::default();
        let Some(named) = named(tables) else {
            return Ok(catalog);
        };
        let sql = format!(
            "SELECT t.schema, t.name, c.oid, i.indexrelid, c.relfilenode, coalesce(p.entry, 0), \
                 (SELECT md5(string_agg(concat(a.attnum, ' ', a.xmin), ',' ORDER BY a.attnum)) \
                  FROM pg_attribute a \
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) \
             FROM {named} JOIN pg_namespace n ON n.nspname = t.schema \
             JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name \
             JOIN pg_index i ON i.indrelid = c.oid AND {KEY_INDEX} \
             LEFT JOIN {} ON true",
            published(publication)
        );
        let rows = session.rows(DOING, &sql).await?;
        let numbers = |column| {
            let numbers = rows.iter().map(|row| session::get(DOING, row, column));
            numbers.collect::<Result<Vec<u32>, _>>()
        };
        let (oids, indexes) = (numbers(2)?, numbers(3)?);
        let mut columns = catalog.columns_of(session, publication, &oids).await?;
        let mut keys = catalog.keys(session, &indexes).await?;
        for (row, oid) in rows.iter().zip(oids) {
            let key = keys.remove(&oid).unwrap_or_default();
            let definition = Definition {
                oid,
                published: session::get(DOING, row, 5)?,
                key: key.iter().map(KeyColumn::named_form).collect(),
                file_node: session::get(DOING, row, 4)?,
                attributes: session::get(DOING, row, 6)?,
            };
            let table = Table {
                oid,
                schema: name(row, 0)?,
                name: name(row, 1)?,
                columns: columns.remove(&oid).unwrap_or_default(),
                key,
                definition,
            };
            catalog.tables.insert(table.qualified(), table);
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
        let mut columns = self.columns_of(session, publication, &[table]).await?;
        Ok(columns.remove(&table).unwrap_or_default())
    }

    /// Published columns of tables in each one's order. `pg_attribute` is read in the query's
    /// snapshot, so in a read's session it is as old as the rows.
    async fn columns_of(
        &mut self,
        session: &Session,
        publication: &str,
        tables: &[u32],
    ) -> Result<HashMap<u32, Vec<TableColumn>>, SourceError> {
        let mut columns: HashMap<u32, Vec<TableColumn>> = HashMap::new();
        if tables.is_empty() {
            return Ok(columns);
        }
        let sql = format!(
            "SELECT c.oid, a.attname, a.atttypid, a.atttypmod FROM pg_class c \
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
             JOIN {} ON {PUBLISHED_COLUMN} WHERE c.oid IN ({}) ORDER BY a.attrelid, a.attnum",
            published(publication),
            list(tables)
        );
        for row in session.rows(DOING, &sql).await? {
            let (type_oid, type_modifier) =
                (session::get(DOING, &row, 2)?, session::get(DOING, &row, 3)?);
            let column = TableColumn {
                name: name(&row, 1)?,
                type_oid,
                type_modifier,
                kind: self.kind(session, type_oid, type_modifier).await?,
            };
            let of = columns.entry(session::get(DOING, &row, 0)?);
            of.or_default().push(column);
        }
        Ok(columns)
    }

    /// The columns of these indexes, in their order, by table.
    async fn keys(
        &mut self,
        session: &Session,
        indexes: &[u32],
    ) -> Result<HashMap<u32, Vec<KeyColumn>>, SourceError> {
        let mut keys: HashMap<u32, Vec<KeyColumn>> = HashMap::new();
        if indexes.is_empty() {
            return Ok(keys);
        }
        let sql = format!(
            "SELECT i.indrelid, a.attname, a.atttypid, a.atttypmod, \
                 format_type(a.atttypid, a.atttypmod) \
             FROM pg_index i \
             CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place) \
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
             WHERE i.indexrelid IN ({}) AND k.place <= i.indnkeyatts \
             ORDER BY i.indrelid, k.place",
            list(indexes)
        );
        for row in session.rows(DOING, &sql).await? {
            let (type_oid, modifier) =
                (session::get(DOING, &row, 2)?, session::get(DOING, &row, 3)?);
            let column = KeyColumn {
                name: name(&row, 1)?,
                kind: self.kind(session, type_oid, modifier).await?,
                type_name: name(&row, 4)?,
            };
            let of = keys.entry(session::get(DOING, &row, 0)?);
            of.or_default().push(column);
        }
        Ok(keys)
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

/// Tables `t` by schema and name, in SQL; none: there are none.
pub(crate) fn named(tables: &[String]) -> Option<String> {
    let tables = tables.iter().filter_map(|table| split_qualified(table));
    let rows = tables.map(|(schema, name)| format!("({}, {})", literal(schema), literal(name)));
    let rows = rows.collect::<Vec<_>>().join(", ");
    (!rows.is_empty()).then(|| format!("(VALUES {rows}) AS t(schema, name)"))
}

/// What a publication has of a table `c`, as `p`: a row, or none where it lacks the table.
///
/// From 16 on the view `pg_publication_tables` opens every table of the publication, so one that
/// its owner has locked would hold up all that is asked of the others.
pub(crate) fn published(publication: &str) -> String {
    format!(
        "LATERAL (SELECT coalesce(r.oid, s.oid, 0) AS entry, r.prattrs, \
             r.prqual IS NOT NULL AS filtered, \
             coalesce(to_jsonb(b) ->> 'pubgencols', '') AS generated \
         FROM pg_publication b \
         LEFT JOIN pg_publication_rel r ON r.prpubid = b.oid AND r.prrelid = c.oid \
         LEFT JOIN pg_publication_namespace s \
             ON s.pnpubid = b.oid AND s.pnnspid = c.relnamespace \
         WHERE b.pubname = {} AND (b.puballtables OR r.oid IS NOT NULL OR s.oid IS NOT NULL \
             OR NOT b.pubviaroot AND EXISTS ( \
                 SELECT FROM pg_partition_ancestors(c.oid) AS above \
                 JOIN pg_class o ON o.oid = above.relid \
                 WHERE EXISTS (SELECT FROM pg_publication_rel \
                               WHERE prpubid = b.oid AND prrelid = o.oid) \
                 OR EXISTS (SELECT FROM pg_publication_namespace \
                            WHERE pnpubid = b.oid AND pnnspid = o.relnamespace)))) AS p",
        literal(publication)
    )
}

/// Has the publication's entry `p` this column `a`? Computed ones from version 18 on, where it says so.
pub(crate) const PUBLISHED_COLUMN: &str = "(CASE \
     WHEN a.attgenerated <> '' AND p.generated = '' THEN false \
     WHEN p.prattrs IS NOT NULL THEN a.attnum = ANY (p.prattrs::int2[]) \
     ELSE a.attgenerated = '' OR a.attgenerated = 's' AND p.generated = 's' END)";

fn list(oids: &[u32]) -> String {
    let oids: Vec<_> = oids.iter().map(u32::to_string).collect();
    oids.join(", ")
}

fn name(row: &SimpleQueryRow, column: usize) -> Result<String, SourceError> {
    session::text(row, column)
        .map(str::to_owned)
        .ok_or(SourceError::Answer { doing: DOING })
}
