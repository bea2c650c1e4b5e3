//! All findings of a check, for people and for programs.

use std::process::ExitCode;

use serde::Serialize;

use super::finding::{Finding, Severity};

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    Warnings,
    Wrong,
}

/// The answer of `connector check`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The logical name of the source; none where the configuration does not say it.
    pub source: Option<String>,
    pub verdict: Verdict,
    /// The worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    #[must_use]
    pub fn new(source: &str, findings: Vec<Finding>) -> Self {
        Self {
            source: Some(source.to_owned()),
            ..Self::unnamed(findings)
        }
    }

    /// Of a configuration that cannot be read.
    #[must_use]
    pub fn unnamed(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Self {
            source: None,
            verdict: match findings.first().map(|worst| worst.severity) {
                None => Verdict::Good,
                Some(Severity::Warning) => Verdict::Warnings,
                Some(Severity::Wrong) => Verdict::Wrong,
            },
            findings,
        }
    }

    /// 0 good, 1 warnings, 2 wrong.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.verdict {
            Verdict::Good => 0,
            Verdict::Warnings => 1,
            Verdict::Wrong => 2,
        })
    }

    /// A line a finding, and one that sums up; or one JSON object.
    #[must_use]
    pub fn text(&self, json: bool) -> String {
        if json {
            return serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        }
        let mut text = String::new();
        for finding in &self.findings {
            let severity = match finding.severity {
                Severity::Warning => "warning",
                Severity::Wrong => "error",
            };
            text += &format!("{severity}: {finding}\n");
        }
        let count = |severity| {
            let some = self.findings.iter().filter(|one| one.severity == severity);
            some.count()
        };
        text += &match self.verdict {
            Verdict::Good => "source and Kafka are as a connector needs them\n".to_owned(),
            Verdict::Warnings | Verdict::Wrong => format!(
                "{} wrong, {} to be warned of\n",
                count(Severity::Wrong),
                count(Severity::Warning)
            ),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(severities: &[Severity]) -> Report {
        let finding = |severity: &Severity| Finding {
            severity: *severity,
            ..Finding::wrong("code", "place", "cause").advice("remedy")
        };
        Report::new("shop", severities.iter().map(finding).collect())
    }

    #[test]
    fn the_worst_finding_is_the_verdict_and_comes_first() {
        use Severity::{Warning, Wrong};
        for (severities, verdict, code) in [
            (&[][..], Verdict::Good, 0),
            (&[Warning], Verdict::Warnings, 1),
            (&[Warning, Wrong, Warning], Verdict::Wrong, 2),
        ] {
            let report = report(severities);
            assert_eq!(report.verdict, verdict);
            assert_eq!(report.exit_code(), ExitCode::from(code));
            let worst = report.findings.first().map(|first| first.severity);
            assert_eq!(worst, severities.iter().max().copied());
        }
    }

    #[test]
    fn json_has_every_part_of_a_finding() {
        let json = report(&[Severity::Wrong]).text(true);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json["findings"][0],
            serde_json::json!({
                "severity": "wrong", "code": "code", "place": "place", "cause": "cause",
                "remedy": "remedy", "setting": null, "sql": null,
            })
        );
        assert_eq!(json["verdict"], "wrong");
    }
}
