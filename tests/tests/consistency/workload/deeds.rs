//! How each fault is brought about.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fixtures::legacy::System;
use fixtures::stack::{Service, Stack};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::chaos::{Deed, Fault, Server};
use super::shop::Shop;
use super::{LATENESS_OF_THE_VIEW_MS, owners, quiet};

/// How long a process may take to come back.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// What is left of a disk that is full.
const LEFT_MIB: u64 = 1;

/// So much longer than it may an aggregator lags.
const LAG_BEYOND_MS: u64 = 5_000;

/// Who does it.
struct Gremlin<'a> {
    shop: &'a Shop,
    stack: &'a Stack,
    stop: &'a CancellationToken,
    /// Those that may die at a fault point yet.
    armed: BTreeSet<&'static str>,
    /// Commands that run beside what follows.
    commands: JoinSet<Result<()>>,
}

/// Does them one after the other, then lets all processes live. Those that were done stand in `done`,
/// also where it fails.
pub(super) async fn run(
    shop: &Shop,
    faults: impl Iterator<Item = Fault>,
    done: &mut Vec<Fault>,
) -> Result<()> {
    let stop = &shop.stop;
    let mut gremlin = Gremlin {
        shop,
        stack: &shop.stack,
        stop,
        armed: BTreeSet::new(),
        commands: JoinSet::new(),
    };
    for fault in faults {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(fault.after) => {}
        }
        println!("{fault}");
        done.push(fault.clone());
        let deed = gremlin.does(&fault.deed).await;
        deed.with_context(|| fault.to_string())?;
    }
    gremlin.ends().await
}

