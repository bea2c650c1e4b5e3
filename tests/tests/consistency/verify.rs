//! The view compares itself with the sources while the shop is open: it finds nothing where
//! nothing is wrong, and everything that is.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fixtures::legacy::System;
use fixtures::stack::{Options, Stack};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_finds_what_differs_and_nothing_else() -> Result<()> {
    let stack = Stack::start(Options {
        seed: true,
        ..Options::default()
    })
    .await?;
    let checked = async {
        stack.caught_up().await?;
        busy(&stack).await.context("while the shop is open")?;
        damaged(&stack).await.context("with rows that differ")?;
        cut(&stack).await.context("cut and resumed")?;
        repaired(&stack).await.context("repaired")?;
        each_kind(&stack).await.context("one of each kind")?;
        away(&stack).await.context("with a connector that is away")
    };
    checked.await.map_err(|error| stack.explain(error))
}

/// The report and the exit code.
async fn verify(stack: &Stack, arguments: &[&str]) -> Result<(Value, i32)> {
    let arguments: Vec<_> = ["verify", "--json"]
        .iter()
        .chain(arguments)
        .copied()
        .collect();
    let output = stack.service("aggregator").command(&arguments).await?;
    let code = output.status.code().context("killed")?;
    let report = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((report, code))
}

/// Lines move, prices change and rows come and go, in the ranges that are being compared.
async fn busy(stack: &Stack) -> Result<()> {
    let sales = stack.source(System::Sales).await?;
    let warehouse = stack.source(System::Warehouse).await?;
    let work = async {
        loop {
            sales
                .batch_execute(
                    "update sls_orderdetail set quantity = quantity + 1 where order_id % 40 = 0;
                     begin;
                     insert into sls_order (id, customer_id, date) values (900001, 1, now());
                     commit;
                     delete from sls_order where id = 900001",
                )
                .await?;
            warehouse
                .batch_execute("update wh_price set price = price + 0.01 where id % 5 = 0")
                .await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let compared = async {
        for _ in 0..3 {
            let (report, code) = verify(stack, &[]).await?;
            ensure!(code == 0, "exit code {code}: {report:#}");
            for table in ["sales.sls_orderdetail", "public.orders", "public.customers"] {
                let rows = report["rows"][table].as_u64().unwrap_or_default();
                ensure!(rows > 100, "{rows} rows of {table}: {report:#}");
            }
        }
        Ok(())
    };
    tokio::select! {
        never = work => never,
        compared = compared => compared,
    }
}

/// What somebody did to the view by hand, and what a comparison is to find of it.
async fn damaged(stack: &Stack) -> Result<()> {
    // What the shop did last would mend some of it again.
    stack.caught_up().await?;
    let view = stack.view().await?;
    view.batch_execute(
        "update sales.sls_orderdetail set quantity = quantity + 1000 where id = 17;
         update accounting.ac_transactiondetail set date = date + interval '1 microsecond',
            sum = sum + 0.01 where id = 23;
         delete from warehouse.wh_item where id = 5;
         insert into sales.sls_order (id, customer_id, date) values (800000, 1, now());
         update public.orders set paid = paid + 1 where id = 401;
         delete from public.customers where id = 12;
         insert into public.products (id, unknown, degraded, revision)
            values (700000, '{}', false, '');
         update aggregator.product_totals set units_sold = units_sold + 1 where product_id = 9;
         update public.discrepancies set detail = '{}' where id = 20101;
         delete from public.discrepancies where id = 199904;
         insert into public.discrepancies (id, rule, systems, resource, key, since, detail, unknown,
                degraded, revision)
            values (404, 'overpaid', '{}', 'orders', 4, now(), '{}', '{}', false, '');
         insert into aggregator.part_paid (order_id, since, due)
            values (7000, now(), now() + interval '1 year')",
    )
    .await?;
    let day = view
        .query_one(
            "update public.daily_sales set units = units + 1 where (day, product_id) =
                (select day, product_id from public.daily_sales order by 1 desc, 2 limit 1)
            returning array[day::text, product_id::text]",
            &[],
        )
        .await?;
    let day: Vec<String> = day.get(0);
    let (report, code) = verify(stack, &[]).await?;
    ensure!(code == 1, "exit code {code}: {report:#}");
    let found = report["differences"].as_array().context("no list")?;
    for (table, key, columns) in [
        ("sales.sls_orderdetail", 17, json!(["quantity"])),
        (
            "accounting.ac_transactiondetail",
            23,
            json!(["sum", "date"]),
        ),
        ("warehouse.wh_item", 5, json!(["missing"])),
        ("sales.sls_order", 800_000, json!(["surplus"])),
        ("public.customers", 12, json!(["missing"])),
        ("public.products", 700_000, json!(["surplus"])),
        ("aggregator.product_totals", 9, json!(["units_sold"])),
        ("public.discrepancies", 20_101, json!(["detail"])),
        ("public.discrepancies", 199_904, json!(["missing"])),
        ("public.discrepancies", 404, json!(["surplus"])),
        ("aggregator.part_paid", 7000, json!(["surplus"])),
    ] {
        let difference = json!({"table": table, "key": key, "columns": columns});
        ensure!(found.contains(&difference), "{difference}: {report:#}");
    }
    let difference = json!({"table": "public.daily_sales", "key": day, "columns": ["units"]});
    ensure!(found.contains(&difference), "{difference}: {report:#}");
    let order = found
        .iter()
        .find(|one| one["table"] == "public.orders" && one["key"] == 401);
    let order = order.with_context(|| format!("{report:#}"))?;
    let columns = order["columns"].as_array().context("no columns")?;
    ensure!(columns.contains(&json!("paid")), "{order}");
    let mirrors = found.iter().filter(|one| {
        let table = one["table"].as_str().unwrap_or_default();
        !table.starts_with("public.") && !table.starts_with("aggregator.")
    });
    ensure!(mirrors.count() == 4, "{report:#}");

    // Text for people names the same, and the running aggregator shows it.
    let output = stack.service("aggregator").command(&["verify"]).await?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        text.contains("sales.sls_orderdetail 17: quantity"),
        "{text}"
    );
    let metrics = format!("{}/metrics", stack.service("aggregator").admin_url());
    let metrics = reqwest::get(metrics).await?.text().await?;
    let count = report["difference_count"].as_u64().context("no count")?;
    let line = format!("aggregator_verify_differences {count}");
    ensure!(metrics.contains(&line), "{line}\n{metrics}");
    Ok(())
}

/// Writes the aggregator's configuration to `file` with these settings of `[verify]`.
fn configure(stack: &Stack, file: &Path, settings: &[(&str, i64)]) -> Result<()> {
    let text = std::fs::read_to_string(stack.service("aggregator").config())?;
    let mut config: toml::Table = toml::from_str(&text)?;
    let verify = config.get_mut("verify").context("no [verify]")?;
    let verify = verify.as_table_mut().context("[verify] is no table")?;
    for (key, value) in settings {
        verify.insert((*key).to_owned(), (*value).into());
    }
    Ok(std::fs::write(file, toml::to_string(&config)?)?)
}

/// A run that was killed goes on, and finds what it had found before once.
async fn cut(stack: &Stack) -> Result<()> {
    let whole = verify(stack, &["--source", "sales"]).await?.0;
    let file = stack.folder().join("progress.json");
    let path = file.to_str().context("no text")?;
    let slow = stack.folder().join("slow.toml");
    configure(
        stack,
        &slow,
        &[("rows_per_second", 1500), ("chunk_rows", 100)],
    )?;
    let mut run = stack.service("aggregator").spawn_command(
        &slow,
        &["verify", "--json", "--source", "sales", "--resume", path],
    )?;
    // Until some of the lines have been compared.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let text = std::fs::read(&file).unwrap_or_default();
        let state: Value = serde_json::from_slice(&text).unwrap_or_default();
        if state["tables"]["sales.sls_orderdetail"]["after"].is_i64() {
            break;
        }
        ensure!(Instant::now() < deadline, "{state}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    run.start_kill()?;
    run.wait().await?;
    let (report, code) = verify(stack, &["--source", "sales", "--resume", path]).await?;
    ensure!(code == 1, "exit code {code}: {report:#}");
    for part in ["rows", "differences", "difference_count"] {
        ensure!(report[part] == whole[part], "{report:#}\n{whole:#}");
    }
    ensure!(!file.exists(), "{path} is left");
    Ok(())
}

/// The connectors read what differs again; what they cannot mend the aggregator does.
async fn repaired(stack: &Stack) -> Result<()> {
    let aggregator = stack.service("aggregator");
    let output = aggregator.command(&["verify", "--repair"]).await?;
    let steps = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "{:?}\n{steps}", output.status);
    for step in [
        "public.sls_orderdetail reads 1 rows again",
        "public.wh_item reads 1 rows again",
        // A row that neither source nor topic ever had.
        "reads the topics of sales again",
        "computes 2 rows of public.customers again",
    ] {
        ensure!(steps.contains(step), "{step}: {steps}");
    }
    ensure!(
        !steps.contains("warehouse again") && !steps.contains("accounting again"),
        "{steps}"
    );
    let (report, code) = verify(stack, &[]).await?;
    ensure!(code == 0, "exit code {code}: {report:#}");
    Ok(())
}

/// In a mirror and in every unified table one row is changed, one deleted, one inserted: each is
/// found, named by table, key and column, and repaired.
async fn each_kind(stack: &Stack) -> Result<()> {
    let view = stack.view().await?;
    let mut expected: Vec<(&str, Value, &str)> = Vec::new();
    for (table, column, value, inserted) in [
        (
            "warehouse.wh_price",
            "price",
            "price + 1",
            "(id, price, item_id) values ($1, 1, 1)",
        ),
        (
            "public.products",
            "revenue",
            "revenue + 1",
            "(id, unknown, degraded, revision) values ($1, '{}', false, '')",
        ),
        (
            "public.transactions",
            "amount",
            "amount + 1",
            "(id, unknown, degraded, revision) values ($1, '{}', false, '')",
        ),
        (
            "public.orders",
            "total",
            "total + 1",
            "(id, unknown, degraded, revision) values ($1, '{}', false, '')",
        ),
        (
            "public.customers",
            "ordered",
            "ordered + 1",
            "(id, unknown, degraded, revision) values ($1, '{}', false, '')",
        ),
        (
            "public.discrepancies",
            "systems",
            "'{}'",
            "values ($1, 'overpaid', '{}', 'orders', 7000000, now(), '{}', '{}', false, '')",
        ),
    ] {
        // Not those of the rows that are changed here.
        let order = if table == "public.discrepancies" {
            "asc"
        } else {
            "desc"
        };
        let sql = format!("select id from {table} order by id {order} limit 2");
        let ids = view.query(&sql, &[]).await?;
        let [changed, deleted] = ids.as_slice() else {
            bail!("{table} has less than two rows");
        };
        let (changed, deleted): (i64, i64) = (changed.get(0), deleted.get(0));
        let new = 700_000_004_i64;
        let change = format!("update {table} set {column} = {value} where id = $1");
        view.execute(&change, &[&changed]).await?;
        let delete = format!("delete from {table} where id = $1");
        view.execute(&delete, &[&deleted]).await?;
        let insert = format!("insert into {table} {inserted}");
        view.execute(&insert, &[&new]).await?;
        expected.push((table, json!(changed), column));
        expected.push((table, json!(deleted), "missing"));
        expected.push((table, json!(new), "surplus"));
    }
    let table = "public.daily_sales";
    let days = view
        .query(
            "select array[day::text, product_id::text] from public.daily_sales
            order by day, product_id limit 2",
            &[],
        )
        .await?;
    let days: Vec<Vec<String>> = days.iter().map(|row| row.get(0)).collect();
    let by_day = "(day, product_id) = ($1::text::date, $2::text::bigint)";
    for (sql, day, column) in [
        (
            format!("update {table} set revenue = revenue + 1 where {by_day}"),
            &days[0],
            "revenue",
        ),
        (
            format!("delete from {table} where {by_day}"),
            &days[1],
            "missing",
        ),
        (
            format!(
                "insert into {table} values ($1::text::date, $2::text::bigint, 1, 1, 1, '{{}}', false, '')"
            ),
            &vec!["1999-01-01".to_owned(), "1".to_owned()],
            "surplus",
        ),
    ] {
        view.execute(&sql, &[&day[0], &day[1]]).await?;
        expected.push((table, json!(day), column));
    }
    let (report, code) = verify(stack, &[]).await?;
    ensure!(code == 1, "exit code {code}: {report:#}");
    let found = report["differences"].as_array().context("no list")?;
    for (table, key, column) in expected {
        let one = found
            .iter()
            .find(|one| one["table"] == table && one["key"] == key);
        let columns = one.and_then(|one| one["columns"].as_array());
        ensure!(
            columns.is_some_and(|columns| columns.contains(&json!(column))),
            "{table} {key} {column}: {report:#}"
        );
    }
    let aggregator = stack.service("aggregator");
    let output = aggregator.command(&["verify", "--repair"]).await?;
    ensure!(output.status.success(), "{output:?}");
    let (report, code) = verify(stack, &[]).await?;
    ensure!(code == 0, "exit code {code}: {report:#}");
    Ok(())
}

/// What cannot be compared is said; what can is.
async fn away(stack: &Stack) -> Result<()> {
    let connector = stack.service("connector-sales");
    connector.terminate().await?;
    let sales = stack.source(System::Sales).await?;
    sales
        .execute("update sls_order set customer_id = 3 where id = 3", &[])
        .await?;
    let file = stack.service("aggregator").config().to_owned();
    configure(stack, &file, &[("wait_max_ms", 5_000)])?;
    let (report, code) = verify(stack, &[]).await?;
    ensure!(code == 2, "exit code {code}: {report:#}");
    let why = report["not_compared"][0]["why"]
        .as_str()
        .unwrap_or_default();
    ensure!(why.contains("is its connector running?"), "{report:#}");
    ensure!(
        report["rows"]["warehouse.wh_item"].as_u64() >= Some(200),
        "{report:#}"
    );
    connector.start()
}
