//! What somebody has to act on beside the state: the connector works, and will not for ever.

use std::time::{Duration, Instant};

/// While something lasts, the log says so again after this.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// When the log has said last what lasts.
#[derive(Debug, Default)]
pub(crate) struct Reminder(Option<Instant>);

impl Reminder {
    /// Is it to be said now, for the first time or again?
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let due = self
            .0
            .is_none_or(|said| now.saturating_duration_since(said) >= SAY_AGAIN);
        if due {
            self.0 = Some(now);
        }
        due
    }

    /// It is over; true if it had been said.
    pub(crate) fn end(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// What it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Concern {
    /// The slot makes the source keep much WAL.
    SlotWal,
    /// There is no slot any more that the log could be continued from.
    SlotLost,
    /// A table read waits for something in the source.
    ReadWaits,
}

/// What is said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Worry {
    pub(crate) sentence: String,
    /// Has somebody to act? Else it may pass by itself, and is only shown.
    pub(crate) grave: bool,
}

impl Worry {
    pub(crate) fn grave(sentence: String) -> Self {
        Self {
            sentence,
            grave: true,
        }
    }
}

impl Concern {
    const ALL: [Self; 3] = [Self::SlotWal, Self::SlotLost, Self::ReadWaits];

    /// What the log says once it is over.
    fn over(self) -> &'static str {
        match self {
            Self::SlotWal => "the slot keeps little WAL again",
            Self::SlotLost => "there is a replication slot again",
            Self::ReadWaits => "table reads go on",
        }
    }
}

/// One that lasts.
#[derive(Debug, Default)]
struct Lasting {
    worry: Option<Worry>,
    reminder: Reminder,
}

/// All of them. They outlast a life: what one has found out is still true when the next one begins.
#[derive(Debug, Default)]
pub(super) struct Concerns([Lasting; Concern::ALL.len()]);

impl Concerns {
    /// It lasts, or is over; each is logged, the former each minute while it is grave. True if what
    /// is to be shown has changed.
    pub(super) fn set(&mut self, concern: Concern, worry: Option<Worry>) -> bool {
        let lasting = &mut self.0[concern as usize];
        match &worry {
            Some(worry) if worry.grave && lasting.reminder.is_due(Instant::now()) => {
                tracing::error!(concern = ?concern, "{}", worry.sentence);
            }
            Some(_) => {}
            None if lasting.reminder.end() => tracing::info!("{}", concern.over()),
            None => {}
        }
        let changed = lasting.worry != worry;
        lasting.worry = worry;
        changed
    }

    /// It is of no meaning any more, without being over.
    pub(super) fn forget(&mut self, concern: Concern) {
        self.0[concern as usize] = Lasting::default();
    }

    pub(super) fn sentences(&self) -> impl Iterator<Item = &String> {
        self.worries().map(|worry| &worry.sentence)
    }

    /// Has somebody to act?
    pub(super) fn is_grave(&self) -> bool {
        self.worries().any(|worry| worry.grave)
    }

    fn worries(&self) -> impl Iterator<Item = &Worry> {
        self.0.iter().filter_map(|lasting| lasting.worry.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said_again_each_minute_and_at_once_when_it_comes_back() {
        let begun = Instant::now();
        let mut reminder = Reminder::default();
        let said: Vec<_> = (0..180)
            .filter(|second| reminder.is_due(begun + Duration::from_secs(*second)))
            .collect();
        assert_eq!(said, [0, 60, 120]);
        assert!(reminder.end());
        assert!(!reminder.end(), "it is over already");
        assert!(reminder.is_due(begun + Duration::from_secs(181)));
    }

    #[test]
    fn concerns_stand_beside_each_other() {
        let mut concerns = Concerns::default();
        let grave = |sentence: &str| Some(Worry::grave(sentence.to_owned()));
        let light = |sentence: &str| {
            let sentence = sentence.to_owned();
            Some(Worry {
                sentence,
                grave: false,
            })
        };
        assert!(concerns.set(Concern::ReadWaits, light("waits")));
        assert!(!concerns.is_grave());
        assert!(concerns.set(Concern::SlotLost, grave("lost")));
        assert!(
            !concerns.set(Concern::SlotLost, grave("lost")),
            "nothing new"
        );
        assert!(concerns.set(Concern::SlotWal, grave("much")));
        let said: Vec<_> = concerns.sentences().collect();
        assert_eq!(said, ["much", "lost", "waits"]);
        concerns.forget(Concern::SlotLost);
        assert!(concerns.set(Concern::SlotWal, None));
        assert!(!concerns.is_grave());
        assert!(
            concerns.set(Concern::ReadWaits, grave("waits")),
            "it is grave now"
        );
        assert!(concerns.is_grave());
    }
}
