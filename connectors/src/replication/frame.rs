//! Messages of the server as they stand on the wire: a tag, a length, a body.

use bytes::{Buf, Bytes, BytesMut};

use super::error::CommandError;

/// Tag and length.
pub(super) const HEADER_BYTES: usize = 5;

/// The tags that this client acts on.
pub(super) mod tag {
    pub(crate) const AUTHENTICATION: u8 = b'R';
    pub(crate) const BACKEND_KEY_DATA: u8 = b'K';
    pub(crate) const COMMAND_COMPLETE: u8 = b'C';
    pub(crate) const COPY_BOTH_RESPONSE: u8 = b'W';
    pub(crate) const COPY_DATA: u8 = b'd';
    pub(crate) const COPY_DONE: u8 = b'c';
    pub(crate) const DATA_ROW: u8 = b'D';
    pub(crate) const ERROR_RESPONSE: u8 = b'E';
    pub(crate) const NOTICE_RESPONSE: u8 = b'N';
    pub(crate) const NOTIFICATION_RESPONSE: u8 = b'A';
    pub(crate) const PARAMETER_STATUS: u8 = b'S';
    pub(crate) const READY_FOR_QUERY: u8 = b'Z';
    pub(crate) const ROW_DESCRIPTION: u8 = b'T';
}

/// One message.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) tag: u8,
    pub(super) body: Bytes,
}

/// How many bytes the message takes that begins here, header included; `None` where that
/// cannot be told yet.
pub(super) fn frame_bytes(input: &[u8], bytes_max: usize) -> Result<Option<usize>, CommandError> {
    let Some([_, length @ ..]) = input.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    // The length counts itself, not the tag.
    let length = u32::from_be_bytes(*length);
    let bytes = usize::try_from(length).map_or(usize::MAX, |length| length.saturating_add(1));
    if bytes < HEADER_BYTES {
        return Err(CommandError::Protocol(format!(
            "a message says it is {length} bytes long"
        )));
    }
    if bytes > bytes_max {
        return Err(CommandError::TooLarge {
            bytes,
            max: bytes_max,
        });
    }
    Ok(Some(bytes))
}

/// Takes the next whole message out of `input`, if it is there.
pub(super) fn split(input: &mut BytesMut, bytes_max: usize) -> Result<Option<Frame>, CommandError> {
    let Some(bytes) = frame_bytes(input, bytes_max)?.filter(|bytes| *bytes <= input.len()) else {
        return Ok(None);
    };
    let mut body = input.split_to(bytes).freeze();
    let tag = body[0];
    body.advance(HEADER_BYTES);
    Ok(Some(Frame { tag, body }))
}

/// The values of a DataRow.
pub(super) fn data_row(mut body: Bytes) -> Result<Vec<Option<Bytes>>, CommandError> {
    let short = || CommandError::Protocol("a row is cut short".to_owned());
    let columns = body.try_get_u16().map_err(|_| short())?;
    (0..columns)
        .map(|_| {
            let length = body.try_get_i32().map_err(|_| short())?;
            if length == -1 {
                return Ok(None);
            }
            match usize::try_from(length) {
                Ok(length) if length <= body.len() => Ok(Some(body.split_to(length))),
                _ => Err(short()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_refused(input: Vec<u8>) {
            let mut input = BytesMut::from(&input[..]);
            while let Ok(Some(frame)) = split(&mut input, 1 << 20) {
                let _ = data_row(frame.body);
            }
        }

        #[test]
        fn frames_come_out_as_they_went_in(bodies: Vec<Vec<u8>>) {
            let mut input = BytesMut::new();
            for body in &bodies {
                input.extend_from_slice(b"d");
                input.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
                input.extend_from_slice(body);
            }
            for body in &bodies {
                let frame = split(&mut input, 1 << 20).unwrap().unwrap();
                prop_assert_eq!(frame.tag, b'd');
                prop_assert_eq!(&frame.body[..], &body[..]);
            }
            prop_assert!(split(&mut input, 1 << 20).unwrap().is_none());
        }
    }

    #[test]
    fn a_message_above_the_limit_is_refused_before_it_is_received() {
        let header = [b'd', 0, 0, 4, 0];
        assert!(matches!(
            frame_bytes(&header, 1024),
            Err(CommandError::TooLarge {
                bytes: 1025,
                max: 1024
            })
        ));
        assert!(matches!(
            frame_bytes(&[b'd', 0, 0, 0, 3], 1024),
            Err(CommandError::Protocol(_))
        ));
    }
}
