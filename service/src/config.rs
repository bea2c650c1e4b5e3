//! A configuration is one TOML file, then the environment, into one typed struct.
//!
//! `TRIBUTARY_POSTGRES__URL` sets `url` in `[postgres]`: the prefix `TRIBUTARY_`, then the
//! path with `__` between its parts. Structs refuse unknown keys
//! (`#[serde(deny_unknown_fields)]`), so a misspelt one is an error, in the file and in the
//! environment alike.

use std::path::{Path, PathBuf};

use figment::error::{Error, Kind};
use figment::providers::{Env, Format, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Metadata};
use garde::Validate;
use serde::de::DeserializeOwned;

/// Prefix of the environment variables that override the file.
pub const ENV_PREFIX: &str = "TRIBUTARY_";

/// Why a configuration was refused. The message names each key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}; pass an existing file with --config", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration {} does not fit:{}", path.display(), lines(problems))]
    Unfit {
        path: PathBuf,
        problems: Vec<Problem>,
    },
}

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// With dots between its parts; empty: the file as a whole.
    pub key: String,
    pub cause: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.key.as_str() {
            "" => f.write_str(&self.cause),
            key => write!(f, "{key}: {}", self.cause),
        }
    }
}

fn lines(problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| format!("\n  {problem}"));
    lines.collect()
}

/// Reads `path`, lets the environment override it, and checks every bound.
///
/// # Errors
/// All keys that the file and the environment get wrong, in shape first, then in value. Of several
/// that are missing in one section the first is named.
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
    let unfit = |problems| ConfigError::Unfit {
        path: path.to_owned(),
        problems,
    };
    let config: T = extract(&figment).map_err(unfit)?;
    config.validate().map_err(|report| {
        let problems = report.iter().map(|(key, error)| Problem {
            key: key.to_string(),
            cause: error.to_string(),
        });
        unfit(problems.collect())
    })?;
    Ok(config)
}

fn is_secret(key: &str) -> bool {
    key.ends_with("password") || key.ends_with("url")
}

/// Serde tells the first problem only: what it is about is taken away, until there is no other.
fn extract<T: DeserializeOwned>(figment: &Figment) -> Result<T, Vec<Problem>> {
    let mut keys: Dict = figment
        .extract()
        .map_err(|error| vec![problem(figment, error).1])?;
    let mut problems = Vec::new();
    let mut removed: Vec<Vec<String>> = Vec::new();
    loop {
        let error = match Value::from(keys.clone()).deserialize() {
            Ok(config) if problems.is_empty() => return Ok(config),
            Ok(_) => return Err(problems),
            Err(error) => error,
        };
        let is_missing = matches!(error.kind, Kind::MissingField(_));
        let (mut path, problem) = problem(figment, error);
        // It is missing because it, or some of it, was taken away.
        if is_missing && removed.iter().any(|other| other.starts_with(&path)) {
            return Err(problems);
        }
        problems.push(problem);
        if is_missing {
            path.pop();
        }
        while !remove(&mut keys, &path) {
            if path.pop().is_none() {
                return Err(problems);
            }
        }
        removed.push(path);
    }
}

fn remove(keys: &mut Dict, path: &[String]) -> bool {
    match path {
        [] => false,
        [last] => keys.remove(last).is_some(),
        [first, rest @ ..] => match keys.get_mut(first) {
            Some(Value::Dict(_, keys)) => remove(keys, rest),
            _ => false,
        },
    }
}

/// The place, and what is said of it: without the value that was found, which may be a secret at
/// the wrong place.
fn problem(figment: &Figment, error: Error) -> (Vec<String>, Problem) {
    let mut path = error.path;
    if let Kind::UnknownField(name, _) = &error.kind
        && path.last() != Some(name)
    {
        path.push(name.clone());
    }
    if let Kind::MissingField(name) = &error.kind {
        path.push(name.to_string());
    }
    let shown: Vec<_> = path.iter().filter(|key| is_name(key)).cloned().collect();
    let mut cause = cause(error.kind, shown.len() == path.len());
    let is_of_file = |metadata: &Metadata| metadata.source.is_some();
    let known = figment.find_metadata(&path.join("."));
    if known.is_some_and(|metadata| !is_of_file(metadata)) {
        let name = shown.join("__").to_uppercase();
        cause = format!("{cause} (from the environment, {ENV_PREFIX}{name})");
    }
    let key = shown.join(".");
    (path, Problem { key, cause })
}

fn cause(kind: Kind, is_named: bool) -> String {
    match kind {
        Kind::MissingField(_) => "is missing".to_owned(),
        Kind::InvalidType(_, wanted) | Kind::InvalidValue(_, wanted) => {
            let wanted = wanted.to_string();
            let is_integer =
                ["u8", "u16", "u32", "u64", "usize", "i32", "i64"].contains(&wanted.as_str());
            let wanted = if is_integer {
                "a whole number"
            } else {
                &wanted
            };
            format!("has a value that does not fit: expected {wanted}")
        }
        Kind::UnknownVariant(_, known) => {
            format!("has an unknown value: expected {}", known.join(" or "))
        }
        // A misspelt name has to be said; what is no name may be a value.
        Kind::UnknownField(_, known) => {
            let what = if is_named {
                "there is no such key"
            } else {
                "a key there is unknown"
            };
            format!("{what}: expected {}", known.join(", "))
        }
        Kind::Unsupported(_) => "a value that no key takes".to_owned(),
        Kind::UnsupportedKey(_, wanted) => {
            format!("a key of another kind: expected {wanted}")
        }
        // TOML's own complaints quote the line.
        Kind::Message(text) => {
            let quotes = |line: &&str| {
                line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit())
                    .starts_with('|')
            };
            let lines: Vec<_> = text.lines().filter(|line| !quotes(line)).collect();
            lines.join(": ")
        }
        other => other.to_string(),
    }
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
    fn every_key_that_does_not_fit_is_named_at_once() {
        let error = load_text("wrokers = 3\nlevel = 7\nnmae = 1\nworkers = 2").unwrap_err();
        let ConfigError::Unfit { problems, .. } = error else {
            panic!("{error}");
        };
        let keys: Vec<_> = problems.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(keys, ["level", "nmae", "wrokers", "name"]);
        assert_eq!(
            problems[2].to_string(),
            "wrokers: there is no such key: expected workers, name, level"
        );
        assert_eq!(problems[3].to_string(), "name: is missing");
        let error = load_text("workers = \"a\"\nname = \"a\"")
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("workers: has a value that does not fit: expected a whole number"),
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
