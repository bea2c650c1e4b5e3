//! `/status` for people.

use std::fmt::Write as _;

use serde_json::Value;

use crate::encode::envelope::now_us;

/// The whole status.
pub(super) fn status(status: &Value) -> String {
    let mut out = String::new();
    let text = |key: &str| status[key].as_str().unwrap_or("?").to_owned();
    _ = write!(out, "{}: {}", text("source"), text("state"));
    if status["degraded"] == true {
        out.push_str(", degraded");
    }
    if let Some(reason) = status["reason"].as_str() {
        _ = write!(out, ", {reason}");
    }
    out.push('\n');
    if let Some(epoch) = status["epoch"].as_u64() {
        let lag = bytes(status["lag_bytes"].as_u64().unwrap_or_default());
        let current = match status["current_at_us"].as_i64() {
            Some(at_us) => format!("current {} ago", seconds_since(at_us)),
            None => "not yet known to be current".to_owned(),
        };
        _ = writeln!(
            out,
            "  epoch {epoch}, position {}, {lag} behind, {current}",
            text("position")
        );
    } else if let Some(lag) = status["lag_bytes"].as_u64() {
        _ = writeln!(out, "  no record yet, {} behind", bytes(lag));
    }
    if status["slot"].is_object() {
        _ = writeln!(out, "  slot: {}", slot(&status["slot"]));
    }
    if status["whole"] == false && !status["epoch"].is_null() {
        out.push_str(
            "  readers wait: not every table has been read, and compared with the topic\n",
        );
    }
    match status["quarantined"].as_u64().unwrap_or_default() {
        0 => {}
        1 => out.push_str("  1 change went to quarantine since the start\n"),
        changes => {
            _ = writeln!(
                out,
                "  {changes} changes went to quarantine since the start"
            )
        }
    }
    let tables = status["tables"].as_object().into_iter().flatten();
    for (name, table) in tables {
        _ = writeln!(out, "  {name}: {}", progress(table));
        for request in table["requests"].as_array().into_iter().flatten() {
            let id = request["id"].as_u64().unwrap_or_default();
            _ = write!(out, "    read {id}");
            if let Some(condition) = request["condition"].as_str() {
                _ = write!(out, " where {condition}");
            }
            _ = writeln!(out, ": {}", progress(request));
        }
    }
    for failed in status["failed_requests"].as_array().into_iter().flatten() {
        let id = failed["id"].as_u64().unwrap_or_default();
        let part = |key: &str| failed[key].as_str().unwrap_or("?").to_owned();
        let (table, reason) = (part("table"), part("reason"));
        _ = writeln!(out, "  read {id} of {table} was given up: {reason}");
    }
    out
}

/// What the slot makes the source keep, and whether that is too much.
fn slot(slot: &Value) -> String {
    if slot["lost"].is_string() {
        return "lost, all tables are to be read again".to_owned();
    }
    let kept = slot["wal_bytes"].as_u64().unwrap_or_default();
    let mut out = format!("{} of WAL kept", bytes(kept));
    match slot["wal_bytes_max"].as_u64() {
        None => out.push_str(", without a bound"),
        Some(bytes_max) => {
            let share = kept.saturating_mul(100) / bytes_max.max(1);
            _ = write!(
                out,
                ", {share} % of the {} at which it is given up",
                bytes(bytes_max)
            );
        }
    }
    if slot["alarm"].is_string() {
        out.push_str("; ALARM");
    }
    out
}

/// How far a table's read, or one by command, is.
pub(super) fn progress(read: &Value) -> String {
    let partitions = read["partitions_to_reconcile"].as_u64().unwrap_or_default();
    match read["read"].as_str() {
        Some("first") => "waits to be read".to_owned(),
        Some("done") if partitions > 0 => {
            format!("read; {partitions} partitions to be compared with the source")
        }
        Some("done") => "read".to_owned(),
        _ => running(&read["progress"]),
    }
}

