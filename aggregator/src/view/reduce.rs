//! A step's changes, reduced to what counts: one state a key.

use std::collections::HashMap;

use kafka::Lsn;
use service::fault;

use super::quarantine::{Findings, Poison, Quarantined};
use crate::ingest::{Change, Key, What};
use crate::mirror::{State, Table};

/// By mirror and id.
pub(crate) type States = HashMap<&'static str, HashMap<i64, State>>;

/// The last state that can be applied, and where in the source's log it stands.
type Sound = HashMap<(&'static str, i64), (&'static Table, Option<Lsn>)>;

/// The last state a key and mirror, in the order of the partitions; what cannot be applied
/// aside. A good state that came before poison of the same key still counts, and ends it only
/// if it stands later in the source's log: the quarantine's records come first.
pub(crate) fn reduce(changes: Vec<Change>, quarantined: &Quarantined) -> (States, Findings) {
    let mut states = States::new();
    let mut sound = Sound::new();
    let mut poison: HashMap<(&'static str, Key), (&'static Table, Poison)> = HashMap::new();
    for change in changes {
        let Change {
            table,
            record,
            key,
            what,
            lsn,
        } = change;
        // Not the design: as if no change said where it stands.
        let lsn = lsn.filter(|_| fault::in_force("quarantine_by_lsn"));
        let name = (table.mirror, key);
        let newer = poison
            .get(&name)
            .is_some_and(|(_, poison)| poison.lsn.zip(lsn).is_some_and(|(of, at)| of > at));
        match (what, &name.1) {
            (What::Poison { .. }, _) if newer => {}
            (What::Poison { reason, row }, _) => {
                let row = Poison {
                    record,
                    reason,
                    row,
                    lsn,
                };
                poison.insert(name, (table, row));
            }
            (What::Now(state), Key::Id(id)) => {
                if !newer {
                    poison.remove(&name);
                }
                if quarantined.may_have(table, *id) {
                    sound.insert((table.mirror, *id), (table, lsn));
                }
                states.entry(table.mirror).or_default().insert(*id, state);
            }
            (What::Now(_), Key::Unreadable(_)) => {}
        }
    }
    let sound = sound.into_iter();
    let poison = poison.into_iter();
    let findings = Findings {
        sound: sound
            .map(|((_, id), (table, lsn))| (table, id, lsn))
            .collect(),
        poison: poison
            .map(|((_, key), (table, poison))| (table, key, poison))
            .collect(),
    };
    (states, findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::Record;
    use crate::mirror::ORDER;

    /// What a step costs does not depend on whether other keys are in quarantine.
    #[test]
    fn only_what_is_in_quarantine_may_leave_it() {
        let gone = |id| Change {
            table: &ORDER,
            record: Record {
                topic: "sales.public.sls_order".into(),
                partition: 0,
                offset: id,
                timestamp_ms: 0,
            },
            key: Key::Id(id),
            what: What::Now(State::Gone),
            lsn: None,
        };
        let quarantined = Quarantined::with(&ORDER, &[7, 900]);
        let (states, findings) = reduce((1..=100).map(gone).collect(), &quarantined);
        assert_eq!(states[ORDER.mirror].len(), 100);
        let sound: Vec<_> = findings.sound.iter().map(|(_, id, _)| *id).collect();
        assert_eq!(sound, [7]);
    }
}
