//! The clients, each from its connection to the last commit.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use connectors::replication::{
    RawEvent, ReplicationClient, ReplicationConfig, ReplicationMessage, decode,
};
use fixtures::postgres::TEST_PASSWORD;
use kafka::Lsn;
use pgwire_replication as pgwire;

use crate::Run;
use crate::source::{PUBLICATION, Source, Written};

/// How the client reaches the server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Connection {
    Tcp,
    Unix,
}

impl Connection {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        }
    }

    fn host(self, source: &Source) -> Result<String> {
        match self {
            Self::Tcp => Ok("127.0.0.1".to_owned()),
            Self::Unix => source.socket_folder(),
        }
    }
}

/// Who receives, and what it does with a row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Client {
    /// PostgreSQL's own program, into /dev/null.
    PgRecvlogical,
    /// The connectors' client, without decoding.
    Thin,
    /// The connectors' client; every row is decoded and every cell looked at.
    ThinDecoding,
    /// The crate, which decodes BEGIN and COMMIT only.
    Pgwire,
    /// The crate, with the connectors' decoder behind it.
    PgwireDecoding,
}

impl Client {
    pub(crate) const ALL: [Self; 5] = [
        Self::PgRecvlogical,
        Self::Thin,
        Self::ThinDecoding,
        Self::Pgwire,
        Self::PgwireDecoding,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PgRecvlogical => "pg_recvlogical",
            Self::Thin => "thin, receiving",
            Self::ThinDecoding => "thin, decoding",
            Self::Pgwire => "pgwire-replication",
            Self::PgwireDecoding => "pgwire-replication, dec.",
        }
    }

    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::PgRecvlogical => "pg_recvlogical",
            Self::Thin => "thin",
            Self::ThinDecoding => "thin_decoding",
            Self::Pgwire => "pgwire_replication",
            Self::PgwireDecoding => "pgwire_replication_decoding",
        }
    }

    /// Receives everything up to `end`.
    pub(crate) async fn run(
        self,
        source: &Source,
        connection: Connection,
        slot: &str,
        written: &Written,
    ) -> Result<Run> {
        let (end, rows) = (written.end, written.rows);
        let host = connection.host(source)?;
        let port = source.postgres.port();
        let (cpu_before, begun) = (cpu_time()?, Instant::now());
        let rows = match self {
            Self::PgRecvlogical => return pg_recvlogical(source, &host, slot, end, rows).await,
            Self::Thin | Self::ThinDecoding => {
                let decoding = matches!(self, Self::ThinDecoding);
                thin(&host, port, slot, end, decoding).await?
            }
            Self::Pgwire | Self::PgwireDecoding => {
                let decoding = matches!(self, Self::PgwireDecoding);
                pgwire_replication(&host, port, slot, end, decoding).await?
            }
        };
        Ok(Run {
            rows,
            elapsed: begun.elapsed(),
            client_cpu: cpu_time()?.own.saturating_sub(cpu_before.own),
        })
    }
}

async fn thin(host: &str, port: u16, slot: &str, end: Lsn, decoding: bool) -> Result<u64> {
    let parameters =
        format!("host={host} port={port} user=postgres password={TEST_PASSWORD} dbname=postgres");
    let config = ReplicationConfig::from_url(&parameters)?;
    let client = ReplicationClient::connect(&config).await?;
    let mut stream = client.start(slot, PUBLICATION).await?;
    let mut rows = 0;
    loop {
        match stream.next_raw().await? {
            RawEvent::Data {
                wal_start, data, ..
            } => {
                rows += count(data, decoding)?;
                if wal_start >= end {
                    return Ok(rows);
                }
            }
            RawEvent::Keepalive { wal_end, .. } if wal_end >= end => return Ok(rows),
            RawEvent::Keepalive { .. } => {}
        }
    }
}

async fn pgwire_replication(
    host: &str,
    port: u16,
    slot: &str,
    end: Lsn,
    decoding: bool,
) -> Result<u64> {
    let mut config = pgwire::ReplicationConfig::new(
        host,
        "postgres",
        TEST_PASSWORD,
        "postgres",
        slot,
        PUBLICATION,
    )
    .with_port(port);
    config.status_interval = Duration::from_secs(1);
    let mut client = pgwire::ReplicationClient::connect(config).await?;
    let mut rows = 0;
    while let Some(event) = client.recv().await? {
        let reached = match event {
            pgwire::ReplicationEvent::XLogData {
                wal_start, data, ..
            } => {
                rows += count(data, decoding)?;
                wal_start.as_u64()
            }
            pgwire::ReplicationEvent::Commit { end_lsn, .. } => end_lsn.as_u64(),
            pgwire::ReplicationEvent::KeepAlive { wal_end, .. } => wal_end.as_u64(),
            _ => 0,
        };
        if reached >= end.0 {
            return Ok(rows);
        }
    }
    bail!("the stream ended")
}

/// One for a row, after as much work as is measured.
fn count(data: bytes::Bytes, decoding: bool) -> Result<u64> {
    if !decoding {
        return Ok(u64::from(data.first() == Some(&b'I')));
    }
    Ok(match decode(data)? {
        ReplicationMessage::Insert { new, .. } => {
            std::hint::black_box(new.cells().fold(0, |sum, cell| match cell {
                connectors::replication::Cell::Text(text) => sum + text.len(),
                _ => sum,
            }));
            1
        }
        _ => 0,
    })
}

/// It tells no count: that it ends at `end` says that it has received everything before.
async fn pg_recvlogical(
    source: &Source,
    host: &str,
    slot: &str,
    end: Lsn,
    rows: u64,
) -> Result<Run> {
    let program = source.postgres.version().programs()?.join("pg_recvlogical");
    let begun = Instant::now();
    let before = cpu_time()?;
    let status = tokio::process::Command::new(program)
        .args([
            "--start",
            "--no-loop",
            "--file=/dev/null",
            "--status-interval=1",
        ])
        .args(["--username=postgres", "--dbname=postgres"])
        .arg(format!("--host={host}"))
        .arg(format!("--port={}", source.postgres.port()))
        .arg(format!("--slot={slot}"))
        .arg(format!("--endpos={end}"))
        .args(["--option=proto_version=1"])
        .arg(format!("--option=publication_names={PUBLICATION}"))
        .env("PGPASSWORD", TEST_PASSWORD)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .context("cannot start pg_recvlogical")?;
    let elapsed = begun.elapsed();
    if !status.success() {
        bail!("pg_recvlogical: {status}");
    }
    Ok(Run {
        rows,
        elapsed,
        client_cpu: cpu_time()?.children.saturating_sub(before.children),
    })
}

/// Processor time of this process, and of its children that have ended.
struct CpuTime {
    own: Duration,
    children: Duration,
}

fn cpu_time() -> Result<CpuTime> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name, which may contain blanks, ends with the last parenthesis; 14 to 17 are
    // utime, stime, cutime, cstime in ticks of 10 ms.
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .context("/proc/self/stat has another shape")?
        .1
        .split_ascii_whitespace()
        .skip(11)
        .take(4)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let ticks = |range: std::ops::Range<usize>| {
        fields
            .get(range)
            .map(|ticks| Duration::from_millis(ticks.iter().sum::<u64>() * 10))
            .context("/proc/self/stat is cut short")
    };
    Ok(CpuTime {
        own: ticks(0..2)?,
        children: ticks(2..4)?,
    })
}
