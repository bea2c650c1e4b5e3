//! What the slot makes the source keep: watched, said before it is too much, and given up then.
//!
//! A slot keeps WAL until its position is confirmed, so whatever stops us fills the owner's disk.
//! Two bounds stand against that: the owner's `max_slot_wal_keep_size`, at which the source ends
//! the slot by itself, and, if the operator sets a lower one, ours. Whoever holds the lock looks
//! each second, also while Kafka is away and no life gets as far as the slot. The same look tells
//! how far the source is ahead of the topics, and that the slot is lost.

use metrics::{counter, gauge};
use service::fault::in_force;
use tokio::sync::watch;

use crate::config::{ConnectorConfig, PostgresConfig};
use crate::error::LifeError;
use crate::source::{Hold, Pulse, SlotNow, SlotWal};
use crate::status::{Concern, SlotStatus, StatusBoard, Worry, names, precise};
use crate::watch::Activity;

/// The bound that is met first, bytes; none: the owner has taken theirs away since the start.
fn bound(postgres: &PostgresConfig, wal: &SlotWal) -> Option<u64> {
    let ours = Some(postgres.slot_wal_bytes_max).filter(|bytes| *bytes > 0);
    [ours, wal.source_bytes_max].into_iter().flatten().min()
}

/// Watches the slot; returns once it keeps more than is ours to let it keep.
pub(crate) async fn guard(
    config: &ConnectorConfig,
    status: &StatusBoard,
    mut pulse: watch::Receiver<Pulse>,
) -> LifeError {
    let postgres = &config.postgres;
    loop {
        let felt = pulse.borrow_and_update().clone();
        status.felt(felt.flushed, felt.confirmed);
        match felt.slot {
            SlotNow::Keeps(wal) => {
                if let Some(error) = too_much(postgres, &wal) {
                    return error;
                }
                keeps(postgres, status, &wal);
            }
            SlotNow::Lost(why) => {
                let how = format!("was invalidated by the source ({why})");
                lost(postgres, status, &how);
            }
            // One that is replaced is gone for a moment.
            SlotNow::Absent
                if status.knows_a_slot() && !status.motion().is_in(Activity::MakingSlot) =>
            {
                match status.given_up() {
                    Some(why) => lost(postgres, status, &why.to_string()),
                    None => lost(postgres, status, "is gone"),
                }
            }
            SlotNow::Absent => {}
        }
        if pulse.changed().await.is_err() {
            // The control session is lost, which ends the life elsewhere.
            return std::future::pending().await;
        }
    }
}

fn too_much(postgres: &PostgresConfig, wal: &SlotWal) -> Option<LifeError> {
    let bytes_max = postgres.slot_wal_bytes_max;
    (bytes_max > 0 && wal.bytes > bytes_max && in_force("slot_given_up")).then(|| {
        LifeError::SlotGivenUp {
            slot: postgres.slot.clone(),
            bytes: wal.bytes,
            bytes_max,
        }
    })
}

fn alarm(postgres: &PostgresConfig, wal: &SlotWal) -> Option<String> {
    let bytes_max = bound(postgres, wal)?;
    let share = wal.bytes.saturating_mul(100) / bytes_max.max(1);
    (share >= u64::from(postgres.slot_wal_alarm_percent)).then(|| {
        format!(
            "the replication slot {} makes the source keep {} bytes of WAL, {share} % of the \
             {bytes_max} at which it is given up and all tables are read again; see the state of \
             the connector and of Kafka",
            postgres.slot, wal.bytes
        )
    })
}

