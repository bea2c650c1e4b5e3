//! How late a checkpoint in Kafka is seen in the view.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kafka::Lsn;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// When the view showed which position of a source.
pub(crate) struct Watch {
    stop: CancellationToken,
    seen: tokio::task::JoinHandle<Result<Vec<(Lsn, Instant)>>>,
}

impl Watch {
    /// Looks about every millisecond.
    pub(crate) async fn start(client: Client, source: &'static str) -> Result<Self> {
        let stop = CancellationToken::new();
        let until = stop.clone();
        let sql = "SELECT lsn FROM public.positions WHERE source = $1";
        let statement = client.prepare(sql).await?;
        let seen = tokio::spawn(async move {
            let mut seen: Vec<(Lsn, Instant)> = Vec::new();
            let mut pace = tokio::time::interval(Duration::from_millis(1));
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while !until.is_cancelled() {
                pace.tick().await;
                let row = client.query_one(&statement, &[&source]).await?;
                let lsn: Lsn = row.get::<_, &str>(0).parse()?;
                if seen.last().is_none_or(|(last, _)| *last < lsn) {
                    seen.push((lsn, Instant::now()));
                }
            }
            Ok(seen)
        });
        Ok(Self { stop, seen })
    }

    /// From each commit to when its position was seen. All must have been.
    pub(crate) async fn lateness(self, commits: &[(Lsn, Instant)]) -> Result<Vec<Duration>> {
        self.stop.cancel();
        let seen = self.seen.await??;
        let late = commits.iter().map(|(lsn, committed)| {
            let place = seen.partition_point(|(at, _)| at < lsn);
            let (_, shown) = seen
                .get(place)
                .with_context(|| format!("{lsn} was never seen"))?;
            Ok(shown.saturating_duration_since(*committed))
        });
        late.collect()
    }
}
