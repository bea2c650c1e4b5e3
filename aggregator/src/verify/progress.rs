//! How far a run is, in a file: a run that was cut goes on behind the last range compared.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::report::Report;

/// Where each table is.
#[derive(Debug, Default)]
pub struct Progress {
    file: Option<PathBuf>,
    state: State,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    tables: BTreeMap<String, Place>,
    report: Report,
}

/// How far a table is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// Every key up to this one has been compared.
    After(i64),
    /// The same of a unified table, whose key may have several columns.
    Behind(Vec<String>),
    Done,
}

impl Progress {
    /// What the file says; from the beginning where there is none.
    ///
    /// # Errors
    /// Where it is there and is not what a run wrote.
    pub(super) fn open(file: Option<PathBuf>) -> anyhow::Result<Self> {
        let mut state = State::default();
        if let Some(path) = &file {
            match std::fs::read(path) {
                Ok(text) => {
                    state = serde_json::from_slice(&text).with_context(|| {
                        format!(
                            "{} is not the progress of a run; name another file, or remove it",
                            path.display()
                        )
                    })?;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot read {}", path.display()));
                }
            }
        }
        Ok(Self { file, state })
    }

    pub(super) fn report(&self) -> &Report {
        &self.state.report
    }

    pub(super) fn place(&self, table: &str) -> Place {
        let place = self.state.tables.get(table).cloned();
        place.unwrap_or(Place::After(i64::MIN))
    }

    /// Written by rename, so that it is whole whenever the run ends.
    pub(super) fn reached(
        &mut self,
        table: &str,
        place: Place,
        report: &Report,
    ) -> anyhow::Result<()> {
        self.state.tables.insert(table.to_owned(), place);
        let Some(path) = &self.file else {
            return Ok(());
        };
        self.state.report.clone_from(report);
        let beside = path.with_extension("new");
        std::fs::write(&beside, serde_json::to_vec(&self.state)?)
            .and_then(|()| std::fs::rename(&beside, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// A run that compared everything leaves no file.
    pub(super) fn end(self, report: &Report) -> anyhow::Result<()> {
        let Some(path) = self.file.filter(|_| report.not_compared.is_empty()) else {
            return Ok(());
        };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}
