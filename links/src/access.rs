//! The way into a PostgreSQL as a section of the configuration says it.

use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::{Endpoint, SecretError, TlsConfig, TlsError, secret};

/// A connection that is quiet for so long is tried.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// What a section says of the way, whatever else stands in it.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// What the configuration calls it: `postgres`.
    pub section: &'a str,
    pub url: &'a SecretString,
    /// Where the URL has none.
    pub password: Option<&'a SecretString>,
    /// A file that holds it instead.
    pub password_file: Option<&'a Path>,
    pub tls: &'a TlsConfig,
}

/// Why the way is not known. Never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(
        "{section}.url is no URL of PostgreSQL: {source}; \
         write postgres://USER:PASSWORD@HOST:PORT/DATABASE"
    )]
    Url {
        section: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{section}.tls: {source}")]
    Tls {
        section: String,
        #[source]
        source: TlsError,
    },
    #[error(
        "{section}.url has a password, and {section}.password or {section}.password_file, too; \
         leave one"
    )]
    TwoPasswords { section: String },
}

impl Access<'_> {
    /// The way, without what each kind of session adds. Reads the files that hold secrets and
    /// certificates.
    ///
    /// # Errors
    /// Where the URL is none of PostgreSQL's, or a file is not what it should be.
    pub fn endpoint(self) -> Result<Endpoint, AccessError> {
        let section = || self.section.to_owned();
        let parsed: Result<tokio_postgres::Config, _> = self.url.expose_secret().parse();
        let mut postgres = parsed.map_err(|source| AccessError::Url {
            section: section(),
            source,
        })?;
        let key = format!("{}.password", self.section);
        if let Some(password) = secret(&key, self.password, self.password_file)? {
            if postgres.get_password().is_some() {
                return Err(AccessError::TwoPasswords { section: section() });
            }
            postgres.password(password.expose_secret());
        }
        postgres
            // The kernel finds a peer that is gone; one that is there and silent is found by
            // each session's own limit.
            .keepalives_idle(KEEPALIVE)
            .keepalives_interval(KEEPALIVE)
            .keepalives_retries(2)
            .tcp_user_timeout(3 * KEEPALIVE);
        Endpoint::new(postgres, self.tls).map_err(|source| AccessError::Tls {
            section: section(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_comes_from_one_place() {
        let (bare, tls) = ("postgres://u@h/d".into(), TlsConfig::default());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hush\n").unwrap();
        let access = Access {
            section: "verify.sources.sales",
            url: &bare,
            password: None,
            password_file: Some(file.path()),
            tls: &tls,
        };
        let endpoint = access.endpoint().unwrap();
        assert_eq!(endpoint.get_password(), Some(b"hush".as_slice()));
        let (whole, none) = ("postgres://u:hush@h/d".into(), "postgres//u:hush".into());
        for (url, said) in [
            (&whole, "verify.sources.sales.password_file, too"),
            (&none, "verify.sources.sales.url is no URL"),
        ] {
            let error = Access { url, ..access }.endpoint().unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains(said) && !text.contains("hush"), "{text}");
        }
    }
}
