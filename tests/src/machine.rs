//! What the kernel says of a process.

use std::time::Duration;

use anyhow::{Context, Result};

/// Processor time of a process, both kinds, of all its threads.
///
/// # Errors
/// Where there is no such process.
pub fn cpu_time(pid: i32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, which may contain blanks, ends with the last parenthesis; 14 and 15 are utime and
    // stime in ticks of 10 ms.
    let (_, fields) = stat
        .rsplit_once(')')
        .context("a stat file has another shape")?;
    let ticks: Vec<u64> = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
}

/// The most memory that a process had resident, MiB.
///
/// # Errors
/// Where there is no such process.
pub fn peak_rss_mib(pid: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .context("a status file lacks VmHWM")?
        .parse()?;
    Ok(kib / 1024.0)
}
