//! Who looks while the workload runs: at the view's tables, at the API, at the topics; and who
//! writes and must find what it wrote.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fixtures::legacy::System;
use fixtures::stack::current_lsn;
use kafka::Lsn;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tests::api::{Answer, Api, Positions};
use tests::oracle::UNIFIED;
use tests::rest;
use tests::session::Session;
use tests::topics::Reader;
use tokio_postgres::Client;

use super::guarded::{Guarded, Seen};
use super::shop::Shop;
use super::writers::PROBE;
use super::{ENOUGH, quiet};

/// Between two looks of a watcher that nothing paces: the two cores are for the stack.
const PACE: Duration = Duration::from_millis(5);

/// Looks into the view's database, one snapshot a look. Returns how often.
pub(super) async fn view(shop: &Shop) -> Result<u64> {
    let Shop {
        stack,
        guarded,
        stop,
        ..
    } = shop;
    let mut session = Session::new(stack.view_url());
    let orders = in_list(guarded.all_orders());
    let customers = in_list(guarded.customers.iter().map(|id| i64::from(*id)));
    let transactions = in_list(
        guarded
            .transactions
            .iter()
            .chain(&guarded.payments)
            .copied(),
    );
    // One statement is one snapshot.
    let sql = format!(
        "select id, jsonb_build_object('kind', 'orders', 'row', jsonb_build_object('id', id,
             'total', total::text, 'lines', lines))::text from public.orders where id in ({orders})
         union all
         select -id, jsonb_build_object('kind', 'customers', 'row', jsonb_build_object('id', id,
             'ordered', ordered::text, 'paid', coalesce(paid, 0)::text))::text
             from public.customers where id in ({customers})
         union all
         select 1000000000 + id, jsonb_build_object('kind', 'transactions', 'row',
             jsonb_build_object('id', id, 'amount', amount::text))::text
             from public.transactions where id in ({transactions})"
    );
    let mut looks = 0;
    while !stop.is_cancelled() {
        let Some(client) = session.client().await? else {
            continue;
        };
        let rows = client.query(&sql, &[]).await;
        let Some(rows) = session.settle(rows.map_err(Into::into))? else {
            continue;
        };
        let mut seen = Seen::default();
        for row in rows {
            let mut row: Value = serde_json::from_str(row.get(1))?;
            let (kind, row) = (row["kind"].take(), row["row"].take());
            let id = row["id"].as_i64().context("no id")?;
            match kind.as_str() {
                Some("orders") => seen.orders.insert(id, row),
                Some("customers") => seen.customers.insert(id, row),
                _ => seen.transactions.insert(id, row),
            };
        }
        ensure!(
            seen.orders.len() == guarded.all_orders().len()
                && seen.customers.len() == guarded.customers.len(),
            "the view lost a row: {seen:?}"
        );
        guarded
            .check(&seen)
            .context("in one snapshot of the view")?;
        looks += 1;
        tokio::time::sleep(PACE).await;
    }
    Ok(looks)
}

fn in_list(ids: impl IntoIterator<Item = i64>) -> String {
    let ids: Vec<_> = ids.into_iter().map(|id| id.to_string()).collect();
    ids.join(", ")
}

/// Asks the API's instances, each guarded row in its turn, with the position of the answer before as
/// the least. Returns how often it was answered.
pub(super) async fn api(shop: &Shop) -> Result<u64> {
    let Shop { guarded, stop, .. } = shop;
    let apis = shop.apis.iter().map(Api::new).collect::<Result<Vec<_>>>()?;
    let mut paths = Vec::new();
    for id in guarded.all_orders() {
        paths.push(("orders", id));
    }
    for id in &guarded.customers {
        paths.push(("customers", i64::from(*id)));
    }
    for id in guarded.transactions.iter().chain(&guarded.payments) {
        paths.push(("transactions", *id));
    }
    let (mut looks, mut before) = (0, None::<Answer>);
    for ((kind, id), api) in paths.iter().cycle().zip(apis.iter().cycle()) {
        if stop.is_cancelled() {
            break;
        }
        let path = format!("/v1/{kind}/{id}?max_wait_ms=10000");
        // Every third request is one that any instance may answer from its cache.
        let minimum = before.as_ref().filter(|_| looks % 3 > 0);
        let minimum = minimum.map(|answer| answer.view_position.as_str());
        let Ok(answer) = api.get(&path, minimum).await else {
            tokio::time::sleep(PACE).await;
            continue;
        };
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            tokio::time::sleep(PACE).await;
            continue;
        }
        ensure!(answer.status == StatusCode::OK, "{path}: {}", answer.body);
        if let (Some(_), Some(before)) = (minimum, &before) {
            not_before(&before.positions, &answer).with_context(|| path.clone())?;
        }
        let mut seen = Seen::default();
        let row = answer.body.clone();
        match *kind {
            "orders" => seen.orders.insert(*id, row),
            "customers" => seen.customers.insert(*id, row),
            _ => seen.transactions.insert(*id, row),
        };
        let context = || format!("{path} at {}", answer.view_position);
        guarded.check(&seen).with_context(context)?;
        before = Some(answer);
        looks += 1;
        tokio::time::sleep(PACE).await;
    }
    Ok(looks)
}

