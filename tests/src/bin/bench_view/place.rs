//! A view database with an aggregator over topics of its own, and the state that is awaited.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fixtures::place::free_port;
use fixtures::process::{Process, Spawn};
use fixtures::{Kafka, Postgres};
use kafka::{KafkaConfig, Lsn};
use nix::sys::signal::Signal;
use tests::machine;
use tokio_postgres::Client;

use crate::shop;
use crate::topics::Writer;

/// The longest wait for a state that must come.
const WITHIN: Duration = Duration::from_secs(3600);
const POLL: Duration = Duration::from_millis(10);
/// Events of a Kafka transaction.
const TRANSACTION_EVENTS: i64 = 5_000;

/// How an aggregator applied what waited for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CaughtUp {
    /// Changes a second, from the first event that it takes in hand on.
    pub(crate) working: f64,
    /// The same from the start of the process on.
    pub(crate) started: f64,
    /// Processor time a change, microseconds: of the aggregator, and of the server for it.
    pub(crate) cpu_us: f64,
    pub(crate) server_cpu_us: f64,
}

/// Three sources in Kafka, and the view of them.
pub(crate) struct Place {
    pub(crate) client: Client,
    database: String,
    pub(crate) sales: Writer,
    pub(crate) accounting: Writer,
    warehouse: Lsn,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    admin: String,
    running: Option<Process>,
    /// The most memory that an aggregator had here.
    pub(crate) peak_rss_mib: f64,
    /// The first order that nobody has written yet.
    pub(crate) next_order: i64,
    _folder: tempfile::TempDir,
}

