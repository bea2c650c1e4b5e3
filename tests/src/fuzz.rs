//! Fuzzing what comes from outside: mutated inputs, a corpus that is kept, and for every input
//! the same question, whether it is taken or refused without a panic and by its rules.
//!
//! There is no coverage to be had from a stable compiler, so what guides is the outcome: an input
//! that is refused, or taken, in a way that none was before becomes a parent of others. The
//! decoders here refuse with a sentence of their own at each step, so that tells almost as much.

mod mutate;
mod targets;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use mutate::mutated;
pub use targets::Target;

/// No input may take more of the processor.
const INPUT_MAX: Duration = Duration::from_secs(1);
/// Parents that are kept, those of the corpus not counted.
const PARENTS_MAX: usize = 4096;

/// What a run has seen.
#[derive(Debug, Default, Clone, Copy)]
pub struct Summary {
    pub inputs: u64,
    /// Ways to be taken or refused.
    pub outcomes: usize,
}

/// Where a target's corpus stands.
#[must_use]
pub fn corpus(target: Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name())
}

/// Every input of the corpus, then mutations until the time is over.
///
/// # Errors
/// The first input that panics, breaks a rule or takes too long: it is written into the corpus,
/// so that it is tried first from then on.
pub fn run(target: Target, seed: u64, time: Duration) -> Result<Summary> {
    let folder = corpus(target);
    let mut parents = inputs(&folder)?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut seen = HashSet::new();
    let mut summary = Summary::default();
    for input in &parents {
        seen.insert(checked(target, input, &folder)?);
        summary.inputs += 1;
    }
    let kept = parents.len();
    let begun = Instant::now();
    while begun.elapsed() < time {
        // Every other parent is of those found last: they are the least explored.
        let at = if random.random_bool(0.5) {
            random.random_range(0..parents.len())
        } else {
            random.random_range(parents.len().saturating_sub(64)..parents.len())
        };
        let other = random.random_range(0..parents.len());
        let input = mutated(&parents[at], &parents[other], target.words(), &mut random);
        summary.inputs += 1;
        if seen.insert(checked(target, &input, &folder)?) {
            if parents.len() - kept >= PARENTS_MAX {
                parents.swap_remove(kept);
            }
            parents.push(input);
        }
    }
    summary.outcomes = seen.len();
    Ok(summary)
}

/// The corpus, in the order of the names, so that a run can be repeated by its seed.
fn inputs(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read the corpus {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    if paths.is_empty() {
        bail!("the corpus {} is empty", folder.display());
    }
    let read = |path: &PathBuf| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    paths.iter().map(read).collect()
}

/// Tries an input; what came of it, as a number.
fn checked(target: Target, input: &[u8], folder: &Path) -> Result<u64> {
    let begun = processor_time()?;
    let outcome = catch_unwind(AssertUnwindSafe(|| target.check(input)));
    let took = processor_time()? - begun;
    let broken = match outcome {
        Ok(Ok(_)) if took > INPUT_MAX => format!("took {took:?}"),
        Ok(Ok(outcome)) => return Ok(signature(&outcome)),
        Ok(Err(rule)) => rule,
        Err(_) => "panicked".to_owned(),
    };
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let path = folder.join(format!("broken-{:016x}", hasher.finish()));
    std::fs::write(&path, input).with_context(|| format!("cannot write {}", path.display()))?;
    bail!(
        "{}: {broken}; the input is {}",
        target.name(),
        path.display()
    )
}

/// What this thread has had of the processor: a busy machine does not make an input slow.
fn processor_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Sentences that differ in numbers only are one outcome.
fn signature(outcome: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut in_number = false;
    for byte in outcome.bytes() {
        let digit = byte.is_ascii_digit();
        if !(digit && in_number) {
            (if digit { b'0' } else { byte }).hash(&mut hasher);
        }
        in_number = digit;
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `make test` has of it: a second each.
    #[test]
    fn every_target_takes_or_refuses_whatever_comes() {
        for target in Target::ALL {
            let summary = run(target, 7, Duration::from_secs(1)).unwrap();
            assert!(summary.outcomes > 3, "{target:?}: {summary:?}");
        }
    }

    #[test]
    fn outcomes_that_differ_in_numbers_only_are_one() {
        assert_eq!(signature("line 5 of 17"), signature("line 12345 of 1"));
        assert_ne!(signature("line 5"), signature("column 5"));
    }

    #[test]
    fn a_rule_that_is_broken_is_found_and_its_input_kept() {
        let folder = tempfile::tempdir().unwrap();
        let error = checked(Target::Broken, b"x", folder.path()).unwrap_err();
        assert!(error.to_string().contains("always"), "{error}");
        assert_eq!(inputs(folder.path()).unwrap(), [b"x".to_vec()]);
    }
}
