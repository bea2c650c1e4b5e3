//! A secret stands in the configuration, in the environment, or in a file of its own.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

/// No secret of ours is longer; a file that is, is another one.
const BYTES_MAX: u64 = 64 << 10;

/// Why a secret is not known. Never holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read {key}_file {}: {source}; let the user who runs this read it", path.display())]
    Unreadable {
        key: String,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{key}_file {} is empty", path.display())]
    Empty { key: String, path: PathBuf },
    #[error("{key}_file {} is too large for a secret", path.display())]
    TooLarge { key: String, path: PathBuf },
    #[error("{key} and {key}_file are both set; leave one")]
    Both { key: String },
}

/// The secret itself, or what its file holds now, without the line end of an editor. `key` is
/// how the configuration calls it: `postgres.password`.
///
/// # Errors
/// Where both are given, or the file cannot be read or is empty.
pub fn secret(
    key: &str,
    given: Option<&SecretString>,
    file: Option<&Path>,
) -> Result<Option<SecretString>, SecretError> {
    let (key, path) = match (given, file) {
        (Some(_), Some(_)) => {
            return Err(SecretError::Both {
                key: key.to_owned(),
            });
        }
        (given, None) => return Ok(given.cloned()),
        (None, Some(path)) => (key.to_owned(), path.to_owned()),
    };
    let mut text = String::new();
    let read = std::fs::File::open(&path)
        .and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text));
    if let Err(source) = read {
        return Err(SecretError::Unreadable { key, path, source });
    }
    if text.len() as u64 > BYTES_MAX {
        return Err(SecretError::TooLarge { key, path });
    }
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err(SecretError::Empty { key, path }),
        secret => Ok(Some(secret.into())),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_file_holds_the_secret_without_its_line_end() {
        for text in ["hush hush", "hush hush\n", "hush hush\r\n"] {
            let file = file(text);
            let read = secret("p", None, Some(file.path())).unwrap().unwrap();
            assert_eq!(read.expose_secret(), "hush hush");
        }
        assert!(secret("p", None, None).unwrap().is_none());
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_said_without_it() {
        let (hush, empty) = (SecretString::from("hush"), file("\n"));
        let large = file(&"hush".repeat(1 << 20));
        for (given, path) in [
            (Some(&hush), large.path()),
            (None, large.path()),
            (None, empty.path()),
            (None, Path::new("/nowhere/p")),
        ] {
            let error = secret("kafka.sasl.password", given, Some(path)).unwrap_err();
            let said = format!("{error} {error:?}");
            assert!(said.contains("kafka.sasl.password"), "{said}");
            assert!(!said.contains("hush"), "{said}");
        }
    }
}
