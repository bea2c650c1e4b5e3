//! What is trusted on a link, and who we are on it.

use std::fmt;
use std::path::{Path, PathBuf};

use garde::Validate;
use openssl::error::ErrorStack;
use openssl::ssl::{ConnectConfiguration, SslConnector, SslMethod, SslVerifyMode, SslVersion};
use postgres_openssl::MakeTlsConnector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far the server is asked who it is.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Deserialize, Serialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// No TLS: everybody on the way reads and changes what passes.
    #[default]
    Disable,
    /// Encrypted, but whoever answers is believed.
    Require,
    /// Also, its certificate must come from a trusted authority.
    VerifyCa,
    /// Also, the certificate must be for the host that we connect to.
    VerifyFull,
}

/// The section `tls` of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[garde(custom(is_consistent))]
pub struct TlsConfig {
    /// `disable`; `require` (encrypted, but whoever answers is believed); `verify-ca` (its
    /// certificate comes from a trusted authority); `verify-full` (and is for the host that we
    /// connect to: what a network that others use needs).
    #[garde(skip)]
    pub mode: TlsMode,
    /// The trusted authorities, PEM. Default: the machine's.
    #[garde(custom(is_readable))]
    pub ca_file: Option<PathBuf>,
    /// The certificate that we show, PEM, with those between it and the authority. Default: none.
    #[garde(custom(is_readable))]
    pub certificate_file: Option<PathBuf>,
    /// The certificate's private key, PEM, not encrypted.
    #[garde(custom(is_readable))]
    pub key_file: Option<PathBuf>,
}

#[expect(clippy::ref_option, reason = "garde calls it so")]
fn is_readable(path: &Option<PathBuf>, (): &()) -> garde::Result {
    match path.as_ref().map(std::fs::File::open) {
        None | Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(garde::Error::new(format!("cannot be read: {error}"))),
    }
}

fn is_consistent(tls: &TlsConfig, (): &()) -> garde::Result {
    let files = [&tls.ca_file, &tls.certificate_file, &tls.key_file];
    if tls.mode == TlsMode::Disable && files.iter().any(|file| file.is_some()) {
        return Err(garde::Error::new(
            "has files, but mode is disable; set mode = \"verify-full\"",
        ));
    }
    if tls.certificate_file.is_some() != tls.key_file.is_some() {
        return Err(garde::Error::new(
            "certificate_file and key_file go together",
        ));
    }
    Ok(())
}

/// Why a connection could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot take {} as {what}: {}", path.display(), first(.source))]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: ErrorStack,
    },
    #[error("the certificate and the key of a link do not belong together")]
    KeyMismatch,
    #[error("cannot prepare TLS: {}", first(.0))]
    Prepare(#[source] ErrorStack),
}

/// The reason of a stack of errors that is nearest to us.
fn first(stack: &ErrorStack) -> String {
    let mut reasons = stack.errors().iter().filter_map(|error| error.reason());
    reasons.next_back().unwrap_or("unknown reason").to_owned()
}

/// TLS as a configuration wants it. Clones share what was read from the files.
#[derive(Clone)]
pub struct Tls {
    connector: SslConnector,
    mode: TlsMode,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Where one is not what it should be.
    pub fn new(config: &TlsConfig) -> Result<Self, TlsError> {
        let mut builder =
            SslConnector::builder(SslMethod::tls_client()).map_err(TlsError::Prepare)?;
        builder
            .set_min_proto_version(Some(SslVersion::TLS1_2))
            .map_err(TlsError::Prepare)?;
        let file = |what, path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::File { what, path, source }
        };
        if let Some(path) = &config.ca_file {
            // Only these: an authority that the machine trusts is not asked for.
            let only = openssl::x509::store::X509StoreBuilder::new().map_err(TlsError::Prepare)?;
            builder.set_cert_store(only.build());
            builder
                .set_ca_file(path)
                .map_err(file("trusted authorities (ca_file)", path))?;
        }
        if let Some(path) = &config.certificate_file {
            builder
                .set_certificate_chain_file(path)
                .map_err(file("our certificate (certificate_file)", path))?;
        }
        if let Some(path) = &config.key_file {
            let what = "our key (key_file)";
            let key = std::fs::read(path).unwrap_or_default();
            let key = openssl::pkey::PKey::private_key_from_pem(&key).map_err(file(what, path))?;
            builder
                .set_private_key(&key)
                .map_err(|_| TlsError::KeyMismatch)?;
        }
        if config.mode < TlsMode::VerifyCa {
            builder.set_verify(SslVerifyMode::NONE);
        }
        Ok(Self {
            connector: builder.build(),
            mode: config.mode,
        })
    }

    /// What tokio-postgres, or a pool over it, takes.
    #[must_use]
    pub fn maker(&self) -> MakeTlsConnector {
        let mut maker = MakeTlsConnector::new(self.connector.clone());
        let full = self.mode == TlsMode::VerifyFull;
        maker.set_callback(move |one, _| {
            one.set_verify_hostname(full);
            Ok(())
        });
        maker
    }

    pub(crate) fn verifies(&self) -> bool {
        self.mode >= TlsMode::VerifyCa
    }

    /// For one connection.
    pub(crate) fn configure(&self) -> Result<ConnectConfiguration, ErrorStack> {
        let mut one = self.connector.configure()?;
        one.set_verify_hostname(self.mode == TlsMode::VerifyFull);
        Ok(one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(config: &TlsConfig) -> String {
        config
            .validate()
            .err()
            .map_or(String::new(), |report| report.to_string())
    }

    #[test]
    fn a_section_that_cannot_be_meant_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = Some(file.path().to_owned());
        let off = TlsConfig {
            ca_file: path.clone(),
            ..TlsConfig::default()
        };
        assert!(problems(&off).contains("verify-full"));
        let half = TlsConfig {
            mode: TlsMode::VerifyFull,
            certificate_file: path.clone(),
            ..TlsConfig::default()
        };
        assert!(problems(&half).contains("go together"));
        let away = TlsConfig {
            mode: TlsMode::VerifyFull,
            ca_file: Some("/nowhere/ca.crt".into()),
            ..TlsConfig::default()
        };
        assert!(problems(&away).contains("ca_file: cannot be read"));
        let whole = TlsConfig {
            mode: TlsMode::VerifyFull,
            ca_file: path,
            ..TlsConfig::default()
        };
        assert_eq!(problems(&whole), "");
        assert_eq!(problems(&TlsConfig::default()), "");
        // An empty file has no authority in it.
        assert!(matches!(Tls::new(&whole), Err(TlsError::File { .. })));
    }
}
