//! The oracle decides every other test here, so it is held against what is known of the seed rows
//! by their construction.

use anyhow::Result;
use fixtures::legacy::rows::odd;
use fixtures::stack::{Options, Stack};
use serde_json::{Value, json};
use tests::oracle::{Oracle, Part};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oracle_knows_the_oddities_of_the_seed() -> Result<()> {
    let stack = Stack::start(Options {
        seed: true,
        stopped: true,
        ..Options::default()
    })
    .await?;
    let oracle = Oracle::read(&stack).await?;
    let row = |table: &str, id: i64| oracle.unified[table].get(&vec![Part::Number(id)]).cloned();
    let field = |table: &str, id: i64, name: &str| row(table, id).map(|mut row| row[name].take());

    let gone = row("products", odd::ITEM_GONE).unwrap_or_default();
    assert_eq!(gone["status"], "delisted");
    assert_eq!(gone["name"], Value::Null);
    assert!(gone["units_sold"].as_i64() > Some(0), "{gone}");
    assert_eq!(
        field("products", odd::ITEM_WITHOUT_PRICE, "price"),
        Some(Value::Null)
    );
    assert_eq!(row("orders", odd::ORDER_THAT_NEVER_WAS), None);
    let empty = row("orders", odd::ORDER_WITHOUT_LINES).unwrap_or_default();
    assert_eq!(
        (&empty["total"], &empty["lines"]),
        (&json!("0.00"), &json!([]))
    );
    let status = |order| field("orders", order, "payment_status");
    assert_eq!(status(odd::ORDER_PAID_IN_PARTS), Some(json!("paid")));
    assert_eq!(status(odd::ORDER_OVERPAID), Some(json!("overpaid")));
    // The payment for the order that never was is the last one.
    let payments = oracle.unified["transactions"].last_key_value();
    let payment = payments.and_then(|(_, row)| row["id"].as_i64());
    let mut expected = vec![
        odd::ITEM_GONE * 100 + 1,
        payment.unwrap_or_default() * 100 + 2,
        odd::ORDER_OVERPAID * 100 + 4,
    ];
    expected.sort_unstable();
    let open = oracle.unified["discrepancies"].values();
    let open: Vec<_> = open.filter_map(|row| row["id"].as_i64()).collect();
    assert_eq!(open, expected);
    assert_eq!(
        oracle.unified["orders"].len(),
        oracle.sources["sales.public.sls_order"].len()
    );
    Ok(())
}
