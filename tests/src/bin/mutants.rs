//! Switches each rule of the protocol off and runs the test that guards it: the test must fail.
//!
//! `tests/mutants.txt` says which test guards which rule, one a line: the rule, the package, the
//! test target, the test. With names of rules as arguments only these are tried.

use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

/// Runs the test of each rule with the rule switched off, and says which of them noticed.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only these rules.
    rules: Vec<String>,
    /// Also run each test with every rule in force, where it must pass.
    #[arg(long)]
    baseline: bool,
    /// A test that hangs for so many seconds has noticed, too: it waits for a state.
    #[arg(long, default_value_t = 600)]
    timeout_s: u64,
}

#[derive(Debug)]
struct Guard<'a> {
    rule: &'a str,
    package: &'a str,
    target: &'a str,
    test: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Hung,
}

const TABLE: &str = include_str!("../../mutants.txt");

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let guards = guards()?;
    for rule in &arguments.rules {
        ensure!(
            guards.iter().any(|guard| guard.rule == rule),
            "no test guards a rule {rule}"
        );
    }
    let (mut noticed, mut missed) = (0, Vec::new());
    println!("{:32} {:>8} {:>7}  test", "rule off", "", "s");
    for guard in &guards {
        if !arguments.rules.is_empty() && !arguments.rules.iter().any(|rule| rule == guard.rule) {
            continue;
        }
        let limit = Duration::from_secs(arguments.timeout_s);
        if arguments.baseline {
            let outcome = run(guard, None, limit).await?;
            ensure!(
                outcome == Outcome::Passed,
                "{} does not pass with every rule in force",
                guard.test
            );
        }
        let began = Instant::now();
        let outcome = run(guard, Some(guard.rule), limit).await?;
        let said = match outcome {
            Outcome::Passed => "PASSED",
            Outcome::Failed => "failed",
            Outcome::Hung => "hung",
        };
        println!(
            "{:32} {said:>8} {:>7.1}  {} {} {}",
            guard.rule,
            began.elapsed().as_secs_f64(),
            guard.package,
            guard.target,
            guard.test
        );
        if outcome == Outcome::Passed {
            missed.push(guard.rule);
        } else {
            noticed += 1;
        }
    }
    println!("{noticed} noticed, {} missed", missed.len());
    if !missed.is_empty() {
        bail!("no test noticed that these were off: {}", missed.join(", "));
    }
    Ok(())
}

fn guards() -> Result<Vec<Guard<'static>>> {
    TABLE
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let [rule, package, target, test] = words.as_slice() else {
                bail!("mutants.txt: {line:?} is not rule, package, target, test");
            };
            Ok(Guard {
                rule,
                package,
                target,
                test,
            })
        })
        .collect()
}

/// Builds first, so that a build that fails is not taken for a test that noticed.
async fn run(guard: &Guard<'_>, off: Option<&str>, limit: Duration) -> Result<Outcome> {
    let cargo = |last: &[&str]| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["test", "--quiet", "-p", guard.package]);
        if guard.package != "tests" {
            command.args(["--features", "faults"]);
        }
        match guard.target {
            "lib" => command.arg("--lib"),
            target => command.args(["--test", target]),
        };
        command
            .args(last)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // The test is cargo's child: both are ended by their group.
            .process_group(0);
        command
    };
    let built = cargo(&["--no-run"]).status().await?;
    ensure!(built.success(), "{} does not build", guard.package);
    let mut command = cargo(&["--", "--exact", guard.test]);
    if let Some(rule) = off {
        command.env("RULES_OFF", rule);
    }
    let mut running = command.spawn().context("cannot start cargo")?;
    match tokio::time::timeout(limit, running.wait()).await {
        Ok(status) if status.as_ref().is_ok_and(ExitStatus::success) => Ok(Outcome::Passed),
        Ok(status) => status
            .map(|_| Outcome::Failed)
            .context("cannot await cargo"),
        Err(_) => {
            let group = running.id().context("cargo has gone")?;
            killpg(Pid::from_raw(i32::try_from(group)?), Signal::SIGKILL)?;
            running.wait().await?;
            Ok(Outcome::Hung)
        }
    }
}
