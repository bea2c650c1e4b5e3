//! When the socket is left alone, so that the kernel collects what the server sends.
//!
//! The server sends each message by itself, and who waits for each has it wake them for each, which
//! costs the server about as much as the message, and us more. So where messages come fast the socket
//! is looked at about each millisecond. Where they come one by one, nothing waits.

use std::time::Duration;

use tokio::time::Instant;

/// For how long: the runtime's timer knows milliseconds.
pub(super) const REST: Duration = Duration::from_millis(1);
/// So many reads within a rest's time are fast.
const READS_FAST: u32 = 16;
/// A rest that brings less was for nothing.
const BYTES_MIN: usize = 4 << 10;

/// Looks at how the reads go.
#[derive(Debug)]
pub(super) struct Rest {
    since: Instant,
    reads: u32,
    goes_on: bool,
}

impl Rest {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            reads: 0,
            goes_on: false,
        }
    }

    /// Is one due after a read of so many bytes, where `most` are read at once? Not where they wait
    /// already.
    pub(super) fn is_due(&mut self, bytes: usize, most: usize, now: Instant) -> bool {
        if bytes >= most / 2 {
            return false;
        }
        if self.goes_on {
            self.goes_on = bytes >= BYTES_MIN;
        } else {
            self.reads += 1;
            if self.reads < READS_FAST {
                return false;
            }
            self.goes_on = now.saturating_duration_since(self.since) < REST;
        }
        (self.since, self.reads) = (now, 0);
        self.goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 256 << 10;

    /// How many of a hundred reads are followed by a rest.
    fn rests(bytes: usize, apart: Duration) -> usize {
        let mut now = Instant::now();
        let mut rest = Rest::new(now);
        let due = (0..100).filter(|_| {
            now += apart;
            rest.is_due(bytes, MOST, now)
        });
        due.count()
    }

    #[test]
    fn what_comes_one_by_one_is_not_waited_with() {
        assert_eq!(rests(300, Duration::from_micros(100)), 0);
        assert_eq!(rests(300, Duration::from_millis(10)), 0);
    }

    #[test]
    fn what_comes_fast_is_collected_while_that_brings_something() {
        let fast = Duration::from_micros(5);
        assert_eq!(rests(8 << 10, fast), 100 - 15);
        assert_eq!(rests(300, fast), 5, "each of them brought too little");
    }

    #[test]
    fn what_waits_already_is_read() {
        assert_eq!(rests(MOST, Duration::from_micros(5)), 0);
    }
}
