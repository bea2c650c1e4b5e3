//! The way into a PostgreSQL: address, who we are, TLS.

use std::future::Future;
use std::io;
use std::ops::Deref;
use std::pin::Pin;

use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::ssl::SslRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_openssl::SslStream;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Error, NoTls};

use crate::tls::{Tls, TlsConfig, TlsError, TlsMode};

/// The request for TLS, before anything else is said: its length, and a code.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Drives a session; ends with it.
pub type Driver = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Where a PostgreSQL is and how we get in. What it dereferences to says the address.
#[derive(Debug, Clone)]
pub struct Endpoint {
    postgres: tokio_postgres::Config,
    tls: Option<Tls>,
}

impl From<tokio_postgres::Config> for Endpoint {
    /// Without TLS.
    fn from(mut postgres: tokio_postgres::Config) -> Self {
        postgres.ssl_mode(SslMode::Disable);
        Self {
            postgres,
            tls: None,
        }
    }
}

impl Deref for Endpoint {
    type Target = tokio_postgres::Config;

    fn deref(&self) -> &Self::Target {
        &self.postgres
    }
}

impl Endpoint {
    /// Reads the files of `tls`. A URL that requires TLS (`sslmode=require`) gets it, and then
    /// the server is asked who it is, too. A Unix socket needs none and has none.
    ///
    /// # Errors
    /// Where a file of `tls` is not what it should be.
    pub fn new(postgres: tokio_postgres::Config, tls: &TlsConfig) -> Result<Self, TlsError> {
        let mut tls = tls.clone();
        if tls.mode == TlsMode::Disable && postgres.get_ssl_mode() == SslMode::Require {
            tls.mode = TlsMode::VerifyFull;
        }
        let is_local = |host: &Host| matches!(host, Host::Unix(_));
        let hosts = postgres.get_hosts();
        let local = !hosts.is_empty() && hosts.iter().all(is_local);
        if tls.mode == TlsMode::Disable || local {
            return Ok(postgres.into());
        }
        let mut postgres = postgres;
        postgres.ssl_mode(SslMode::Require);
        Ok(Self {
            postgres,
            tls: Some(Tls::new(&tls)?),
        })
    }

    /// Is what passes encrypted?
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Whoever answers is believed.
    #[must_use]
    pub fn believes_anybody(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| !tls.verifies())
    }

    /// The address, to set what each kind of session adds.
    pub fn postgres_mut(&mut self) -> &mut tokio_postgres::Config {
        &mut self.postgres
    }

    /// A session, and what drives it: it must be polled until it ends.
    ///
    /// # Errors
    /// Where no host takes us.
    pub async fn connect(&self) -> Result<(Client, Driver), Error> {
        Ok(match &self.tls {
            None => {
                let (client, connection) = self.postgres.connect(NoTls).await?;
                (client, Box::pin(connection))
            }
            Some(tls) => {
                let (client, connection) = self.postgres.connect(tls.maker()).await?;
                (client, Box::pin(connection))
            }
        })
    }

    /// Asks the server to end the statement that `client` runs now. It may end before that comes,
    /// and then it is the next one that is ended.
    ///
    /// # Errors
    /// Where the server cannot be told.
    pub async fn cancel(&self, client: &Client) -> Result<(), Error> {
        let token = client.cancel_token();
        match &self.tls {
            None => token.cancel_query(NoTls).await,
            Some(tls) => token.cancel_query(tls.maker()).await,
        }
    }

    /// Puts TLS around a fresh connection to `host`, if it is wanted: asks the server for it,
    /// then shakes hands. Nothing else may have been said on it.
    ///
    /// # Errors
    /// Where the server has no TLS, or is not who it should be.
    pub async fn secure<S>(&self, host: &str, mut stream: S) -> io::Result<Secured<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(tls) = &self.tls else {
            return Ok(Secured::Plain(stream));
        };
        stream.write_all(&SSL_REQUEST).await?;
        // One byte and no more: what follows belongs to the handshake.
        if stream.read_u8().await? != b'S' {
            return Err(io::Error::other("server does not support TLS"));
        }
        let one = tls.configure().and_then(|one| one.into_ssl(host))?;
        let mut stream = SslStream::new(one, stream)?;
        if let Err(error) = Pin::new(&mut stream).connect().await {
            let verified = stream.ssl().verify_result();
            let why = match verified.as_raw() {
                0 => String::new(),
                _ => format!(": {verified}"),
            };
            return Err(io::Error::other(format!(
                "error performing TLS handshake: {error}{why}"
            )));
        }
        Ok(Secured::Tls(Box::new(stream)))
    }
}

/// A connection, with TLS around it or not.
#[derive(Debug)]
pub enum Secured<S> {
    Plain(S),
    Tls(Box<SslStream<S>>),
}

impl<S> Secured<S> {
    /// What SCRAM binds itself to (RFC 5929, `tls-server-end-point`): the hash of the server's
    /// certificate. With it, whoever stands in between is found out even where no certificate
    /// is verified.
    #[must_use]
    pub fn binding(&self) -> Binding {
        match self {
            Self::Plain(_) => Binding::Plain,
            Self::Tls(stream) => {
                end_point(stream.ssl()).map_or(Binding::Unknown, Binding::EndPoint)
            }
        }
    }
}

/// What SCRAM can be bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// There is no TLS.
    Plain,
    /// There is, but its certificate has no hash that both sides agree on.
    Unknown,
    EndPoint(Vec<u8>),
}

fn end_point(ssl: &SslRef) -> Option<Vec<u8>> {
    let certificate = ssl.peer_certificate()?;
    let signature = certificate.signature_algorithm().object().nid();
    // The certificate's own hash, but none that is broken.
    let digest = match signature.signature_algorithms()?.digest {
        Nid::MD5 | Nid::SHA1 => MessageDigest::sha256(),
        Nid::UNDEF => return None,
        other => MessageDigest::from_nid(other)?,
    };
    let hash = certificate.digest(digest).ok()?;
    Some(hash.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str, mode: TlsMode) -> Endpoint {
        let tls = TlsConfig {
            mode,
            ..TlsConfig::default()
        };
        Endpoint::new(url.parse().unwrap(), &tls).unwrap()
    }

    #[test]
    fn tls_is_as_the_section_says_or_the_url_demands() {
        let plain = endpoint("postgres://u@h/d", TlsMode::Disable);
        assert!(!plain.is_encrypted());
        assert_eq!(plain.get_ssl_mode(), SslMode::Disable);
        let demanded = endpoint("postgres://u@h/d?sslmode=require", TlsMode::Disable);
        assert!(demanded.is_encrypted() && !demanded.believes_anybody());
        assert_eq!(demanded.get_ssl_mode(), SslMode::Require);
        let encrypted = endpoint("postgres://u@h/d?sslmode=disable", TlsMode::Require);
        assert!(encrypted.is_encrypted() && encrypted.believes_anybody());
        let socket = endpoint("postgres://u@%2Frun/d", TlsMode::VerifyFull);
        assert!(!socket.is_encrypted());
    }
}
