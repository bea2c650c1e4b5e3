//! A configuration is one TOML file, then the environment, into one typed struct.
//!
//! `TRIBUTARY_POSTGRES__URL` sets `url` in `[postgres]`: the prefix `TRIBUTARY_`, then the
//! path with `__` between its parts. Structs refuse unknown keys
//! (`#[serde(deny_unknown_fields)]`), so a misspelt one is an error, in the file and in the
//! environment alike.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::{Error, Kind};
use figment::providers::{Env, Format, Toml};
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
    let env = Env::prefixed(ENV_PREFIX).split("__");
    let secrets: Vec<_> = env
        .iter()
        .filter(|(key, _)| is_secret(key.as_str()))
        .collect();
    let mut figment = Figment::from(Toml::file_exact(path)).merge(env);
    for (key, text) in secrets {
        // A secret is text, whatever it looks like: 0123 is no number.
        figment = figment.merge((key.as_str(), text));
    }
    let config: T = figment.extract().map_err(|error| ConfigError::Unfit {
        path: path.to_owned(),
        problems: error
            .into_iter()
            .map(sentence)
            .collect::<Vec<_>>()
            .join("; "),
    })?;
    config.validate().map_err(|report| ConfigError::Invalid {
        path: path.to_owned(),
        report,
    })?;
    Ok(config)
}

fn is_secret(key: &str) -> bool {
    key.ends_with("password") || key.ends_with("url")
}

/// Without the value that was found, which may be a secret at the wrong place.
fn sentence(mut problem: Error) -> String {
    problem.kind = match problem.kind {
        Kind::InvalidType(_, wanted) | Kind::InvalidValue(_, wanted) => {
            Kind::Message(format!("invalid value: expected {wanted}"))
        }
        Kind::UnknownVariant(_, known) => {
            Kind::Message(format!("unknown variant: expected {}", known.join(" or ")))
        }
        // A misspelt name has to be said; what is no name may be a value.
        Kind::UnknownField(name, known) if !is_name(&name) => {
            Kind::Message(format!("unknown field: expected {}", known.join(", ")))
        }
        Kind::Unsupported(_) => Kind::Message("a value that no key takes".to_owned()),
        Kind::UnsupportedKey(_, wanted) => {
            Kind::Message(format!("a key of another kind: expected {wanted}"))
        }
        // TOML's own complaints quote the line.
        Kind::Message(text) => {
            let quotes = |line: &&str| {
                line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit())
                    .starts_with('|')
            };
            Kind::Message(
                text.lines()
                    .filter(|line| !quotes(line))
                    .collect::<Vec<_>>()
                    .join(": "),
            )
        }
        other => other,
    };
    problem.path.retain(|key| is_name(key));
    problem.to_string()
}

fn is_name(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, Validate)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        #[garde(range(min = 1, max = 10))]
        workers: u32,
        #[garde(length(min = 1))]
        name: String,
        #[serde(default)]
        #[garde(skip)]
        #[expect(dead_code, reason = "read, not used")]
        level: Option<Level>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Level {
        Low,
        High,
    }

    fn load_text(text: &str) -> Result<Settings, ConfigError> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("it is writable");
        load(file.path())
    }

    #[test]
    fn a_good_file_is_read() {
        let settings = load_text("workers = 2\nname = \"a\"").expect("it fits");
        assert_eq!((settings.workers, settings.name.as_str()), (2, "a"));
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let error = load_text("workers = 2\nname = \"a\"\nwrokers = 3").unwrap_err();
        assert!(error.to_string().contains("wrokers"), "{error}");
    }

    #[test]
    fn every_value_out_of_bounds_is_named_at_once() {
        let error = load_text("workers = 11\nname = \"\"")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("workers") && error.contains("name"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_file_says_what_to_pass() {
        let error = load::<Settings>(Path::new("/nowhere/x.toml")).unwrap_err();
        assert!(error.to_string().contains("--config"), "{error}");
    }

    /// A quote forgotten, a section misspelt, a number without quotes: none shows the secret.
    #[test]
    fn what_does_not_fit_is_not_quoted() {
        for text in [
            "workers = 2\nname = \"postgres://u:hush@h/d",
            "workers = \"hush\"\nname = \"a\"",
            "workers = 2\nname = { hush = \"hush\" }",
            "workers = 2\nname = \"a\"\nname = \"hush\"",
            "workers = 2 hush",
            "workers = 2\nname = \"a\"\nlevel = \"hush\"",
            "workers = 2\nname = \"a\"\n\"u://hush@h\" = 1",
        ] {
            let error = load_text(text).unwrap_err();
            let said = format!("{error} {error:?}");
            assert!(!said.contains("hush"), "{said}");
            let names = ["workers", "name", "level", "line"];
            assert!(names.iter().any(|name| said.contains(name)), "{said}");
        }
    }
}
