//! Does the epoch last? Only if the log can be continued exactly where the last record stands.

use kafka::topic::{TopicError, shorter};
use kafka::{Checkpoint, Lsn, Offsets};
use service::fault::in_force;

use crate::progress::Identity;
use crate::replication::TimelineSwitch;
use crate::slot::GivenUp;

/// The slot as `pg_replication_slots` shows it while we hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// What the server sends begins here, whatever was asked for.
    pub confirmed_flush: Lsn,
}

/// The server as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub identity: Identity,
    /// The timelines before the current one, oldest first.
    pub history: Vec<TimelineSwitch>,
    /// How far the WAL is flushed.
    pub flushed: Lsn,
}

/// Why a new epoch begins.
#[derive(Debug, thiserror::Error)]
pub enum NewEpoch {
    #[error("the checkpoint topic is empty")]
    NoCheckpoint,
    #[error("the slot is gone or was invalidated")]
    NoSlot,
    #[error("the slot {0}")]
    GivenUp(GivenUp),
    #[error("the source is another cluster: system identifier {now} instead of {then}")]
    OtherSystem { then: String, now: String },
    #[error("the source's timeline {now} does not contain {reach} of timeline {then}")]
    OtherTimeline { then: u32, now: u32, reach: Lsn },
    #[error("the slot goes on at {confirmed_flush}, past the last checkpoint's {position}")]
    SlotAhead { confirmed_flush: Lsn, position: Lsn },
    #[error("the source's WAL ends at {flushed}, before the {reach} that the topics hold")]
    WalShorter { flushed: Lsn, reach: Lsn },
    #[error(transparent)]
    TopicShorter(#[from] TopicError),
}

/// Looks whether the epoch of `last` lasts; `ends` is where the tables' topics end.
///
/// # Errors
/// The first reason why not.
pub fn lasts<'a>(
    last: Option<&'a Checkpoint>,
    slot: Option<Slot>,
    server: &Server,
    ends: &Offsets,
) -> Result<&'a Checkpoint, NewEpoch> {
    let last = last.ok_or(NewEpoch::NoCheckpoint)?;
    let slot = slot.ok_or(NewEpoch::NoSlot)?;
    let now = &server.identity;
    let reach = if in_force("timeline_reach") {
        last.position.max(last.reach)
    } else {
        last.position
    };
    if in_force("system_identifier") && last.system_identifier != now.system_identifier {
        return Err(NewEpoch::OtherSystem {
            then: last.system_identifier.clone(),
            now: now.system_identifier.clone(),
        });
    }
    if in_force("timeline") && !server.contains(last.timeline, reach) {
        return Err(NewEpoch::OtherTimeline {
            then: last.timeline,
            now: now.timeline,
            reach,
        });
    }
    if in_force("confirmed_flush") && slot.confirmed_flush > last.position {
        return Err(NewEpoch::SlotAhead {
            confirmed_flush: slot.confirmed_flush,
            position: last.position,
        });
    }
    // What was sent had been flushed. A shorter WAL on the same timeline is a copy that was
    // put back without a new timeline, and has not grown past the old end yet.
    if in_force("timeline") && server.flushed < reach {
        return Err(NewEpoch::WalShorter {
            flushed: server.flushed,
            reach,
        });
    }
    if in_force("topics_hold")
        && let Some(shorter) = shorter(&last.offsets, ends)
    {
        return Err(shorter.into());
    }
    Ok(last)
}

