//! Pulses of the source that the position has not met yet.

use std::collections::VecDeque;

use kafka::Lsn;

/// That many are kept; with more, every second one, then every fourth and so on.
const KEPT_MAX: usize = 64;

/// Under load the WAL's end is ahead of the position whenever it is asked for. So each pulse
/// waits here until the log has come so far.
#[derive(Debug, Clone)]
pub(super) struct Pulses {
    /// Where the WAL was flushed to, and when; oldest first.
    ahead: VecDeque<(Lsn, i64)>,
    /// One of so many is kept.
    stride: u64,
    skipped: u64,
}

impl Default for Pulses {
    fn default() -> Self {
        Self {
            ahead: VecDeque::new(),
            stride: 1,
            skipped: 0,
        }
    }
}

impl Pulses {
    pub(super) fn add(&mut self, flushed: Lsn, at_us: i64) {
        self.skipped += 1;
        if self.skipped < self.stride {
            return;
        }
        self.skipped = 0;
        if self.ahead.len() >= KEPT_MAX {
            let mut keep = false;
            self.ahead.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride = self.stride.saturating_mul(2);
        }
        self.ahead.push_back((flushed, at_us));
    }

    /// The log has come to `position`: the latest time at which that was all there was.
    pub(super) fn meet(&mut self, position: Lsn) -> Option<i64> {
        let mut met = None;
        while let Some((flushed, at_us)) = self.ahead.front().copied()
            && flushed <= position
        {
            self.ahead.pop_front();
            met = Some(at_us);
        }
        if self.ahead.is_empty() {
            (self.stride, self.skipped) = (1, 0);
        }
        met
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_backlog_is_kept_in_even_steps_and_within_bounds() {
        let mut pulses = Pulses::default();
        for second in 0..10_000_u64 {
            pulses.add(Lsn(1000 + second), 1000 + i64::try_from(second).unwrap());
            assert!(pulses.ahead.len() <= KEPT_MAX);
        }
        assert_eq!(pulses.meet(Lsn(999)), None);
        for position in [3000, 5000, 9000] {
            let at = pulses.meet(Lsn(position)).unwrap();
            let late = i64::try_from(position).unwrap() - at;
            assert!((0..=256).contains(&late), "{late} behind {position}");
        }
        assert!(pulses.meet(Lsn(20_000)).is_some());
        pulses.add(Lsn(20_001), 7);
        assert_eq!(
            pulses.meet(Lsn(20_001)),
            Some(7),
            "fine again once it has caught up"
        );
    }
}
