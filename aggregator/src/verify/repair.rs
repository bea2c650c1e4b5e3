//! Has what differs mended by those who own it: a connector reads rows of its source again, the
//! aggregator reads a source's topics again, or computes unified rows again.
//!
//! In this order, since each mends what the one before cannot: a row that the topics do not have as
//! the source has it; a mirror that is not what the topics say; a unified row that is not what the
//! mirrors say.

use std::collections::BTreeMap;

use super::unified::resources;
use super::{Connector, Key, Report};
use crate::command::Admin;
use crate::config::Config;
use crate::mirror::{TABLES, Table};
use crate::view;
use crate::view::resource::Resource;

/// Keys of one read.
const KEYS_MAX: usize = 1000;

/// Mends what the report names; the sources whose mirrors are to be compared again. `say` is told of
/// each step.
///
/// # Errors
/// Where somebody refuses or does not answer.
pub async fn repair(
    config: &Config,
    admin: &Admin,
    report: &Report,
    say: &impl Fn(&str),
) -> anyhow::Result<Vec<String>> {
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
    if !is_listed {
        say("computes all unified rows again");
        admin.recompute(None).await?;
        return Ok(sources);
    }
    for resource in resources() {
        let keys = unified_keys(report, resource);
        for keys in keys.chunks(view::KEYS_MAX) {
            say(&format!(
                "computes {} rows of {} again",
                keys.len(),
                resource.table
            ));
            let keys = view::Keys::from([(resource.table.to_owned(), keys.to_vec())]);
            admin.recompute(Some(&keys)).await?;
        }
    }
    Ok(sources)
}

/// The keys that differ in a unified table, each column as text.
fn unified_keys(report: &Report, resource: &Resource) -> Vec<Vec<String>> {
    let differences = report.differences.iter();
    let of_table = differences.filter(|difference| difference.table == resource.table);
    of_table
        .map(|difference| match &difference.key {
            Key::Id(id) => vec![id.to_string()],
            Key::Parts(parts) => parts.clone(),
        })
        .collect()
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
