//! Is a text one SQL condition?
//!
//! It becomes part of statements between brackets. PostgreSQL parses it before it is accepted, in
//! the same brackets, by a role that may only read; but a text like `true) OR (true` parses there
//! and means something else. So brackets have to match within the text, and what could hide them
//! from this look is refused.

/// Bytes of a condition at most: it stands in every record until its read is complete.
const BYTES_MAX: usize = 4096;

/// What of a text keeps it from being used as a condition; none: nothing.
pub(super) fn fault(text: &str) -> Option<&'static str> {
    if text.trim().is_empty() {
        return Some("it is empty");
    }
    if text.len() > BYTES_MAX {
        return Some("it is longer than 4096 bytes");
    }
    if text.contains('\\') || text.contains('$') || text.contains('\0') {
        return Some("it has a backslash, a dollar sign or a zero byte");
    }
    let mut depth = 0_u32;
    let mut quote = None;
    let mut before = ' ';
    for now in text.chars() {
        if let Some(open) = quote {
            // A doubled quote closes and opens again, which comes to the same.
            quote = (now != open).then_some(open);
            before = ' ';
            continue;
        }
        match (before, now) {
            ('-', '-') | ('/', '*') => return Some("it has a comment"),
            (_, ';') => return Some("it has a semicolon"),
            (_, '\'' | '"') => quote = Some(now),
            (_, '(') => depth += 1,
            (_, ')') => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return Some("it closes a bracket that it does not open"),
            },
            _ => {}
        }
        before = now;
    }
    match (depth, quote) {
        (0, None) => None,
        (_, Some(_)) => Some("a quote is not closed"),
        (_, None) => Some("a bracket is not closed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_pass() {
        for text in [
            "id > 5",
            "id BETWEEN 1 AND 7 AND name = 'it''s (not) over; -- yet'",
            "(a, b) > (1, 'x') OR \"odd ; name\" IS NULL",
            "id IN (SELECT 5 UNION SELECT 6)",
            "a - -1 > 3",
        ] {
            assert_eq!(fault(text), None, "{text}");
        }
    }

    #[test]
    fn what_would_leave_its_brackets_is_refused() {
        for text in [
            "",
            "  ",
            "true) OR (true",
            "(true",
            "true; DROP TABLE item",
            "true -- ",
            "true /* ",
            "name = 'open",
            "name = E'\\') OR (true'",
            "name = $$x$$",
        ] {
            assert!(fault(text).is_some(), "{text}");
        }
        assert!(fault(&"1".repeat(5000)).is_some());
    }
}
