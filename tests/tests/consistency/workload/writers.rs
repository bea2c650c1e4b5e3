//! The legacy applications, and what else happens to legacy tables, at random from a seed.

use std::time::Duration;

use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio_postgres::{Client, Transaction};

/// A generator for one step of a task of the workload, the same for the same seed: whatever the steps
/// before it needed of theirs.
pub(super) fn random(seed: u64, task: u64, step: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(task << 32 | step);
    random
}

/// 12 to 40 KiB that do not compress, so that PostgreSQL stores them out of line.
fn long_text(random: &mut ChaCha8Rng) -> String {
    let length = random.random_range(12 << 10..40 << 10);
    (0..length)
        .map(|_| char::from(random.random_range(b'!'..b'~')))
        .collect()
}

/// The country of the items that belong to those who read their own writes.
pub(super) const PROBE: &str = "probe";

/// A random item's id, but for the probes'.
async fn pick(writing: &Transaction<'_>, random: &mut ChaCha8Rng) -> Result<i64> {
    let place: f64 = random.random();
    // The next one from a random place between the lowest and the highest id.
    let sql = "select coalesce((select id from wh_item,
                   (select min(id) as low, max(id) as high from wh_item) bounds
               where id >= low + (high - low) * $1::float8 and country_of_origin <> $2
               order by id limit 1), 1)";
    let row = writing.query_one(sql, &[&place, &PROBE]).await?;
    Ok(row.get(0))
}

/// Ends a transaction as applications do: mostly it commits, sometimes late, so that others that
/// began later are first, or without waiting for the disk; rarely it takes everything back.
async fn finish(random: &mut ChaCha8Rng, writing: Transaction<'_>) -> Result<()> {
    if random.random_bool(0.1) {
        tokio::time::sleep(Duration::from_millis(random.random_range(10..400))).await;
    }
    if random.random_bool(0.2) {
        let sql = "set local synchronous_commit = off";
        writing.batch_execute(sql).await?;
    }
    match random.random_bool(0.05) {
        true => writing.rollback().await?,
        false => writing.commit().await?,
    }
    Ok(())
}

/// One transaction that empties a table and fills it again with the rows that `keep` holds for.
/// Who waits for a lock on the table waits before it has one on another.
async fn truncate(client: &mut Client, table: &str, keep: &str) -> Result<()> {
    let writing = client.transaction().await?;
    writing
        .batch_execute(&format!(
            "lock table {table} in access exclusive mode;
             create temporary table kept on commit drop as select * from {table} where {keep};
             truncate {table};
             insert into {table} select * from kept"
        ))
        .await?;
    writing.commit().await?;
    Ok(())
}

/// One transaction in the warehouse.
pub(super) async fn warehouse(random: &mut ChaCha8Rng, client: &mut Client) -> Result<()> {
    if random.random_bool(0.004) {
        return truncate(client, "wh_price", "id % 5 > 0").await;
    }
    let writing = client.transaction().await?;
    let item = pick(&writing, random).await?;
    match random.random_range(0..10) {
        0 => {
            // An item is three commits; here is the first, and maybe never the others.
            let name = format!("new {}", random.random::<u64>());
            let text = long_text(random);
            let sql = "insert into wh_item (name, description, country_of_origin)
                       values ($1, $2, 'here')";
            writing.execute(sql, &[&name, &text]).await?;
        }
        1 => {
            let price = random.random_range(1..100_000_i64);
            let sql = "insert into wh_price (price, item_id)
                       select $1::bigint::numeric / 100, id from wh_item where id = $2";
            writing.execute(sql, &[&price, &item]).await?;
        }
        2 => {
            let quantity = random.random_range(0..500_i32);
            let sql = "insert into wh_quantity (quantity, item_id)
                       select $1, id from wh_item where id = $2";
            writing.execute(sql, &[&quantity, &item]).await?;
        }
        3..6 => {
            // The description is not sent again: several times in one transaction, even.
            for _ in 0..random.random_range(1..4) {
                let name = format!("renamed {}", random.random::<u64>());
                let sql = "update wh_item set name = $1 where id = $2";
                writing.execute(sql, &[&name, &item]).await?;
            }
        }
        6 => {
            let text = long_text(random);
            let sql = "update wh_item set description = $1 where id = $2";
            writing.execute(sql, &[&text, &item]).await?;
        }
        7 => delete_item(&writing, item).await?,
        8 => reuse_item(&writing, random, item).await?,
        _ => {
            // A key change of a row whose long value is not sent again; its children follow.
            let sql =
                "update wh_item set id = nextval('wh_item_id_seq') where id = $1 returning id";
            if let Some(row) = writing.query_opt(sql, &[&item]).await? {
                let new: i64 = row.get(0);
                for table in ["wh_price", "wh_quantity"] {
                    let sql = format!("update {table} set item_id = $1 where item_id = $2");
                    writing.execute(&sql, &[&new, &item]).await?;
                }
            }
        }
    }
    finish(random, writing).await
}

async fn delete_item(writing: &Transaction<'_>, item: i64) -> Result<()> {
    for sql in [
        "delete from wh_price where item_id = $1",
        "delete from wh_quantity where item_id = $1",
        "delete from wh_item where id = $1",
    ] {
        writing.execute(sql, &[&item]).await?;
    }
    Ok(())
}

