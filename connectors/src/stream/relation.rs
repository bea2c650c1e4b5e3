//! RELATION messages: which table the following changes are of, and with which columns.

use std::sync::Arc;

use crate::captured::Captured;
use crate::error::LifeError;
use crate::life::Life;
use crate::replication::Relation;
use crate::source::catalog::TableColumn;

impl Life<'_> {
    /// Remembers the table's columns for the changes that follow, also while a transaction is
    /// dropped: the server says them once a session.
    pub(super) async fn relation(&mut self, relation: Relation) -> Result<(), LifeError> {
        let name = format!("{}.{}", relation.schema, relation.name);
        let Some(table) = self.catalog.tables.get(&name).cloned() else {
            self.relations.insert(relation.oid, None);
            return Ok(());
        };
        let mut columns = Vec::with_capacity(relation.columns.len());
        for column in relation.columns {
            let (oid, modifier) = (column.type_oid, column.type_modifier);
            columns.push(TableColumn {
                kind: self.catalog.kind(&self.reads, oid, modifier).await?,
                name: column.name,
                type_oid: oid,
                type_modifier: modifier,
            });
        }
        let retyped = self.is_retyped(&name, &columns);
        if table.oid != relation.oid || retyped {
            // Another table under the name, or values of another type: what the topic has was
            // written differently. The rows are sent anew.
            tracing::info!(table = name, "{name} was altered; it is read again");
            self.progress.read_again(&name);
        }
        let table = crate::source::Table {
            oid: relation.oid,
            ..table
        };
        let captured = Captured::new(self.config, &self.database, &table, &columns)?;
        self.relations
            .insert(relation.oid, Some(Arc::new(captured)));
        self.column_types.insert(name, columns);
        Ok(())
    }

    /// Did a column that was there before change its type? `ALTER TYPE … USING` changes every
    /// row and sends none; the next change's RELATION message is the first to tell.
    fn is_retyped(&self, table: &str, columns: &[TableColumn]) -> bool {
        let Some(before) = self.column_types.get(table) else {
            return false;
        };
        columns.iter().any(|column| {
            before.iter().any(|old| {
                old.name == column.name
                    && (old.type_oid, old.type_modifier) != (column.type_oid, column.type_modifier)
            })
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
