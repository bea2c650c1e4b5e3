//! Which of two states of the view is newer.

use std::cmp::Ordering;

use service::fault;

/// A view transaction: who wrote it (the second that writer took over) and its number.
///
/// The writer comes first: a view that was restored from a backup uses numbers again, but its
/// next writer took over later than any before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Revision {
    pub writer: i64,
    pub number: i64,
}

impl Ord for Revision {
    fn cmp(&self, other: &Self) -> Ordering {
        if fault::in_force("revision_by_writer") {
            (self.writer, self.number).cmp(&(other.writer, other.number))
        } else {
            self.number.cmp(&other.number)
        }
    }
}

impl PartialOrd for Revision {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_writer_is_newer_whatever_its_numbers() {
        let lost = Revision {
            writer: 1,
            number: 9,
        };
        let restored = Revision {
            writer: 2,
            number: 3,
        };
        assert!(restored > lost);
        assert!(
            Revision {
                writer: 1,
                number: 8
            } < lost
        );
    }
}
