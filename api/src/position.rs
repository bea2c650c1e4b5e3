//! Positions: how far in each source an answer is, and how far a client asks it to be.
//!
//! `View-Position: accounting=1763900000:0/1A2B3C, sales=none` says it; a source that the view
//! has not read yet is `none`. `Min-Position` asks in the same words, so that an answer's
//! header can be sent back as it came; there the epoch may be left out, and `none` asks nothing.

use std::collections::BTreeMap;
use std::fmt;

use axum::http::HeaderValue;
use kafka::{Lsn, Position};

/// Of every source its position; none where it has not been read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions(BTreeMap<String, Option<Position>>);

impl Positions {
    /// The configured `sources`, unread, overlaid with what is known.
    pub fn new(
        sources: &[String],
        known: impl IntoIterator<Item = (String, Option<Position>)>,
    ) -> Self {
        let mut positions: BTreeMap<_, _> = sources
            .iter()
            .map(|source| (source.clone(), None))
            .collect();
        positions.extend(known);
        Self(positions)
    }

    /// Every source by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<Position>)> {
        self.0
            .iter()
            .map(|(source, position)| (source.as_str(), *position))
    }

    /// The value of the header `View-Position`.
    #[must_use]
    pub fn to_header(&self) -> HeaderValue {
        // Source names are checked at start, so this always is a valid header value.
        HeaderValue::from_str(&self.to_string()).unwrap_or(HeaderValue::from_static(""))
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (source, position)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            match position {
                Some(position) => write!(f, "{comma}{source}={position}")?,
                None => write!(f, "{comma}{source}=none")?,
            }
        }
        Ok(())
    }
}

/// What a client asks of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Least {
    /// None: whichever epoch the source is in.
    epoch: Option<u64>,
    lsn: Lsn,
}

/// What `Min-Position` asks; empty asks nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Minimum(BTreeMap<String, Least>);

/// Why a `Min-Position` was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MinimumError {
    #[error(
        "{0:?} is not SOURCE=EPOCH:LSN; write for example \
         Min-Position: sales=1763900000:0/1A2B3C, accounting=0/16B3748"
    )]
    Malformed(String),
    #[error("{given:?} is not a source; the sources are {}", known.join(", "))]
    UnknownSource { given: String, known: Vec<String> },
    #[error("the source {0:?} is named twice; name it once")]
    NamedTwice(String),
}

impl Minimum {
    /// Reads the header's value.
    ///
    /// # Errors
    /// What does not parse, a source that is not one of `sources`, one that is named twice.
    pub fn parse(text: &str, sources: &[String]) -> Result<Self, MinimumError> {
        let mut named = std::collections::BTreeSet::new();
        let mut minimum = BTreeMap::new();
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            let malformed = || MinimumError::Malformed(item.to_owned());
            let (source, position) = item.split_once('=').ok_or_else(malformed)?;
            let (source, position) = (source.trim(), position.trim());
            if !sources.iter().any(|known| known == source) {
                return Err(MinimumError::UnknownSource {
                    given: source.to_owned(),
                    known: sources.to_vec(),
                });
            }
            if !named.insert(source) {
                return Err(MinimumError::NamedTwice(source.to_owned()));
            }
            if position != "none" {
                minimum.insert(source.to_owned(), least(position).ok_or_else(malformed)?);
            }
        }
        Ok(Self(minimum))
    }

    /// Does an answer at `positions` show what was asked?
    #[must_use]
    pub fn is_met_by(&self, positions: &Positions) -> bool {
        self.0.iter().all(|(source, least)| {
            let position = positions.0.get(source).copied().flatten();
            position.is_some_and(|at| match least.epoch {
                Some(epoch) => {
                    at >= Position {
                        epoch,
                        lsn: least.lsn,
                    }
                }
                None => at.lsn >= least.lsn,
            })
        })
    }
}

/// `1763900000:0/1A2B3C` or `0/1A2B3C`.
fn least(text: &str) -> Option<Least> {
    let (epoch, lsn) = match text.split_once(':') {
        None => (None, text),
        Some((epoch, lsn)) => {
            let digits = !epoch.is_empty() && epoch.bytes().all(|byte| byte.is_ascii_digit());
            (Some(epoch.parse().ok().filter(|_| digits)?), lsn)
        }
    };
    Some(Least {
        epoch,
        lsn: lsn.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sources() -> Vec<String> {
        ["accounting", "sales", "warehouse"]
            .map(str::to_owned)
            .to_vec()
    }

    fn position() -> impl Strategy<Value = Option<Position>> {
        prop::option::of(
            (any::<u64>(), any::<u64>()).prop_map(|(epoch, lsn)| Position {
                epoch,
                lsn: Lsn(lsn),
            }),
        )
    }

    fn positions() -> impl Strategy<Value = Positions> {
        [position(), position(), position()]
            .prop_map(|known| Positions::new(&sources(), sources().into_iter().zip(known)))
    }

    proptest! {
        #[test]
        fn a_view_position_sent_back_is_met_by_itself(at in positions()) {
            let minimum = Minimum::parse(&at.to_string(), &sources()).unwrap();
            prop_assert!(minimum.is_met_by(&at));
        }

        #[test]
        fn positions_compare_by_epoch_then_by_lsn(a in positions(), b in positions()) {
            let asked = Minimum::parse(&b.to_string(), &sources()).unwrap();
            let met = b.0.iter().all(|(source, least)| *least <= a.0[source]);
            prop_assert_eq!(asked.is_met_by(&a), met);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[a-z=:,/0-9A-F ]{0,40}") {
            let _ = Minimum::parse(&text, &sources());
        }
    }

    #[test]
    fn without_an_epoch_only_the_lsn_counts() {
        let at = Positions::new(
            &sources(),
            [(
                "sales".to_owned(),
                Some(Position {
                    epoch: 7,
                    lsn: Lsn(0x20),
                }),
            )],
        );
        let asks = |text: &str| Minimum::parse(text, &sources()).unwrap().is_met_by(&at);
        assert!(asks("sales=0/20"));
        assert!(!asks("sales=0/21"));
        assert!(asks("sales=6:0/21"));
        assert!(!asks("sales=8:0/0"));
        assert!(
            !asks("warehouse=0/0"),
            "a source that was not read meets nothing"
        );
        assert!(asks("warehouse=none, sales=7:0/20"));
        assert!(asks(""));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, wrong) in [
            ("sales", "\"sales\""),
            ("sales=", "\"sales=\""),
            ("sales=x:0/1", "\"sales=x:0/1\""),
            ("sales=+1:0/1", "\"sales=+1:0/1\""),
            ("sales=0/1, sale=0/1", "\"sale\""),
            ("sales=0/1, sales=0/2", "\"sales\""),
        ] {
            let error = Minimum::parse(text, &sources()).unwrap_err().to_string();
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }
}