/// Asks the API for lists: a page shows one revision, so several rows of it must fit together.
pub(super) async fn lists(shop: &Shop) -> Result<u64> {
    let Shop {
        stack,
        guarded,
        stop,
        ..
    } = shop;
    let api = Api::new(stack.api_url())?;
    let last = guarded.all_orders().into_iter().max().unwrap_or_default();
    // The guarded orders stand together, so a cursor to before them makes a page with all.
    let first = guarded.all_orders().into_iter().min().unwrap_or_default();
    let (mut path, mut looks) = (None::<String>, 0);
    while !stop.is_cancelled() {
        tokio::time::sleep(PACE).await;
        let Some(page) = &path else {
            path = cursor_before(&api, first).await?;
            continue;
        };
        let Ok(answer) = api.get(page, None).await else {
            continue;
        };
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            continue;
        }
        ensure!(answer.status == StatusCode::OK, "{page}: {}", answer.body);
        let mut seen = Seen::default();
        for row in answer.body["data"].as_array().context("no data")? {
            let id = row["id"].as_i64().context("no id")?;
            if (first..=last).contains(&id) {
                seen.orders.insert(id, row.clone());
            }
        }
        let missing = guarded
            .all_orders()
            .into_iter()
            .find(|id| !seen.orders.contains_key(id));
        ensure!(missing.is_none(), "{page} lost the order {missing:?}");
        let context = || format!("one page at {}", answer.view_position);
        guarded.check(&seen).with_context(context)?;
        looks += 1;
    }
    Ok(looks)
}

/// A page that begins with the order `first` or a little before it, where it is there.
async fn cursor_before(api: &Api, first: i64) -> Result<Option<String>> {
    let mut path = "/v1/orders?limit=100".to_owned();
    loop {
        let page = api.patient(&path, None).await?.body;
        let data = page["data"].as_array().context("no data")?;
        if data.iter().any(|row| row["id"] == json!(first)) {
            return Ok(Some(path.replace("limit=100", "limit=300")));
        }
        match page["next_cursor"].as_str() {
            None => return Ok(None),
            Some(cursor) => path = format!("/v1/orders?limit=100&cursor={cursor}"),
        }
    }
}

/// Follows a source's checkpoints. Returns the reader, which goes on at rest.
pub(super) async fn topics(shop: &Shop, source: &str) -> Result<Reader> {
    let Shop {
        stack,
        guarded,
        stop,
        ..
    } = shop;
    let mut reader = Reader::from_the_beginning(stack, source)?;
    loop {
        let step = tokio::select! {
            () = stop.cancelled() => return Ok(reader),
            step = reader.step() => step?,
        };
        let Some(checkpoint) = step else { continue };
        let at = checkpoint.at();
        let checked = match source {
            "sales" => guarded.check_sales_topics(&reader),
            "unified" => check_unified(guarded, &reader),
            _ => Ok(()),
        };
        checked.with_context(|| format!("a reader of {source} at {at}"))?;
    }
}

fn check_unified(guarded: &Guarded, reader: &Reader) -> Result<()> {
    let seen = |table: &str| -> Result<BTreeMap<i64, Value>> {
        // While a source is being loaded its fields are null and no total is claimed; nor of a row
        // one of whose inputs cannot be applied.
        let known = reader
            .table(&format!("public.{table}"))
            .iter()
            .filter(|(_, row)| row["unknown"] == json!("{}") && row["degraded"] == json!(false))
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect();
        let table = UNIFIED.into_iter().find(|one| one.table == table);
        let rows = rest::unified(table.context("no such table")?, &known)?;
        let by_id = rows.into_values().map(|row| {
            let id = row["id"].as_i64().context("no id")?;
            Ok((id, row))
        });
        by_id.collect()
    };
    guarded.check(&Seen {
        orders: seen("orders")?,
        customers: seen("customers")?,
        transactions: seen("transactions")?,
    })
}

