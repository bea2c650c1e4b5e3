//! What tasks beside a life wait for. The life goes on meanwhile, so that its numbers tell nothing
//! of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Cause, Stall};

/// What a task beside the life waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Awaited {
    /// That what was committed can be read.
    Readable,
    /// Where the topics end.
    Ends,
}

/// What is waited for now, since when, and the sentence for it.
#[derive(Debug, Default)]
pub(crate) struct Waits(Mutex<BTreeMap<Awaited, (Instant, String)>>);

impl Waits {
    /// It is waited for from now on, or still is.
    pub(crate) fn begin(&self, awaited: Awaited, sentence: impl FnOnce() -> String) {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = || (Instant::now(), sentence());
        waits.entry(awaited).or_insert_with(begun);
    }

    /// More is known of why it does not come.
    pub(crate) fn explain(&self, awaited: Awaited, sentence: String) {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, said)) = waits.get_mut(&awaited) {
            *said = sentence;
        }
    }

    /// It has come.
    pub(crate) fn end(&self, awaited: Awaited) {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waits.remove(&awaited);
    }

    /// A life begins, which waits for nothing yet.
    pub(crate) fn clear(&self) {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waits.clear();
    }

    /// The longest wait of those that last for `stall` already, and the sentence for it.
    pub(crate) fn overdue(&self, stall: Duration, now: Instant) -> Option<Stall> {
        let waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (awaited, (since, sentence)) = waits.iter().min_by_key(|(_, (since, _))| *since)?;
        let lasts = now.saturating_duration_since(*since);
        (lasts >= stall).then(|| Stall {
            cause: Cause::Beside(*awaited),
            lasts,
            sentence: format!("for {} s {sentence}", lasts.as_secs()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(15);

    #[test]
    fn the_longest_wait_is_said_once_it_lasts_and_no_more_once_it_ends() {
        let (waits, now) = (Waits::default(), Instant::now());
        let at = |second| {
            let found = waits.overdue(STALL, now + Duration::from_secs(second));
            found.map(|found| (found.lasts, found.sentence))
        };
        assert_eq!(at(100), None);
        waits.explain(Awaited::Ends, "nobody waits".to_owned());
        waits.begin(Awaited::Readable, || "first".to_owned());
        waits.begin(Awaited::Ends, || "later".to_owned());
        waits.begin(Awaited::Readable, || "still waits".to_owned());
        waits.explain(Awaited::Readable, "other words, since then".to_owned());
        assert_eq!(at(14), None);
        let (lasts, said) = at(17).unwrap();
        assert!(
            lasts >= STALL && said.ends_with(" s other words, since then"),
            "{said}"
        );
        waits.end(Awaited::Readable);
        assert!(at(17).unwrap().1.ends_with(" s later"));
        waits.clear();
        assert_eq!(at(17), None);
    }
}
