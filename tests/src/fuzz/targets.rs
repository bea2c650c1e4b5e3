//! What is fuzzed, and the rules that hold for any input.

use std::collections::BTreeMap;

use bytes::Bytes;
use clap::ValueEnum;
use connectors::config::ConnectorConfig;
use connectors::encode::{Kind, value};
use connectors::progress::{Identity, Progress};
use connectors::replication::{Cell, OldRow, ReplicationMessage, Tuple, decode};
use kafka::{Checkpoint, Lsn};

/// What comes from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// A message of the output plugin, from its bytes to the JSON of its values.
    Decoder,
    /// The configuration of a connector.
    Configuration,
    /// A record of a checkpoint topic, and what a successor makes of it.
    Checkpoint,
    /// For this module's own tests: breaks its rule with every input.
    #[cfg(test)]
    #[value(skip)]
    Broken,
}

const KINDS: [Kind; 12] = [
    Kind::Bool,
    Kind::Integer,
    Kind::Float,
    Kind::Numeric,
    Kind::Date,
    Kind::Timestamp,
    Kind::TimestampMillis,
    Kind::TimestampTz,
    Kind::Bytes,
    Kind::Uuid,
    Kind::Text,
    Kind::Other,
];

/// Stands in the configuration as a password; no refusal may repeat it.
const SECRET: &str = "s3cr3tw0rd";

impl Target {
    pub const ALL: [Self; 3] = [Self::Decoder, Self::Configuration, Self::Checkpoint];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Decoder => "decoder",
            Self::Configuration => "configuration",
            Self::Checkpoint => "checkpoint",
            #[cfg(test)]
            Self::Broken => "broken",
        }
    }

    /// Words that mean something to it.
    pub(super) fn words(self) -> &'static [&'static str] {
        match self {
            Self::Decoder => &["N", "O", "K", "u", "n", "t\0\0\0\u{1}1", "\0\0\0\0"],
            Self::Configuration => &[
                "[postgres]",
                "[kafka]",
                "\"",
                "= -1",
                "= []",
                "= {}",
                "= true",
                "\n",
                "9e99",
                "\u{1F600}",
            ],
            Self::Checkpoint => &[
                "{\"after\":[\"1\"]}",
                "\"done\"",
                "\"first\"",
                "null",
                "{}",
                "[]",
                "-1",
                "FFFFFFFF/FFFFFFFF",
                "\\u0000",
            ],
            #[cfg(test)]
            Self::Broken => &[],
        }
    }

    /// What came of an input, in words.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn check(self, input: &[u8]) -> Result<String, String> {
        match self {
            Self::Decoder => decoder(input),
            Self::Configuration => configuration(input),
            Self::Checkpoint => checkpoint(input),
            #[cfg(test)]
            Self::Broken => Err("this is always so".to_owned()),
        }
    }
}

/// Whatever decodes can be encoded, as JSON, whatever type its columns may have.
fn decoder(input: &[u8]) -> Result<String, String> {
    let message = match decode(Bytes::copy_from_slice(input)) {
        Ok(message) => message,
        Err(error) => return Ok(error.to_string()),
    };
    let (name, tuples) = match &message {
        ReplicationMessage::Insert { new, .. } => ("insert", vec![new]),
        ReplicationMessage::Update { old, new, .. } => {
            let old = old.as_ref().map(OldRow::tuple);
            ("update", old.into_iter().chain([new]).collect())
        }
        ReplicationMessage::Delete { old, .. } => ("delete", vec![old.tuple()]),
        other => return Ok(described(other)),
    };
    let mut outcome = name.to_owned();
    for tuple in tuples {
        outcome.push_str(&row(tuple)?);
    }
    Ok(outcome)
}

/// A message without rows: its kind, and how much is in it.
fn described(message: &ReplicationMessage) -> String {
    let text = format!("{message:?}");
    let kind = text.split([' ', '(']).next().unwrap_or_default();
    let parts = text.matches(',').count();
    // The size by powers of two, in letters: digits do not count as a difference.
    let size = "i".repeat(usize::BITS as usize - parts.leading_zeros() as usize);
    format!("{kind} {size}")
}