/// Writes a number, again and again, and must each time read that number. Returns how often: at least
/// [`ENOUGH`] where nobody says how often, since a fault may hold each of them up, and none does at the end.
pub(super) async fn read_own_writes(shop: &Shop, system: System, each: Option<u64>) -> Result<u64> {
    let Shop { stack, stop, .. } = shop;
    let api = Api::new(stack.api_url())?;
    let mut session = Session::new(stack.source_url(system));
    let Probe { write, path } = shop.probes.of(system);
    let mut put_back = shop.put_back(system);
    // Once the source was put back: the one that goes on from there, and a colon.
    let mut epoch = String::new();
    let mut last = None::<Answer>;
    let mut number = 0_i32;
    let goes_on = |number| match each {
        Some(each) => number < each && !stop.is_cancelled(),
        None => number < ENOUGH && !shop.failed.is_cancelled() || !stop.is_cancelled(),
    };
    while goes_on(u64::try_from(number)?) {
        number += 1;
        if put_back.has_changed()? {
            put_back.borrow_and_update();
            // From before, the view may stand further on in the log than what is written now.
            match quiet::epoch(stack, system).await {
                Ok(now) => epoch = format!("{now}:"),
                Err(_) => put_back.mark_changed(),
            }
            continue;
        }
        let open = shop.open().await;
        let Some(client) = session.client().await? else {
            continue;
        };
        let lsn = async {
            client.execute(write, &[&number]).await?;
            current_lsn(client).await
        };
        let lsn = lsn.await;
        let Some(lsn) = session.settle(lsn)? else {
            continue;
        };
        drop(open);
        let minimum = format!("{}={epoch}{lsn}", system.name());
        let answer = tokio::select! {
            answer = api.patient(path, Some(&minimum)) => answer?,
            changed = put_back.changed() => {
                changed?;
                put_back.mark_changed();
                continue;
            }
        };
        if put_back.has_changed()? {
            continue;
        }
        ensure!(answer.status == StatusCode::OK, "{path}: {}", answer.body);
        let seen = match system {
            System::Warehouse => answer.body["quantity_in_stock"].clone(),
            System::Sales => answer.body["lines"][0]["quantity"].clone(),
            System::Accounting => answer.body["order_id"].clone(),
        };
        ensure!(
            seen == json!(number),
            "wrote {number} in {}, asked at {lsn}, and read at {}: {}",
            system.name(),
            answer.view_position,
            answer.body
        );
        let position = answer.positions.get(system.name()).copied().flatten();
        ensure!(
            position
                .is_some_and(|position| lsn.parse::<Lsn>().is_ok_and(|lsn| position.lsn >= lsn)),
            "asked at {lsn}, answered at {}",
            answer.view_position
        );
        // Whoever passes on where it has been never goes back, whichever row it asks for.
        if let Some(last) = &last {
            let path = format!("/v1/products/{}?max_wait_ms=10000", number % 200 + 1);
            let answer = api.patient(&path, Some(&last.view_position)).await?;
            not_before(&last.positions, &answer)?;
        }
        last = Some(answer);
    }
    Ok(u64::try_from(number)?)
}

/// A row of somebody's own.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    /// The statement that writes a number to it.
    write: String,
    /// Where it is read.
    path: String,
}

/// Makes one.
pub(super) async fn probe(client: &Client, system: System) -> Result<Probe> {
    let probe_item = format!(
        "with item as (insert into wh_item (name, description, country_of_origin)
             values ('probe', '', '{PROBE}') returning id)
         insert into wh_quantity (quantity, item_id) select 0, id from item returning item_id"
    );
    let (make, write, path) = match system {
        System::Warehouse => (
            probe_item.as_str(),
            "update wh_quantity set quantity = $1 where item_id = ",
            "products",
        ),
        System::Sales => (
            "with made as (insert into sls_order (customer_id, date) values (940001, now())
                 returning id)
             insert into sls_orderdetail (item_id, unit_price, quantity, order_id)
                 select 7, 1.00, 0, id from made returning order_id",
            "update sls_orderdetail set quantity = $1 where order_id = ",
            "orders",
        ),
        System::Accounting => (
            "insert into ac_transaction (order_id) values (0) returning id",
            "update ac_transaction set order_id = $1 where id = ",
            "transactions",
        ),
    };
    let id: i64 = client.query_one(make, &[]).await?.get(0);
    let path = format!("/v1/{path}/{id}?max_wait_ms=10000");
    Ok(Probe {
        write: format!("{write}{id}"),
        path,
    })
}

fn not_before(least: &Positions, answer: &Answer) -> Result<()> {
    for (source, least) in least {
        let position = answer.positions.get(source).copied().flatten();
        ensure!(
            position >= *least,
            "{source} went back from {least:?}: {}",
            answer.view_position
        );
    }
    Ok(())
}
