//! What a comparison found.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::progress::Progress;
use crate::mirror::TABLES;

/// Differences that a report lists, at most; all are counted.
const LISTED_MAX: usize = 10_000;

/// A row that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// `schema.table` of the view.
    pub table: String,
    pub key: Key,
    /// What differs; `missing` and `surplus` are the row as a whole.
    pub columns: Vec<String>,
}

/// A primary key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Key {
    Id(i64),
    /// One of several columns, or of another type: each as text.
    Parts(Vec<String>),
}

impl From<Vec<String>> for Key {
    fn from(parts: Vec<String>) -> Self {
        match parts.as_slice() {
            [id] => id.parse().map_or(Self::Parts(parts), Self::Id),
            _ => Self::Parts(parts),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Parts(parts) => f.write_str(&parts.join("/")),
        }
    }
}

/// A part that could not be compared, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotCompared {
    pub what: String,
    pub why: String,
}

/// The outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Rows compared, by table of the view.
    pub rows: BTreeMap<String, u64>,
    /// How far each source's mirrors were when their last row was compared, `epoch:LSN`.
    pub positions: BTreeMap<String, String>,
    pub difference_count: u64,
    /// The first of them.
    pub differences: Vec<Difference>,
    /// Rows that differ because their source's last state is in quarantine.
    pub quarantined: u64,
    pub not_compared: Vec<NotCompared>,
}

impl Report {
    pub(super) fn resumed(progress: &Progress) -> Self {
        Self {
            not_compared: Vec::new(),
            ..progress.report().clone()
        }
    }

    pub(super) fn compared(&mut self, table: &str, rows: u64) {
        *self.rows.entry(table.to_owned()).or_default() += rows;
    }

    pub(super) fn differs(&mut self, difference: Difference, found: &impl Fn(&Difference)) {
        found(&difference);
        self.difference_count += 1;
        if self.differences.len() < LISTED_MAX {
            self.differences.push(difference);
        }
    }

    pub(super) fn not_compared(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.not_compared.push(NotCompared {
            what: what.into(),
            why: why.into(),
        });
    }

    /// What of other sources than these could not be compared before was not compared since.
    pub(crate) fn keep_not_compared(&mut self, before: Self, sources: &[String]) {
        let of_others = before.not_compared.into_iter().filter(|part| {
            let named = |source: &&str| {
                let words = part.what.split([' ', '.']);
                words.into_iter().any(|word| word == *source)
            };
            let source = crate::SOURCES.into_iter().find(named);
            source.is_some_and(|source| !sources.iter().any(|one| one == source))
        });
        self.not_compared.extend(of_others);
    }

    /// Does a row of a mirror differ, or may one that is not listed?
    pub(crate) fn names_a_mirror(&self) -> bool {
        let is_mirror = |table: &str| TABLES.iter().any(|mirror| mirror.mirror == table);
        let mut named = self.differences.iter();
        self.difference_count > self.differences.len() as u64
            || named.any(|difference| is_mirror(&difference.table))
    }

    /// 0 equal, 1 different, 2 not compared as a whole.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.difference_count > 0 {
            1
        } else if self.not_compared.is_empty() {
            0
        } else {
            2
        }
    }

    /// A few lines for people; the differences were printed when they were found.
    #[must_use]
    pub fn in_words(&self) -> String {
        let rows: u64 = self.rows.values().sum();
        let mut lines = vec![format!(
            "{rows} rows of {} tables compared: {} differ{}",
            self.rows.len(),
            self.difference_count,
            match self.quarantined {
                0 => String::new(),
                some => format!(", {some} more are in quarantine"),
            }
        )];
        for (source, position) in &self.positions {
            lines.push(format!("{source} at {position}"));
        }
        for NotCompared { what, why } in &self.not_compared {
            lines.push(format!("not compared: {what}: {why}"));
        }
        lines.join("\n")
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {}: {}",
            self.table,
            self.key,
            self.columns.join(", ")
        )
    }
}
