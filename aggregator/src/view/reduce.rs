//! A step's changes, reduced to what counts: one state a key.

use std::collections::HashMap;

use super::quarantine::{Findings, Poison};
use crate::ingest::{Change, Key, What};
use crate::mirror::{State, TABLES, Table};

/// By mirror and id.
pub(crate) type States = HashMap<&'static str, HashMap<i64, State>>;

/// The last state a key and mirror, in the order of the partitions; what cannot be applied
/// aside. A good state that came before poison of the same key still counts.
pub(crate) fn reduce(changes: Vec<Change>, quarantined: bool) -> (States, Findings) {
    let mut states = States::new();
    let mut poison: HashMap<(&'static str, Key), (&'static Table, Poison)> = HashMap::new();
    for change in changes {
        let Change {
            table,
            record,
            key,
            what,
        } = change;
        match (what, &key) {
            (What::Poison { reason, row }, _) => {
                let row = Poison {
                    record,
                    reason,
                    row,
                };
                poison.insert((table.mirror, key), (table, row));
            }
            (What::Now(state), Key::Id(id)) => {
                poison.remove(&(table.mirror, key.clone()));
                states.entry(table.mirror).or_default().insert(*id, state);
            }
            (What::Now(_), Key::Unreadable(_)) => {}
        }
    }
    let mut findings = Findings::default();
    if quarantined {
        for (mirror, states) in &states {
            let table = TABLES.into_iter().find(|table| table.mirror == *mirror);
            let ids = states.keys().map(|id| (table, *id));
            findings
                .sound
                .extend(ids.filter_map(|(table, id)| Some((table?, id))));
        }
    }
    let poison = poison.into_iter();
    findings.poison = poison
        .map(|((_, key), (table, poison))| (table, key, poison))
        .collect();
    (states, findings)
}
