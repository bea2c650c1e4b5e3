//! Rows as COPY in text form sends them, a line each.
//!
//! The values are what the types' output functions write, the same text as in the log and in
//! the simple protocol, but as bytes: also those of a database whose encoding is unknown.

use std::ops::Range;

use memchr::{memchr, memchr_iter};

/// Where the fields of a line are; kept between lines for its memory.
#[derive(Debug, Default)]
pub(super) struct Fields {
    fields: Vec<Field>,
    /// Fields that were written with escapes, without them.
    unescaped: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Field {
    Null,
    Line(Range<usize>),
    Unescaped(Range<usize>),
}

impl Fields {
    /// Takes a line apart; how many fields it has.
    pub(super) fn split(&mut self, line: &[u8]) -> usize {
        self.fields.clear();
        self.unescaped.clear();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let escapes = memchr(b'\\', line).is_some();
        let mut start = 0;
        for end in memchr_iter(b'\t', line).chain(std::iter::once(line.len())) {
            let field = if escapes {
                self.unescape(line, start..end)
            } else {
                Field::Line(start..end)
            };
            self.fields.push(field);
            start = end + 1;
        }
        self.fields.len()
    }

    fn unescape(&mut self, line: &[u8], range: Range<usize>) -> Field {
        let text = &line[range.clone()];
        if text == b"\\N" {
            return Field::Null;
        }
        let Some(first) = memchr(b'\\', text) else {
            return Field::Line(range);
        };
        let from = self.unescaped.len();
        self.unescaped.extend_from_slice(&text[..first]);
        let mut rest = &text[first..];
        while let Some((escaped, after)) = rest.get(1).zip(rest.get(2..)) {
            self.unescaped.push(match escaped {
                b'b' => 0x08,
                b'f' => 0x0c,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 0x0b,
                other => *other,
            });
            let next = memchr(b'\\', after).unwrap_or(after.len());
            self.unescaped.extend_from_slice(&after[..next]);
            rest = &after[next..];
        }
        Field::Unescaped(from..self.unescaped.len())
    }

    /// A field of the line that was taken apart last; none: NULL.
    pub(super) fn get<'a>(&'a self, line: &'a [u8], at: usize) -> Option<&'a [u8]> {
        match self.fields.get(at)? {
            Field::Null => None,
            Field::Line(range) => line.get(range.clone()),
            Field::Unescaped(range) => self.unescaped.get(range.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As `CopyAttributeOutText` of PostgreSQL writes a value.
    fn escape(value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for byte in value {
            match byte {
                0x08 => out.extend(b"\\b"),
                0x0c => out.extend(b"\\f"),
                b'\n' => out.extend(b"\\n"),
                b'\r' => out.extend(b"\\r"),
                b'\t' => out.extend(b"\\t"),
                0x0b => out.extend(b"\\v"),
                b'\\' => out.extend(b"\\\\"),
                byte => out.push(*byte),
            }
        }
        out
    }

    proptest! {
        #[test]
        fn a_row_comes_back_byte_for_byte(
            row in prop::collection::vec(
                prop::option::of(prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..12),
                    "[\\\\\tN\n]{0,6}".prop_map(String::into_bytes),
                ]),
                1..6,
            )
        ) {
            let fields: Vec<_> = row
                .iter()
                .map(|value| value.as_ref().map_or_else(|| b"\\N".to_vec(), |v| escape(v)))
                .collect();
            let mut line = fields.join(&b'\t');
            line.push(b'\n');
            let mut split = Fields::default();
            split.split(b"x\\ty\t\\N\n");
            prop_assert_eq!(split.split(&line), row.len());
            let read: Vec<_> = (0..row.len())
                .map(|at| split.get(&line, at).map(<[u8]>::to_vec))
                .collect();
            prop_assert_eq!(read, row);
        }

        #[test]
        fn no_line_makes_it_panic(line: Vec<u8>) {
            let mut split = Fields::default();
            let count = split.split(&line);
            for at in 0..count + 2 {
                _ = split.get(&line, at);
            }
        }
    }
}
