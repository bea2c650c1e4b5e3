//! What is wrong or doubtful, where, and what mends it.

use std::borrow::Cow;

use serde::Serialize;
use service::config::ConfigError;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It runs, but somebody should know.
    Warning,
    /// It does not run, or not as it must.
    Wrong,
}

/// One thing that a check found. Shown as one sentence: the cause, then what mends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// What kind of finding; stays the same between versions.
    pub code: &'static str,
    /// Where: a key of the configuration, an address, a table, a topic.
    pub place: String,
    pub cause: String,
    /// What mends it, in words, SQL and settings included.
    pub remedy: String,
    /// The key of the configuration that mends it.
    pub setting: Option<Cow<'static, str>>,
    /// The SQL that mends it, for the source's owner.
    pub sql: Option<String>,
    #[serde(skip)]
    pub at_start: AtStart,
}

/// What a connector that starts, or runs, makes of something wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtStart {
    /// Somebody has to put it right first.
    Stops,
    /// It may be gone later with nothing changed but time.
    Waits,
    /// It harms others, and stopping would not help them.
    GoesOn,
}

impl Finding {
    pub(crate) fn wrong(
        code: &'static str,
        place: impl Into<String>,
        cause: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Wrong,
            code,
            place: place.into(),
            cause: cause.into(),
            remedy: String::new(),
            setting: None,
            sql: None,
            at_start: AtStart::Stops,
        }
    }

    /// What keeps a configuration from being read.
    #[must_use]
    pub fn of_configuration(error: &ConfigError) -> Vec<Self> {
        let wrong = |place: &str, cause| Self::wrong("configuration", place, cause);
        match error {
            ConfigError::Unreadable { .. } => vec![
                wrong("--config", format!("{error}"))
                    .advice("`connector --help` shows how to begin"),
            ],
            ConfigError::Unfit { path, problems } => problems
                .iter()
                .map(|problem| {
                    let file = path.display();
                    match problem.key.as_str() {
                        "" => wrong(&file.to_string(), problem.to_string())
                            .advice(format!("correct {file}")),
                        key => wrong(key, problem.to_string())
                            .setting(key.to_owned(), format!("correct {key} in {file}")),
                    }
                })
                .collect(),
        }
    }

    pub(crate) fn warning(
        code: &'static str,
        place: impl Into<String>,
        cause: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::wrong(code, place, cause)
        }
    }

    /// What to do, where that is no SQL, or before it.
    pub(crate) fn advice(mut self, advice: impl Into<String>) -> Self {
        self.remedy = advice.into();
        self
    }

    /// The key of the configuration to set, and how that reads.
    pub(crate) fn setting(
        mut self,
        key: impl Into<Cow<'static, str>>,
        advice: impl Into<String>,
    ) -> Self {
        self.setting = Some(key.into());
        self.advice(advice)
    }

    /// SQL for the source's owner.
    pub(crate) fn sql(mut self, sql: impl Into<String>) -> Self {
        let sql = sql.into();
        let before = match self.remedy.as_str() {
            "" => String::new(),
            other => format!("{other}, or "),
        };
        self.remedy = format!("{before}let the owner run: {sql}");
        self.sql = Some(sql);
        self
    }

    /// What belongs to the SQL and is none.
    pub(crate) fn note(mut self, note: &str) -> Self {
        self.remedy.push(' ');
        self.remedy.push_str(note);
        self
    }

    pub(crate) fn passing(mut self) -> Self {
        self.at_start = AtStart::Waits;
        self
    }

    pub(crate) fn harms_others(mut self) -> Self {
        self.at_start = AtStart::GoesOn;
        self
    }

    /// Is it only said at a start?
    pub(crate) fn is_said_only(&self) -> bool {
        self.severity == Severity::Warning || self.at_start == AtStart::GoesOn
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.remedy.as_str() {
            "" => f.write_str(&self.cause),
            remedy => write!(f, "{}; {remedy}", self.cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_sentence_that_ends_with_its_remedy() {
        let finding = Finding::wrong("wal_level", "source", "the wal_level is replica")
            .sql("ALTER SYSTEM SET wal_level = 'logical';")
            .note("and restart the server");
        assert_eq!(
            finding.to_string(),
            "the wal_level is replica; let the owner run: ALTER SYSTEM SET wal_level = 'logical'; and restart the server"
        );
        let finding = Finding::warning("slot", "postgres.slot", "it is somebody's")
            .setting("postgres.slot", "set another name in postgres.slot")
            .sql("SELECT 1;");
        assert_eq!(
            finding.to_string(),
            "it is somebody's; set another name in postgres.slot, or let the owner run: SELECT 1;"
        );
    }
}
