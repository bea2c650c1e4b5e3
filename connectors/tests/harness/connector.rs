//! A connector process, and waiting for what it says.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use fixtures::process::Process;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Everything that is waited for comes sooner, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connector process. Dropped, it is killed.
pub(crate) struct Connector {
    pub(super) process: Process,
    pub(crate) port: u16,
    pub(super) log: PathBuf,
    pub(super) config: PathBuf,
}

impl Connector {
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Runs a command with this one's configuration; its exit code and what it printed.
    pub(crate) async fn command(&self, words: &[&str]) -> Result<(Option<i32>, String)> {
        let ran = tokio::process::Command::new(env!("CARGO_BIN_EXE_connector"))
            .arg("--config")
            .arg(&self.config)
            .args(words)
            .output();
        let output = tokio::time::timeout(PATIENCE, ran)
            .await
            .map_err(|_| anyhow!("{words:?} does not end:\n{}", self.log()))??;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8(text)?))
    }

    /// SIGKILL, and waits for the end.
    pub(crate) async fn kill(&self) {
        self.process.signal(Signal::SIGKILL);
        self.process.exited().await;
    }

    /// Waits until it ends by itself; its exit code and its log.
    pub(crate) async fn ended(&self) -> Result<(Option<i32>, String)> {
        let status = tokio::time::timeout(PATIENCE, self.process.exited())
            .await
            .map_err(|_| anyhow!("the connector goes on:\n{}", self.log()))?
            .context("the connector's end was not seen")?;
        Ok((status.code(), self.log()))
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.status().is_none()
    }

    /// Has a fault point stopped it (SIGSTOP)?
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()));
        stat.is_ok_and(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    }

    pub(crate) async fn stopped(&self) -> Result<()> {
        eventually("the connector is stopped by a fault point", || async {
            Ok(self.is_stopped().then_some(()))
        })
        .await
        .with_context(|| self.log())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line of the log.
    pub(crate) async fn logged(&self, text: &str) -> Result<()> {
        eventually(&format!("{text:?} in the log"), || async {
            Ok(self.log().contains(text).then_some(()))
        })
        .await
        .with_context(|| self.log())
    }

    /// `/status`, once the admin port answers.
    pub(crate) async fn status(&self) -> Result<Value> {
        let url = format!("http://127.0.0.1:{}/status", self.port);
        eventually("the admin port answers", || async {
            match reqwest::get(&url).await {
                Ok(answer) => Ok(Some(answer.json().await?)),
                Err(_) if self.is_running() => Ok(None),
                Err(error) => bail!("{error}: {}", self.log()),
            }
        })
        .await
    }

    /// `/readyz`: status code and text.
    pub(crate) async fn readiness(&self) -> Result<(u16, String)> {
        let answer = reqwest::get(format!("http://127.0.0.1:{}/readyz", self.port)).await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// A metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> Result<Option<f64>> {
        let answer = reqwest::get(format!("http://127.0.0.1:{}/metrics", self.port)).await?;
        let text = answer.text().await?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(value)
    }

    /// Waits until it has said that it follows the source, all tables read.
    pub(crate) async fn ready(&self) -> Result<()> {
        eventually("the connector streams", || async {
            let status = self.status().await?;
            Ok((status["state"] == "streaming" && status["whole"] == true).then_some(()))
        })
        .await
        .with_context(|| self.log())
    }
}

/// Waits for a state: `look` until it finds something.
pub(crate) async fn eventually<T, F>(what: &str, look: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if begun.elapsed() > PATIENCE {
            bail!("waited in vain: {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
