//! Changes to an input.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// No input grows beyond it.
const BYTES_MAX: usize = 64 << 10;
/// Numbers at the borders of types.
const BORDERS: [u64; 12] = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    0x7FFF_FFFF_FFFF_FFFF,
    0xFFFF_FFFF_FFFF_FFFF,
];

/// One to eight changes, one upon the other.
pub fn mutated(parent: &[u8], other: &[u8], words: &[&str], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut input = parent.to_vec();
    for _ in 0..1 << random.random_range(0..4) {
        change(&mut input, other, words, random);
    }
    input.truncate(BYTES_MAX);
    input
}

fn change(input: &mut Vec<u8>, other: &[u8], words: &[&str], random: &mut ChaCha8Rng) {
    let at = random.random_range(0..=input.len());
    let some = random.random_range(1..=16.min(input.len().max(1)));
    let end = (at + some).min(input.len());
    match random.random_range(0..10) {
        0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        1 if at < input.len() => input[at] = random.random(),
        2 => input.truncate(at),
        3 => drop(input.drain(at..end)),
        4 => {
            let repeated = input[at..end].to_vec();
            insert(input, at, &repeated.repeat(random.random_range(1..8)));
        }
        5 => {
            // A number of one, two, four or eight bytes, as the wire has them.
            let border = BORDERS[random.random_range(0..BORDERS.len())].to_be_bytes();
            let bytes = &border[8 - (1 << random.random_range(0..4))..];
            for (place, byte) in input[at..].iter_mut().zip(bytes) {
                *place = *byte;
            }
        }
        6 => {
            let border = BORDERS[random.random_range(0..BORDERS.len())].to_string();
            replace_digits(input, at, border.as_bytes());
        }
        7 if !words.is_empty() => {
            let word = words[random.random_range(0..words.len())];
            insert(input, at, word.as_bytes());
        }
        _ if !other.is_empty() => {
            let from = random.random_range(0..other.len());
            let to = random.random_range(from..=other.len().min(from + 256));
            insert(input, at, &other[from..to]);
        }
        _ => input.push(random.random()),
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

/// The next number in the text becomes another.
fn replace_digits(input: &mut Vec<u8>, at: usize, number: &[u8]) {
    let Some(first) = input[at..].iter().position(u8::is_ascii_digit) else {
        return;
    };
    let from = at + first;
    let digits = input[from..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    let to = from + digits.count();
    input.splice(from..to, number.iter().copied());
}