impl Gremlin<'_> {
    async fn does(&mut self, deed: &Deed) -> Result<()> {
        match deed {
            Deed::Pause(service, ms) => {
                let service = self.running(service).await?;
                service.stop();
                wait(*ms).await;
                service.cont();
            }
            Deed::Kill(service, then) => {
                self.armed.extend(then.is_some().then_some(*service));
                let service = self.running(service).await?;
                self.kill(service, then.as_deref().unwrap_or_default())
                    .await;
            }
            Deed::Cut(service) => self.stack.link(service).cut(),
            Deed::Silence(service) => self.stack.link(service).silence(),
            Deed::Part(service, ms) => {
                self.stack.link(service).down();
                wait(*ms).await;
                self.stack.link(service).up();
            }
            Deed::Crash(server, ms) => self.restart(*server, Some(*ms)).await?,
            Deed::Restart(server) => self.restart(*server, None).await?,
            Deed::PauseBroker(ms) => {
                let broker = self.stack.broker().lock().await;
                let process = broker.process().context("the broker is stopped")?;
                process.signal(Signal::SIGSTOP);
                wait(*ms).await;
                process.signal(Signal::SIGCONT);
            }
            Deed::EndSessions(server) => self.end_sessions(*server).await?,
            Deed::DropSlot(source) => self.drop_slot(source).await?,
            Deed::HoldCommits(system, ms) => self.hold_commits(*system, *ms).await?,
            Deed::ReadAgain(source, table) => self.read_again(source, table).await?,
            Deed::Rebuild(system) => self.rebuild(*system)?,
            Deed::Verify { repair } => self.verify(*repair)?,
            Deed::RestoreView(ms) => self.restore_view(*ms).await?,
            Deed::Alter(system, table, alteration) => {
                let mut client = self.stack.source(*system).await?;
                owners::alter(&mut client, table, *alteration).await?;
            }
            Deed::RenameNeeded(ms) => {
                owners::rename_item_name(self.stack, true).await?;
                wait(*ms).await;
                owners::rename_item_name(self.stack, false).await?;
            }
            Deed::Spoil(spoilt, share) => spoilt.spoil(self.stack, *share).await?,
            Deed::Retry => self.of_quarantine("retry").await?,
            Deed::Discard => self.of_quarantine("discard").await?,
            Deed::Mend => owners::mend(self.stack).await?,
            Deed::RestoreSource(system, ms) => self.restore_source(*system, *ms).await?,
            Deed::Lag => self.lag().await?,
            Deed::FillDisk(ms) => self.fill_disk(*ms).await?,
            Deed::Rest => tokio::select! {
                () = self.stop.cancelled() => {}
                rested = quiet::rest(self.shop) => rested?,
            },
        }
        Ok(())
    }

    /// A service, once it runs.
    async fn running(&self, name: &str) -> Result<&Service> {
        let service = self.stack.service(name);
        let deadline = Instant::now() + BACK_WITHIN;
        while !service.is_running() && !self.stop.is_cancelled() {
            if Instant::now() > deadline {
                bail!("{name} does not come back");
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Ok(service)
    }

    /// Kills it, and waits until its next life, which alone dies at the fault point: one that each
    /// life passes would let none live.
    async fn kill(&self, service: &Service, then: &str) {
        let starts = service.starts();
        service.environment(&[("FAULT_POINTS", then)]);
        service.kill();
        while service.starts() == starts && !self.stop.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        service.environment(&[("FAULT_POINTS", "")]);
    }

    async fn restart(&self, server: Server, crash: Option<u64>) -> Result<()> {
        let postgres = match server {
            Server::Kafka => {
                let mut broker = self.stack.broker().lock().await;
                if let Some(ms) = crash {
                    broker.crash().await;
                    wait(ms).await;
                }
                return broker.restart().await;
            }
            Server::View => self.stack.view_cluster(),
            Server::Source(system) => self.stack.cluster(system),
        };
        let mut postgres = postgres.lock().await;
        if let Some(ms) = crash {
            postgres.crash().await;
            wait(ms).await;
        }
        postgres.restart().await
    }

    /// Those of services: the test's own go on.
    async fn end_sessions(&self, server: Server) -> Result<()> {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity
                   where usename in ('connector', 'aggregator', 'api')";
        self.superuser(server).await?.query(sql, &[]).await?;
        Ok(())
    }

    async fn superuser(&self, server: Server) -> Result<Client> {
        match server {
            Server::Source(system) => self.stack.source_superuser(system).await,
            Server::View | Server::Kafka => self.stack.view().await,
        }
    }

    async fn drop_slot(&self, source: &str) -> Result<()> {
        let system = System::ALL.into_iter().find(|one| one.name() == source);
        let client = self
            .superuser(system.map_or(Server::View, Server::Source))
            .await?;
        let slot = self.stack.slot(source);
        let sql = format!(
            "select pg_terminate_backend(active_pid) from pg_replication_slots
                 where slot_name = '{slot}' and active;
             select pg_drop_replication_slot(slot_name) from pg_replication_slots
                 where slot_name = '{slot}'"
        );
        // The connector may have it again at once.
        while !self.stop.is_cancelled() && client.batch_execute(&sql).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn hold_commits(&self, system: System, ms: u64) -> Result<()> {
        let client = self.superuser(Server::Source(system)).await?;
        let hold = "alter system set synchronous_standby_names = 'nobody'";
        client.execute(hold, &[]).await?;
        client.execute("select pg_reload_conf()", &[]).await?;
        wait(ms).await;
        let release = "alter system reset synchronous_standby_names";
        client.execute(release, &[]).await?;
        client.execute("select pg_reload_conf()", &[]).await?;
        Ok(())
    }

    /// Whoever leads takes the command; where nobody does just now, it is lost.
    async fn read_again(&self, source: &str, table: &str) -> Result<()> {
        let name = format!("connector-{source}");
        let both = self.stack.services();
        for service in both.filter(|service| service.name().starts_with(&name)) {
            let output = service.command(&["read", "--table", table]).await?;
            if output.status.success() {
                break;
            }
        }
        Ok(())
    }

    /// It is cut short where its aggregator dies.
    fn rebuild(&mut self, system: System) -> Result<()> {
        let aggregator = self.stack.service("aggregator");
        let arguments = ["rebuild", "--source", system.name()];
        let running = aggregator.spawn_command(aggregator.config(), &arguments)?;
        self.commands.spawn(async move {
            quiet::to_its_end(running).await?;
            Ok(())
        });
        Ok(())
    }

    /// What it compares is right at every moment, whatever else happens.
    fn verify(&mut self, repair: bool) -> Result<()> {
        let arguments = ["verify", "--json", "--repair"];
        let running = quiet::verify(self.stack, &arguments[..2 + usize::from(repair)])?;
        self.commands.spawn(async move {
            running.await?;
            Ok(())
        });
        Ok(())
    }

    /// Somebody has the first key in quarantine read again, or accepts it as it is.
    async fn of_quarantine(&mut self, what: &'static str) -> Result<()> {
        let view = self.stack.view().await?;
        let sql = r#"select source, "table", key from public.quarantine where not suspended
                     order by at, key limit 1"#;
        let Some(row) = view.query_opt(sql, &[]).await? else {
            return Ok(());
        };
        let (source, table, key): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        if what == "discard" {
            self.shop.accept(key.clone());
        }
        let which = ["--source", &source, "--table", &table, "--key", &key];
        let arguments: Vec<_> = ["quarantine", what].into_iter().chain(which).collect();
        let aggregator = self.stack.service("aggregator");
        let running = aggregator.spawn_command(aggregator.config(), &arguments)?;
        self.commands.spawn(async move {
            let output = quiet::to_its_end(running).await?;
            let output = output.with_context(|| format!("quarantine {what} does not end"))?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let code = output.status.code();
            println!("quarantine {what} of {key} ends with {code:?}");
            ensure!(
                matches!(code, Some(0..=2)) && !said.contains("panicked"),
                "quarantine {what}: {code:?} {said}"
            );
            Ok(())
        });
        Ok(())
    }

    /// A backup of a while ago is put in a source's place, on a timeline of its own and without the
    /// slot: what was written since is gone.
    async fn restore_source(&self, system: System, ms: u64) -> Result<()> {
        let folder = self.stack.folder().join("backup-of-a-source");
        let mut source = self.stack.cluster(system).lock().await;
        source.base_backup(&folder).await?;
        wait(ms).await;
        self.shop.puts_back(system);
        source.crash().await;
        source.restore_base_backup(&folder)?;
        forget(&folder)?;
        source.restart().await?;
        self.shop.puts_back(system);
        Ok(())
    }

    /// Whichever leads: the sources are loaded anew from compacted topics.
    async fn lag(&self) -> Result<()> {
        let lateness_ms = u64::try_from(LATENESS_OF_THE_VIEW_MS)?;
        let both = [
            self.running("aggregator").await?,
            self.running("aggregator-standby").await?,
        ];
        for service in both {
            service.stop();
        }
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = wait(lateness_ms + LAG_BEYOND_MS) => {}
        }
        for service in both {
            service.cont();
        }
        Ok(())
    }

    /// Where a disk may be mounted. PostgreSQL ends itself where its log does not fit; whoever runs it starts
    /// it again.
    async fn fill_disk(&self, ms: u64) -> Result<()> {
        let Some(disk) = &self.shop.disk else {
            return Ok(());
        };
        // What the checkpointer would write later needs its room as well.
        self.stack.view().await?.batch_execute("checkpoint").await?;
        disk.fill_but(LEFT_MIB)?;
        wait(ms).await;
        disk.empty()?;
        let deadline = Instant::now() + BACK_WITHIN;
        while let Err(error) = self.stack.view().await {
            if Instant::now() > deadline {
                return Err(error.context("the view's database does not come back"));
            }
            let mut view = self.stack.view_cluster().lock().await;
            let running = view.process().filter(|process| process.status().is_none());
            if running.is_none() {
                println!("the view's database has ended itself");
                view.restart().await?;
            }
            wait(100).await;
        }
        Ok(())
    }

    async fn restore_view(&self, ms: u64) -> Result<()> {
        let folder = self.stack.folder().join("backup-of-the-view");
        let mut view = self.stack.view_cluster().lock().await;
        view.base_backup(&folder).await?;
        wait(ms).await;
        view.crash().await;
        view.restore_base_backup(&folder)?;
        forget(&folder)?;
        view.restart().await?;
        match &self.shop.office {
            Some(office) => office.lock().await.copies(&view).await,
            None => Ok(()),
        }
    }

    /// Nothing dies any more, and what runs beside ends.
    async fn ends(mut self) -> Result<()> {
        for service in self.stack.services() {
            service.environment(&[("FAULT_POINTS", "")]);
        }
        // One that might die at a point later, at rest, does so now.
        for name in &self.armed {
            self.stack.service(name).kill();
        }
        while let Some(ended) = self.commands.join_next().await {
            ended??;
        }
        Ok(())
    }
}

fn forget(folder: &Path) -> Result<()> {
    std::fs::remove_dir_all(folder).context("cannot remove a backup")
}

async fn wait(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}
