//! Cursors: where a list goes on.
//!
//! Opaque to clients: base64url of a version, the resource, the sort key of the last row that
//! was shown, and a checksum. The key, not an offset, so that rows inserted or deleted
//! meanwhile move nothing. The checksum keeps no secret: it tells a damaged cursor, and one
//! of another list, from one of ours.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::key::{KeyKind, Part};

const VERSION: u8 = 2;
const CHECKSUM_BYTES: usize = 4;
const NUMBER: u8 = 0;
const TEXT: u8 = 1;

/// A sort key: as many values as the list's order has columns.
pub type SortKey = Vec<Part>;

/// The text of a cursor after the row with `key` in the list of `resource`.
#[must_use]
pub fn encode(resource: &str, key: &[Part]) -> String {
    let mut bytes = vec![VERSION];
    for part in key {
        match part {
            Part::Number(number) => {
                bytes.push(NUMBER);
                bytes.extend(number.to_be_bytes());
            }
            Part::Text(text) => {
                bytes.push(TEXT);
                bytes.extend((text.len() as u64).to_be_bytes());
                bytes.extend(text.as_bytes());
            }
        }
    }
    bytes.extend(checksum(resource, &bytes));
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The sort key of these kinds in a cursor that [`encode`] made for the same resource, else
/// nothing.
#[must_use]
pub fn decode(resource: &str, kinds: &[KeyKind], text: &str) -> Option<SortKey> {
    let key = decode_any(resource, text)?;
    let fits =
        key.len() == kinds.len() && key.iter().zip(kinds).all(|(part, kind)| part.fits(*kind));
    fits.then_some(key)
}

fn decode_any(resource: &str, text: &str) -> Option<SortKey> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (body, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    if *sum != checksum(resource, body) {
        return None;
    }
    let mut rest = body.strip_prefix(&[VERSION])?;
    let mut key = SortKey::new();
    while let Some((tag, after)) = rest.split_first() {
        let (eight, after) = after.split_first_chunk::<8>()?;
        rest = match *tag {
            NUMBER => {
                key.push(Part::Number(i64::from_be_bytes(*eight)));
                after
            }
            TEXT => {
                let length = usize::try_from(u64::from_be_bytes(*eight)).ok()?;
                let (text, after) = after.split_at_checked(length)?;
                key.push(Part::Text(std::str::from_utf8(text).ok()?.to_owned()));
                after
            }
            _ => return None,
        };
    }
    Some(key)
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

    fn keys() -> impl Strategy<Value = SortKey> {
        let part = prop_oneof![
            any::<i64>().prop_map(Part::Number),
            ".{0,9}".prop_map(Part::Text)
        ];
        prop::collection::vec(part, 1..4)
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(key in keys()) {
            prop_assert_eq!(decode_any("orders", &encode("orders", &key)), Some(key));
        }

        #[test]
        fn a_cursor_from_another_list_is_refused(key in keys()) {
            prop_assert_eq!(decode_any("orders", &encode("products", &key)), None);
        }

        #[test]
        fn a_damaged_cursor_is_refused(key in keys(), place in 0_usize..18, new in "[A-Za-z0-9_-]") {
            let text = encode("orders", &key);
            let mut damaged = text.clone();
            damaged.replace_range(place..=place, &new);
            prop_assume!(damaged != text);
            prop_assert_eq!(decode_any("orders", &damaged), None);
        }

        #[test]
        fn a_cut_cursor_is_refused(key in keys(), length in 0_usize..18) {
            prop_assert_eq!(decode_any("orders", &encode("orders", &key)[..length]), None);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            prop_assert_eq!(decode_any("orders", &text), None);
        }
    }

    #[test]
    fn a_cursor_of_another_shape_is_refused() {
        let cursor = encode("sales", &[Part::Number(18_292), Part::Number(7)]);
        let taken = |kinds: &[KeyKind]| decode("sales", kinds, &cursor).is_some();
        assert!(taken(&[KeyKind::Day, KeyKind::Id]));
        assert!(!taken(&[KeyKind::Id]));
        assert!(!taken(&[KeyKind::Text, KeyKind::Id]));
        let never = encode(
            "sales",
            &[Part::Number(i64::MAX), Part::Text("\0".to_owned())],
        );
        assert!(decode("sales", &[KeyKind::Day, KeyKind::Text], &never).is_none());
        assert!(decode("sales", &[KeyKind::Id, KeyKind::Text], &never).is_none());
    }
}
