//! The keys that a partition has a row of, each once, however many there are.
//!
//! A key stands in a topic as often as its row has changed, and is live if its last record has a
//! value. To tell takes one pass over the partition that remembers what is live so far; more keys
//! than may be remembered are told share by share, each with a pass of its own.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

/// Keys that are remembered at once, some 18 MiB of them.
pub(super) const LIVE_KEYS_MAX: usize = 500_000;

/// Keys whose hash ends with `bits` bits that are `end`.
#[derive(Debug, Clone, Copy)]
struct Share {
    bits: u32,
    end: u128,
}

impl Share {
    fn has(self, hash: u128) -> bool {
        let mask = (1_u128 << self.bits) - 1;
        hash & mask == self.end
    }

    /// Itself, and what it gives away.
    fn halves(self) -> (Self, Self) {
        let (bits, other) = (self.bits + 1, self.end | 1 << self.bits);
        (Self { bits, ..self }, Self { bits, end: other })
    }
}

/// Which keys of a share are live.
#[derive(Debug)]
pub(super) struct LiveKeys {
    /// Two of 64 bits are one of 128: no two keys have the same in practice.
    hashers: [RandomState; 2],
    live: HashSet<u128>,
    live_max: usize,
    share: Share,
    shares_left: Vec<Share>,
}

impl LiveKeys {
    /// That remembers at most so many keys at once, 34 bytes each.
    pub(super) fn at_most(live_max: usize) -> Self {
        Self {
            hashers: [RandomState::new(), RandomState::new()],
            live: HashSet::new(),
            live_max: live_max.max(1),
            share: Share { bits: 0, end: 0 },
            shares_left: Vec::new(),
        }
    }

    /// The next record of a pass.
    pub(super) fn see(&mut self, key: &[u8], has_value: bool) {
        let hash = self.hash(key);
        if !self.share.has(hash) {
            return;
        }
        if !has_value {
            self.live.remove(&hash);
            return;
        }
        self.live.insert(hash);
        while self.live.len() > self.live_max {
            let (share, given) = self.share.halves();
            self.shares_left.push(given);
            self.share = share;
            self.live.retain(|hash| share.has(*hash));
        }
    }

    /// Is this key live? It is not any more.
    pub(super) fn take(&mut self, key: &[u8]) -> bool {
        let hash = self.hash(key);
        self.live.remove(&hash)
    }

    /// Likewise, but of another share nobody knows, so it may be.
    pub(super) fn take_if_known(&mut self, key: &[u8]) -> bool {
        let hash = self.hash(key);
        !self.share.has(hash) || self.live.remove(&hash)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// On to the keys that were too many; false: there are none.
    pub(super) fn next_share(&mut self) -> bool {
        self.live.clear();
        match self.shares_left.pop() {
            None => false,
            Some(share) => {
                self.share = share;
                true
            }
        }
    }

    fn hash(&self, key: &[u8]) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one(key));
        u128::from(high) << 64 | u128::from(low)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_live_key_is_taken_once_and_no_more_are_remembered_than_may_be(
            records in prop::collection::vec((0..40_u8, any::<bool>()), 0..200),
            live_max in 1..50_usize,
        ) {
            let mut expected = BTreeSet::new();
            for (key, has_value) in &records {
                match has_value {
                    true => expected.insert(*key),
                    false => expected.remove(key),
                };
            }
            let (mut live, mut taken) = (LiveKeys::at_most(live_max), Vec::new());
            loop {
                for (key, has_value) in &records {
                    live.see(&[*key], *has_value);
                    prop_assert!(live.live.len() <= live_max);
                }
                let keys = records.iter().map(|(key, _)| *key);
                taken.extend(keys.filter(|key| live.take(&[*key])));
                prop_assert!(live.is_empty());
                if !live.next_share() {
                    break;
                }
            }
            taken.sort_unstable();
            prop_assert_eq!(taken, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
