//! The stream after START_REPLICATION: two tasks, one consumer.

use kafka::Lsn;

use super::error::ReplicationError;
use super::message::{RawEvent, ReplicationEvent};

/// A stream of changes. Dropping it ends its tasks and the connection.
#[derive(Debug)]
pub struct ReplicationStream {}

impl ReplicationStream {
    /// The next message. Cancel-safe: a message is either returned or still there. The stream
    /// of a slot has no end, so its end is an error, and the last thing that it says.
    ///
    /// # Errors
    /// Where the connection is lost, the server ends the stream, or a message does not decode.
    pub async fn next(&mut self) -> Result<ReplicationEvent, ReplicationError> {
        std::future::ready(()).await;
        Err(ReplicationError::TlsUnsupported)
    }

    /// The next message if it is already here: what can be handled before anything is waited
    /// for, a commit for example.
    ///
    /// # Errors
    /// As [`ReplicationStream::next`].
    pub fn try_next(&mut self) -> Result<Option<ReplicationEvent>, ReplicationError> {
        Ok(None)
    }

    /// As [`ReplicationStream::next`], without decoding the output plugin's bytes.
    ///
    /// # Errors
    /// Where the connection is lost, or the server ends the stream.
    pub async fn next_raw(&mut self) -> Result<RawEvent, ReplicationError> {
        std::future::ready(()).await;
        Err(ReplicationError::TlsUnsupported)
    }

    /// The handle through which the server is told a position.
    #[must_use]
    pub fn feedback(&self) -> Feedback {
        Feedback {}
    }

    /// Bytes received and not consumed yet.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        0
    }

    /// Tells the server the last confirmed position and ends the session in order.
    ///
    /// # Errors
    /// Where the server does not take it in time.
    pub async fn close(self) -> Result<(), ReplicationError> {
        std::future::ready(()).await;
        Ok(())
    }
}

/// Tells the server how far the consumer is. Clones speak for the same stream; once it has
/// ended they do nothing.
#[derive(Debug, Clone)]
pub struct Feedback {}

impl Feedback {
    /// Everything up to `lsn` is safe with the consumer: the server may forget it. Sent at
    /// once; a lower one than before is ignored. Until the first call the server is told 0/0,
    /// which it ignores.
    pub fn confirm(&self, _lsn: Lsn) {}

    /// The highest LSN that was confirmed here.
    #[must_use]
    pub fn confirmed(&self) -> Lsn {
        Lsn::ZERO
    }

    /// Asks the server for a keepalive at once: it comes into the stream behind everything
    /// that the server has sent before it.
    pub fn request_keepalive(&self) {}
}
