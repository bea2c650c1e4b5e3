//! The stream after START_REPLICATION: a reader, a status task, one consumer.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use kafka::Lsn;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::buffer::Buffer;
use super::config::ReplicationConfig;
use super::decode::{decode, since_1970_us};
use super::error::{CommandError, ReplicationError};
use super::feedback::{self, Feedback};
use super::frame::{self, HEADER_BYTES, tag};
use super::message::{RawEvent, ReplicationEvent, ReplicationMessage};
use super::rest::{REST, Rest};
use super::session::{log_notice, server_error};
use super::transport::Transport;

/// Read at once, at most: also how much memory one kept row can hold on to.
const CHUNK_BYTES_MAX: usize = 256 << 10;
const CHUNK_BYTES_MIN: usize = 4 << 10;

/// When the socket takes no status, the reader has so long to find out why.
const REASON_TIMEOUT: Duration = Duration::from_millis(500);

/// For the server to end the session after its client has.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The headers of `XLogData` and of a keepalive, without the kind.
const DATA_HEADER_BYTES: usize = 24;
const KEEPALIVE_BYTES: usize = 17;

/// A stream of changes. Dropping it ends its tasks and the connection.
#[derive(Debug)]
pub struct ReplicationStream {
    buffer: Arc<Buffer>,
    feedback: Feedback,
    /// The rest of the chunk that is being consumed, and how long it was.
    chunk: Bytes,
    chunk_bytes: usize,
    message_bytes_max: usize,
    /// Reader and status task; they end with the stream.
    tasks: JoinSet<()>,
}

impl ReplicationStream {
    /// From a connection that streams, and what of the stream came with the answer before it.
    pub(super) fn spawn(
        transport: Box<dyn Transport>,
        input: BytesMut,
        config: &ReplicationConfig,
    ) -> Self {
        let buffer = Arc::new(Buffer::new(config.buffer_bytes_max));
        let feedback = Feedback::new();
        let (receiving, sending) = tokio::io::split(transport);
        let mut tasks = JoinSet::new();
        let reader = Reader {
            socket: receiving,
            input,
            chunk_bytes: (config.buffer_bytes_max / 4).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX),
            message_bytes_max: config.message_bytes_max,
            silence_max: config.read_timeout,
            buffer: Arc::clone(&buffer),
            feedback: feedback.clone(),
        };
        tasks.spawn(reader.run());
        let (statuses, failed) = (
            feedback::run(feedback.clone(), sending, config.clone()),
            Arc::clone(&buffer),
        );
        tasks.spawn(async move {
            if let Err(error) = statuses.await {
                // The server mostly says why before it closes, and the reader is to find it.
                sleep(REASON_TIMEOUT).await;
                failed.fail(ReplicationError::Feedback(error));
            }
        });
        Self {
            buffer,
            feedback,
            chunk: Bytes::new(),
            chunk_bytes: 0,
            message_bytes_max: config.message_bytes_max,
            tasks,
        }
    }

    /// The next message. Cancel-safe: a message is either returned or still there. The stream
    /// of a slot has no end, so its end is an error, and the last thing that it says.
    ///
    /// # Errors
    /// Where the connection is lost, the server ends the stream, or a message does not decode.
    pub async fn next(&mut self) -> Result<ReplicationEvent, ReplicationError> {
        let event = self.next_raw().await?;
        self.decoded(event)
    }

    /// The next message if it is already here: what can be handled before anything is waited
    /// for, a commit for example.
    ///
    /// # Errors
    /// As [`ReplicationStream::next`].
    pub fn try_next(&mut self) -> Result<Option<ReplicationEvent>, ReplicationError> {
        match self.try_next_raw()? {
            None => Ok(None),
            Some(event) => self.decoded(event).map(Some),
        }
    }

    /// As [`ReplicationStream::next`], without decoding the output plugin's bytes.
    ///
    /// # Errors
    /// Where the connection is lost, or the server ends the stream.
    pub async fn next_raw(&mut self) -> Result<RawEvent, ReplicationError> {
        loop {
            if let Some(event) = self.try_next_raw()? {
                return Ok(event);
            }
            self.buffer.filled().await;
        }
    }

    /// The handle through which the server is told a position.
    #[must_use]
    pub fn feedback(&self) -> Feedback {
        self.feedback.clone()
    }

    /// Bytes received and not consumed yet.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// Tells the server the last confirmed position, ends the session in order and waits until
    /// the server has ended it, too: then the slot is free.
    ///
    /// # Errors
    /// Where the server does not end it in time.
    pub async fn close(mut self) -> Result<(), ReplicationError> {
        self.buffer.discard();
        self.feedback.close();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        timeout(CLOSE_TIMEOUT, ended)
            .await
            .map_err(|_| ReplicationError::Stream(CommandError::Timeout(CLOSE_TIMEOUT)))
    }

    fn try_next_raw(&mut self) -> Result<Option<RawEvent>, ReplicationError> {
        loop {
            while !self.chunk.is_empty() {
                if let Some(event) = self.event_of_chunk()? {
                    return Ok(Some(event));
                }
            }
            let consumed = std::mem::take(&mut self.chunk_bytes);
            match self.buffer.try_take(consumed)? {
                None => return Ok(None),
                Some(chunk) => {
                    self.chunk_bytes = chunk.len();
                    self.chunk = chunk;
                }
            }
        }
    }

    fn decoded(&mut self, event: RawEvent) -> Result<ReplicationEvent, ReplicationError> {
        decoded(event).inspect_err(|_| {
            // What follows a hole must not be taken for the whole.
            self.chunk.clear();
            self.buffer.discard();
        })
    }

    /// The chunk's next message, if it concerns the consumer.
    fn event_of_chunk(&mut self) -> Result<Option<RawEvent>, ReplicationError> {
        let bytes = frame::frame_bytes(&self.chunk, self.message_bytes_max)
            .map_err(ReplicationError::Stream)?
            .filter(|bytes| *bytes <= self.chunk.len())
            .ok_or_else(|| protocol("a chunk ends within a message"))?;
        let mut frame = self.chunk.split_to(bytes);
        if frame[0] != tag::COPY_DATA {
            return Ok(None);
        }
        frame.advance(HEADER_BYTES);
        raw_event(frame).map(Some)
    }
}

