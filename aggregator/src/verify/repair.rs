//! Has what differs mended by those who own it: a connector reads rows of its source again, the
//! aggregator reads a source's topics again, or computes its unified rows again.
//!
//! In this order, since each mends what the one before cannot: a row that the topics do not have as
//! the source has it; a mirror that is not what the topics say; a unified row that is not what the
//! mirrors say.

use std::collections::BTreeMap;

use super::{Connector, Key, Options, Report};
use crate::command::Admin;
use crate::config::Config;
use crate::mirror::{TABLES, Table};

/// Keys of one read.
const KEYS_MAX: usize = 1000;

/// Mends what the report names; how to compare again. `say` is told of each step.
///
/// # Errors
/// Where somebody refuses or does not answer.
pub async fn repair(
    config: &Config,
    admin: &Admin,
    report: &Report,
    say: &impl Fn(&str),
) -> anyhow::Result<Options> {
    let mirrors = keys_by_table(report);
    let mut sources: Vec<String> = mirrors
        .keys()
        .map(|table| table.source.to_owned())
        .collect();
    sources.dedup();
    // What is not listed cannot be read by key: then all of the source's topics are read.
    let is_listed = report.difference_count == report.differences.len() as u64;
    if is_listed {
        for (table, keys) in &mirrors {
            let connector = Connector::of(config, table.source)?;
            for keys in keys.chunks(KEYS_MAX) {
                say(&format!(
                    "{} reads {} rows again",
                    table.captured,
                    keys.len()
                ));
                connector.read(table, keys).await?;
            }
        }
    }
    let still = super::still_differing(config, &mirrors, is_listed).await?;
    if !still.is_empty() {
        say(&format!("reads the topics of {} again", still.join(", ")));
        admin.rebuild(&still).await?;
    }
    let unified = report.differences.iter().any(|difference| {
        let table = |table: &&Table| table.mirror == difference.table;
        !TABLES.iter().any(table)
    });
    if unified || !is_listed {
        say("computes the unified rows again");
        admin.recompute().await?;
    }
    Ok(Options {
        sources,
        unified,
        resume: None,
    })
}

/// The keys that differ in each mirror.
fn keys_by_table(report: &Report) -> BTreeMap<&'static Table, Vec<i64>> {
    let mut keys: BTreeMap<&'static Table, Vec<i64>> = BTreeMap::new();
    for difference in &report.differences {
        let table = TABLES
            .into_iter()
            .find(|table| table.mirror == difference.table);
        if let (Some(table), Key::Id(id)) = (table, &difference.key) {
            keys.entry(table).or_default().push(*id);
        }
    }
    keys
}
