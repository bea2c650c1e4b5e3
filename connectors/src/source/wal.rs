//! Places in the WAL that look different and are the same.

use kafka::Lsn;

use super::session::{self, Session, SourceError};

/// Sizes of `XLogPageHeaderData` and, at a segment's start, `XLogLongPageHeaderData`
/// (`access/xlog_internal.h`), aligned.
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

/// How the server's WAL is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalLayout {
    page_bytes: u64,
    segment_bytes: u64,
}

impl WalLayout {
    /// Asks the server.
    ///
    /// # Errors
    /// Where the session is lost.
    pub async fn read(session: &Session) -> Result<Self, SourceError> {
        let doing = "ask how the WAL is laid out";
        let sql = "SELECT setting FROM pg_settings WHERE name = 'wal_block_size' \
                   UNION ALL SELECT pg_size_bytes(current_setting('wal_segment_size'))::text";
        let rows = session.rows(doing, sql).await?;
        let number = |place: usize| -> Result<u64, SourceError> {
            let row = rows.get(place).ok_or(SourceError::Answer { doing })?;
            session::get(doing, row, 0)
        };
        Ok(Self {
            page_bytes: number(0)?.max(1),
            segment_bytes: number(1)?.max(1),
        })
    }

    /// Where the last record ends, from where the next one would begin. When the last record
    /// fills its page the two differ by the next page's header: `pg_current_wal_insert_lsn()`
    /// then says the latter, while flush positions and keepalives say the former, and an idle
    /// source never gets beyond it.
    #[must_use]
    pub fn border(&self, insert: Lsn) -> Lsn {
        let in_page = insert.0 % self.page_bytes;
        let in_segment = insert.0 % self.segment_bytes;
        let header = if in_segment < self.page_bytes {
            LONG_HEADER
        } else {
            SHORT_HEADER
        };
        if in_page == header {
            Lsn(insert.0 - header)
        } else {
            insert
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_after_a_page_header_is_the_end_of_the_page_before() {
        let layout = WalLayout {
            page_bytes: 8192,
            segment_bytes: 16 << 20,
        };
        for (insert, border) in [
            (8192 * 5 + 24, 8192 * 5),
            (8192 * 5 + 40, 8192 * 5 + 40),
            (8192 * 5 + 32, 8192 * 5 + 32),
            ((16 << 20) + 40, 16 << 20),
            ((16 << 20) + 24, (16 << 20) + 24),
            (8192 * 5, 8192 * 5),
        ] {
            assert_eq!(layout.border(Lsn(insert)), Lsn(border));
        }
    }
}
