//! One who kills, pauses, cuts, crashes, drops and alters.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use fixtures::distant::DistantKafka;
use fixtures::postgres::Postgres;
use nix::sys::signal::Signal;
use rand::Rng as _;
use rand::rngs::StdRng;

use crate::harness::{Connector, Proxy, Rig};

/// Who does harm.
pub(super) struct Gremlin<'a> {
    pub(super) rig: &'a mut Rig,
    pub(super) server: &'a mut Postgres,
    pub(super) kafka: &'a mut DistantKafka,
    /// Between the connectors and the source.
    pub(super) proxy: &'a Proxy,
    pub(super) random: StdRng,
    pub(super) connectors: Vec<Connector>,
    /// Source transactions are spread over several of Kafka's.
    pub(super) spread: bool,
    pub(super) columns: u32,
    pub(super) done: BTreeMap<&'static str, u32>,
}

const POINTS: [&str; 16] = [
    "after_lock",
    "after_slot",
    "before_init",
    "after_init",
    "begin_epoch",
    "after_create",
    "before_send",
    "after_send",
    "before_commit",
    "after_commit",
    "after_confirm",
    "after_chunk",
    "in_read",
    "in_reconcile",
    "after_look",
    "after_drop",
];

impl Gremlin<'_> {
    /// A connector that may kill itself somewhere.
    fn start(&mut self) -> Result<()> {
        let mut plan = self
            .rig
            .connector()
            .through(self.proxy.port())
            .bootstrap(&self.kafka.bootstrap())
            .stream("idle_record_ms = 50")
            .reads("chunk_rows = 5\nreconcile_keys = 3");
        if self.spread {
            plan = plan.stream("kafka_transaction_events_max = 7");
        }
        if self.random.random_bool(0.5) {
            let point = POINTS[self.random.random_range(0..POINTS.len())];
            let times = self.random.random_range(1..40);
            plan = plan.faults(&format!("connector.{point}:kill:{times}"));
        }
        self.connectors.push(plan.start()?);
        Ok(())
    }

    /// Those that ended are followed by others.
    pub(super) fn replace(&mut self) -> Result<()> {
        self.connectors.retain(Connector::is_running);
        while self.connectors.len() < 2 {
            self.start()?;
        }
        Ok(())
    }

    pub(super) async fn harm(&mut self) -> Result<()> {
        let what = match self.random.random_range(0..26) {
            0..=5 => self.kill().await,
            6..=9 => self.pause().await,
            10..=12 => self.end_a_session().await?,
            13..=14 => {
                self.proxy.cut();
                "cut"
            }
            15..=16 => {
                self.proxy.silence();
                "silence"
            }
            17 => {
                self.proxy.down();
                self.wait(3000).await;
                self.proxy.up();
                "network down"
            }
            18 => {
                self.kafka.kafka.crash().await;
                self.wait(1000).await;
                self.kafka.kafka.restart().await?;
                "broker crash"
            }
            19 => {
                self.server.crash().await;
                self.server.restart().await?;
                self.rig.moved_to(self.server).await?;
                "source crash"
            }
            20 => self.drop_the_slot().await?,
            21..=22 => {
                self.kafka.network.cut();
                "cut from Kafka"
            }
            23 => {
                self.kafka.network.silence();
                "silence from Kafka"
            }
            24 => {
                self.kafka.network.down();
                self.wait(3000).await;
                self.kafka.network.up();
                "network to Kafka down"
            }
            _ => self.alter().await?,
        };
        *self.done.entry(what).or_default() += 1;
        Ok(())
    }

    pub(super) async fn wait(&mut self, ms_max: u64) {
        let pause = self.random.random_range(0..ms_max);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    fn any(&mut self) -> &Connector {
        let at = self.random.random_range(0..self.connectors.len());
        &self.connectors[at]
    }

    async fn kill(&mut self) -> &'static str {
        self.any().kill().await;
        "kill"
    }

    /// Longer than locks last, or shorter.
    async fn pause(&mut self) -> &'static str {
        let at = self.random.random_range(0..self.connectors.len());
        self.connectors[at].signal(Signal::SIGSTOP);
        self.wait(5000).await;
        self.connectors[at].signal(Signal::SIGCONT);
        "pause"
    }

    async fn end_a_session(&mut self) -> Result<&'static str> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE usename = $1 ORDER BY random() LIMIT 1";
        self.rig.db.query(sql, &[&self.rig.role]).await?;
        Ok("pg_terminate_backend")
    }

    async fn drop_the_slot(&mut self) -> Result<&'static str> {
        let slot = &self.rig.slot;
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
             WHERE slot_name = '{slot}' AND active; \
             SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = '{slot}'"
        );
        // A connector may be quicker: then the slot stays.
        Ok(match self.rig.run(&sql).await {
            Ok(()) => "slot dropped",
            Err(_) => "slot's stream ended",
        })
    }

    /// A column more is a table read more.
    async fn alter(&mut self) -> Result<&'static str> {
        self.columns += 1;
        let sql = format!(
            "SET lock_timeout = '1s'; ALTER TABLE account ADD COLUMN c{} int DEFAULT {}; \
             RESET lock_timeout",
            self.columns, self.columns
        );
        Ok(match self.rig.run(&sql).await {
            Ok(()) => "column added",
            Err(_) => "column not added",
        })
    }
}
