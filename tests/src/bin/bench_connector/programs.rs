//! What PostgreSQL's own programs do with the same rows, into nothing.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fixtures::postgres::TEST_PASSWORD;
use tokio::process::Command;

use crate::source::{PUBLICATION, Source, Written};

/// From a slot of its own until its program has ended: it does so at the last commit.
pub(crate) async fn pg_recvlogical(source: &Source, written: &Written) -> Result<Duration> {
    let (slot, _) = source.copy_slot(written).await?;
    let begun = Instant::now();
    let mut command = program(source, "pg_recvlogical")?;
    command
        .args([
            "--start",
            "--no-loop",
            "--file=/dev/null",
            "--status-interval=1",
        ])
        .arg(format!("--slot={slot}"))
        .arg(format!("--endpos={}", written.end))
        .args(["--option=proto_version=1"])
        .arg(format!("--option=publication_names={PUBLICATION}"));
    succeed(command).await?;
    let elapsed = begun.elapsed();
    source.drop_slot(&slot).await?;
    Ok(elapsed)
}

/// The whole table.
pub(crate) async fn copy(source: &Source) -> Result<Duration> {
    let begun = Instant::now();
    let mut command = program(source, "psql")?;
    command.args(["--no-psqlrc", "--command=copy line to stdout"]);
    succeed(command).await?;
    Ok(begun.elapsed())
}

fn program(source: &Source, name: &str) -> Result<Command> {
    let mut command = Command::new(source.postgres.version().programs()?.join(name));
    command
        .args([
            "--username=postgres",
            "--dbname=postgres",
            "--host=127.0.0.1",
        ])
        .arg(format!("--port={}", source.postgres.port()))
        .env("PGPASSWORD", TEST_PASSWORD)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    Ok(command)
}

async fn succeed(mut command: Command) -> Result<()> {
    let status = command
        .status()
        .await
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
