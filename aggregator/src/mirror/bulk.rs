//! Rows as `COPY … FROM STDIN (FORMAT binary)` takes them: the cheapest way into a table, for those
//! that are not in it.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, pin_mut};
use tokio_postgres::{Client, Error, Statement};

use super::{Column, Kind, Value};

/// Sent at once.
const CHUNK_BYTES: usize = 64 << 10;
/// What a binary copy begins with: the signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// In place of a row's number of columns.
const END: i16 = -1;
/// In place of a value's length.
const NULL: i32 = -1;
/// Decimal digits of one of `numeric`'s own.
const DIGITS: usize = 4;

/// Puts rows into the table, a value for each column; none of them may be there.
pub(super) async fn put(
    client: &Client,
    statement: &Statement,
    columns: &[Column],
    rows: &[&Vec<Value>],
) -> Result<(), Error> {
    let sink = client.copy_in::<_, Bytes>(statement).await?;
    pin_mut!(sink);
    let mut chunk = BytesMut::with_capacity(2 * CHUNK_BYTES);
    chunk.put_slice(HEADER);
    for row in rows {
        put_row(&mut chunk, columns, row);
        if chunk.len() >= CHUNK_BYTES {
            sink.feed(chunk.split().freeze()).await?;
            chunk.reserve(2 * CHUNK_BYTES);
        }
    }
    chunk.put_i16(END);
    sink.feed(chunk.freeze()).await?;
    sink.finish().await?;
    Ok(())
}

fn put_row(out: &mut BytesMut, columns: &[Column], row: &[Value]) {
    out.put_i16(i16::try_from(columns.len()).unwrap_or(i16::MAX));
    for (column, value) in columns.iter().zip(row) {
        let start = out.len();
        out.put_i32(NULL);
        match (value, column.kind) {
            (Value::Null, _) => continue,
            // `Kind::read` has checked that it fits.
            (Value::Integer(value), Kind::Integer) => {
                out.put_i32(i32::try_from(*value).unwrap_or_default());
            }
            (Value::Integer(value), _) => out.put_i64(*value),
            (Value::Text(value), Kind::Numeric) => put_numeric(out, value),
            (Value::Text(value), _) => out.put_slice(value.as_bytes()),
            (Value::Time(value), _) => out.put_i64(value.0),
        }
        let length = out.len() - start - size_of::<i32>();
        let length = i32::try_from(length).unwrap_or(i32::MAX);
        out[start..start + size_of::<i32>()].copy_from_slice(&length.to_be_bytes());
    }
}

/// A number of digits that `Kind::read` has checked: how many digits to the base of 10 000 follow, the
/// power of the first, the sign, the decimal places, the digits.
fn put_numeric(out: &mut BytesMut, text: &str) {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = whole.trim_start_matches('0').as_bytes();
    let fraction = fraction.as_bytes();
    let of_whole = whole.len().div_ceil(DIGITS);
    let count = of_whole + fraction.len().div_ceil(DIGITS);
    let short = |number: usize| i16::try_from(number).unwrap_or(i16::MAX);
    out.put_i16(short(count));
    out.put_i16(short(of_whole) - 1);
    out.put_u16(if is_negative { 0x4000 } else { 0 });
    out.put_i16(short(fraction.len()));
    let value = |digits: &[u8]| {
        let digits = digits.iter();
        digits.fold(0, |value, digit| value * 10 + i16::from(digit - b'0'))
    };
    let (first, rest) = whole.split_at(whole.len() % DIGITS);
    if !first.is_empty() {
        out.put_i16(value(first));
    }
    rest.chunks(DIGITS)
        .for_each(|digits| out.put_i16(value(digits)));
    for digits in fraction.chunks(DIGITS) {
        let missing = u32::try_from(DIGITS - digits.len()).unwrap_or_default();
        out.put_i16(value(digits) * 10_i16.pow(missing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(text: &str) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_numeric(&mut out, text);
        out.to_vec()
    }

    /// As `numeric_send` writes them, but for digits that are 0.
    #[test]
    fn numbers_are_digits_to_the_base_of_10_000() {
        let number = |sign: u16, weight: i16, places: i16, digits: &[i16]| {
            let mut out = BytesMut::new();
            out.put_i16(i16::try_from(digits.len()).unwrap());
            out.put_i16(weight);
            out.put_u16(sign);
            out.put_i16(places);
            digits.iter().for_each(|digit| out.put_i16(*digit));
            out.to_vec()
        };
        for (text, expected) in [
            ("0", number(0, -1, 0, &[])),
            ("0.00", number(0, -1, 2, &[0])),
            ("2.50", number(0, 0, 2, &[2, 5000])),
            ("-12345.6", number(0x4000, 1, 1, &[1, 2345, 6000])),
            ("00100000000", number(0, 2, 0, &[1, 0, 0])),
            ("0.00012", number(0, -1, 5, &[1, 2000])),
        ] {
            assert_eq!(numeric(text), expected, "{text}");
        }
    }
}