impl Server {
    /// Is `lsn` of `timeline` part of the current timeline's past? The history names each
    /// timeline on the way here and where it was left.
    #[must_use]
    pub fn contains(&self, timeline: u32, lsn: Lsn) -> bool {
        if timeline == self.identity.timeline {
            return true;
        }
        let mut later = self
            .history
            .iter()
            .skip_while(|switch| switch.timeline != timeline)
            .peekable();
        later.peek().is_some() && later.all(|switch| lsn <= switch.switched_at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn last() -> Checkpoint {
        Checkpoint {
            epoch: 5,
            system_identifier: "7".to_owned(),
            timeline: 2,
            position: Lsn(100),
            reach: Lsn(120),
            half_sent: None,
            committed_at_us: None,
            current_at_us: None,
            wal_end: Lsn(100),
            offsets: ends(),
            quarantine: BTreeMap::new(),
            tables: BTreeMap::new(),
        }
    }

    fn ends() -> Offsets {
        Offsets::from([("t".to_owned(), BTreeMap::from([(0, 7), (1, 9)]))])
    }

    fn server() -> Server {
        Server {
            identity: Identity {
                system_identifier: "7".to_owned(),
                timeline: 2,
            },
            history: vec![switch(1, 50)],
            flushed: Lsn(200),
        }
    }

    fn switch(timeline: u32, at: u64) -> TimelineSwitch {
        TimelineSwitch {
            timeline,
            switched_at: Lsn(at),
        }
    }

    fn slot(lsn: u64) -> Option<Slot> {
        Some(Slot {
            confirmed_flush: Lsn(lsn),
        })
    }

    #[test]
    fn an_epoch_lasts_while_the_log_can_be_continued() {
        assert!(lasts(Some(&last()), slot(100), &server(), &ends()).is_ok());
        assert!(lasts(Some(&last()), slot(1), &server(), &ends()).is_ok());
    }

    #[test]
    fn an_epoch_ends_without_checkpoint_or_slot() {
        assert!(matches!(
            lasts(None, slot(1), &server(), &ends()),
            Err(NewEpoch::NoCheckpoint)
        ));
        assert!(matches!(
            lasts(Some(&last()), None, &server(), &ends()),
            Err(NewEpoch::NoSlot)
        ));
    }

    #[test]
    fn an_epoch_ends_when_the_slot_is_ahead_of_the_checkpoint() {
        assert!(matches!(
            lasts(Some(&last()), slot(101), &server(), &ends()),
            Err(NewEpoch::SlotAhead { .. })
        ));
    }

    #[test]
    fn an_epoch_ends_on_another_cluster() {
        let mut server = server();
        server.identity.system_identifier = "8".to_owned();
        assert!(matches!(
            lasts(Some(&last()), slot(1), &server, &ends()),
            Err(NewEpoch::OtherSystem { .. })
        ));
    }

    #[test]
    fn a_timeline_that_was_left_after_the_reach_goes_on() {
        let mut server = server();
        server.identity.timeline = 4;
        server.history = vec![switch(1, 50), switch(2, 120), switch(3, 150)];
        assert!(lasts(Some(&last()), slot(1), &server, &ends()).is_ok());
    }

    #[test]
    fn a_timeline_that_was_left_between_position_and_reach_ends_the_epoch() {
        let mut server = server();
        server.identity.timeline = 3;
        server.history = vec![switch(1, 50), switch(2, 110)];
        assert!(matches!(
            lasts(Some(&last()), slot(1), &server, &ends()),
            Err(NewEpoch::OtherTimeline { .. })
        ));
    }

    #[test]
    fn every_switch_on_the_way_counts() {
        let mut server = server();
        server.identity.timeline = 4;
        server.history = vec![switch(2, 130), switch(3, 110)];
        assert!(!server.contains(2, Lsn(120)));
    }

    #[test]
    fn an_unknown_timeline_ends_the_epoch() {
        let mut server = server();
        server.identity.timeline = 1;
        server.history = Vec::new();
        assert!(!server.contains(2, Lsn(1)));
    }

    #[test]
    fn a_wal_that_became_shorter_ends_the_epoch() {
        let mut server = server();
        server.flushed = Lsn(119);
        assert!(matches!(
            lasts(Some(&last()), slot(1), &server, &ends()),
            Err(NewEpoch::WalShorter { .. })
        ));
    }

    #[test]
    fn a_topic_that_is_shorter_than_the_checkpoint_says_ends_the_epoch() {
        let mut ends = ends();
        assert!(lasts(Some(&last()), slot(1), &server(), &ends).is_ok());
        ends.insert("t".to_owned(), BTreeMap::from([(0, 7), (1, 8)]));
        assert!(matches!(
            lasts(Some(&last()), slot(1), &server(), &ends),
            Err(NewEpoch::TopicShorter(_))
        ));
    }
}
