//! Unified rows computed by command.

use tokio::sync::oneshot;

use super::{Applier, now_ms};
use crate::control::{Recompute, Refused, Shared};
use crate::failure::Failure;
use crate::view::Keys;

impl Applier {
    /// These rows, or all, for as long as that takes: who asked is told that it has begun, and the
    /// status says when it has ended.
    pub(super) async fn recompute(
        &mut self,
        keys: Option<&Keys>,
        begun: oneshot::Sender<Result<Recompute, Refused>>,
        status: &Shared,
    ) -> Result<(), Failure> {
        let named = match keys {
            None => None,
            Some(keys) => match self.view.named(keys).await? {
                Ok(named) => Some(named),
                Err(not_a_key) => {
                    let _ = begun.send(Err(not_a_key.into()));
                    return Ok(());
                }
            },
        };
        let mut recompute = Recompute {
            began_at_ms: now_ms(),
            is_all: keys.is_none(),
            rows: None,
        };
        self.recompute = Some(recompute.clone());
        status.set(self.status());
        // Who does not wait any more asks again.
        if begun.send(Ok(recompute.clone())).is_err() {
            self.recompute = None;
            return Ok(());
        }
        let rows = match named {
            None => self.view.recompute().await?,
            Some(named) => self.view.recompute_rows(named).await?,
        };
        let which = keys.map_or_else(
            || "all".to_owned(),
            |keys| keys.values().map(Vec::len).sum::<usize>().to_string(),
        );
        tracing::info!(rows, "computed {which} unified rows: {rows} differed");
        recompute.rows = Some(rows);
        self.recompute = Some(recompute);
        Ok(())
    }
}