/// The same key lives again, in the same transaction.
async fn reuse_item(writing: &Transaction<'_>, random: &mut ChaCha8Rng, item: i64) -> Result<()> {
    delete_item(writing, item).await?;
    let (name, text) = (
        format!("again {}", random.random::<u64>()),
        long_text(random),
    );
    let sql = "insert into wh_item (id, name, description, country_of_origin)
               values ($1, $2, $3, 'again')";
    writing.execute(sql, &[&item, &name, &text]).await?;
    let sql = "update wh_item set country_of_origin = 'at once' where id = $1";
    writing.execute(sql, &[&item]).await?;
    Ok(())
}

/// One transaction in sales, on orders of its own.
pub(super) async fn sales(
    random: &mut ChaCha8Rng,
    client: &mut Client,
    own: &mut Vec<i64>,
) -> Result<()> {
    let writing = client.transaction().await?;
    let order = own
        .get(random.random_range(0..own.len().max(1)))
        .copied()
        .unwrap_or_default();
    match random.random_range(0..10) {
        0..4 => own.push(place(&writing, random).await?),
        4 => {
            for sql in [
                "delete from sls_orderdetail where order_id = $1",
                "delete from sls_order where id = $1",
            ] {
                writing.execute(sql, &[&order]).await?;
            }
            own.retain(|id| *id != order);
        }
        5 | 6 => {
            let (cents, quantity) = (random.random_range(1..9_999_i64), random.random_range(1..9));
            let sql = "update sls_orderdetail set unit_price = $1::bigint::numeric / 100,
                       quantity = $2 where order_id = $3";
            writing.execute(sql, &[&cents, &quantity, &order]).await?;
        }
        7 => {
            let to = own
                .get(random.random_range(0..own.len().max(1)))
                .copied()
                .unwrap_or_default();
            let sql = "update sls_orderdetail d set order_id = $1
                       where order_id = $2 and exists (select from sls_order where id = $1)
                       and not exists (select from sls_orderdetail o
                                       where o.order_id = $1 and o.item_id = d.item_id)";
            writing.execute(sql, &[&to, &order]).await?;
        }
        8 => {
            let customer = random.random_range(1..40_i32);
            let sql = "update sls_order set customer_id = $1, date = date - interval '17 hours'
                       where id = $2";
            writing.execute(sql, &[&customer, &order]).await?;
        }
        _ => {
            let sql = "update sls_orderdetail set id = nextval('sls_orderdetail_id_seq')
                       where order_id = $1";
            writing.execute(sql, &[&order]).await?;
        }
    }
    finish(random, writing).await
}

async fn place(writing: &Transaction<'_>, random: &mut ChaCha8Rng) -> Result<i64> {
    let customer = random.random_range(1..40_i32);
    let sql = "insert into sls_order (customer_id, date) values ($1, now()) returning id";
    let order: i64 = writing.query_one(sql, &[&customer]).await?.get(0);
    let first = random.random_range(1..220_i32);
    for line in 0..random.random_range(0..6_i32) {
        let (cents, quantity) = (
            random.random_range(1..50_000_i64),
            random.random_range(1..9),
        );
        let sql = "insert into sls_orderdetail (item_id, unit_price, quantity, order_id)
                   values ($1, $2::bigint::numeric / 100, $3, $4)";
        let item = first + line;
        writing
            .execute(sql, &[&item, &cents, &quantity, &order])
            .await?;
    }
    Ok(order)
}

/// One transaction in accounting.
pub(super) async fn accounting(
    random: &mut ChaCha8Rng,
    client: &mut Client,
    own: &mut Vec<i64>,
) -> Result<()> {
    if random.random_bool(0.003) {
        // Whoever sees the table empty has seen part of this.
        return truncate(client, "ac_transactiondetail", "true").await;
    }
    let writing = client.transaction().await?;
    let transaction = own
        .get(random.random_range(0..own.len().max(1)))
        .copied()
        .unwrap_or_default();
    // Orders of the seed, and some that never were; none of those that are guarded, whose ids
    // follow the seed's.
    let order = match random.random_range(1..2_200_i32) {
        order @ ..=2_001 => order,
        never => 1_000_000 + never,
    };
    let cents = random.random_range(-2_000..50_000_i64);
    match random.random_range(0..8) {
        0..3 => {
            let sql = "insert into ac_transaction (order_id) values ($1) returning id";
            let id: i64 = writing.query_one(sql, &[&order]).await?.get(0);
            for _ in 0..random.random_range(0..3) {
                detail(&writing, id, cents).await?;
            }
            own.push(id);
        }
        3 if transaction != 0 => detail(&writing, transaction, cents).await?,
        4 => {
            let sql = "update ac_transactiondetail set sum = $1::bigint::numeric / 100
                       where transaction_id = $2";
            writing.execute(sql, &[&cents, &transaction]).await?;
        }
        5 => {
            let sql = "update ac_transaction set order_id = $1 where id = $2";
            writing.execute(sql, &[&order, &transaction]).await?;
        }
        6 => {
            for sql in [
                "delete from ac_transactiondetail where transaction_id = $1",
                "delete from ac_transaction where id = $1",
            ] {
                writing.execute(sql, &[&transaction]).await?;
            }
            own.retain(|id| *id != transaction);
        }
        _ => {
            let sql = "update ac_transactiondetail set id = nextval('ac_transactiondetail_id_seq')
                       where transaction_id = $1";
            writing.execute(sql, &[&transaction]).await?;
        }
    }
    finish(random, writing).await
}

async fn detail(writing: &Transaction<'_>, transaction: i64, cents: i64) -> Result<()> {
    // A crash may have taken back what had not waited for the disk.
    let sql = "insert into ac_transactiondetail (sum, date, transaction_id)
               select $1::bigint::numeric / 100, now(), id from ac_transaction where id = $2";
    writing.execute(sql, &[&cents, &transaction]).await?;
    Ok(())
}
