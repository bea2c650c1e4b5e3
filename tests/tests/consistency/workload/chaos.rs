//! What goes wrong: processes killed and paused, as a list that follows from a seed alone.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fixtures::stack::{Service, Stack};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use tokio_util::sync::CancellationToken;

/// How long a process may take to come back.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// After the one before it.
    after: Duration,
    /// Its place among the stack's services.
    service: usize,
    deed: Deed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Deed {
    /// Some pauses are longer than Kafka lets a transaction stay open.
    Pause(Duration),
    /// Killed now; the next life dies at a fault point, if one is named and it comes so far.
    Kill { then: Option<String> },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            after,
            service,
            deed,
        } = self;
        write!(f, "after {} ms {}", after.as_millis(), SERVICES[*service])?;
        match deed {
            Deed::Pause(time) => write!(f, " is paused for {} ms", time.as_millis()),
            Deed::Kill { then: None } => f.write_str(" is killed"),
            Deed::Kill { then: Some(point) } => write!(f, " is killed, then at {point}"),
        }
    }
}

impl Fault {
    /// The next of a seed's faults.
    pub(super) fn draw(random: &mut ChaCha8Rng) -> Self {
        let service = random.random_range(0..SERVICES.len());
        let after = Duration::from_millis(random.random_range(200..2_500));
        let deed = if random.random_bool(0.25) {
            Deed::Pause(Duration::from_millis(random.random_range(100..4_000)))
        } else {
            let points: Vec<_> = POINTS
                .iter()
                .filter(|(name, _)| SERVICES[service].starts_with(name))
                .flat_map(|(_, points)| points.iter())
                .collect();
            let point = points.choose(random);
            let then = point.filter(|_| random.random_bool(0.4));
            let then = then.map(|point| format!("{point}:kill:{}", random.random_range(1..60)));
            Deed::Kill { then }
        };
        Self {
            after,
            service,
            deed,
        }
    }

    pub(super) fn is_kill(&self) -> bool {
        matches!(self.deed, Deed::Kill { .. })
    }
}

/// Does them one after the other, then lets all processes live. Those that were done stand in `done`,
/// also where it fails.
pub(super) async fn run(
    stack: &Stack,
    faults: impl Iterator<Item = Fault>,
    done: &mut Vec<Fault>,
    stop: &CancellationToken,
) -> Result<()> {
    let mut armed = BTreeSet::new();
    for fault in faults {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(fault.after) => {}
        }
        let service = stack.service(SERVICES[fault.service]);
        let deadline = Instant::now() + BACK_WITHIN;
        while !service.is_running() && !stop.is_cancelled() {
            if Instant::now() > deadline {
                bail!("{} does not come back", service.name());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        done.push(fault.clone());
        match fault.deed {
            Deed::Pause(time) => {
                service.stop();
                tokio::time::sleep(time).await;
                service.cont();
            }
            Deed::Kill { then } => {
                armed.extend(then.is_some().then_some(fault.service));
                kill(service, then.as_deref().unwrap_or_default(), stop).await;
            }
        }
    }
    for service in stack.services() {
        service.environment(&[("FAULT_POINTS", "")]);
    }
    // One that might die at a point later, at rest, does so now.
    for place in armed {
        stack.service(SERVICES[place]).kill();
    }
    Ok(())
}

/// Kills it, and waits until its next life, which alone dies at the fault point: one that each life
/// passes would let none live.
async fn kill(service: &Service, then: &str, stop: &CancellationToken) {
    let starts = service.starts();
    service.environment(&[("FAULT_POINTS", then)]);
    service.kill();
    while service.starts() == starts && !stop.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    service.environment(&[("FAULT_POINTS", "")]);
}

/// The smallest part of a failing list that fails as well, by halves: what is tried is at most twice
/// as often as the list can be halved. Timing is not repeated, so that a half which goes well
/// is no proof.
pub(super) async fn smallest<F: Future<Output = Result<()>>>(
    mut failing: Vec<Fault>,
    mut again: impl FnMut(Vec<Fault>) -> F,
) -> Vec<Fault> {
    'halves: while failing.len() > 1 {
        let (first, second) = failing.split_at(failing.len() / 2);
        for half in [first.to_vec(), second.to_vec()] {
            println!("tries {} of {} faults again", half.len(), failing.len());
            if let Err(error) = again(half.clone()).await.context("again") {
                println!("fails as well: {error:#}");
                failing = half;
                continue 'halves;
            }
        }
        break;
    }
    failing
}

/// What there is to break.
const SERVICES: [&str; 6] = [
    "aggregator",
    "api",
    "connector-accounting",
    "connector-sales",
    "connector-unified",
    "connector-warehouse",
];

/// Fault points by the beginning of a service's name.
const POINTS: [(&str, &[&str]); 3] = [
    (
        "connector",
        &[
            "connector.after_send",
            "connector.before_commit",
            "connector.after_commit",
            "connector.after_confirm",
            "connector.after_slot",
            "connector.after_init",
            "connector.in_fill",
        ],
    ),
    (
        "aggregator",
        &[
            "aggregator.after_mirror",
            "aggregator.before_fence",
            "aggregator.before_commit",
            "aggregator.after_commit",
        ],
    ),
    ("api", &["api.before_position_moves"]),
];

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_seed_decides_what_goes_wrong() {
        let draw = |seed| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            (0..50)
                .map(|_| Fault::draw(&mut random))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).iter().any(Fault::is_kill));
    }

    /// The world fails where one certain fault is done: that one is what is left.
    #[tokio::test]
    async fn halving_finds_the_one_fault_that_matters() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let all: Vec<_> = (0..37).map(|_| Fault::draw(&mut random)).collect();
        let guilty = all[23].clone();
        let found = smallest(all, async |half| {
            anyhow::ensure!(!half.contains(&guilty), "it happened");
            Ok(())
        });
        assert_eq!(found.await, [guilty]);
    }
}
