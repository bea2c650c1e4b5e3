//! What a run is made of, so that it can be told and repeated: faults, and who writes how much. And
//! the search for a smaller one that fails as well.

use std::fmt;
use std::ops::Range;

use anyhow::{Context, Result};

use super::chaos::Fault;
use super::clients::{Client, Workload};

/// All that a seed decides in a run, or a part of it.
#[derive(Debug, Clone)]
pub(super) struct History {
    pub(super) faults: Vec<Fault>,
    pub(super) workload: Workload,
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            writeln!(f, "  {fault}")?;
        }
        if self.faults.is_empty() {
            writeln!(f, "  nothing goes wrong")?;
        }
        write!(f, "  while there write: {}", self.workload)
    }
}

impl History {
    /// The variables that repeat it.
    pub(super) fn variables(&self) -> String {
        let faults = ranges(self.faults.iter().map(|fault| fault.number));
        let Workload { clients, each, .. } = &self.workload;
        let clients: Vec<_> = clients.iter().map(ToString::to_string).collect();
        let each = each.map_or(String::new(), |each| format!(" TRANSACTIONS={each}"));
        format!("FAULTS={faults} CLIENTS={}{each}", clients.join(","))
    }
}

/// Numbers that grow, as `0..3,7..8`.
fn ranges(numbers: impl Iterator<Item = usize>) -> String {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some(last) if last.end == number => last.end += 1,
            _ => ranges.push(number..number + 1),
        }
    }
    if ranges.is_empty() {
        return "0..0".to_owned();
    }
    let ranges: Vec<_> = ranges
        .iter()
        .map(|range| format!("{}..{}", range.start, range.end))
        .collect();
    ranges.join(",")
}

/// `TO`, or `FROM..TO` and several of these with commas between.
pub(super) fn chosen(text: &str) -> Result<Vec<Range<usize>>> {
    let range = |text: &str| {
        let (from, to) = text.split_once("..").unwrap_or(("0", text));
        Ok::<_, std::num::ParseIntError>(from.parse()?..to.parse()?)
    };
    let ranges = text.split(',').map(range).collect::<Result<_, _>>();
    ranges.with_context(|| format!("{text} is neither TO nor FROM..TO,…"))
}

/// A part of a failing history that fails as well: none of its faults, halves of them, or all but a
/// quarter, as long as something fails; then likewise of who writes; then half of what each writes.
/// Timing is not repeated, so that a part which goes well is no proof.
pub(super) async fn smallest(
    mut failing: History,
    mut fails: impl AsyncFnMut(&History) -> bool,
) -> History {
    let mut part = failing.clone();
    failing.faults = least(failing.faults, async |faults| {
        part.faults = faults;
        println!("tries {} faults again", part.faults.len());
        fails(&part).await
    })
    .await;
    let mut part = failing.clone();
    failing.workload.clients = least(failing.workload.clients, async |clients| {
        part.workload.clients = clients;
        println!("tries again with {}", part.workload);
        fails(&part).await
    })
    .await;
    while let Some(each @ 2..) = failing.workload.each {
        let mut part = failing.clone();
        part.workload.each = Some(each / 2);
        println!("tries again with {}", part.workload);
        if !fails(&part).await {
            break;
        }
        failing = part;
    }
    failing
}

async fn least<T: Clone>(
    mut failing: Vec<T>,
    mut fails: impl AsyncFnMut(Vec<T>) -> bool,
) -> Vec<T> {
    'smaller: while !failing.is_empty() {
        for part in parts(&failing) {
            if fails(part.clone()).await {
                failing = part;
                continue 'smaller;
            }
        }
        break;
    }
    failing
}

/// Nothing of a list, its halves, and the list without each of its quarters.
fn parts<T: Clone>(all: &[T]) -> Vec<Vec<T>> {
    let mut parts = vec![Vec::new()];
    if all.len() > 1 {
        let (first, second) = all.split_at(all.len() / 2);
        parts.extend([first.to_vec(), second.to_vec()]);
    }
    if all.len() > 2 {
        let quarter = all.len().div_ceil(4);
        for begin in (0..all.len()).step_by(quarter) {
            let end = (begin + quarter).min(all.len());
            parts.push([&all[..begin], &all[end..]].concat());
        }
    }
    parts
}

/// `CLIENTS` and `TRANSACTIONS`: who writes, and how much each.
pub(super) fn workload(clients: Option<&str>, each: Option<u64>) -> Result<Workload> {
    let clients = match clients {
        None => Client::ALL.to_vec(),
        Some(names) => names
            .split(',')
            .filter(|name| !name.is_empty())
            .map(|name| {
                let client = Client::ALL.into_iter().find(|one| one.to_string() == name);
                client.with_context(|| format!("there is no {name} among {:?}", Client::ALL))
            })
            .collect::<Result<_>>()?,
    };
    let within = None;
    Ok(Workload {
        clients,
        each,
        within,
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::workload::clients::Writer;

    const MOVES: Client = Client::Writer(Writer::MovesInSales);

    fn drawn(number: usize) -> Vec<Fault> {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let faults = std::iter::from_fn(|| Some(Fault::draw(&mut random)));
        let numbered = faults
            .enumerate()
            .map(|(number, fault)| Fault { number, ..fault });
        numbered.take(number).collect()
    }

    /// Two faults of many, far from each other, one client and a few of its transactions are needed:
    /// they are what is left.
    #[tokio::test]
    async fn what_does_not_matter_is_left_out() -> Result<()> {
        let faults = drawn(37);
        for guilty in [vec![], vec![23], vec![2, 30]] {
            let all = History {
                faults: faults.clone(),
                workload: workload(None, Some(900))?,
            };
            let found = smallest(all, async |part| {
                let has = |number: &usize| part.faults.iter().any(|fault| fault.number == *number);
                guilty.iter().all(has)
                    && part.workload.clients.contains(&MOVES)
                    && part.workload.each > Some(50)
            });
            let found = found.await;
            let numbers: Vec<_> = found.faults.iter().map(|fault| fault.number).collect();
            assert_eq!(numbers, guilty);
            assert_eq!(found.workload.clients, [MOVES]);
            assert_eq!(found.workload.each, Some(56));
        }
        Ok(())
    }

    #[test]
    fn the_variables_of_a_history_choose_it() -> Result<()> {
        let all = drawn(9);
        let faults = [0, 1, 2, 7].map(|number| all[number].clone());
        let history = History {
            faults: faults.to_vec(),
            workload: workload(Some("sales,moves-in-sales"), Some(7))?,
        };
        assert_eq!(
            history.variables(),
            "FAULTS=0..3,7..8 CLIENTS=sales,moves-in-sales TRANSACTIONS=7"
        );
        assert_eq!(chosen("0..3,7..8")?, [0..3, 7..8]);
        assert_eq!(chosen("15")?, std::slice::from_ref(&(0..15)));
        assert!(chosen("some").is_err());
        Ok(())
    }
}
