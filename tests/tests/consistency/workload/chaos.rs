//! What goes wrong: processes killed and paused at random, from a seed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use fixtures::stack::{Service, Stack};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use tokio_util::sync::CancellationToken;

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) kills: u32,
    pub(super) pauses: u32,
}

/// Kills and pauses until `kills` processes were killed, then lets all of them live.
pub(super) async fn run(
    stack: &Stack,
    random: &mut ChaCha8Rng,
    kills: u32,
    stop: &CancellationToken,
) -> Result<Done> {
    let services: Vec<&Service> = stack.services().collect();
    let mut done = Done::default();
    let mut ever_armed = BTreeSet::new();
    let deadline = Instant::now() + Duration::from_secs(60) + Duration::from_secs(10) * kills;
    while done.kills < kills && !stop.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(random.random_range(200..2_500))).await;
        let Some(service) = services.choose(random) else {
            bail!("a stack without services");
        };
        if !service.is_running() {
            if Instant::now() > deadline {
                bail!("{} does not come back", service.name());
            }
            continue;
        }
        if random.random_bool(0.25) {
            service.stop();
            // Some pauses are longer than Kafka lets a transaction stay open.
            tokio::time::sleep(Duration::from_millis(random.random_range(100..4_000))).await;
            service.cont();
            done.pauses += 1;
            continue;
        }
        let starts = service.starts();
        // Where in its work it will die the next time, if it is not killed before.
        let point = POINTS
            .iter()
            .filter(|(name, _)| service.name().starts_with(name))
            .flat_map(|(_, points)| points.iter())
            .collect::<Vec<_>>();
        let armed = match point.choose(random) {
            Some(point) if random.random_bool(0.4) => {
                format!("{point}:kill:{}", random.random_range(1..60))
            }
            _ => String::new(),
        };
        service.environment(&[("FAULT_POINTS", &armed)]);
        service.kill();
        done.kills += 1;
        // Twice the same one is fine, but while it is down it is no kill.
        while service.starts() == starts && !stop.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        // Only that life dies at the point: a point that each life passes would let none live.
        service.environment(&[("FAULT_POINTS", "")]);
        if !armed.is_empty() {
            ever_armed.insert(service.name().to_owned());
        }
    }
    for service in services {
        service.environment(&[("FAULT_POINTS", "")]);
        // One that might die at a point later, at rest, does so now.
        if ever_armed.contains(service.name()) {
            service.kill();
        }
    }
    Ok(done)
}

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