fn row(tuple: &Tuple) -> Result<String, String> {
    let mut shape = String::from(" ");
    for (at, cell) in tuple.cells().enumerate() {
        if tuple.cell(at) != Some(cell) {
            return Err(format!("cell {at} is another by its place than in order"));
        }
        let (letter, text) = match cell {
            Cell::Null => ('n', None),
            Cell::Unchanged => ('u', None),
            Cell::Text(text) => ('t', Some(text)),
            Cell::Binary(text) => ('b', Some(text)),
        };
        if shape.len() < 16 {
            shape.push(letter);
        }
        if let Some(text) = text {
            json(text)?;
        }
    }
    Ok(shape)
}

fn json(bytes: &[u8]) -> Result<(), String> {
    for kind in KINDS {
        let mut out = Vec::new();
        let Ok(text) = std::str::from_utf8(bytes) else {
            // Goes to quarantine, and nothing of it is written.
            if value::write(&mut out, kind, Some(bytes)).is_ok() || !out.is_empty() {
                return Err(format!("{kind:?} takes what is not UTF-8"));
            }
            continue;
        };
        value::write(&mut out, kind, Some(bytes)).map_err(|error| error.to_string())?;
        let parsed: serde_json::Value = serde_json::from_slice(&out)
            .map_err(|error| format!("{kind:?} is no JSON: {error}"))?;
        let found = value::invert(kind, &parsed);
        if kind == Kind::Text && found.as_deref() != Some(text) {
            return Err(format!("{text:?} is found again as {found:?}"));
        }
    }
    Ok(())
}

/// A configuration is taken, and then within its bounds, or refused in a sentence that keeps the
/// password.
fn configuration(input: &[u8]) -> Result<String, String> {
    let mut file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(input).replace("connector@", &format!("c:{SECRET}@"));
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(|error| error.to_string())?;
    let refused = match service::config::load::<ConnectorConfig>(file.path()) {
        Ok(config) => match config.postgres.endpoint() {
            Ok(_) => return Ok(format!("taken: {} tables", config.tables.len().min(3))),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    if refused.contains(SECRET) {
        return Err(format!("a refusal tells the password: {refused}"));
    }
    let path = file.path().display().to_string();
    // Quoted input would make every refusal another.
    let shape: String = refused
        .replace(&path, "")
        .split(['`', '"', '\''])
        .step_by(2)
        .collect();
    // The causes; the keys before them may be any that the input has.
    let problems = shape.lines().map(|line| match line.split_once(": ") {
        Some((_, cause)) => cause,
        None => line,
    });
    Ok(problems.collect::<Vec<_>>().join("; "))
}

/// What is read is what would be written, and a successor can go on from it.
fn checkpoint(input: &[u8]) -> Result<String, String> {
    let record: Checkpoint = match serde_json::from_slice(input) {
        Ok(record) => record,
        Err(error) => return Ok(error.to_string()),
    };
    let written = serde_json::to_vec(&record).map_err(|error| error.to_string())?;
    let again: Checkpoint = serde_json::from_slice(&written).map_err(|error| error.to_string())?;
    if again != record {
        return Err(format!("{record:?} comes back as {again:?}"));
    }
    let whole = record.is_whole();
    let identity = Identity {
        system_identifier: record.system_identifier.clone(),
        timeline: record.timeline,
    };
    let tables: BTreeMap<_, _> = record
        .tables
        .iter()
        .map(|(name, table)| (name.clone(), table.target.clone()))
        .collect();
    let mut progress = Progress::resume(&record, identity.clone(), &tables);
    progress.keepalive(Lsn(record.position.0));
    if progress.position() < record.position || progress.reach() < record.reach {
        return Err("a successor stands further back".to_owned());
    }
    progress.record();
    let begun = Progress::begin_epoch(
        Some(&record),
        1,
        identity,
        Lsn(1),
        &tables,
        &BTreeMap::new(),
    );
    // After the last epoch that a number can have there is no next.
    if begun.epoch() <= record.epoch && record.epoch < u64::MAX {
        return Err("a new epoch is no larger than the last".to_owned());
    }
    Ok(format!(
        "taken: whole {whole}, {} tables",
        "i".repeat(tables.len().min(8))
    ))
}
