//! Who writes after whom.

use anyhow::{Result, ensure};

use crate::Database;
use crate::rules::{apply, begin, order};

#[tokio::test]
async fn revisions_grow_from_writer_to_writer_although_the_clock_does_not() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    let mut newest = String::new();
    for id in 10..15 {
        let before = view.revision();
        // In the same second.
        view = database.open().await?;
        ensure!(view.revision().writer > before.writer);
        ensure!(view.revision().number > before.number);
        order(&mut shop, id, id);
        apply(&mut view, &mut shop, "sales").await?;
        let sql = format!("SELECT revision FROM public.orders WHERE id = {id}");
        let revision: String = database.one(&sql).await?;
        ensure!(revision > newest, "{revision} after {newest}");
        ensure!(revision == view.revision().to_string());
        let position: String = database
            .one("SELECT max(revision) FROM public.positions")
            .await?;
        ensure!(position == revision);
        newest = revision;
    }
    Ok(())
}

#[tokio::test]
async fn a_writer_that_dies_within_a_view_transaction_leaves_nothing_of_it() -> Result<()> {
    let database = Database::new().await?;
    let (mut view, mut shop) = begin(&database).await?;
    order(&mut shop, 3, 3);
    shop.sales.checkpoint();
    let part = shop.sales.part(&view.standing("sales"));
    view.step("sales", part.changes).await?;
    drop(view);
    let mut view = database.open().await?;
    let seen: i64 = database
        .one("SELECT count(*) FROM public.orders WHERE id = 3")
        .await?;
    ensure!(seen == 0);
    apply(&mut view, &mut shop, "sales").await?;
    let seen: i64 = database
        .one("SELECT count(*) FROM public.orders WHERE id = 3")
        .await?;
    ensure!(seen == 1);
    Ok(())
}
