//! How far a table read is.

use serde::{Deserialize, Serialize};

/// How far a table read is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Read {
    /// From the first key.
    #[default]
    First,
    /// Above this key: the text of each key column, in key order. Written by versions that read
    /// a table in one range.
    After(Vec<String>),
    /// Under way.
    Running(RunningRead),
    /// Complete.
    Done,
}

/// A table read under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningRead {
    /// What is still to be read.
    pub ranges: Vec<KeyRange>,
    /// Rows passed so far.
    pub rows: u64,
    /// The events that were sent for them, bytes.
    pub bytes: u64,
    /// How many rows there were, about, when the read began.
    pub rows_estimate: u64,
    /// When it began, microseconds since 1970.
    pub begun_at_us: i64,
}

/// Rows above `after` up to and with `to`, each the text of the key's columns in key order;
/// none: without a bound.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<String>>,
}

impl KeyRange {
    /// The ranges between `keys`, which grow; together all keys.
    #[must_use]
    pub fn between(keys: Vec<Vec<String>>) -> Vec<Self> {
        let mut ranges = Vec::with_capacity(keys.len() + 1);
        let mut after = None;
        for key in keys {
            ranges.push(Self {
                after: after.replace(key.clone()),
                to: Some(key),
            });
        }
        ranges.push(Self { after, to: None });
        ranges
    }
}

impl Read {
    /// What is still to be read.
    #[must_use]
    pub fn ranges(&self) -> Vec<KeyRange> {
        match self {
            Self::First => vec![KeyRange::default()],
            Self::After(key) => vec![KeyRange {
                after: Some(key.clone()),
                to: None,
            }],
            Self::Running(running) => running.ranges.clone(),
            Self::Done => Vec::new(),
        }
    }

    /// Is there nothing left?
    #[must_use]
    pub fn is_done(&self) -> bool {
        *self == Self::Done
    }

    /// The read as one under way: what it has passed is counted from here on.
    pub fn running(&mut self) -> &mut RunningRead {
        if !matches!(self, Self::Running(_)) {
            *self = Self::Running(RunningRead {
                ranges: self.ranges(),
                ..RunningRead::default()
            });
        }
        match self {
            Self::Running(running) => running,
            Self::First | Self::After(_) | Self::Done => unreachable!("it was just set"),
        }
    }

    /// The part of `range` up to `after` has been read, all of it where that is none.
    pub fn advance(&mut self, range: &KeyRange, after: Option<Vec<String>>, rows: u64, bytes: u64) {
        let running = self.running();
        running.rows += rows;
        running.bytes += bytes;
        if let Some(place) = running.ranges.iter().position(|other| other == range) {
            match after {
                Some(after) => running.ranges[place].after = Some(after),
                None => _ = running.ranges.remove(place),
            }
        }
        if running.ranges.is_empty() {
            *self = Self::Done;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u32) -> Vec<String> {
        vec![number.to_string()]
    }

    fn holds(range: &KeyRange, number: u32) -> bool {
        let bound = |key: &Option<Vec<String>>| -> Option<u32> {
            key.as_ref().and_then(|key| key[0].parse().ok())
        };
        bound(&range.after).is_none_or(|after| number > after)
            && bound(&range.to).is_none_or(|to| number <= to)
    }

    proptest! {
        /// However a read is cut into ranges and chunks, each key is read once.
        #[test]
        fn every_key_is_read_once(
            cuts in prop::collection::btree_set(1_u32..99, 0..6),
            steps in prop::collection::vec((0_usize..8, 1_u32..40), 200),
        ) {
            let mut read = Read::First;
            read.running().ranges = KeyRange::between(cuts.into_iter().map(key).collect());
            let mut times = [0; 100];
            for (which, rows) in steps {
                let ranges = read.ranges();
                let Some(range) = ranges.get(which % ranges.len().max(1)) else { break };
                let keys: Vec<u32> = (0..100).filter(|n| holds(range, *n)).collect();
                let chunk: Vec<u32> = keys.iter().copied().take(rows as usize).collect();
                for number in &chunk {
                    times[*number as usize] += 1;
                }
                let after = (chunk.len() < keys.len()).then(|| key(chunk[chunk.len() - 1]));
                read.advance(range, after, chunk.len() as u64, 0);
            }
            prop_assert_eq!(&read, &Read::Done);
            prop_assert!(times.iter().all(|times| *times == 1), "{:?}", times);
        }
    }

    #[test]
    fn a_record_of_an_older_version_goes_on_where_it_stood() {
        let mut read: Read = serde_json::from_str(r#"{"after":["5"]}"#).unwrap();
        let ranges = read.ranges();
        assert_eq!(
            ranges,
            [KeyRange {
                after: Some(key(5)),
                to: None
            }]
        );
        read.advance(&ranges[0], Some(key(7)), 2, 10);
        assert_eq!(read.running().ranges[0].after, Some(key(7)));
    }
}