/// Reads a CopyData's body.
fn raw_event(mut body: Bytes) -> Result<RawEvent, ReplicationError> {
    match body.try_get_u8() {
        Ok(kind @ b'w') if body.len() >= DATA_HEADER_BYTES => Ok(RawEvent::Data {
            wal_start: Lsn(body.get_u64()),
            wal_end: Lsn(body.get_u64()),
            sent_at_us: since_1970_us(body.get_i64(), char::from(kind))?,
            data: body,
        }),
        Ok(kind @ b'k') if body.len() == KEEPALIVE_BYTES => Ok(RawEvent::Keepalive {
            wal_end: Lsn(body.get_u64()),
            sent_at_us: since_1970_us(body.get_i64(), char::from(kind))?,
            reply_requested: body.get_u8() != 0,
        }),
        _ => Err(protocol("neither data nor a keepalive in the stream")),
    }
}

fn decoded(event: RawEvent) -> Result<ReplicationEvent, ReplicationError> {
    Ok(match event {
        RawEvent::Data {
            wal_start,
            wal_end,
            sent_at_us,
            data,
        } => ReplicationEvent {
            wal_start,
            wal_end,
            sent_at_us,
            message: decode(data)?,
        },
        RawEvent::Keepalive {
            wal_end,
            sent_at_us,
            reply_requested,
        } => ReplicationEvent {
            wal_start: wal_end,
            wal_end,
            sent_at_us,
            message: ReplicationMessage::Keepalive {
                wal_end,
                reply_requested,
            },
        },
    })
}

fn protocol(what: &str) -> ReplicationError {
    ReplicationError::Stream(CommandError::Protocol(what.to_owned()))
}

/// From the socket into the buffer.
struct Reader<Socket> {
    socket: Socket,
    input: BytesMut,
    chunk_bytes: usize,
    message_bytes_max: usize,
    silence_max: Duration,
    buffer: Arc<Buffer>,
    feedback: Feedback,
}

