//! A configuration is one TOML file, then the environment, into one typed struct.
//!
//! `TRIBUTARY_POSTGRES__URL` sets `url` in `[postgres]`: the prefix `TRIBUTARY_`, then the
//! path with `__` between its parts. Structs refuse unknown keys
//! (`#[serde(deny_unknown_fields)]`), so a misspelt one is an error, in the file and in the
//! environment alike.

use std::path::{Path, PathBuf};

use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use garde::Validate;
use serde::de::DeserializeOwned;

/// Prefix of the environment variables that override the file.
pub const ENV_PREFIX: &str = "TRIBUTARY_";

/// Why a configuration was refused. The message names the key and the place.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}; pass an existing file with --config", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration {} does not fit: {problems}", path.display())]
    Unfit { path: PathBuf, problems: String },
    #[error("the configuration {} is out of bounds:\n{report}", path.display())]
    Invalid {
        path: PathBuf,
        report: garde::Report,
    },
}

/// Reads `path`, lets the environment override it, and checks every bound.
///
/// # Errors
/// All keys that the file and the environment get wrong in shape or in value, at once where
/// the format allows it.
pub fn load<T>(path: &Path) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Validate<Context = ()>,
{
    std::fs::metadata(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let config: T = Figment::from(Toml::file_exact(path))
        .merge(Env::prefixed(ENV_PREFIX).split("__"))
        .extract()
        .map_err(|error| ConfigError::Unfit {
            path: path.to_owned(),
            problems: error
                .into_iter()
                .map(|problem| problem.to_string())
                .collect::<Vec<_>>()
                .join("; "),
        })?;
    config.validate().map_err(|report| ConfigError::Invalid {
        path: path.to_owned(),
        report,
    })?;
    Ok(config)
}
