//! Commands of an operator to the aggregator that runs, over its admin port.

pub mod quarantine;

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::config::Config;
use crate::control::{Discard, Outcome, Rebuild, Recompute, Resume, Status, Sweep};
use crate::verify;
use crate::view::Keys;

/// The exit code of a comparison that could not be made.
const NOT_COMPARED: u8 = 2;
/// How often what differs is mended. As often as one table is computed from another: transactions,
/// orders, customers and days, discrepancies; after the mirrors.
const REPAIRS_MAX: u32 = 5;
/// How often progress is asked for.
const POLL: Duration = Duration::from_millis(500);
/// The aggregator takes commands between two view transactions; a large one takes a while.
const ANSWERED_WITHIN: Duration = Duration::from_secs(90);

/// The aggregator's admin port, as this machine reaches it.
#[derive(Debug)]
pub struct Admin {
    client: reqwest::Client,
    address: SocketAddr,
}

impl Admin {
    /// `listen` is what the configuration says; an aggregator that listens everywhere is asked
    /// on loopback.
    ///
    /// # Errors
    /// Where no client can be made.
    pub fn new(listen: SocketAddr) -> anyhow::Result<Self> {
        let mut address = listen;
        if address.ip().is_unspecified() {
            address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        let client = reqwest::Client::builder()
            .timeout(ANSWERED_WITHIN)
            .no_proxy()
            .build()?;
        Ok(Self { client, address })
    }

    /// What `/status` says.
    ///
    /// # Errors
    /// Where nobody answers.
    pub async fn status(&self) -> anyhow::Result<Status> {
        let url = format!("http://{}/status", self.address);
        let answer = self.client.get(url).send().await;
        let answer = answer.with_context(|| self.unreachable())?;
        let answer = answer.error_for_status()?;
        answer
            .json()
            .await
            .context("the answer is no status of an aggregator")
    }

    /// Has these sources rebuilt, or all; waits until they are, and says how far they are.
    ///
    /// # Errors
    /// Where the aggregator refuses or ends.
    pub async fn rebuild(&self, sources: &[String]) -> anyhow::Result<()> {
        let mut url = reqwest::Url::parse(&format!("http://{}/rebuild", self.address))?;
        for source in sources {
            url.query_pairs_mut().append_pair("source", source);
        }
        let answer = self.client.post(url).send().await;
        taken(answer.with_context(|| self.unreachable())?).await?;
        let mut progress = Progress::default();
        loop {
            let status = self.status().await?;
            if !status.writes {
                bail!("the aggregator lost the view; the one that writes goes on: see its status");
            }
            let under_way = status.sources.iter().filter_map(|source| {
                let rebuild = source.rebuild.as_ref()?;
                Some(format!("{} {}", source.source, rebuilt_in_words(rebuild)))
            });
            let under_way: Vec<_> = under_way.collect();
            if under_way.is_empty() {
                progress.end();
                return Ok(());
            }
            progress.say(&under_way.join(", "));
            tokio::time::sleep(POLL).await;
        }
    }

    /// Has these unified rows computed again, or all, and waits until they are; how many differed.
    ///
    /// # Errors
    /// Where the aggregator refuses or ends.
    pub async fn recompute(&self, keys: Option<&Keys>) -> anyhow::Result<u64> {
        let mut url = format!("http://{}/recompute", self.address);
        if keys.is_some() {
            url.push_str("/rows");
        }
        let begun: Recompute = loop {
            let request = self.client.post(&url);
            let request = match keys {
                Some(keys) => request.json(keys),
                None => request,
            };
            let answer = request.send().await;
            let answer = answer.with_context(|| self.unreachable())?;
            // Busy with something else, and it forgets what nobody waits for any more.
            if answer.status() != reqwest::StatusCode::SERVICE_UNAVAILABLE {
                break taken(answer).await?.json().await?;
            }
        };
        loop {
            match self.status().await?.recompute {
                Some(now) if now.began_at_ms == begun.began_at_ms => {
                    if let Some(rows) = now.rows {
                        return Ok(rows);
                    }
                }
                _ => bail!("the aggregator did not compute the rows to the end: see its log"),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn discard(&self, which: &quarantine::Which) -> anyhow::Result<()> {
        let url = format!("http://{}/quarantine/discard", self.address);
        let body = Discard {
            source: which.source.clone(),
            table: which.table.clone(),
            key: which.key.clone(),
        };
        let answer = self.client.post(url).json(&body).send().await;
        taken(answer.with_context(|| self.unreachable())?).await?;
        Ok(())
    }

    async fn resume(
        &self,
        table: &crate::mirror::Table,
        covered_by: Option<i64>,
    ) -> anyhow::Result<()> {
        let url = format!("http://{}/quarantine/resume", self.address);
        let body = Resume {
            source: table.source.to_owned(),
            table: table.captured.to_owned(),
            covered_by,
        };
        let answer = self.client.post(url).json(&body).send().await;
        taken(answer.with_context(|| self.unreachable())?).await?;
        Ok(())
    }

    async fn verified(&self, report: &verify::Report) -> anyhow::Result<()> {
        let url = format!("http://{}/verified", self.address);
        let outcome = Outcome {
            differences: report.difference_count,
            not_compared: report.not_compared.len() as u64,
        };
        let answer = self.client.post(url).json(&outcome).send().await;
        answer
            .with_context(|| self.unreachable())?
            .error_for_status()?;
        Ok(())
    }

    fn unreachable(&self) -> String {
        format!(
            "no aggregator answers on http://{}; is it running with this configuration (admin.listen)?",
            self.address
        )
    }
}

/// The answer, or why the command was not taken.
async fn taken(answer: reqwest::Response) -> anyhow::Result<reqwest::Response> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let body: serde_json::Value = answer.json().await.unwrap_or_default();
    bail!("{}", body["error"].as_str().unwrap_or("refused"))
}

/// Compares the view with the sources, prints what differs, and lets the running aggregator
/// show the outcome in its metrics. The exit code says what was found.
///
/// # Errors
/// Where nothing could be compared.
pub async fn verify(
    config: &Config,
    options: verify::Options,
    repair: bool,
    json: bool,
) -> anyhow::Result<ExitCode> {
    for source in &options.sources {
        if !config.sources.contains(source) {
            let known = config.sources.join(", ");
            eprintln!("aggregator: {source} is not a source of the view; name one of {known}");
            return Ok(ExitCode::from(NOT_COMPARED));
        }
    }
    match compare(config, options, repair, json).await {
        Ok(report) => Ok(ExitCode::from(report.exit_code())),
        Err(error) => {
            eprintln!("aggregator: {error:#}");
            Ok(ExitCode::from(NOT_COMPARED))
        }
    }
}

async fn compare(
    config: &Config,
    options: verify::Options,
    repair: bool,
    json: bool,
) -> anyhow::Result<verify::Report> {
    let found = |difference: &verify::Difference| {
        if !json {
            println!("{difference}");
        }
    };
    let admin = Admin::new(config.admin.listen)?;
    let mut report = verify::verify(config, &options, found).await?;
    let mut again = verify::Options::default();
    for repairs in 0..REPAIRS_MAX {
        // What a mended row is an input of may differ by then; a mirror that still does is not mended
        // by trying again.
        let is_mended = repairs > 0 && report.names_a_mirror();
        if !repair || report.difference_count == 0 || is_mended {
            break;
        }
        if !json {
            println!("{}", report.in_words());
        }
        let say = |step: &str| eprintln!("repair: {step}");
        again.unified = true;
        again
            .sources
            .extend(verify::repair(config, &admin, &report, &say).await?);
        let before = std::mem::replace(&mut report, verify::verify(config, &again, found).await?);
        report.keep_not_compared(before, &again.sources);
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.in_words());
    }
    // Only the metrics miss it where no aggregator runs.
    if let Err(error) = admin.verified(&report).await {
        eprintln!("not shown in the metrics: {error:#}");
    }
    Ok(report)
}

/// A line that is written over on a terminal, and written when it changes elsewhere.
#[derive(Default)]
struct Progress {
    last: String,
}

impl Progress {
    fn say(&mut self, line: &str) {
        if line == self.last {
            return;
        }
        let mut out = std::io::stderr();
        // Who cannot be told loses only the progress.
        let _ = if out.is_terminal() {
            write!(out, "\r\x1b[Krebuilding: {line}")
        } else {
            writeln!(out, "rebuilding: {line}")
        };
        line.clone_into(&mut self.last);
    }

    fn end(&self) {
        if !self.last.is_empty() && std::io::stderr().is_terminal() {
            eprintln!();
        }
    }
}

/// The status as a person reads it.
#[must_use]
pub fn in_words(status: &Status) -> String {
    let mut lines = vec![format!("aggregator: {}", status.state)];
    if let Some(revision) = &status.revision {
        lines.push(format!("revision:   {revision}"));
    }
    if let Some(quarantined) = status.quarantined {
        lines.push(format!("quarantine: {quarantined}"));
    }
    for source in &status.sources {
        let position = source.position.as_deref().unwrap_or("not read yet");
        let mut line = format!("{:<11} {position}", format!("{}:", source.source));
        if source.is_stalled {
            line.push_str(", stalled within a checkpoint");
        } else if !source.follows {
            line.push_str(", not followed");
        }
        if let Some(rebuild) = &source.rebuild {
            line.push_str(&format!(", being rebuilt ({})", rebuilt_in_words(rebuild)));
        }
        for suspended in &source.suspended {
            line.push_str(&format!(", {} suspended", suspended.table));
            if suspended.is_resumed {
                line.push_str(" (being read again)");
            }
        }
        lines.push(line);
    }
    lines.extend(status.sweep.as_ref().map(swept_in_words));
    lines.join("\n")
}

fn rebuilt_in_words(rebuild: &Rebuild) -> String {
    let Rebuild {
        events,
        offsets_read: read,
        offsets,
    } = rebuild;
    match offsets {
        Some(all) => format!("{read} of {all} offsets, {events} events read"),
        None => format!("{events} events read"),
    }
}

fn swept_in_words(sweep: &Sweep) -> String {
    let Sweep {
        rows, differences, ..
    } = sweep;
    let table = sweep.table.as_deref().unwrap_or("waits");
    let mut line = format!("sweep:      {table}, {rows} rows, {differences} differ");
    if let Some(last) = &sweep.last {
        let took_s = (last.ended_at_ms - last.began_at_ms) / 1000;
        line.push_str(&format!(
            "; the round before: {} rows in {took_s} s, {} differ, {} tables not compared",
            last.rows, last.differences, last.not_compared
        ));
    }
    let last = sweep.last.iter().flat_map(|last| &last.found);
    for found in last.chain(&sweep.found) {
        line.push_str(&format!("\n            {found}"));
    }
    line
}
