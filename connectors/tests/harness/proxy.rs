//! A network between a client and a server that a test can cut or silence.
//!
//! On one machine the kernel answers for a peer whose packets are lost, so a half-open connection
//! is made here: the connections stand, and what is sent on them goes nowhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of the bytes of a connection.
#[derive(Debug, Clone, Copy, Default)]
struct Network {
    /// Connections with a lower number never carry another byte.
    silent_below: u64,
    /// Connections with a lower number are closed.
    cut_below: u64,
    /// No connection carries a byte until this ends.
    is_down: bool,
}

/// Listens on 127.0.0.1 and passes everything on to one port.
pub(crate) struct Proxy {
    port: u16,
    next: Arc<AtomicU64>,
    network: watch::Sender<Network>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(server: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let next = Arc::new(AtomicU64::new(1));
        let (network, seen) = watch::channel(Network::default());
        let numbers = Arc::clone(&next);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = numbers.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(connection(client, server, number, seen.clone()));
            }
        });
        Ok(Self {
            port,
            next,
            network,
            accepting,
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Every connection stands and carries nothing, new ones too, until [`Proxy::up`].
    pub(crate) fn down(&self) {
        self.network.send_modify(|network| network.is_down = true);
    }

    /// Bytes flow again; what was sent meanwhile arrives late, as TCP would resend it.
    pub(crate) fn up(&self) {
        self.network.send_modify(|network| network.is_down = false);
    }

    /// The connections of now are half-open for ever; new ones work.
    pub(crate) fn silence(&self) {
        let next = self.next.load(Ordering::SeqCst);
        self.network
            .send_modify(|network| network.silent_below = next);
    }

    /// Closes the connections of now.
    pub(crate) fn cut(&self) {
        let next = self.next.load(Ordering::SeqCst);
        self.network.send_modify(|network| network.cut_below = next);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.network
            .send_modify(|network| network.cut_below = u64::MAX);
    }
}

async fn connection(
    client: TcpStream,
    server: u16,
    number: u64,
    network: watch::Receiver<Network>,
) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
        return;
    };
    _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cut = {
        let mut network = network.clone();
        async move { _ = network.wait_for(|now| number < now.cut_below).await }
    };
    let carries = |now: &Network| number >= now.silent_below && !now.is_down;
    let pump = |mut from: tokio::net::tcp::OwnedReadHalf,
                mut to: tokio::net::tcp::OwnedWriteHalf| {
        let mut network = network.clone();
        async move {
            let mut bytes = vec![0; 64 << 10];
            loop {
                let read = from.read(&mut bytes).await.unwrap_or(0);
                if network.wait_for(carries).await.is_err() || read == 0 {
                    return;
                }
                if to.write_all(&bytes[..read]).await.is_err() {
                    return;
                }
            }
        }
    };
    let (there, back) = (pump(from_client, to_server), pump(from_server, to_client));
    tokio::select! {
        () = there => {}
        () = back => {}
        () = cut => {}
    }
}
