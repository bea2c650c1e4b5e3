//! Links between our processes and the servers that they talk to: TLS, and where secrets are.
//!
//! The shape of the problem: a password is in an environment variable here, in a mounted file
//! there; a certificate is renewed while a process runs; and two libraries make our connections
//! (librdkafka, and sockets of our own to PostgreSQL) that must mean the same by the same
//! words. So one section `tls` and one pair `password`, `password_file` serve every link, files
//! are read anew for each try to connect, and OpenSSL, which librdkafka needs anyway, serves
//! both: one set of trusted authorities, ciphers and messages (`docs/adr/0005-tls-by-openssl.md`).
//!
//! Not in `service`: that is what every binary does, whoever it talks to.

pub mod access;
pub mod backoff;
pub mod postgres;
pub mod secret;
pub mod tls;

pub use access::{Access, AccessError};
pub use postgres::Endpoint;
pub use secret::{SecretError, secret};
pub use tls::{TlsConfig, TlsError, TlsMode};
