//! The stream against a server of our own making: what PostgreSQL does seldom, or never.

use bytes::BufMut;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// Longer than anything here takes; only a failing test waits it out.
const PATIENCE: Duration = Duration::from_secs(10);

const STATUS_BYTES: usize = 39;

/// Longer than a test, so that no status comes by the clock but the first.
const NO_TICK: Duration = Duration::from_secs(3600);

fn config() -> ReplicationConfig {
    ReplicationConfig {
        status_interval: NO_TICK,
        buffer_bytes_max: 16 << 10,
        ..ReplicationConfig::from_url("postgres://u@h/d").unwrap()
    }
}

fn stream(config: &ReplicationConfig) -> (ReplicationStream, DuplexStream) {
    let (ours, server) = duplex(1 << 20);
    let stream = ReplicationStream::spawn(Box::new(ours), BytesMut::new(), config);
    (stream, server)
}

fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.put_u32(u32::try_from(body.len() + 4).unwrap());
    out.put_slice(body);
    out
}

fn data(lsn: u64, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![b'w'];
    body.put_u64(lsn);
    body.put_u64(lsn);
    body.put_i64(0);
    body.put_slice(payload);
    framed(tag::COPY_DATA, &body)
}

fn keepalive(lsn: u64, reply_requested: bool) -> Vec<u8> {
    let mut body = vec![b'k'];
    body.put_u64(lsn);
    body.put_i64(0);
    body.put_u8(u8::from(reply_requested));
    framed(tag::COPY_DATA, &body)
}

async fn next_raw(stream: &mut ReplicationStream) -> Result<RawEvent, ReplicationError> {
    timeout(PATIENCE, stream.next_raw()).await.expect("silence")
}

async fn status(server: &mut DuplexStream) -> [u8; STATUS_BYTES] {
    let mut status = [0; STATUS_BYTES];
    timeout(PATIENCE, server.read_exact(&mut status))
        .await
        .expect("no status")
        .unwrap();
    status
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// However the bytes are cut up on the way, and however small the buffer is.
    #[test]
    fn messages_come_out_as_they_went_in(
        sizes in vec(0_usize..3000, 1..40),
        cuts in vec(1_usize..5000, 1..20),
        buffer_bytes_max in 1_usize..40_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut stream, mut server) = stream(&ReplicationConfig {
                buffer_bytes_max,
                ..config()
            });
            let mut bytes = Vec::new();
            for (lsn, size) in (1..).zip(&sizes) {
                bytes.extend(framed(tag::PARAMETER_STATUS, b"TimeZone\0UTC\0"));
                bytes.extend(data(lsn, &vec![7; *size]));
            }
            tokio::spawn(async move {
                let mut rest = &bytes[..];
                for cut in cuts.iter().cycle() {
                    let (now, later) = rest.split_at((*cut).min(rest.len()));
                    server.write_all(now).await.unwrap();
                    tokio::task::yield_now().await;
                    rest = later;
                    if rest.is_empty() {
                        break;
                    }
                }
                // The stream is open until everything was looked at.
                let mut nothing = Vec::new();
                server.read_to_end(&mut nothing).await.unwrap();
            });
            for (lsn, size) in (1..).zip(sizes) {
                let RawEvent::Data { wal_start, data, .. } = next_raw(&mut stream).await.unwrap()
                else {
                    panic!("not data");
                };
                assert_eq!((wal_start, data.len()), (Lsn(lsn), size));
            }
            assert!(stream.try_next_raw().unwrap().is_none());
            assert_eq!(stream.buffered_bytes(), 0);
        });
    }

    #[test]
    fn any_bytes_are_a_stream_or_its_end(bytes in vec(any::<u8>(), 0..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut stream, mut server) = stream(&config());
            server.write_all(&bytes).await.unwrap();
            drop(server);
            while timeout(PATIENCE, stream.next()).await.expect("silence").is_ok() {}
        });
    }
}