fn keeps(postgres: &PostgresConfig, status: &StatusBoard, wal: &SlotWal) {
    let (bytes_max, alarm) = (bound(postgres, wal), alarm(postgres, wal));
    gauge!(names::SLOT_WAL).set(precise(wal.bytes));
    gauge!(names::SLOT_WAL_MAX).set(bytes_max.map_or(f64::INFINITY, precise));
    gauge!(names::SLOT_ALARM).set(if alarm.is_some() { 1.0 } else { 0.0 });
    gauge!(names::SLOT_LOST).set(0.0);
    status.slot(SlotStatus {
        wal_bytes: wal.bytes,
        wal_bytes_max: bytes_max,
        alarm: alarm.clone(),
        lost: None,
    });
    status.concern(Concern::SlotLost, None);
    status.concern(Concern::SlotWal, alarm.map(Worry::grave));
}

/// The log cannot be continued any more. It keeps no WAL, so the alarm is of the past; what is
/// lost is said until a new slot stands, which with Kafka away may take as long as that does.
fn lost(postgres: &PostgresConfig, status: &StatusBoard, how: &str) {
    if !in_force("slot_loss_said") {
        return;
    }
    let sentence = format!(
        "the replication slot {} {how}: the log cannot be continued, so all tables are read again \
         in a new epoch, which begins by itself once source and Kafka can be reached",
        postgres.slot
    );
    gauge!(names::SLOT_WAL).set(0.0);
    gauge!(names::SLOT_ALARM).set(0.0);
    gauge!(names::SLOT_LOST).set(1.0);
    status.slot(SlotStatus {
        lost: Some(sentence.clone()),
        ..SlotStatus::default()
    });
    let worry = Worry {
        sentence,
        // What was asked for is nobody's to mend.
        grave: status.given_up() != Some(GivenUp::Asked),
    };
    status.concern(Concern::SlotLost, Some(worry));
    status.concern_forgotten(Concern::SlotWal);
}

/// Why a slot is dropped by who has it. The message goes on from the slot's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GivenUp {
    #[error("was given up by command")]
    Asked,
    #[error("was given up because it kept too much")]
    TooMuch,
}

/// Drops the slot, whoever of our role streams from it, while the lock is still held.
pub(crate) async fn give_up(
    slot: &str,
    why: GivenUp,
    hold: &Hold,
    status: &StatusBoard,
) -> Result<(), LifeError> {
    // Before it is gone: the next look says why.
    status.slot_given_up(Some(why));
    if let Err(error) = hold.drop_slot(slot).await {
        status.slot_given_up(None);
        return Err(error.into());
    }
    match why {
        GivenUp::Asked => tracing::info!(slot, "the replication slot {slot} {why}"),
        GivenUp::TooMuch => {
            counter!(names::SLOTS_GIVEN_UP).increment(1);
            tracing::error!(slot, "the replication slot {slot} {why}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn postgres(bytes_max: u64) -> PostgresConfig {
        let keys = serde_json::json!({
            "url": "postgres://u@h/d", "slot": "s", "publication": "p",
            "slot_wal_bytes_max": bytes_max,
        });
        serde_json::from_value(keys).unwrap()
    }

    fn wal(bytes: u64, source_bytes_max: Option<u64>) -> SlotWal {
        SlotWal {
            bytes,
            source_bytes_max,
        }
    }

    #[test]
    fn the_alarm_comes_at_half_of_the_lower_bound() {
        for (ours, theirs, bytes, alarmed) in [
            (0, Some(100), 49, false),
            (0, Some(100), 50, true),
            (40, Some(100), 19, false),
            (40, Some(100), 20, true),
            (400, Some(100), 50, true),
            (0, None, u64::MAX, false),
        ] {
            let said = alarm(&postgres(ours), &wal(bytes, theirs));
            assert_eq!(said.is_some(), alarmed, "{ours} {theirs:?} {bytes}");
        }
    }

    #[test]
    fn only_our_own_bound_gives_the_slot_up() {
        assert!(too_much(&postgres(0), &wal(1000, Some(100))).is_none());
        assert!(too_much(&postgres(40), &wal(40, Some(100))).is_none());
        assert!(too_much(&postgres(40), &wal(41, Some(100))).is_some());
    }
}
