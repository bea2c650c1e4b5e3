//! `public.positions`: how far the view is in each source, and the standing behind it.

use std::collections::BTreeMap;

use kafka::follower::Standing;
use kafka::{Checkpoint, Lsn, Position};
use tokio_postgres::{Client, Error, Statement};

use crate::mirror::Time;

/// A checkpoint that a view transaction completes.
#[derive(Debug, Clone)]
pub struct Moved {
    pub source: String,
    pub record: Checkpoint,
    pub record_time_ms: i64,
    pub standing: Standing,
}

#[derive(Debug, Clone)]
pub(crate) struct Positions {
    position: Statement,
    standing: Statement,
}

impl Positions {
    pub(crate) async fn prepare(client: &Client) -> Result<Self, Error> {
        Ok(Self {
            position: client
                .prepare(
                    "UPDATE public.positions SET epoch = $2, lsn = $3, wal_end = $4,
                        lag_bytes = $5, committed_at = $6, current_at = $7,
                        applied_at = clock_timestamp(), writer = $8, number = $9, revision = $10
                    WHERE source = $1",
                )
                .await?,
            standing: client
                .prepare(
                    "INSERT INTO aggregator.standing (source, standing) VALUES ($1, $2)
                    ON CONFLICT (source) DO UPDATE SET standing = excluded.standing",
                )
                .await?,
        })
    }

    /// The source's row moves to the checkpoint.
    pub(crate) async fn write(
        &self,
        client: &Client,
        moved: &Moved,
        revision: Revision,
    ) -> Result<(), Error> {
        let record = &moved.record;
        let time = |us: Option<i64>| us.map(Time::of_1970);
        let lag = record.wal_end.0.saturating_sub(record.position.0);
        client
            .execute(
                &self.position,
                &[
                    &moved.source,
                    &i64::try_from(record.epoch).unwrap_or(i64::MAX),
                    &record.position.to_string(),
                    &record.wal_end.to_string(),
                    &i64::try_from(lag).unwrap_or(i64::MAX),
                    &time(record.committed_at_us),
                    &time(record.current_at_us),
                    &revision.writer,
                    &revision.number,
                    &revision.to_string(),
                ],
            )
            .await?;
        Ok(())
    }

    /// Where to go on reading; commits with what was read.
    pub(crate) async fn stand(
        &self,
        client: &Client,
        source: &str,
        standing: &Standing,
    ) -> Result<(), Error> {
        let standing = tokio_postgres::types::Json(standing);
        client
            .execute(&self.standing, &[&source, &standing])
            .await?;
        Ok(())
    }
}

/// How far the view is in each source that it serves.
pub(super) async fn served(client: &Client) -> Result<BTreeMap<String, Position>, Error> {
    let sql = "SELECT source, epoch, (lsn::pg_lsn - '0/0')::bigint FROM public.positions
        WHERE epoch IS NOT NULL";
    let rows = client.query(sql, &[]).await?;
    rows.iter()
        .map(|row| {
            let (epoch, lsn): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
            let position = Position {
                epoch: epoch.cast_unsigned(),
                lsn: Lsn(lsn.cast_unsigned()),
            };
            Ok((row.try_get(0)?, position))
        })
        .collect()
}

/// A view transaction: who wrote it, and its number. Compared in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision {
    /// The Unix second in which the writer took over.
    pub writer: i64,
    pub number: i64,
}

impl std::fmt::Display for Revision {
    /// Padded, so that texts compare as revisions do.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:010}-{:012}", self.writer, self.number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Revision;

    proptest! {
        #[test]
        fn texts_compare_as_revisions(
            a in (0_i64..9_999_999_999, 0_i64..999_999_999_999),
            b in (0_i64..9_999_999_999, 0_i64..999_999_999_999),
        ) {
            let [a, b] = [a, b].map(|(writer, number)| Revision { writer, number });
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }
    }
}
