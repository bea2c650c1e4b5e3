//! Rules that a test can switch off and points where it can stop or kill the process.
//!
//! Without the feature `faults` every rule is in force and no point does anything: the
//! functions fold to constants, so a shipped binary cannot be weakened from outside. With it,
//! two environment variables speak:
//!
//! - `RULES_OFF=drop_resent,fence` names rules that are out of force;
//! - `FAULT_POINTS=connector.before_commit:kill:3,…` acts the third time a point is passed:
//!   `kill` is SIGKILL, `stop` is SIGSTOP, both to this process; `sleep:N:MS` waits MS
//!   milliseconds each time from the Nth on; `hold:N:FILE`, from the Nth time on, says in the
//!   log that it holds there and goes on once FILE exists.

/// Is this rule in force? Always, unless a test switched it off.
#[must_use]
#[inline]
pub fn in_force(rule: &str) -> bool {
    #[cfg(feature = "faults")]
    return !armed::rules_off().iter().any(|off| off == rule);
    #[cfg(not(feature = "faults"))]
    {
        let _ = rule;
        true
    }
}

/// A point where a test may stop or kill this process.
#[inline]
#[cfg_attr(
    not(feature = "faults"),
    expect(clippy::unused_async, reason = "waits only when faults are armed")
)]
pub async fn point(name: &str) {
    #[cfg(feature = "faults")]
    armed::pass(name).await;
    #[cfg(not(feature = "faults"))]
    let _ = name;
}

#[cfg(feature = "faults")]
mod armed {
    use std::collections::HashMap;
    use std::path::PathBuf;
    use std::sync::{Mutex, OnceLock, PoisonError};
    use std::time::Duration;

    use nix::sys::signal::{Signal, raise};

    #[derive(Debug, Clone)]
    enum Action {
        Raise(Signal),
        Sleep(Duration),
        Hold(PathBuf),
    }

    /// How often a held point looks for its file.
    const LOOK: Duration = Duration::from_millis(1);

    struct Point {
        passes_before: u64,
        action: Action,
    }

    pub(super) fn rules_off() -> &'static [String] {
        static OFF: OnceLock<Vec<String>> = OnceLock::new();
        OFF.get_or_init(|| {
            std::env::var("RULES_OFF")
                .unwrap_or_default()
                .split(',')
                .map(str::trim)
                .filter(|rule| !rule.is_empty())
                .map(str::to_owned)
                .collect()
        })
    }

    pub(super) async fn pass(name: &str) {
        let action = {
            let mut points = points().lock().unwrap_or_else(PoisonError::into_inner);
            match points.get_mut(name) {
                None => return,
                Some(point) if point.passes_before > 1 => {
                    point.passes_before -= 1;
                    return;
                }
                Some(point) => {
                    let action = point.action.clone();
                    if matches!(action, Action::Raise(_)) {
                        points.remove(name);
                    }
                    action
                }
            }
        };
        match action {
            Action::Raise(signal) => {
                tracing::warn!(point = name, "fault point {name}: {signal}");
                if let Err(error) = raise(signal) {
                    tracing::error!(%error, "cannot raise {signal}");
                }
            }
            Action::Sleep(duration) => {
                tracing::info!(point = name, "fault point {name}: sleeps");
                tokio::time::sleep(duration).await;
            }
            Action::Hold(file) if file.exists() => {}
            Action::Hold(file) => {
                tracing::warn!(point = name, "fault point {name}: holds");
                while !file.exists() {
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    }

    fn points() -> &'static Mutex<HashMap<String, Point>> {
        static POINTS: OnceLock<Mutex<HashMap<String, Point>>> = OnceLock::new();
        POINTS.get_or_init(|| {
            let text = std::env::var("FAULT_POINTS").unwrap_or_default();
            Mutex::new(text.split(',').filter_map(parse).collect())
        })
    }

    fn parse(entry: &str) -> Option<(String, Point)> {
        let mut parts = entry.trim().split(':');
        let name = parts.next()?.to_owned();
        let action = parts.next()?;
        let passes_before = parts.next().and_then(|n| n.parse().ok()).unwrap_or(1);
        let action = match action {
            "kill" => Action::Raise(Signal::SIGKILL),
            "stop" => Action::Raise(Signal::SIGSTOP),
            "sleep" => Action::Sleep(Duration::from_millis(parts.next()?.parse().ok()?)),
            "hold" => Action::Hold(parts.next()?.into()),
            _ => return None,
        };
        Some((
            name,
            Point {
                passes_before,
                action,
            },
        ))
    }
}