impl<Socket: AsyncRead + Unpin> Reader<Socket> {
    async fn run(mut self) {
        let error = match self.pump().await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        self.buffer.fail(ReplicationError::Stream(error));
    }

    async fn pump(&mut self) -> Result<std::convert::Infallible, CommandError> {
        let silence = sleep(self.silence_max);
        tokio::pin!(silence);
        let mut heard = Instant::now();
        let mut rest = Rest::new(heard);
        loop {
            self.pass_on()?;
            let wanted = self.make_room()?;
            if !self.buffer.has_room(wanted) {
                self.buffer.room(wanted).await;
                // The server may have spoken all the time: nobody listened.
                heard = Instant::now();
            }
            let read = loop {
                tokio::select! {
                    biased;
                    read = self.socket.read_buf(&mut self.input) => break read,
                    () = &mut silence => {
                        // The timer is not moved at every read, only looked at when it ends.
                        if heard.elapsed() >= self.silence_max {
                            return Err(CommandError::Silent(self.silence_max));
                        }
                        silence.as_mut().reset(heard + self.silence_max);
                    }
                }
            };
            let read = read.map_err(CommandError::Io)?;
            if read == 0 {
                return Err(CommandError::Closed);
            }
            heard = Instant::now();
            self.feedback.heard();
            if rest.is_due(read, self.chunk_bytes, heard) {
                self.pass_on()?;
                sleep(REST).await;
            }
        }
    }

    /// Gives the whole messages of the input to the consumer, in one piece.
    fn pass_on(&mut self) -> Result<(), CommandError> {
        let mut whole = 0;
        let outcome = loop {
            let rest = &self.input[whole..];
            match frame::frame_bytes(rest, self.message_bytes_max) {
                Ok(Some(bytes)) if bytes <= rest.len() => {
                    if let Err(end) = self.look_at(rest[0], &rest[HEADER_BYTES..bytes]) {
                        break Err(end);
                    }
                    whole += bytes;
                }
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if whole > 0 {
            self.buffer.push(self.input.split_to(whole).freeze());
        }
        outcome
    }

    /// What of a message concerns the connection, whenever the consumer may get to it.
    fn look_at(&self, tag: u8, body: &[u8]) -> Result<(), CommandError> {
        match tag {
            tag::COPY_DATA => {
                // Both kinds begin with an LSN; a keepalive ends with whether it wants a reply.
                if let Some(lsn) = body.get(1..).and_then(|rest| rest.first_chunk()) {
                    self.feedback.receive(u64::from_be_bytes(*lsn));
                }
                if body.first() == Some(&b'k') && body.last() != Some(&0) {
                    self.feedback.reply();
                }
                Ok(())
            }
            tag::NOTICE_RESPONSE => {
                log_notice(body);
                Ok(())
            }
            tag::PARAMETER_STATUS | tag::NOTIFICATION_RESPONSE => Ok(()),
            tag::ERROR_RESPONSE => Err(server_error(body)),
            tag::COPY_DONE | tag::COMMAND_COMPLETE | tag::READY_FOR_QUERY => {
                Err(CommandError::Ended)
            }
            other => Err(CommandError::Protocol(format!(
                "message {:?} in the stream",
                char::from(other)
            ))),
        }
    }

    /// Makes sure that the input can take bytes, and says how many may come with one read.
    fn make_room(&mut self) -> Result<usize, CommandError> {
        let missing = frame::frame_bytes(&self.input, self.message_bytes_max)?
            .map_or(0, |bytes| bytes.saturating_sub(self.input.len()));
        let spare = self.input.capacity() - self.input.len();
        if spare < missing.min(self.chunk_bytes) || spare < self.chunk_bytes / 8 {
            // A long message grows by doubling: its header alone must not take 1 GiB.
            self.input
                .reserve(missing.min(self.input.len()).max(self.chunk_bytes));
        } else if spare > 2 * self.chunk_bytes && missing < self.chunk_bytes {
            // What a long message has left over would be held by every short one after it.
            let mut fresh = BytesMut::with_capacity(self.input.len() + self.chunk_bytes);
            fresh.extend_from_slice(&self.input);
            self.input = fresh;
        }
        Ok(self.input.capacity())
    }
}

#[cfg(test)]
mod tests;
