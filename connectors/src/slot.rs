//! What the slot makes the source keep: watched, said before it is too much, and given up then.
//!
//! A slot keeps WAL until its position is confirmed, so whatever stops us fills the owner's disk.
//! Two bounds stand against that: the owner's `max_slot_wal_keep_size`, at which the source ends
//! the slot by itself, and, if the operator sets a lower one, ours. Whoever holds the lock looks
//! each second, also while Kafka is away and no life gets as far as the slot.

use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use service::fault::in_force;
use tokio::sync::watch;

use crate::config::{ConnectorConfig, PostgresConfig};
use crate::error::LifeError;
use crate::source::{Hold, Pulse, SlotWal};
use crate::status::{SlotStatus, StatusBoard, names, precise};

/// While the alarm lasts, the log says so again after this.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// The bound that is met first, bytes; none: the owner has taken theirs away since the start.
fn bound(postgres: &PostgresConfig, wal: &SlotWal) -> Option<u64> {
    let ours = Some(postgres.slot_wal_bytes_max).filter(|bytes| *bytes > 0);
    [ours, wal.source_bytes_max].into_iter().flatten().min()
}

/// Watches what the slot keeps; returns once that is more than ours to let it keep.
pub(crate) async fn guard(
    config: &ConnectorConfig,
    status: &StatusBoard,
    mut pulse: watch::Receiver<Pulse>,
) -> LifeError {
    let mut said: Option<Instant> = None;
    loop {
        let wal = pulse.borrow_and_update().slot_wal;
        if let Some(wal) = wal {
            if let Some(error) = too_much(&config.postgres, &wal) {
                return error;
            }
            let alarm = alarm(&config.postgres, &wal);
            show(&config.postgres, status, &wal, alarm.clone());
            match alarm {
                Some(sentence) if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) => {
                    said = Some(Instant::now());
                    tracing::error!(wal_bytes = wal.bytes, "{sentence}");
                }
                Some(_) => {}
                None => {
                    if said.take().is_some() {
                        tracing::info!(wal_bytes = wal.bytes, "the slot keeps little WAL again");
                    }
                }
            }
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

fn show(postgres: &PostgresConfig, status: &StatusBoard, wal: &SlotWal, alarm: Option<String>) {
    let bytes_max = bound(postgres, wal);
    gauge!(names::SLOT_WAL).set(precise(wal.bytes));
    gauge!(names::SLOT_WAL_MAX).set(bytes_max.map_or(f64::INFINITY, precise));
    gauge!(names::SLOT_ALARM).set(if alarm.is_some() { 1.0 } else { 0.0 });
    status.slot(SlotStatus {
        wal_bytes: wal.bytes,
        wal_bytes_max: bytes_max,
        alarm,
    });
}

/// Drops the slot, whoever of our role streams from it, while the lock is still held.
pub(crate) async fn give_up(slot: &str, hold: &Hold) -> Result<(), LifeError> {
    counter!(names::SLOTS_GIVEN_UP).increment(1);
    hold.drop_slot(slot).await?;
    tracing::error!(slot, "the replication slot {slot} is given up");
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
