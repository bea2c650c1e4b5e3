//! Reading by checkpoints.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::support::{Source, Writer, apply, take};

#[tokio::test]
async fn a_checkpoint_comes_with_exactly_the_events_up_to_its_offsets() -> Result<()> {
    let source = Source::create("exact").await?;
    let mut writer = Writer::take_over(&source).await?;
    let mut follower = source.follower()?;
    let mut rows = BTreeMap::new();
    for round in 0..20 {
        for key in 0..7 {
            writer
                .send(&format!("k{key}"), Some(&format!("{round}")))
                .await?;
        }
        let record = writer.commit().await?;
        let taken = take(&mut follower).await?;
        assert_eq!(taken.record, record);
        assert_eq!(taken.events.len(), 7);
        assert_eq!(taken.standing.offsets, record.offsets);
        apply(&mut rows, &taken.events);
        assert!(rows.values().all(|value| *value == round.to_string()));
    }
    let _ = (
        Standing::default(),
        FollowerOptions::default(),
        taken_steps(0),
    );
    Ok(())
}
