//! What the server is told, and when: a task of its own, so that no consumer that waits for
//! Kafka makes the server believe that we are gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kafka::Lsn;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::config::ReplicationConfig;
use super::decode::POSTGRES_EPOCH_US;

/// Between two statuses at least: a consumer that confirms a thousand times a second is heard
/// once in this time, not a thousand times.
const STATUS_GAP: Duration = Duration::from_millis(10);

/// Tells the server how far the consumer is. Clones speak for the same stream; once it has
/// ended they do nothing.
#[derive(Debug, Clone)]
pub struct Feedback(Arc<Progress>);

#[derive(Debug, Default)]
struct Progress {
    /// The highest position that was read from the socket.
    received: AtomicU64,
    /// The highest position that the consumer has safe.
    confirmed: AtomicU64,
    /// The next status asks the server for a keepalive.
    ask: AtomicBool,
    /// The reader has heard something since the last tick, or does not listen.
    heard: AtomicBool,
    closing: AtomicBool,
    /// A status is wanted now.
    wake: Notify,
}

impl Feedback {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// Speaks to nobody.
    #[cfg(test)]
    pub(crate) fn unheard() -> Self {
        Self::new()
    }

    /// Everything up to `lsn` is safe with the consumer: the server may forget it. Sent within
    /// 10 ms; one that is not above the last is ignored, because a server of version 15 would
    /// move its slot backwards. Until the first call the server is told 0/0, which it ignores.
    pub fn confirm(&self, lsn: Lsn) {
        if self.0.confirmed.fetch_max(lsn.0, Ordering::AcqRel) < lsn.0 {
            self.0.wake.notify_one();
        }
    }

    /// The highest LSN that was confirmed here.
    #[must_use]
    pub fn confirmed(&self) -> Lsn {
        Lsn(self.0.confirmed.load(Ordering::Acquire))
    }

    /// The highest LSN that was received, whether or not the consumer has seen it yet.
    #[must_use]
    pub fn received(&self) -> Lsn {
        Lsn(self.0.received.load(Ordering::Acquire))
    }

    /// Asks the server for a keepalive at once: it comes into the stream behind everything
    /// that the server has sent before it.
    pub fn request_keepalive(&self) {
        self.0.ask.store(true, Ordering::Release);
        self.0.wake.notify_one();
    }

    /// The server wants a status.
    pub(super) fn reply(&self) {
        self.0.wake.notify_one();
    }

    /// The reader is at `lsn`.
    pub(super) fn receive(&self, lsn: u64) {
        self.0.received.fetch_max(lsn, Ordering::AcqRel);
    }

    /// The server is not silent, or nobody listens to it.
    pub(super) fn heard(&self) {
        self.0.heard.store(true, Ordering::Release);
    }

    /// A last status, then the session ends.
    pub(super) fn close(&self) {
        self.0.closing.store(true, Ordering::Release);
        self.0.wake.notify_one();
    }

    /// A status update as CopyData: what was received is written, what was confirmed is flushed
    /// and applied.
    fn status(&self, now: SystemTime, ask: bool) -> [u8; STATUS_BYTES] {
        let confirmed = self.0.confirmed.load(Ordering::Acquire);
        let received = self.0.received.load(Ordering::Acquire).max(confirmed);
        encode_status(received, confirmed, now, ask)
    }
}

/// CopyData's header, and 34 bytes.
const STATUS_BYTES: usize = 39;

fn encode_status(written: u64, flushed: u64, now: SystemTime, ask: bool) -> [u8; STATUS_BYTES] {
    let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let clock_us = i64::try_from(since_1970.as_micros())
        .unwrap_or(i64::MAX)
        .saturating_sub(POSTGRES_EPOCH_US);
    let mut status = [0; STATUS_BYTES];
    status[0] = b'd';
    status[1..5].copy_from_slice(&38_u32.to_be_bytes());
    status[5] = b'r';
    status[6..14].copy_from_slice(&written.to_be_bytes());
    status[14..22].copy_from_slice(&flushed.to_be_bytes());
    status[22..30].copy_from_slice(&flushed.to_be_bytes());
    status[30..38].copy_from_slice(&clock_us.to_be_bytes());
    status[38] = u8::from(ask);
    status
}

