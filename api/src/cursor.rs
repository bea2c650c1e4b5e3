//! Cursors: where a list goes on.
//!
//! Opaque to clients: base64url of a version, the resource, the sort key of the last row that
//! was shown, and a checksum. The key, not an offset, so that rows inserted or deleted
//! meanwhile move nothing. The checksum keeps no secret: it tells a damaged cursor, and one
//! of another list, from one of ours.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// A sort key: as many numbers as the list's order has columns.
pub type SortKey = [i64; 2];

/// The text of a cursor after the row with `key` in the list of `resource`.
#[must_use]
pub fn encode(resource: &str, key: SortKey) -> String {
    let mut bytes = vec![VERSION];
    for part in key {
        bytes.extend(part.to_be_bytes());
    }
    bytes.extend(checksum(resource, &bytes));
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The sort key in a cursor that [`encode`] made for the same resource, else nothing.
#[must_use]
pub fn decode(resource: &str, text: &str) -> Option<SortKey> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (body, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    if *sum != checksum(resource, body) {
        return None;
    }
    let (first, rest) = body.strip_prefix(&[VERSION])?.split_first_chunk::<8>()?;
    Some([
        i64::from_be_bytes(*first),
        i64::from_be_bytes(rest.try_into().ok()?),
    ])
}

/// FNV-1a over resource and body.
fn checksum(resource: &str, body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hash = 0x811c_9dc5_u32;
    for byte in resource.bytes().chain([0]).chain(body.iter().copied()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    hash.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(key: SortKey) {
            prop_assert_eq!(decode("orders", &encode("orders", key)), Some(key));
        }

        #[test]
        fn a_cursor_from_another_list_is_refused(key: SortKey) {
            prop_assert_eq!(decode("orders", &encode("products", key)), None);
        }

        #[test]
        fn a_damaged_cursor_is_refused(key: SortKey, place in 0_usize..28, new in "[A-Za-z0-9_-]") {
            let text = encode("orders", key);
            let mut damaged = text.clone();
            damaged.replace_range(place..=place, &new);
            prop_assume!(damaged != text);
            prop_assert_eq!(decode("orders", &damaged), None);
        }

        #[test]
        fn a_cut_cursor_is_refused(key: SortKey, length in 0_usize..28) {
            prop_assert_eq!(decode("orders", &encode("orders", key)[..length]), None);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            prop_assert_eq!(decode("orders", &text), None);
        }
    }
}
