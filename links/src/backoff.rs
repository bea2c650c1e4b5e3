//! How long to wait before the next try.

use std::time::Duration;

/// Doubles from `first` to `max`, each wait shortened at random by up to half, so that
/// processes that failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits between `first / 2` and `first` at the first try, at most `max` later.
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            next: first,
        }
    }

    /// Call after a success: the next failure waits `first` again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// The wait before the next try.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(self.max);
        wait.mul_f64(0.5 + 0.5 * rand::random::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_maximum_and_start_over_after_a_success() {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, max);
        for _ in 0..10 {
            let wait = backoff.wait();
            assert!(wait >= first / 2 && wait <= max);
        }
        assert!(backoff.wait() >= max / 2);
        backoff.reset();
        assert!(backoff.wait() <= first);
    }
}