impl Place {
    /// Topics with the products and nothing else; nothing runs.
    pub(crate) async fn new(
        name: &str,
        server: &Postgres,
        broker: &Kafka,
        program: &std::path::Path,
    ) -> Result<Self> {
        let mut kafka = KafkaConfig::new(&broker.bootstrap(), 1);
        kafka.topic_prefix = format!("{name}.");
        // What large transactions need is in the bound of a broker under load.
        kafka.transaction_timeout_ms = 60_000;
        let tables = ["wh_item", "wh_price", "wh_quantity"];
        let mut warehouse = Writer::connect(&kafka, "warehouse", &tables).await?;
        let tables = ["sls_order", "sls_orderdetail"];
        let sales = Writer::connect(&kafka, "sales", &tables).await?;
        let tables = ["ac_transaction", "ac_transactiondetail"];
        let accounting = Writer::connect(&kafka, "accounting", &tables).await?;
        let warehouse = warehouse.items().await?;

        let database = fixtures::servers::database(server, name).await?;
        let folder = tempfile::tempdir()?;
        let (config, log) = (folder.path().join("config.toml"), folder.path().join("log"));
        let port = free_port()?;
        let text = format!(
            "[view]\nurl = {:?}\n[kafka]\nbootstrap = {:?}\ntopic_prefix = {:?}\n\
            replication_factor = 1\n[admin]\nlisten = \"127.0.0.1:{port}\"\n",
            server.superuser_url(&database),
            kafka.bootstrap,
            kafka.topic_prefix
        );
        std::fs::write(&config, text)?;
        Ok(Self {
            client: server.superuser(&database).await?,
            database,
            sales,
            accounting,
            warehouse,
            program: program.to_owned(),
            config,
            log,
            admin: format!("http://127.0.0.1:{port}"),
            running: None,
            peak_rss_mib: 0.0,
            next_order: 1,
            _folder: folder,
        })
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        let text = |path: &PathBuf| path.display().to_string();
        self.running = Some(Process::spawn(&Spawn {
            command: vec![text(&self.program), "--config".into(), text(&self.config)],
            environment: Vec::new(),
            without: Vec::new(),
            log: self.log.clone(),
            user: None,
            on_parent_death: Signal::SIGKILL,
        })?);
        Ok(())
    }

    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.look_at_memory()?;
        if let Some(process) = self.running.take() {
            process.stop(Signal::SIGTERM, Duration::from_secs(60)).await;
        }
        Ok(())
    }

    fn look_at_memory(&mut self) -> Result<()> {
        let process = self.running.as_ref().context("no aggregator runs")?;
        let peak = machine::peak_rss_mib(process.id())?;
        self.peak_rss_mib = self.peak_rss_mib.max(peak);
        Ok(())
    }

    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let end: Vec<_> = log.lines().rev().take(30).collect();
        error.context(end.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    /// Serves all three sources, without an order, with as much before as `orders`.
    pub(crate) async fn fill(&mut self, orders: i64) -> Result<()> {
        self.sales.commit().await?;
        self.accounting.commit().await?;
        self.start()?;
        self.caught_up().await?;
        if orders == 0 {
            return self.stop().await;
        }
        for (table, sql) in shop::rows_sql() {
            let sql = format!("INSERT INTO {table} {sql}");
            self.client.execute(&sql, &[&1_i64, &orders]).await?;
        }
        self.next_order = orders + 1;
        // The aggregator itself makes of them what it would have made of events.
        let http = reqwest::Client::new();
        let asked = http
            .post(format!("{}/recompute", self.admin))
            .send()
            .await?;
        let status = asked.status().as_u16();
        ensure!(status == 202, "recompute answers {status}");
        self.shows(orders).await?;
        self.stop().await?;
        self.client.batch_execute("VACUUM ANALYZE").await?;
        Ok(self.client.batch_execute("CHECKPOINT").await?)
    }

    /// Waits until there are exactly so many orders.
    async fn shows(&self, orders: i64) -> Result<()> {
        let begun = Instant::now();
        loop {
            let sql = "SELECT coalesce((SELECT max(id) FROM public.orders), 0)";
            let max: i64 = self.client.query_one(sql, &[]).await?.get(0);
            if max == orders {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < WITHIN,
                "the last order is {max}, not {orders}"
            );
            tokio::time::sleep(20 * POLL).await;
        }
    }

    /// Another connection to the view.
    pub(crate) async fn watcher(&self, server: &Postgres) -> Result<Client> {
        server.superuser(&self.database).await
    }

    /// Waits until the view is where the sources are.
    pub(crate) async fn caught_up(&self) -> Result<()> {
        let expected = [
            ("warehouse", self.warehouse),
            ("sales", self.sales.lsn),
            ("accounting", self.accounting.lsn),
        ];
        for (source, lsn) in expected {
            self.reached(source, lsn).await?;
        }
        Ok(())
    }

    /// Waits until the view is at this position of a source.
    async fn reached(&self, source: &str, lsn: Lsn) -> Result<()> {
        let begun = Instant::now();
        loop {
            if self.is_at(source, lsn).await? {
                return Ok(());
            }
            let process = self.running.as_ref().context("no aggregator runs")?;
            if process.status().is_some() || begun.elapsed() > WITHIN {
                bail!("the view of {source} is not at {lsn}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Is the view at this position of a source, or past it?
    pub(crate) async fn is_at(&self, source: &str, lsn: Lsn) -> Result<bool> {
        let sql = "SELECT lsn FROM public.positions WHERE source = $1";
        // The view may not have been migrated yet.
        let found = self.client.query_opt(sql, &[&source]).await.ok().flatten();
        let at: Option<String> = found.and_then(|row| row.get(0));
        let at = at.and_then(|at| at.parse::<Lsn>().ok());
        Ok(at.is_some_and(|at| at >= lsn))
    }

    /// Writes orders and payments as many source transactions. How many changes.
    pub(crate) async fn write(&mut self, orders: i64) -> Result<i64> {
        let first = self.next_order;
        for order in first..first + orders {
            self.sales.order(order).await?;
            self.accounting.payment(order).await?;
            if (order - first) % (TRANSACTION_EVENTS / shop::SALES_ROWS) == 0 {
                self.sales.commit().await?;
                self.accounting.commit().await?;
            }
        }
        self.sales.commit().await?;
        self.accounting.commit().await?;
        self.next_order += orders;
        Ok(orders * shop::ROWS)
    }

    /// The next orders, without payments, as many source transactions.
    pub(crate) async fn write_orders(&mut self, orders: i64) -> Result<i64> {
        let first = self.next_order;
        for order in first..first + orders {
            self.sales.order(order).await?;
            if (order - first) % (TRANSACTION_EVENTS / shop::SALES_ROWS) == 0 {
                self.sales.commit().await?;
            }
        }
        self.sales.commit().await?;
        self.next_order += orders;
        Ok(orders * shop::SALES_ROWS)
    }

    /// The next orders, without payments, as one source transaction over many of Kafka's.
    pub(crate) async fn write_at_once(&mut self, orders: i64) -> Result<i64> {
        let first = self.next_order;
        for order in first..first + orders {
            self.sales.order(order).await?;
            if (order - first) % (TRANSACTION_EVENTS / shop::SALES_ROWS) == 0 {
                self.sales.commit_half().await?;
            }
        }
        self.sales.commit().await?;
        self.next_order += orders;
        Ok(orders * shop::SALES_ROWS)
    }

    /// Starts the aggregator on what it has not seen, and waits until it has.
    pub(crate) async fn catch_up(&mut self, changes: i64) -> Result<CaughtUp> {
        let started = Instant::now();
        self.start()?;
        let http = reqwest::Client::new();
        let url = format!("{}/metrics", self.admin);
        let mut begun = None;
        while begun.is_none() {
            let Ok(answer) = http.get(&url).send().await else {
                tokio::time::sleep(POLL).await;
                continue;
            };
            let metrics = answer.text().await?;
            if metrics
                .lines()
                .any(|line| line.starts_with("aggregator_events_total{"))
            {
                begun = Some(Instant::now());
            }
            ensure!(started.elapsed() < WITHIN, "takes nothing in hand");
            tokio::time::sleep(POLL).await;
        }
        self.caught_up().await?;
        let (all, working) = (started.elapsed(), begun.unwrap_or(started).elapsed());
        let process = self.running.as_ref().context("no aggregator runs")?;
        let sql = "SELECT pid FROM pg_stat_activity
            WHERE application_name = 'aggregator' AND datname = current_database()";
        let backend = self.client.query_one(sql, &[]).await?.get(0);
        let (own, server) = (
            machine::cpu_time(process.id())?,
            machine::cpu_time(backend)?,
        );
        self.stop().await?;
        let each_us = |time: Duration| time.as_secs_f64() * 1e6 / changes as f64;
        Ok(CaughtUp {
            working: changes as f64 / working.as_secs_f64(),
            started: changes as f64 / all.as_secs_f64(),
            cpu_us: each_us(own),
            server_cpu_us: each_us(server),
        })
    }

    /// Prints which statements took the server's time, where it counts them (`--setting
    /// shared_preload_libraries=pg_stat_statements`).
    pub(crate) async fn print_statements(&self) -> Result<()> {
        let sql = "SELECT setting LIKE '%pg_stat_statements%' FROM pg_settings
            WHERE name = 'shared_preload_libraries'";
        if !self.client.query_one(sql, &[]).await?.get::<_, bool>(0) {
            return Ok(());
        }
        let sql = "CREATE EXTENSION IF NOT EXISTS pg_stat_statements";
        self.client.batch_execute(sql).await?;
        let sql = "SELECT calls, total_exec_time, rows, wal_bytes::bigint, shared_blks_hit, query
            FROM pg_stat_statements
            WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
            ORDER BY total_exec_time DESC LIMIT 25";
        for row in self.client.query(sql, &[]).await? {
            let query: String = row.get(5);
            let query: String = query.split_whitespace().collect::<Vec<_>>().join(" ");
            println!(
                "{:>9.1} ms {:>6} calls {:>8} rows {:>11} B WAL {:>9} hits  {}",
                row.get::<_, f64>(1),
                row.get::<_, i64>(0),
                row.get::<_, i64>(2),
                row.get::<_, i64>(3),
                row.get::<_, i64>(4),
                query.chars().take(300).collect::<String>()
            );
        }
        Ok(())
    }

    /// Reads sales again from the first record on, beside what is served. Rows a second.
    pub(crate) async fn rebuild(&mut self, changes: i64) -> Result<f64> {
        let begun = Instant::now();
        let command = tokio::process::Command::new(&self.program)
            .arg("--config")
            .arg(&self.config)
            .args(["rebuild", "--source", "sales"])
            .output();
        let output = command.await?;
        ensure!(
            output.status.success(),
            "rebuild: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let log = std::fs::read_to_string(&self.log)?;
        ensure!(
            log.contains("sales is rebuilt and served"),
            "nothing was rebuilt"
        );
        Ok(changes as f64 / begun.elapsed().as_secs_f64())
    }

    /// Every order, customer and product is what was written. With how many orders paid?
    pub(crate) async fn is_right(&self, paid: i64) -> Result<()> {
        is_right(&self.client, self.next_order - 1, paid).await
    }
}

/// The totals of the view are those of so many orders, of which so many are paid.
pub(crate) async fn is_right(client: &Client, orders: i64, paid: i64) -> Result<()> {
    let cents = |count: i64, each: i64| format!("{}.{:02}", count * each / 100, count * each % 100);
    let row = client
        .query_one(
            "SELECT (SELECT count(*) FROM public.orders),
                (SELECT round(sum(total), 2)::text FROM public.orders),
                (SELECT round(sum(paid), 2)::text FROM public.orders),
                (SELECT round(sum(ordered), 2)::text FROM public.customers),
                (SELECT round(sum(balance), 2)::text FROM public.customers),
                (SELECT round(sum(revenue), 2)::text FROM public.products),
                (SELECT count(*) FROM public.orders WHERE jsonb_array_length(lines) <> 3)",
            &[],
        )
        .await?;
    let found = (
        row.get::<_, i64>(0),
        [1, 2, 3, 4, 5].map(|column| row.get::<_, Option<String>>(column).unwrap_or_default()),
        row.get::<_, i64>(6),
    );
    let total = cents(orders, shop::TOTAL_CENTS);
    let balance = cents(1, orders * shop::TOTAL_CENTS - paid * shop::PAID_CENTS);
    let paid = cents(paid, shop::PAID_CENTS);
    let expected = (
        orders,
        [total.clone(), paid, total.clone(), balance, total],
        0,
    );
    ensure!(
        found == expected,
        "the view has {found:?}, not {expected:?}"
    );
    Ok(())
}