/// The frontend's Terminate message.
const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

/// Sends statuses until the stream is closed or the socket takes no more.
pub(super) async fn run(
    feedback: Feedback,
    mut socket: impl AsyncWrite + Unpin,
    config: ReplicationConfig,
) -> std::io::Result<()> {
    let progress = &feedback.0;
    let mut ticks = interval(config.status_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // A server that has nothing to say is asked once a tick whether it is there.
        let silent = tokio::select! {
            () = progress.wake.notified() => false,
            _ = ticks.tick() => !progress.heard.swap(false, Ordering::AcqRel),
        };
        let closing = progress.closing.load(Ordering::Acquire);
        let ask = progress.ask.swap(false, Ordering::AcqRel) || silent;
        let status = feedback.status(SystemTime::now(), ask);
        let write = async {
            socket.write_all(&status).await?;
            if closing {
                socket.write_all(&TERMINATE).await?;
            }
            socket.flush().await
        };
        timeout(config.read_timeout, write)
            .await
            .map_err(|_| std::io::ErrorKind::TimedOut)??;
        if closing {
            return Ok(());
        }
        sleep(STATUS_GAP).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn lsn(bytes: &[u8], at: usize) -> u64 {
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn config() -> ReplicationConfig {
        ReplicationConfig {
            status_interval: Duration::from_millis(20),
            read_timeout: Duration::from_millis(100),
            ..ReplicationConfig::from_url("postgres://u@h/d").unwrap()
        }
    }

    #[test]
    fn a_status_is_laid_out_as_the_protocol_has_it() {
        let now = UNIX_EPOCH + Duration::from_micros(946_684_800_000_007);
        let status = encode_status(0x11, 0x10, now, true);
        let body = &status[5..];
        assert_eq!(status[..6], [b'd', 0, 0, 0, 38, b'r']);
        assert_eq!(
            (lsn(body, 1), lsn(body, 9), lsn(body, 17)),
            (0x11, 0x10, 0x10)
        );
        assert_eq!((lsn(body, 25), body[33]), (7, 1));
    }

    #[tokio::test]
    async fn statuses_tell_nothing_flushed_before_a_confirmation_and_never_less_after() {
        let (ours, mut server) = tokio::io::duplex(1 << 10);
        let feedback = Feedback::new();
        let task = tokio::spawn(run(feedback.clone(), ours, config()));
        let mut status = [0; STATUS_BYTES];
        feedback.receive(0x500);
        server.read_exact(&mut status).await.unwrap();
        assert_eq!((lsn(&status, 6), lsn(&status, 14)), (0x500, 0));
        feedback.confirm(Lsn(0x400));
        server.read_exact(&mut status).await.unwrap();
        assert_eq!((lsn(&status, 14), lsn(&status, 22)), (0x400, 0x400));
        feedback.confirm(Lsn(0x300));
        assert_eq!(feedback.confirmed(), Lsn(0x400));
        server.read_exact(&mut status).await.unwrap();
        assert_eq!(lsn(&status, 14), 0x400);
        feedback.close();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert!(rest.ends_with(&TERMINATE));
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn only_a_silent_server_is_asked_for_a_sign_of_life() {
        let (ours, mut server) = tokio::io::duplex(1 << 10);
        let feedback = Feedback::new();
        feedback.heard();
        let _task = tokio::spawn(run(feedback.clone(), ours, config()));
        let mut status = [0; STATUS_BYTES];
        server.read_exact(&mut status).await.unwrap();
        assert_eq!(status[38], 0, "it has just been heard");
        server.read_exact(&mut status).await.unwrap();
        assert_eq!(status[38], 1);
        feedback.request_keepalive();
        feedback.heard();
        server.read_exact(&mut status).await.unwrap();
        assert_eq!(status[38], 1, "somebody wants to know");
    }

    #[tokio::test]
    async fn a_server_that_takes_nothing_ends_the_task() {
        let (ours, _server) = tokio::io::duplex(1);
        let error = run(Feedback::new(), ours, config()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }
}
