//! What is asserted again and again.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Journal, Rig, Tables, evidence};

/// Waits until the topics have what the source has now, then compares every row of `tables`
/// (of integers and text: there JSON of both sides is the same).
pub(crate) async fn equals_source(rig: &Rig, journal: &mut Journal, tables: &[&str]) -> Result<()> {
    journal.until_position(rig.wal_lsn().await?).await?;
    let last = journal.checkpoints.last().context("no checkpoint")?;
    let (at_last, all) = (journal.tables_at(last), journal.tables());
    ensure!(at_last == all, "events behind the last checkpoint at rest");
    for table in tables {
        let mut ours: Vec<Value> = all[*table].values().cloned().collect();
        ours.sort_by_key(|row| row["id"].as_i64());
        let mut theirs = Vec::new();
        for row in rig.source_rows(table).await? {
            theirs.push(serde_json::from_str::<Value>(&row)?);
        }
        theirs.sort_by_key(|row| row["id"].as_i64());
        if ours != theirs {
            let evidence = evidence::of_difference(rig, table, &ours, &theirs).await?;
            bail!("{table}: topics and source differ\n{evidence}\nat {last:?}");
        }
    }
    Ok(())
}

/// Something that every transaction of the source keeps holds at every whole checkpoint.
pub(crate) fn always(journal: &Journal, what: &str, holds: impl Fn(&Tables) -> bool) -> Result<()> {
    let mut seen = 0;
    for (checkpoint, tables) in journal.history() {
        seen += 1;
        ensure!(
            holds(&tables),
            "{what} is broken at {}:\n{tables:#?}\n{checkpoint:#?}",
            checkpoint.at()
        );
    }
    ensure!(seen > 0, "no whole checkpoint");
    Ok(())
}

/// The sum of a column over a table.
pub(crate) fn sum(tables: &Tables, table: &str, column: &str) -> i64 {
    tables[table]
        .values()
        .filter_map(|row| row[column].as_i64())
        .sum()
}
