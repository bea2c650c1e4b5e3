//! The shop's stories (`features/*.feature`) over the real stack: people and legacy applications
//! act with SQL on their own systems, and what they see they see through the API.
//!
//! All scenarios share one stack and run at once, each with items, customers and orders of its
//! own; only the one that stops a source (`@serial`) has the stack to itself. No step waits for
//! a time: an answer is asked for at the position of the last write.

mod discrepancies;
mod reading;
mod shop;
mod steps;

use cucumber::World;
use cucumber::writer::Stats;
use fixtures::stack::{Options, Stack};
use shop::Shop;
use tokio::sync::OnceCell;

static STACK: OnceCell<Stack> = OnceCell::const_new();

/// The stack of all scenarios.
async fn stack() -> anyhow::Result<&'static Stack> {
    STACK
        .get_or_try_init(|| {
            Stack::start(Options {
                own_clusters: true,
                ..Options::default()
            })
        })
        .await
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let stack = stack().await?;
    let features = concat!(env!("CARGO_MANIFEST_DIR"), "/features");
    let result = Shop::cucumber()
        .max_concurrent_scenarios(8)
        .fail_on_skipped()
        .run(features)
        .await;
    anyhow::ensure!(
        !result.execution_has_failed(),
        "{:#}",
        stack.explain(anyhow::anyhow!("scenarios failed"))
    );
    tests::rest::agrees(stack).await?;
    println!("at rest the view, the API and the topics agree with the oracle");
    for service in stack.services() {
        service.terminate().await?;
    }
    Ok(())
}