fn running(progress: &Value) -> String {
    let number = |key: &str| progress[key].as_u64().unwrap_or_default();
    let (rows, about) = (number("rows"), number("rows_estimate").max(number("rows")));
    let mut out = format!(
        "reading, {rows} of about {about} rows ({} %), {}, {} ranges left",
        rows * 100 / about.max(1),
        bytes(number("bytes")),
        number("ranges_left")
    );
    let begun_at_us = progress["begun_at_us"].as_i64().unwrap_or_default();
    let took_s = now_us().saturating_sub(begun_at_us).max(0).unsigned_abs() / 1_000_000;
    if rows > 0 && took_s > 0 {
        let rate = (rows / took_s).max(1);
        let left_s = number("rows_left") / rate;
        _ = write!(out, ", {rate} rows/s, about {left_s} s left");
    }
    out
}

fn seconds_since(at_us: i64) -> String {
    let tenths = now_us().saturating_sub(at_us).max(0) / 100_000;
    format!("{}.{} s", tenths / 10, tenths % 10)
}

fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 10_240 && unit + 1 < UNITS.len() {
        value /= 1024;
        unit += 1;
    }
    format!("{value} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_reads_as_sentences() {
        let shown = status(&json!({
            "source": "shop", "state": "reading", "degraded": false, "reason": null, "epoch": 7,
            "position": "0/16B3748", "lag_bytes": 20_480, "current_at_us": null, "whole": false,
            "quarantined": 3,
            "slot": {"wal_bytes": 3 << 20, "wal_bytes_max": 12 << 20, "alarm": null, "lost": null},
            "tables": {
                "public.done": {"read": "done", "partitions_to_reconcile": 0, "requests": [{
                    "id": 9, "condition": "id > 5", "read": "done", "partitions_to_reconcile": 2,
                }]},
                "public.item": {"read": "running", "partitions_to_reconcile": 0, "requests": [],
                    "progress": {"rows": 50, "bytes": 999, "rows_estimate": 200, "rows_left": 150,
                        "ranges_left": 3, "begun_at_us": now_us()}},
                "public.next": {"read": "first", "partitions_to_reconcile": 0, "requests": []},
            },
            "failed_requests": [{"id": 8, "table": "public.item", "reason": "division by zero"}],
        }));
        insta::assert_snapshot!(shown, @r"
        shop: reading
          epoch 7, position 0/16B3748, 20 KiB behind, not yet known to be current
          slot: 3072 KiB of WAL kept, 25 % of the 12 MiB at which it is given up
          readers wait: not every table has been read, and compared with the topic
          3 changes went to quarantine since the start
          public.done: read
            read 9 where id > 5: read; 2 partitions to be compared with the source
          public.item: reading, 50 of about 200 rows (25 %), 999 bytes, 3 ranges left
          public.next: waits to be read
          read 8 of public.item was given up: division by zero
        ");
    }

    #[test]
    fn what_somebody_has_to_act_on_stands_first() {
        let shown = |slot: Value| {
            status(&json!({
                "source": "shop", "state": "connecting", "degraded": true,
                "reason": "cannot ask Kafka; the slot is in danger", "epoch": null,
                "lag_bytes": 104_857_600, "whole": false, "quarantined": 1, "slot": slot,
            }))
        };
        let danger =
            json!({"wal_bytes": 100 << 20, "wal_bytes_max": 128 << 20, "alarm": "in danger"});
        insta::assert_snapshot!(shown(danger), @r"
        shop: connecting, degraded, cannot ask Kafka; the slot is in danger
          no record yet, 100 MiB behind
          slot: 100 MiB of WAL kept, 78 % of the 128 MiB at which it is given up; ALARM
          1 change went to quarantine since the start
        ");
        let lost = shown(json!({"wal_bytes": 0, "wal_bytes_max": null, "lost": "it is gone"}));
        assert!(lost.contains("slot: lost, all tables"), "{lost}");
        let unbounded = shown(json!({"wal_bytes": 7, "wal_bytes_max": null, "alarm": null}));
        assert!(
            unbounded.contains("7 bytes of WAL kept, without a bound"),
            "{unbounded}"
        );
    }
}
