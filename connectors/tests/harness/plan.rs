//! How a connector is to run: its configuration, its environment, its command.

use std::fmt::Write as _;

use anyhow::Result;
use fixtures::process::{Process, Spawn};
use nix::sys::signal::Signal;

use super::connector::Connector;
use super::rig::Rig;

/// A connector's configuration and environment.
#[derive(Clone)]
pub(crate) struct Plan<'a> {
    rig: &'a Rig,
    environment: Vec<(String, String)>,
    top: String,
    sections: String,
    stream: String,
    reads: String,
    url: String,
    bootstrap: String,
    postgres: String,
    kafka: String,
    publication: String,
    tables: Vec<String>,
}

impl<'a> Plan<'a> {
    pub(super) fn over(rig: &'a Rig) -> Self {
        Self {
            rig,
            environment: Vec::new(),
            top: String::new(),
            sections: String::new(),
            stream: String::new(),
            reads: String::new(),
            url: rig.connector_url.clone(),
            bootstrap: rig.bootstrap.clone(),
            postgres: "lock_timeout_ms = 2000\nslot_timeout_ms = 2000\n".to_owned(),
            kafka: String::new(),
            publication: "tributary".to_owned(),
            tables: rig.tables.clone(),
        }
    }
}

impl Plan<'_> {
    /// Fault points of this process.
    pub(crate) fn faults(mut self, points: &str) -> Self {
        self.environment
            .push(("FAULT_POINTS".to_owned(), points.to_owned()));
        self
    }

    /// A variable of this process.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Rules that are out of force in this process, besides those that `RULES_OFF` names.
    pub(crate) fn without_rules(mut self, rules: &str) -> Self {
        let mut off = std::env::var("RULES_OFF").unwrap_or_default();
        _ = write!(off, ",{rules}");
        self.environment.push(("RULES_OFF".to_owned(), off));
        self
    }

    /// Lines before the sections.
    pub(crate) fn top(mut self, lines: &str) -> Self {
        self.top.push_str(lines);
        self.top.push('\n');
        self
    }

    /// A variable of its environment.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lines of the section `[postgres]`.
    pub(crate) fn postgres(mut self, lines: &str) -> Self {
        self.postgres.push_str(lines);
        self.postgres.push('\n');
        self
    }

    /// Lines of the section `[kafka]`.
    pub(crate) fn kafka(mut self, lines: &str) -> Self {
        self.kafka.push_str(lines);
        self.kafka.push('\n');
        self
    }

    /// Further sections.
    pub(crate) fn sections(mut self, text: &str) -> Self {
        self.sections.push_str(text);
        self.sections.push('\n');
        self
    }

    /// Lines of the section `[stream]`.
    pub(crate) fn stream(mut self, lines: &str) -> Self {
        self.stream.push_str(lines);
        self.stream.push('\n');
        self
    }

    /// Lines of the section `[reads]`.
    pub(crate) fn reads(mut self, lines: &str) -> Self {
        self.reads.push_str(lines);
        self.reads.push('\n');
        self
    }

    pub(crate) fn url(mut self, url: &str) -> Self {
        url.clone_into(&mut self.url);
        self
    }

    pub(crate) fn bootstrap(mut self, addresses: &str) -> Self {
        addresses.clone_into(&mut self.bootstrap);
        self
    }

    /// Reaches the source through another port of this machine.
    pub(crate) fn through(mut self, port: u16) -> Self {
        let (address, database) = self.url.rsplit_once('/').unwrap_or_default();
        let (user, _) = address.rsplit_once(':').unwrap_or_default();
        self.url = format!("{user}:{port}/{database}");
        self
    }

    /// The time-outs of lock and slot as a configuration that does not name them has them.
    pub(crate) fn default_timeouts(mut self) -> Self {
        self.postgres.clear();
        self
    }

    pub(crate) fn publication(mut self, name: &str) -> Self {
        name.clone_into(&mut self.publication);
        self
    }

    pub(crate) fn tables(mut self, tables: &[&str]) -> Self {
        self.tables = tables.iter().map(|table| (*table).to_owned()).collect();
        self
    }

    /// Starts the process.
    pub(crate) fn start(&self) -> Result<Connector> {
        self.spawn(&["run"])
    }

    /// Runs `check`; its exit code and what it printed.
    pub(crate) async fn check(&self) -> Result<(Option<i32>, String)> {
        self.command(&["check"]).await
    }

    /// Runs a command; its exit code and what it printed.
    pub(crate) async fn command(&self, command: &[&str]) -> Result<(Option<i32>, String)> {
        self.spawn(command)?.ended().await
    }

    fn spawn(&self, command: &[&str]) -> Result<Connector> {
        let name = fixtures::unique("connector");
        let port = fixtures::place::free_port()?;
        let folder = self.rig.folder.path();
        let (config, log) = (
            folder.join(format!("{name}.toml")),
            folder.join(format!("{name}.log")),
        );
        std::fs::write(&config, self.config(port))?;
        let mut line = vec![
            env!("CARGO_BIN_EXE_connector").to_owned(),
            "--config".to_owned(),
            config.display().to_string(),
        ];
        line.extend(command.iter().map(|word| (*word).to_owned()));
        let process = Process::spawn(&Spawn {
            command: line,
            environment: self.environment.clone(),
            without: Vec::new(),
            log: log.clone(),
            user: None,
            on_parent_death: Signal::SIGKILL,
        })?;
        Ok(Connector {
            process,
            port,
            log,
            config,
        })
    }

    fn config(&self, port: u16) -> String {
        format!(
            "source = \"shop\"\ntables = {:?}\n{}\
             [postgres]\nurl = \"{}\"\nslot = \"{}\"\npublication = \"{}\"\n\
             {}\
             [kafka]\nbootstrap = \"{}\"\ntopic_prefix = \"{}\"\nreplication_factor = 1\npartitions = 2\n{}\
             [admin]\nlisten = \"127.0.0.1:{port}\"\n[log]\nfilter = \"connectors=debug,info\"\n\
             [stream]\n{}[reads]\n{}{}",
            self.tables,
            self.top,
            self.url,
            self.rig.slot,
            self.publication,
            self.postgres,
            self.bootstrap,
            self.rig.prefix,
            self.kafka,
            self.stream,
            self.reads,
            self.sections,
        )
    }
}
