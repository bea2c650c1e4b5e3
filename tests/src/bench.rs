//! What every benchmark does with its figures: a table on the terminal, and a flat JSON file
//! `bench/NAME.json` in the folder of the local environment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

/// Figures by name, the unit last.
#[derive(Debug, Default)]
pub struct Figures(BTreeMap<String, f64>);

impl Figures {
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        // Three decimals say enough of a benchmark.
        self.0
            .insert(name.into(), (value * 1000.0).round() / 1000.0);
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// Writes the file and says where it is.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, name: &str) -> Result<()> {
        let local = std::env::var_os("LOCAL_DIR").map_or_else(|| ".local".into(), PathBuf::from);
        let folder = local.join("bench");
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let path = folder.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(&self.0)?;
        std::fs::write(&path, text + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("\nwritten to {}", path.display());
        Ok(())
    }
}

/// The value below which `share` (0 to 1) of the durations lie, milliseconds.
#[must_use]
pub fn percentile_ms(durations: &[Duration], share: f64) -> f64 {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let rank = (share * sorted.len() as f64).ceil() as usize;
    let value = sorted.get(rank.saturating_sub(1)).or(sorted.last());
    value.copied().unwrap_or_default().as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let all: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile_ms(&all, 0.5), 50.0);
        assert_eq!(percentile_ms(&all, 0.99), 99.0);
        assert_eq!(percentile_ms(&all, 1.0), 100.0);
        assert_eq!(percentile_ms(&all[..1], 0.99), 100.0);
        assert_eq!(percentile_ms(&[], 0.5), 0.0);
    }
}