#[tokio::test]
async fn a_server_that_wants_a_reply_gets_it_though_nobody_consumes() {
    let (stream, mut server) = stream(&config());
    status(&mut server).await;
    server.write_all(&keepalive(0x700, true)).await.unwrap();
    let reply = status(&mut server).await;
    assert_eq!(reply[6..14], 0x700_u64.to_be_bytes(), "received");
    assert_eq!(reply[14..22], [0; 8], "not confirmed");
    assert_eq!(stream.feedback().received(), Lsn(0x700));
}

#[tokio::test]
async fn a_full_buffer_stops_the_reader_and_no_status() {
    let (mut stream, mut server) = stream(&config());
    status(&mut server).await;
    let writer = async {
        for lsn in 1..=1000 {
            server.write_all(&data(lsn, &[7; 1000])).await.unwrap();
        }
        server
    };
    let mut server = timeout(PATIENCE, writer).await.unwrap();
    for wanted in 1..20 {
        stream.feedback().confirm(Lsn(wanted));
        let status = status(&mut server).await;
        assert_eq!(status[14..22], wanted.to_be_bytes());
    }
    assert!(stream.buffered_bytes() <= config().buffer_bytes_max);
    assert!(stream.feedback().received() < Lsn(100), "the reader stands");
    for _ in 0..1000 {
        next_raw(&mut stream).await.unwrap();
    }
    assert_eq!(stream.feedback().received(), Lsn(1000));
}

#[tokio::test]
async fn what_came_before_an_error_is_consumed_before_the_error() {
    let (mut stream, mut server) = stream(&config());
    let mut bytes = data(1, b"one");
    bytes.extend(keepalive(2, false));
    bytes.extend(framed(
        tag::ERROR_RESPONSE,
        b"SFATAL\0VFATAL\0C57P01\0Mterminating\0\0",
    ));
    server.write_all(&bytes).await.unwrap();
    drop(server);
    assert!(matches!(
        next_raw(&mut stream).await,
        Ok(RawEvent::Data { .. })
    ));
    assert!(matches!(
        next_raw(&mut stream).await,
        Ok(RawEvent::Keepalive { .. })
    ));
    let error = next_raw(&mut stream).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the source ended the replication stream: FATAL 57P01: terminating"
    );
}

#[tokio::test]
async fn a_stream_has_no_end_that_is_not_an_error() {
    for (bytes, words) in [
        (framed(tag::COPY_DONE, b""), "shuts down"),
        (framed(tag::COMMAND_COMPLETE, b"COPY 0\0"), "shuts down"),
        (Vec::new(), "closed"),
        (framed(b'?', b""), "message '?'"),
        (framed(tag::COPY_DATA, b"x"), "neither"),
    ] {
        let (mut stream, mut server) = stream(&config());
        server.write_all(&bytes).await.unwrap();
        drop(server);
        let error = next_raw(&mut stream).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn nothing_is_given_out_behind_a_message_that_does_not_decode() {
    let (mut stream, mut server) = stream(&config());
    let commit = {
        let mut commit = b"C\0".to_vec();
        commit.put_slice(&[0; 24]);
        data(2, &commit)
    };
    server.write_all(&data(1, b"damaged")).await.unwrap();
    server.write_all(&commit).await.unwrap();
    let error = timeout(PATIENCE, stream.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, ReplicationError::Decode(_)), "{error}");
    assert!(!error.is_retriable());
    let after = timeout(PATIENCE, stream.next()).await.unwrap();
    assert!(after.is_err(), "{after:?}");
}

#[tokio::test]
async fn a_dropped_stream_closes_its_connection() {
    let (stream, mut server) = stream(&config());
    let feedback = stream.feedback();
    status(&mut server).await;
    drop(stream);
    let mut rest = Vec::new();
    timeout(PATIENCE, server.read_to_end(&mut rest))
        .await
        .expect("still open")
        .unwrap();
    feedback.confirm(Lsn(1));
    assert_eq!(feedback.confirmed(), Lsn(1));
}
