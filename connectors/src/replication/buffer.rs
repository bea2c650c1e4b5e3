//! What was received and is not consumed yet, bounded in bytes.
//!
//! Chunks of whole messages go through, as they came from the socket. A channel that counts
//! messages would bound nothing (a row can have 1 GiB), one operation a row would cost more
//! than the row.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::error::{CommandError, ReplicationError};

/// Between one reader and one consumer.
#[derive(Debug)]
pub(super) struct Buffer {
    state: Mutex<State>,
    /// The consumer waits for it.
    filled: Notify,
    /// The reader waits for it.
    drained: Notify,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// In `chunks`, and of the chunk that the consumer is at.
    bytes: usize,
    end: End,
}

#[derive(Debug, Default)]
enum End {
    #[default]
    Open,
    /// The consumer gets this once the chunks before it are consumed.
    Failed(ReplicationError),
    /// Nothing comes any more, and what comes is thrown away.
    Over,
}

impl Buffer {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            state: Mutex::default(),
            filled: Notify::new(),
            drained: Notify::new(),
            bytes_max,
        }
    }

    /// Waits until `bytes` more fit. An empty buffer takes anything, else a row larger than
    /// the buffer would never pass.
    pub(super) async fn room(&self, bytes: usize) {
        loop {
            {
                let state = self.lock();
                let fits = state.bytes.saturating_add(bytes) <= self.bytes_max;
                if fits || state.bytes == 0 || matches!(state.end, End::Over) {
                    return;
                }
            }
            self.drained.notified().await;
        }
    }

    /// Is there room for so many bytes now?
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let state = self.lock();
        state.bytes == 0 || state.bytes.saturating_add(bytes) <= self.bytes_max
    }

    /// Adds a chunk; whoever adds has waited for room.
    pub(super) fn push(&self, chunk: Bytes) {
        let mut state = self.lock();
        if matches!(state.end, End::Over) {
            return;
        }
        state.bytes = state.bytes.saturating_add(chunk.len());
        state.chunks.push_back(chunk);
        drop(state);
        self.filled.notify_one();
    }

    /// Nothing follows, for this reason. The first reason is the one that is told.
    pub(super) fn fail(&self, error: ReplicationError) {
        let mut state = self.lock();
        if matches!(state.end, End::Open) {
            state.end = End::Failed(error);
        }
        drop(state);
        self.filled.notify_one();
    }

    /// From here on everything is thrown away.
    pub(super) fn discard(&self) {
        let mut state = self.lock();
        *state = State {
            end: End::Over,
            ..State::default()
        };
        drop(state);
        self.drained.notify_one();
    }

    /// The next chunk, if there is one; `consumed` bytes of the last one are free again.
    pub(super) fn try_take(&self, consumed: usize) -> Result<Option<Bytes>, ReplicationError> {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_sub(consumed);
        let chunk = state.chunks.pop_front();
        let outcome = match (chunk, &state.end) {
            (Some(chunk), _) => Ok(Some(chunk)),
            (None, End::Open) => Ok(None),
            (None, End::Failed(_) | End::Over) => {
                match std::mem::replace(&mut state.end, End::Over) {
                    End::Failed(error) => Err(error),
                    End::Open | End::Over => Err(ReplicationError::Stream(CommandError::Closed)),
                }
            }
        };
        drop(state);
        if consumed > 0 {
            self.drained.notify_one();
        }
        outcome
    }

    /// Waits until there is a chunk, or an end.
    pub(super) async fn filled(&self) {
        loop {
            {
                let state = self.lock();
                if !state.chunks.is_empty() || !matches!(state.end, End::Open) {
                    return;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Bytes that are received and not consumed.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state whole, so a panic elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::{future::FutureExt, poll};

    use super::*;

    fn chunk(bytes: usize) -> Bytes {
        Bytes::from(vec![0; bytes])
    }

    #[tokio::test]
    async fn a_full_buffer_has_room_once_the_consumer_is_past_a_chunk() {
        let buffer = Buffer::new(100);
        buffer.push(chunk(60));
        buffer.push(chunk(40));
        let room = buffer.room(30);
        tokio::pin!(room);
        assert_eq!(poll!(&mut room), Poll::Pending);
        assert_eq!(buffer.try_take(0).unwrap().unwrap().len(), 60);
        assert_eq!(poll!(&mut room), Poll::Pending, "the chunk is still in use");
        assert_eq!(buffer.try_take(60).unwrap().unwrap().len(), 40);
        assert_eq!(poll!(&mut room), Poll::Ready(()));
        assert_eq!(buffer.bytes(), 40);
    }

    #[tokio::test]
    async fn an_empty_buffer_takes_a_chunk_of_any_size() {
        let buffer = Buffer::new(100);
        assert_eq!(buffer.room(1000).now_or_never(), Some(()));
        buffer.push(chunk(1000));
        assert_eq!(buffer.room(1).now_or_never(), None);
    }

    #[tokio::test]
    async fn the_end_comes_after_the_chunks_before_it_and_the_first_reason_counts() {
        let buffer = Buffer::new(100);
        buffer.push(chunk(1));
        buffer.fail(ReplicationError::Stream(CommandError::Ended));
        buffer.fail(ReplicationError::Stream(CommandError::Closed));
        assert_eq!(buffer.filled().now_or_never(), Some(()));
        assert!(buffer.try_take(0).unwrap().is_some());
        assert!(matches!(
            buffer.try_take(1),
            Err(ReplicationError::Stream(CommandError::Ended))
        ));
        assert!(buffer.try_take(0).is_err(), "an end stays an end");
    }

    #[tokio::test]
    async fn a_consumer_that_waits_is_woken_by_a_chunk_and_by_the_end() {
        let buffer = Buffer::new(100);
        let filled = buffer.filled();
        tokio::pin!(filled);
        assert_eq!(poll!(&mut filled), Poll::Pending);
        buffer.push(chunk(1));
        assert_eq!(poll!(&mut filled), Poll::Ready(()));
        buffer.try_take(0).unwrap();
        let ended = buffer.filled();
        tokio::pin!(ended);
        assert_eq!(poll!(&mut ended), Poll::Pending);
        buffer.fail(ReplicationError::Stream(CommandError::Closed));
        assert_eq!(poll!(&mut ended), Poll::Ready(()));
    }

    #[tokio::test]
    async fn a_discarded_buffer_holds_nothing_and_stops_nobody() {
        let buffer = Buffer::new(10);
        buffer.push(chunk(10));
        let room = buffer.room(10);
        tokio::pin!(room);
        assert_eq!(poll!(&mut room), Poll::Pending);
        buffer.discard();
        assert_eq!(poll!(&mut room), Poll::Ready(()));
        buffer.push(chunk(10));
        assert_eq!(buffer.bytes(), 0);
    }
}
