//! Byte streams to a server, with TLS around them where it is wanted.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use links::Endpoint;
use links::postgres::{Binding, Secured};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;

/// A connection as the protocol needs it.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A connection that was just made.
pub(super) struct Opened {
    pub(super) transport: Box<dyn Transport>,
    /// What SCRAM can be bound to.
    pub(super) binding: Binding,
}

/// PostgreSQL's port where an address names none.
const DEFAULT_PORT: u16 = 5432;

/// One place where the server may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Name(String, u16),
    /// An address, and the name that its certificate is for.
    Ip(String, IpAddr, u16),
    Unix(PathBuf),
}

/// Every place that a configuration names, to be shown.
pub(crate) fn addresses(config: &tokio_postgres::Config) -> String {
    let all = Address::all(config);
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    all.join(", ")
}

impl Address {
    /// Every place that a configuration names, in its order.
    pub(super) fn all(config: &tokio_postgres::Config) -> Vec<Self> {
        let (hosts, ips) = (config.get_hosts(), config.get_hostaddrs());
        (0..hosts.len().max(ips.len()))
            .filter_map(|index| {
                // As libpq has it: one port for all, or one each.
                let port = match config.get_ports() {
                    [] => DEFAULT_PORT,
                    [port] => *port,
                    ports => ports.get(index).copied().unwrap_or(DEFAULT_PORT),
                };
                // An address spares the look-up of the name beside it.
                if let Some(ip) = ips.get(index) {
                    let name = match hosts.get(index) {
                        Some(Host::Tcp(name)) => name.clone(),
                        Some(Host::Unix(_)) | None => ip.to_string(),
                    };
                    return Some(Self::Ip(name, *ip, port));
                }
                hosts.get(index).map(|host| match host {
                    Host::Tcp(name) => Self::Name(name.clone(), port),
                    Host::Unix(folder) => Self::Unix(folder.join(format!(".s.PGSQL.{port}"))),
                })
            })
            .collect()
    }

    /// Connects.
    pub(super) async fn open(&self, endpoint: &Endpoint) -> io::Result<Opened> {
        let (host, tcp) = match self {
            Self::Unix(path) => {
                return Ok(Opened {
                    transport: Box::new(UnixStream::connect(path).await?),
                    binding: Binding::Plain,
                });
            }
            Self::Name(name, port) => (
                name.clone(),
                TcpStream::connect((name.as_str(), *port)).await?,
            ),
            Self::Ip(name, ip, port) => (name.clone(), TcpStream::connect((*ip, *port)).await?),
        };
        // A status is 39 bytes and is wanted now.
        tcp.set_nodelay(true)?;
        let secured = endpoint.secure(&host, tcp).await?;
        let binding = secured.binding();
        Ok(Opened {
            transport: match secured {
                Secured::Plain(tcp) => Box::new(tcp),
                Secured::Tls(tls) => Box::new(tls),
            },
            binding,
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Ip(_, ip, port) => write!(f, "{}", std::net::SocketAddr::new(*ip, *port)),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(url: &str) -> Vec<String> {
        Address::all(&url.parse().unwrap())
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn every_host_of_a_url_is_an_address() {
        assert_eq!(
            addresses("postgres://u@one:5433,two:5434/d"),
            ["one:5433", "two:5434"]
        );
        assert_eq!(
            addresses("postgres://u@%2Frun%2Fpg:5440/d"),
            ["/run/pg/.s.PGSQL.5440"]
        );
        assert_eq!(addresses("host=/run/pg user=u"), ["/run/pg/.s.PGSQL.5432"]);
        assert_eq!(addresses("host=a,b port=7 user=u"), ["a:7", "b:7"]);
        assert_eq!(addresses("host=name hostaddr=::1 user=u"), ["[::1]:5432"]);
    }
}
