//! The API as a process, and what it answers.

use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fixtures::postgres::url;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::until;
use super::world::{At, World};

/// A running API; killed when dropped.
pub(crate) struct Instance {
    child: Child,
    base: String,
    admin: String,
    client: reqwest::Client,
    lines: Arc<Mutex<Vec<String>>>,
    /// Where the file appears that lets a held fault point go on.
    folder: tempfile::TempDir,
}

/// What the API answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Instance {
    /// Starts it on free ports, with these variables; waits until it is ready.
    pub(crate) async fn start(world: &World, environment: &[(&str, &str)]) -> Result<Self> {
        let instance = Self::start_unready(world, environment).await?;
        until("the API is ready", async || {
            let ready = instance.client.get(format!("{}/readyz", instance.admin));
            let ready = ready
                .send()
                .await
                .is_ok_and(|answer| answer.status() == 200);
            Ok(ready.then_some(()))
        })
        .await?;
        Ok(instance)
    }

    /// Starts it, and waits until it listens.
    pub(crate) async fn start_unready(world: &World, environment: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut child = command(world, folder.path(), environment)?
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let output = child.stdout.take().context("a pipe was asked for")?;
        tokio::spawn(collect(BufReader::new(output), lines.clone()));
        let mut instance = Self {
            child,
            base: String::new(),
            admin: String::new(),
            client: reqwest::Client::builder()
                .timeout(Duration::from_secs(30))
                .redirect(reqwest::redirect::Policy::none())
                .build()?,
            lines,
            folder,
        };
        instance.base = instance.address("the API listens on http://").await?;
        instance.admin = instance.address("admin port listens on ").await?;
        Ok(instance)
    }

    /// Runs one that cannot start.
    pub(crate) async fn run_to_its_end(
        world: &World,
        environment: &[(&str, &str)],
    ) -> Result<Output> {
        let folder = tempfile::tempdir()?;
        let output = command(world, folder.path(), environment)?.output();
        Ok(tokio::time::timeout(super::PATIENCE, output).await??)
    }

    async fn address(&self, before: &str) -> Result<String> {
        let find = async || {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let line = lines.iter().find_map(|line| line.split_once(before));
            let address = line.and_then(|(_, rest)| rest.split(' ').next());
            Ok(address.map(|address| format!("http://{address}")))
        };
        until(before, find).await
    }

    /// Waits until it is held at a fault point (`hold:N:GATE`).
    pub(crate) async fn is_held(&self) -> Result<()> {
        until("a fault point holds", async || {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(lines
                .iter()
                .any(|line| line.contains(": holds"))
                .then_some(()))
        })
        .await
    }

    /// Lets what is held go on, and everything after it pass.
    pub(crate) fn release(&self) -> Result<()> {
        Ok(std::fs::write(self.folder.path().join("gate"), "")?)
    }

    /// The end of what it has logged.
    pub(crate) fn log(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().context("it has ended")?;
        Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
    }

    pub(crate) async fn exited(&mut self) -> Result<ExitStatus> {
        Ok(tokio::time::timeout(super::PATIENCE, self.child.wait()).await??)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        self.get_with(path, &[]).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        self.send(reqwest::Method::GET, path, headers).await
    }

    pub(crate) async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await?;
        Ok(Answer {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            text: answer.text().await?,
        })
    }

    /// Its base address, for a client of the test's own.
    pub(crate) fn host(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    /// What the admin port answers.
    pub(crate) async fn admin(&self, path: &str) -> Result<Answer> {
        let answer = self
            .client
            .get(format!("{}{path}", self.admin))
            .send()
            .await?;
        Ok(Answer {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            text: answer.text().await?,
        })
    }

    /// The value of a counter or gauge, labels in alphabetical order.
    pub(crate) async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.admin("/metrics").await?.text;
        let value = text.lines().find_map(|line| {
            let (found, value) = line.rsplit_once(' ')?;
            (found == name).then(|| value.parse().ok())?
        });
        Ok(value.unwrap_or(0.0))
    }

    /// How far the feed has told this instance.
    pub(crate) async fn fed_to(&self) -> Result<Option<At>> {
        let status = self.get("/v1/status").await?.json()?;
        let feed = status["feed"]["position"].as_str();
        feed.map(At::parse).transpose()
    }

    /// Waits until the feed has told it of this state.
    pub(crate) async fn wait_until_fed(&self, at: At) -> Result<()> {
        until(&format!("the feed is at {at:?}"), async || {
            Ok((self.fed_to().await? == Some(at)).then_some(()))
        })
        .await
        .with_context(|| self.log())
    }

    /// The name of a product, none where there is no such product, and the state answered at.
    pub(crate) async fn product(
        &self,
        id: i64,
        headers: &[(&str, &str)],
    ) -> Result<(Option<String>, At)> {
        let answer = self
            .get_with(&format!("/v1/products/{id}"), headers)
            .await?;
        let name = match answer.status {
            200 => Some(
                answer.json()?["name"]
                    .as_str()
                    .context("a name")?
                    .to_owned(),
            ),
            404 => None,
            _ => anyhow::bail!("{answer:?}"),
        };
        Ok((name, answer.at()?))
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text).with_context(|| format!("not JSON: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The state that its `View-Position` names.
    pub(crate) fn at(&self) -> Result<At> {
        At::parse(self.header("view-position").context("no View-Position")?)
    }

    /// Its body as a problem with this status and code.
    pub(crate) fn problem(&self, status: u16, code: &str) -> Result<Value> {
        let problem = self.json()?;
        ensure!(
            self.status == status
                && problem["code"] == code
                && problem["status"] == status
                && self.header("content-type") == Some("application/problem+json")
                && self.header("view-position").is_some(),
            "expected {status} {code}, got {self:?}"
        );
        Ok(problem)
    }
}

/// The API with a configuration for this world, in `folder`.
fn command(world: &World, folder: &Path, environment: &[(&str, &str)]) -> Result<Command> {
    let file = folder.join("api.toml");
    let gate = folder.join("gate");
    let view = url(
        "api",
        fixtures::postgres::TEST_PASSWORD,
        world.port,
        &world.database,
    );
    let config = format!(
        "listen = \"127.0.0.1:0\"\n\
         sources = [\"accounting\", \"sales\"]\n\
         [view]\nurl = \"{view}\"\nwatch_interval_ms = 50\n\
         [kafka]\nbootstrap = \"{}\"\ntopic_prefix = \"{}\"\nreplication_factor = 1\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n\
         [log]\nfilter = \"info,api=debug\"\n",
        world.kafka.bootstrap, world.kafka.topic_prefix
    );
    std::fs::write(&file, config)?;
    let gated = |value: &str| value.replace("GATE", &gate.to_string_lossy());
    let mut command = Command::new(env!("CARGO_BIN_EXE_api"));
    command
        .arg("--config")
        .arg(&file)
        .envs(
            environment
                .iter()
                .map(|(name, value)| (*name, gated(value))),
        )
        .kill_on_drop(true);
    Ok(command)
}

async fn collect(
    mut output: BufReader<tokio::process::ChildStdout>,
    lines: Arc<Mutex<Vec<String>>>,
) {
    let mut line = String::new();
    while output
        .read_line(&mut line)
        .await
        .is_ok_and(|bytes| bytes > 0)
    {
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(line.trim_end().to_owned());
        line.clear();
    }
}
