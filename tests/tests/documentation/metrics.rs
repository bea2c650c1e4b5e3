//! `docs/metrics.md`: every metric of every binary, as the binary itself describes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};

const HEAD: &str = "\
# Metrics

Generated from what the binaries say of themselves; a test keeps it true. Write nothing here by
hand. They are served in Prometheus' text format at `/metrics` of the admin port. Counters end in
`_total` and start at 0 with the process; histograms have buckets from 0.1 to 10000 ms.
";

#[derive(Debug, Clone, PartialEq, Eq)]
struct Described {
    kind: &'static str,
    unit: Option<Unit>,
    text: String,
}

/// Hears what is described, and nothing else.
#[derive(Debug, Default)]
struct Listener(Mutex<BTreeMap<String, Described>>);

impl Listener {
    fn hear(&self, kind: &'static str, key: &KeyName, unit: Option<Unit>, text: &SharedString) {
        let described = Described {
            kind,
            unit,
            text: text.to_string(),
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(key.as_str().to_owned(), described);
    }
}

impl Recorder for Listener {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.hear("counter", &key, unit, &text);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.hear("gauge", &key, unit, &text);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.hear("histogram", &key, unit, &text);
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// A binary, what it describes, and the crates whose metrics are its own.
type Binary = (&'static str, fn(), &'static [&'static str]);

const BINARIES: [Binary; 3] = [
    (
        "connector",
        connectors::status::describe,
        &["connectors", "kafka"],
    ),
    ("aggregator", aggregator::describe_metrics, &["aggregator"]),
    ("api", api::describe_metrics, &["api"]),
];

fn described(describe: fn()) -> BTreeMap<String, Described> {
    let listener = Listener::default();
    with_local_recorder(&listener, describe);
    listener
        .0
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn metrics_md_has_every_metric_of_every_binary() -> Result<()> {
    let mut page = HEAD.to_owned();
    for (binary, describe, crates) in BINARIES {
        let written = written(crates)?;
        _ = write!(
            page,
            "\n## `{binary}`\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n"
        );
        for (name, metric) in described(describe) {
            let labels = written.get(&name).into_iter().flatten();
            let labels: Vec<_> = labels.map(|label| format!("`{label}`")).collect();
            let unit = match metric.unit {
                None | Some(Unit::Count) => String::new(),
                Some(unit) => format!(", {}", unit.as_str()),
            };
            _ = writeln!(
                page,
                "| `{name}` | {}{unit} | {} | {} |",
                metric.kind,
                labels.join(", "),
                metric.text
            );
        }
    }
    crate::is_fresh("metrics.md", &page)
}

#[test]
fn every_metric_that_is_written_is_described_and_named_as_its_kind() -> Result<()> {
    for (binary, describe, crates) in BINARIES {
        let described = described(describe);
        let written = written(crates)?;
        ensure!(!written.is_empty(), "{binary} writes nothing");
        for name in written.keys() {
            ensure!(
                described.contains_key(name),
                "{binary} does not describe {name}"
            );
        }
        for (name, metric) in &described {
            ensure!(written.contains_key(name), "{binary} never writes {name}");
            let is_counter = metric.kind == "counter";
            ensure!(
                name.ends_with("_total") == is_counter,
                "{name} is a {}",
                metric.kind
            );
            ensure!(!metric.text.is_empty(), "{name} has no text");
        }
    }
    Ok(())
}

/// The metrics that the code of these crates writes, each with its labels.
fn written(crates: &[&str]) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for folder in crates {
        let texts = crate::sources(folder)?;
        let names: BTreeMap<_, _> = texts.iter().flat_map(|text| constants(text)).collect();
        for text in &texts {
            for call in calls(text) {
                let (name, labels) = call.split_once(',').unwrap_or((call, ""));
                let constant = name.trim().rsplit("::").next().unwrap_or_default();
                let name = match constant.strip_prefix('"') {
                    Some(literal) => literal.trim_end_matches('"').to_owned(),
                    None => (*names.get(constant).with_context(|| {
                        format!("the metric {constant} of {folder} is no constant")
                    })?)
                    .to_owned(),
                };
                found.entry(name).or_default().extend(labels_of(labels));
            }
        }
    }
    Ok(found)
}

/// `const NAME: &str = "value";`
fn constants(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split("const ").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once(": &str = \"")?;
        let (value, _) = rest.split_once('"')?;
        name.bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
            .then_some((name, value))
    })
}

/// What stands between the parentheses of `counter!(…)`, `gauge!(…)`, `histogram!(…)`.
fn calls(text: &str) -> Vec<&str> {
    let mut calls = Vec::new();
    for kind in ["counter!(", "gauge!(", "histogram!("] {
        for (at, _) in text.match_indices(kind) {
            if text[..at].ends_with("describe_") {
                continue;
            }
            let rest = &text[at + kind.len()..];
            let mut depth = 1_u32;
            let end = rest.find(|letter| {
                match letter {
                    '(' => depth += 1,
                    ')' => depth -= 1,
                    _ => {}
                }
                depth == 0
            });
            calls.push(&rest[..end.unwrap_or_default()]);
        }
    }
    calls
}

/// The names before `=>`; what stands after the last is a value.
fn labels_of(labels: &str) -> Vec<String> {
    let mut parts: Vec<_> = labels.split("=>").collect();
    parts.pop();
    parts
        .into_iter()
        .filter_map(|before| before.trim_end().strip_suffix('"')?.rsplit('"').next())
        .map(str::to_owned)
        .collect()
}
