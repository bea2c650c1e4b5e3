//! The reference pages say what the binaries take and show: they are generated, and these tests
//! fail where they are not up to date. `UPDATE_DOCS=1 cargo test -p tests --test documentation`
//! writes them anew.

mod configuration;
mod discrepancies;
mod metrics;

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// A page of `docs/` is as generated; or is written.
fn is_fresh(name: &str, generated: &str) -> Result<()> {
    let path = fixtures::place::repository().join("docs").join(name);
    if std::env::var_os("UPDATE_DOCS").is_some_and(|value| !value.is_empty()) {
        return std::fs::write(&path, generated).with_context(|| path.display().to_string());
    }
    let found = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines = found.lines().zip(generated.lines());
    let first = lines
        .enumerate()
        .find(|(_, (found, wanted))| found != wanted);
    ensure!(
        found == generated,
        "docs/{name} is out of date{}; run UPDATE_DOCS=1 cargo test -p tests --test documentation",
        first.map_or(String::new(), |(number, (found, wanted))| format!(
            " from line {} on:\n  found  {found}\n  wanted {wanted}\n",
            number + 1
        ))
    );
    Ok(())
}

/// Every Rust file of a crate's `src`.
fn sources(crate_folder: &str) -> Result<Vec<String>> {
    fn collect(folder: &Path, texts: &mut Vec<String>) -> Result<()> {
        let mut entries: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(std::fs::DirEntry::path);
        for entry in entries {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, texts)?;
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                texts.push(std::fs::read_to_string(&path)?);
            }
        }
        Ok(())
    }
    let mut texts = Vec::new();
    let folder = fixtures::place::repository().join(crate_folder).join("src");
    collect(&folder, &mut texts)?;
    Ok(texts)
}
