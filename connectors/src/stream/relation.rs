//! RELATION messages: which table the following changes are of, and with which columns.

use std::sync::Arc;

use crate::captured::Captured;
use crate::error::LifeError;
use crate::life::Life;
use crate::replication::{Relation, RelationColumn, ReplicaIdentity};
use crate::source::Table;
use crate::source::catalog::TableColumn;

/// A relation with the forms of its columns.
struct Described {
    name: String,
    oid: u32,
    identity: ReplicaIdentity,
    columns: Vec<TableColumn>,
    /// The columns that the replica identity is made of.
    identifying: Vec<String>,
}

impl Described {
    /// Is it the table as the catalog has it now, but for its columns that are not of the key?
    fn is_of(&self, table: &Table) -> bool {
        self.oid == table.oid && self.has_key_of(table)
    }

    /// Do its changes tell the key?
    fn has_key_of(&self, table: &Table) -> bool {
        let tells_key_only = match self.identity {
            ReplicaIdentity::Default | ReplicaIdentity::Index => true,
            ReplicaIdentity::Full | ReplicaIdentity::Nothing => false,
        };
        if tells_key_only && self.identifying.len() != table.key.len() {
            return false;
        }
        table.key.iter().all(|key| {
            let mut known = table.columns.iter();
            let form = known.find(|column| column.name == key.name);
            let mut told = self.columns.iter();
            let told = told.find(|column| column.name == key.name);
            let is_told = !tells_key_only || self.identifying.contains(&key.name);
            is_told
                && form
                    .zip(told)
                    .is_some_and(|(now, then)| now.has_key_form_of(then))
        })
    }
}

impl Life<'_> {
    /// Remembers the table's columns for the changes that follow, also while a transaction is
    /// dropped: the server says them once a session, and again after something was altered.
    pub(super) async fn relation(&mut self, relation: Relation) -> Result<(), LifeError> {
        let name = format!("{}.{}", relation.schema, relation.name);
        if !self.catalog.tables.contains_key(&name) {
            if self.is_captured(relation.oid) {
                // It was renamed.
                self.look_soon();
            }
            self.relations.insert(relation.oid, None);
            return Ok(());
        }
        let described = self.describe(name, relation).await?;
        let is_as_known = self
            .catalog
            .tables
            .get(&described.name)
            .is_some_and(|table| {
                described.is_of(table)
                    && described.identity != ReplicaIdentity::Nothing
                    && described.columns == table.columns
            });
        if !is_as_known {
            let xid = self.transaction.as_ref().map(|one| one.wide_xid());
            self.look(xid).await?;
        } else if self.relations.contains_key(&described.oid) {
            self.look_soon();
        }
        let captured = match self.catalog.tables.get(&described.name) {
            Some(table) if described.is_of(table) => {
                let columns = &described.columns;
                let captured = Captured::new(self.config, &self.database, table, columns)?;
                Some(Arc::new(captured))
            }
            _ => {
                self.pass_over(&described.name).await?;
                None
            }
        };
        self.relations.insert(described.oid, captured);
        Ok(())
    }

    fn is_captured(&self, oid: u32) -> bool {
        self.catalog.tables.values().any(|table| table.oid == oid)
    }

    async fn describe(&mut self, name: String, relation: Relation) -> Result<Described, LifeError> {
        let identifying = relation.columns.iter().filter(|column| column.key);
        let identifying = identifying.map(|column| column.name.clone()).collect();
        let mut columns = Vec::with_capacity(relation.columns.len());
        for RelationColumn {
            name,
            type_oid,
            type_modifier,
            ..
        } in relation.columns
        {
            columns.push(TableColumn {
                kind: self
                    .catalog
                    .kind(&self.reads, type_oid, type_modifier)
                    .await?,
                name,
                type_oid,
                type_modifier,
            });
        }
        Ok(Described {
            name,
            oid: relation.oid,
            identity: relation.replica_identity,
            columns,
            identifying,
        })
    }

    /// A table with the columns that its catalog entry has now.
    pub(crate) fn captured_now(&self, name: &str) -> Result<Captured, LifeError> {
        let table = self.catalog.tables.get(name);
        let table = table.ok_or(LifeError::Order("a table to be read is not in the catalog"))?;
        Captured::new(self.config, &self.database, table, &table.columns)
    }

    /// A table with the columns of a read's snapshot.
    pub(crate) fn captured(
        &self,
        name: &str,
        columns: &[TableColumn],
    ) -> Result<Captured, LifeError> {
        let table = self.catalog.tables.get(name);
        let table = table.ok_or(LifeError::Order("a table to be read is not in the catalog"))?;
        Captured::new(self.config, &self.database, table, columns)
    }
}
