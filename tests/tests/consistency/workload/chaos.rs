//! What goes wrong: a list of faults that follows from a seed alone.

use std::fmt;
use std::time::Duration;

use fixtures::legacy::System;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::owners::{ALTERED, Alteration, SPOILT, Share, Spoilt};

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Its place among the seed's.
    pub(super) number: usize,
    /// After the one before it.
    pub(super) after: Duration,
    pub(super) deed: Deed,
}

/// Milliseconds; some are longer than Kafka lets a transaction stay open, or a lock be held silently.
type Ms = u64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    Pause(&'static str, Ms),
    /// Killed now; the next life dies at a fault point, if one is named and it comes so far.
    Kill(&'static str, Option<String>),
    /// The network between a service and its database: its connections are closed,
    Cut(&'static str),
    /// or stand and never carry a byte again; new ones work;
    Silence(&'static str),
    /// or nothing gets through for a while.
    Part(&'static str, Ms),
    /// A server ends as in a crash, and is back after a while.
    Crash(Server, Ms),
    /// In order.
    Restart(Server),
    PauseBroker(Ms),
    /// All sessions of services are ended by the server, walsenders as well.
    EndSessions(Server),
    DropSlot(&'static str),
    /// A synchronous standby is away: what commits is in the log, and nobody sees it.
    HoldCommits(System, Ms),
    /// By command.
    ReadAgain(&'static str, &'static str),
    /// By command, beside the running view.
    Rebuild(System),
    /// `aggregator verify` runs beside all that follows, and may not find anything.
    Verify {
        repair: bool,
    },
    /// A base backup of the view's database; after a while that is put back, on a new timeline.
    RestoreView(Ms),
    /// Likewise a source's.
    RestoreSource(System, Ms),
    /// A column that the view does not need comes, goes or gets another name.
    Alter(System, &'static str, Alteration),
    /// A column that the view needs has another name for a while.
    RenameNeeded(Ms),
    /// Some values become such as no sum and no date can contain.
    Spoil(&'static Spoilt, Share),
    /// Of the first key in quarantine, by command.
    Retry,
    Discard,
    /// All that is spoilt gets values again.
    Mend,
    /// Nobody writes the view for longer than a reader of the topics may be behind.
    Lag,
    /// There is no room on the disk of the view's database for a while.
    FillDisk(Ms),
    /// Nothing goes wrong until everything has caught up.
    Rest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    Source(System),
    View,
    Kafka,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(system) => write!(f, "the database of {}", system.name()),
            Self::View => f.write_str("the view's database"),
            Self::Kafka => f.write_str("the broker"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: after {} ms ", self.number, self.after.as_millis())?;
        match &self.deed {
            Deed::Pause(service, ms) => write!(f, "{service} is paused for {ms} ms"),
            Deed::Kill(service, None) => write!(f, "{service} is killed"),
            Deed::Kill(service, Some(point)) => write!(f, "{service} is killed, then at {point}"),
            Deed::Cut(service) => write!(f, "{service} is cut from its database"),
            Deed::Silence(service) => write!(f, "{service} has half-open connections"),
            Deed::Part(service, ms) => {
                write!(
                    f,
                    "{service} and its database do not reach each other for {ms} ms"
                )
            }
            Deed::Crash(server, ms) => write!(f, "{server} crashes and is away for {ms} ms"),
            Deed::Restart(server) => write!(f, "{server} is restarted"),
            Deed::PauseBroker(ms) => write!(f, "the broker is paused for {ms} ms"),
            Deed::EndSessions(server) => write!(f, "{server} ends its sessions"),
            Deed::DropSlot(source) => write!(f, "the slot of {source} is dropped"),
            Deed::HoldCommits(system, ms) => {
                write!(f, "commits of {} wait for {ms} ms", system.name())
            }
            Deed::ReadAgain(source, table) => write!(f, "{source} reads {table} again"),
            Deed::Rebuild(system) => write!(f, "the view rebuilds {}", system.name()),
            Deed::Verify { repair: false } => f.write_str("the view is verified"),
            Deed::Verify { repair: true } => f.write_str("the view is verified, with repair"),
            Deed::RestoreView(ms) => {
                write!(f, "the view's database is put back by {ms} ms and more")
            }
            Deed::RestoreSource(system, ms) => {
                let name = system.name();
                write!(f, "the database of {name} is put back by {ms} ms and more")
            }
            Deed::Alter(_, table, Alteration::Add(default)) => {
                write!(f, "{table} gets a column with the default {default}")
            }
            Deed::Alter(_, table, Alteration::Rename) => {
                write!(f, "{table}'s added column gets another name")
            }
            Deed::Alter(_, table, Alteration::Drop) => {
                write!(f, "{table}'s added column is dropped")
            }
            Deed::RenameNeeded(ms) => {
                write!(f, "wh_item.name has another name for {ms} ms")
            }
            Deed::Spoil(spoilt, Share::Few(rest)) => {
                let Spoilt { table, column, .. } = spoilt;
                write!(f, "{table}.{column} is spoilt in rows of id % 97 = {rest}")
            }
            Deed::Spoil(spoilt, Share::Third) => {
                let Spoilt { table, column, .. } = spoilt;
                write!(f, "{table}.{column} is spoilt in every third row")
            }
            Deed::Retry => f.write_str("a key in quarantine is read again"),
            Deed::Discard => f.write_str("a key in quarantine is accepted as it is"),
            Deed::Mend => f.write_str("what is spoilt is mended"),
            Deed::Lag => f.write_str("both aggregators are paused until they lag too far"),
            Deed::FillDisk(ms) => write!(f, "the view's disk is full for {ms} ms"),
            Deed::Rest => f.write_str("everything catches up"),
        }
    }
}

impl Fault {
    /// One that a run of a minute does without: of the broker, long, or of a disk that is to be mounted.
    pub(super) fn is_for_soaks(&self) -> bool {
        matches!(
            self.deed,
            Deed::PauseBroker(_)
                | Deed::Crash(Server::Kafka, _)
                | Deed::Restart(Server::Kafka)
                | Deed::Lag
                | Deed::FillDisk(_)
        )
    }

    /// The next of a seed's faults.
    pub(super) fn draw(random: &mut ChaCha8Rng) -> Self {
        let after = Duration::from_millis(random.random_range(200..2_500));
        let total: u32 = DEEDS.iter().map(|(weight, _)| weight).sum();
        let mut place = random.random_range(0..total);
        let mut chosen = DEEDS[0].1;
        for (weight, deed) in DEEDS {
            if place < weight {
                chosen = deed;
                break;
            }
            place -= weight;
        }
        let deed = chosen(random);
        let number = 0;
        Self {
            number,
            after,
            deed,
        }
    }
}

type Draw = fn(&mut ChaCha8Rng) -> Deed;

/// How often, and what.
const DEEDS: [(u32, Draw); 27] = [
    (26, kill),
    (12, |random| {
        Deed::Pause(any(random, &PROCESSES), random.random_range(100..6_000))
    }),
    (5, |random| Deed::Cut(any(random, &LINKED))),
    (3, |random| Deed::Silence(any(random, &LINKED))),
    (4, |random| {
        Deed::Part(any(random, &LINKED), random.random_range(100..5_000))
    }),
    (4, |random| {
        Deed::Crash(Server::Source(system(random)), down(random))
    }),
    (4, |random| Deed::Crash(Server::View, down(random))),
    (3, |random| Deed::Crash(Server::Kafka, down(random))),
    (2, |random| Deed::Restart(server(random))),
    (3, |random| {
        Deed::PauseBroker(random.random_range(100..5_000))
    }),
    (5, |random| Deed::EndSessions(database(random))),
    (3, |random| Deed::DropSlot(any(random, &SOURCES))),
    (4, |random| {
        Deed::HoldCommits(system(random), random.random_range(100..3_000))
    }),
    (4, |random| {
        let (source, table) = any(random, &TABLES);
        Deed::ReadAgain(source, table)
    }),
    (3, |random| Deed::Rebuild(system(random))),
    (4, |random| Deed::Verify {
        repair: random.random_bool(0.3),
    }),
    (3, |random| Deed::RestoreView(random.random_range(0..3_000))),
    (3, |random| {
        Deed::RestoreSource(system(random), random.random_range(0..3_000))
    }),
    (6, |random| {
        let (system, table) = any(random, &ALTERED);
        let alteration = match random.random_range(0..4) {
            0 | 1 => Alteration::Add(random.random_range(0..1_000)),
            2 => Alteration::Rename,
            _ => Alteration::Drop,
        };
        Deed::Alter(system, table, alteration)
    }),
    (2, |random| {
        Deed::RenameNeeded(random.random_range(0..3_000))
    }),
    (6, |random| {
        let spoilt = &SPOILT[random.random_range(0..SPOILT.len())];
        let floods = spoilt.table == "wh_price" && random.random_bool(0.4);
        let few = Share::Few(random.random_range(0..97));
        Deed::Spoil(spoilt, if floods { Share::Third } else { few })
    }),
    (2, |_| Deed::Retry),
    (2, |_| Deed::Discard),
    (1, |_| Deed::Mend),
    (1, |_| Deed::Lag),
    (2, |random| Deed::FillDisk(random.random_range(500..4_000))),
    (5, |_| Deed::Rest),
];

fn any<T: Copy>(random: &mut ChaCha8Rng, of: &[T]) -> T {
    of[random.random_range(0..of.len())]
}

fn system(random: &mut ChaCha8Rng) -> System {
    any(random, &System::ALL)
}

fn database(random: &mut ChaCha8Rng) -> Server {
    match random.random_range(0..4) {
        0 => Server::View,
        _ => Server::Source(system(random)),
    }
}

fn server(random: &mut ChaCha8Rng) -> Server {
    match random.random_range(0..5) {
        0 => Server::Kafka,
        _ => database(random),
    }
}

fn down(random: &mut ChaCha8Rng) -> Ms {
    random.random_range(0..2_000)
}

fn kill(random: &mut ChaCha8Rng) -> Deed {
    let service = any(random, &PROCESSES);
    let points: Vec<_> = POINTS
        .iter()
        .filter(|(name, _)| service.starts_with(name))
        .flat_map(|(_, points)| points.iter())
        .collect();
    let point = points.choose(random);
    let then = point.filter(|_| random.random_bool(0.4));
    let then = then.map(|point| format!("{point}:kill:{}", random.random_range(1..60)));
    Deed::Kill(service, then)
}

/// The processes. A standby and its leader change places.
const PROCESSES: [&str; 8] = [
    "aggregator",
    "aggregator-standby",
    "api",
    "connector-accounting",
    "connector-sales",
    "connector-sales-standby",
    "connector-unified",
    "connector-warehouse",
];

/// Services with a network of their own to their database; their standbys share it.
const LINKED: [&str; 6] = [
    "aggregator",
    "api",
    "connector-accounting",
    "connector-sales",
    "connector-unified",
    "connector-warehouse",
];

/// Those that have a slot.
const SOURCES: [&str; 4] = ["accounting", "sales", "unified", "warehouse"];

/// What can be read again.
const TABLES: [(&str, &str); 5] = [
    ("accounting", "public.ac_transactiondetail"),
    ("sales", "public.sls_order"),
    ("sales", "public.sls_orderdetail"),
    ("unified", "public.orders"),
    ("warehouse", "public.wh_item"),
];

/// Fault points by the beginning of a service's name.
const POINTS: [(&str, &[&str]); 3] = [
    (
        "connector",
        &[
            "connector.after_lock",
            "connector.after_send",
            "connector.before_commit",
            "connector.after_commit",
            "connector.after_confirm",
            "connector.after_slot",
            "connector.before_init",
            "connector.after_init",
            "connector.begin_epoch",
            "connector.after_chunk",
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
    }
}
