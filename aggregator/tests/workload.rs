//! Random work in three sources, applied in random batches by a writer that is killed at
//! random: after every view transaction the view equals the joins.

use std::collections::BTreeMap;

use aggregator::view::View;
use anyhow::{Context, Result};
use rand::Rng;
use rand::seq::IndexedRandom;

use crate::oracle::{mirrors_equal_source, unified_tables_equal_joins};
use crate::shop::Shop;
use crate::source::advance;
use crate::{Database, sources};

/// Seeds a run goes through; `WORKLOAD_SEEDS=100` for a longer one.
const SEEDS: u64 = 6;
const ROUNDS: usize = 50;

#[tokio::test]
async fn the_view_equals_the_joins_after_every_view_transaction() -> Result<()> {
    let seeds = std::env::var("WORKLOAD_SEEDS").ok();
    let seeds = seeds.map_or(Ok(SEEDS), |seeds| seeds.parse())?;
    for seed in 0..seeds {
        run(seed).await.with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

async fn run(seed: u64) -> Result<()> {
    let (database, mut shop) = (Database::new().await?, Shop::new(seed));
    let mut view = database.open().await?;
    let mut revision = String::new();
    for round in 0..ROUNDS {
        for source in aggregator::SOURCES {
            if shop.random.random_bool(0.7) {
                shop.work(source);
            }
        }
        if shop.random.random_bool(0.15) {
            drop(view);
            view = database.open().await?;
        }
        let source = *aggregator::SOURCES
            .choose(&mut shop.random)
            .context("none")?;
        if view.serves(source) {
            apply(&database, &mut view, &mut shop, source).await?;
        } else {
            view = load(&database, view, &mut shop, source).await?;
        }
        let known: Vec<_> = sources();
        let known = known.iter().map(String::as_str);
        let known: Vec<_> = known.filter(|source| view.serves(source)).collect();
        unified_tables_equal_joins(&database, &known)
            .await
            .with_context(|| format!("round {round}, after {source}"))?;
        let now: String = database
            .one("SELECT max(revision) FROM public.positions")
            .await?;
        anyhow::ensure!(
            now >= revision,
            "revision went back from {revision} to {now}"
        );
        revision = now;
    }
    Ok(())
}

/// A checkpoint of a served source: alone or with others, in one step or several, perhaps undone
/// in the middle and read again.
async fn apply(
    database: &Database,
    view: &mut View,
    shop: &mut Shop,
    source: &'static str,
) -> Result<()> {
    let with_others = shop.random.random_bool(0.4);
    let in_steps = shop.random.random_bool(0.3);
    let mut parts = BTreeMap::new();
    for name in aggregator::SOURCES {
        if view.serves(name) && (name == source || with_others) {
            parts.insert(name, shop.source(name).part(&view.standing(name)));
        }
    }
    if in_steps && let Some(mut part) = parts.remove(source) {
        let rest = part.changes.split_off(part.changes.len() / 2);
        view.step(source, part.changes).await?;
        if shop.random.random_bool(0.3) {
            view.undo().await?;
            part.changes = shop.source(source).events(&view.standing(source));
        } else {
            part.changes = rest;
        }
        parts = BTreeMap::from([(source, part)]);
    }
    let applied: Vec<_> = parts.keys().copied().collect();
    view.apply(parts.into_values().collect()).await?;
    for name in applied {
        mirrors_equal_source(database, shop, name).await?;
    }
    Ok(())
}

/// A source's first checkpoint, in pieces, with a kill between some.
async fn load(database: &Database, mut view: View, shop: &mut Shop, source: &str) -> Result<View> {
    loop {
        let mut standing = view.standing(source);
        let mut changes = shop.source(source).events(&standing);
        if changes.len() < 3 || shop.random.random_bool(0.2) {
            let part = shop.source(source).part(&standing);
            view.serve(part).await?;
            mirrors_equal_source(database, shop, source).await?;
            return Ok(view);
        }
        changes.truncate(shop.random.random_range(1..changes.len()));
        advance(&mut standing, &changes);
        view.load(source, changes, standing).await?;
        if shop.random.random_bool(0.3) {
            shop.work(source);
            drop(view);
            view = database.open().await?;
        }
    }
}
