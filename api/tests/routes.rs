//! Every route, and every way to ask wrongly.

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::instance::{Answer, Instance};
use crate::harness::world::World;

/// Some rows of each table. Orders 1 and 2 are as new as sales and accounting make them, order 3
/// as it is before accounting was read.
pub(crate) async fn seed(world: &World) -> Result<()> {
    world
        .view
        .batch_execute(
            "INSERT INTO public.products
             SELECT id, 'item ' || id, 'text', 'Norway', 2.5 * id, 10, id % 4, 5, 'listed', '{}',
                 false, '1700000000-000000000001'
             FROM generate_series(1, 60) id;
             INSERT INTO public.products VALUES
                 (61, NULL, NULL, NULL, NULL, NULL, 3, 7.125, 'delisted', '{}', true,
                 '1700000000-000000000001');
             INSERT INTO public.orders VALUES
                 (1, 5, '1965-01-01T12:00:00.5+02',
                 '[{\"amount\": \"5.00\", \"id\": 1, \"product_id\": 1, \"quantity\": 2, \"unit_price\": \"2.50\"}]',
                 5, '[{\"amount\": \"5.00\", \"id\": 9, \"details\":
                     [{\"amount\": \"5.00\", \"booked_at\": \"2020-01-01T00:00:00.000000Z\", \"id\": 8}]}]',
                 5, 0, 'paid', '{}', false, '1700000000-000000000001'),
                 (2, 5, '0044-03-15 BC UTC', '[]', 0, '[]', 0, 0, 'paid', '{}', false, '1700000000-000000000001'),
                 (3, 5, '2020-01-01 UTC', '[]', 0, NULL, NULL, NULL, NULL,
                 '{balance,paid,payment_status,transactions}', false, '1700000000-000000000001');
             INSERT INTO public.customers VALUES (1, 0, 0, 0, 0, '{}', false, '1700000000-000000000001'),
                 (5, 3, 5, 5, 0, '{}', false, '1700000000-000000000001');
             INSERT INTO public.transactions VALUES
                 (1, 999, 5, '[{\"amount\": \"5.00\", \"booked_at\": \"2020-01-01T00:00:00.000000Z\", \"id\": 8}]',
                 '{}', false, '1700000000-000000000001');
             INSERT INTO public.daily_sales
             SELECT day::date, product, 2, 3, 74.7, '{}', false, '1700000000-000000000001'
             FROM generate_series('2020-01-30'::timestamp, '2020-02-01', '1 day') day,
                 generate_series(1, 3) product;
             INSERT INTO public.daily_sales VALUES
                 ('2018-01-01', 144, 1, 6, 49.08, '{}', false, '1700000000-000000000001'),
                 ('0044-03-15 BC', 7, 1, 1, 5, '{}', true, '1700000000-000000000001'),
                 ('12020-01-01', 7, 1, 1, 5, '{}', false, '1700000000-000000000001');
             INSERT INTO public.discrepancies VALUES
                 (104, 'overpaid', '{accounting,sales}', 'orders', 1, '2020-01-01T00:00:00.5Z',
                 '{\"total\": \"5.00\", \"paid\": \"6.00\"}', '{}', false,
                 '1700000000-000000000001'),
                 (205, 'negative_stock', '{warehouse}', 'products', 2, '2020-01-01 UTC',
                 '{\"quantity_in_stock\": -1}', '{}', false, '1700000000-000000000001'),
                 (20101, 'item_missing', '{sales,warehouse}', 'products', 201, '2020-01-01 UTC',
                 '{\"order_lines\": 1}', '{}', false, '1700000000-000000000001'),
                 (20201, 'item_missing', '{sales,warehouse}', 'products', 202, '2020-01-01 UTC',
                 '{\"order_lines\": 1}', '{}', false, '1700000000-000000000001');
             UPDATE public.positions SET epoch = 1700000000, lsn = '0/1A', lag_bytes = 16, current_at = now()
             WHERE source = 'sales'",
        )
        .await?;
    Ok(())
}

async fn begin(environment: &[(&str, &str)]) -> Result<Instance> {
    let world = World::new().await?;
    seed(&world).await?;
    Instance::start(&world, environment).await
}

fn ids(page: &Value) -> Vec<i64> {
    let rows = page["data"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    rows.iter().filter_map(|row| row["id"].as_i64()).collect()
}

#[tokio::test]
async fn every_resource_answers_a_list_and_one() -> Result<()> {
    let instance = begin(&[]).await?;
    for (resource, count) in [
        ("products", 50),
        ("orders", 3),
        ("customers", 2),
        ("transactions", 1),
        ("sold-items", 46),
    ] {
        let list = instance.get(&format!("/v1/{resource}")).await?;
        ensure!(list.status == 200, "{resource}: {list:?}");
        ensure!(list.header("view-position") == Some("accounting=none, sales=1700000000:0/1A"));
        let page = list.json()?;
        ensure!(ids(&page).len() == count, "{resource}: {page}");
        let one = instance.get(&format!("/v1/{resource}/1")).await?;
        ensure!(one.header("view-position") == list.header("view-position"));
        ensure!(one.header("content-type") == Some("application/json"));
        let row = page["data"]
            .as_array()
            .and_then(|rows| rows.iter().find(|row| row["id"] == 1));
        ensure!(Some(&one.json()?) == row, "{resource}: {one:?}");
        let none = instance.get(&format!("/v1/{resource}/1000")).await?;
        none.problem(404, "not_found")?;
    }
    Ok(())
}

#[tokio::test]
async fn discrepancies_are_listed_by_rule_and_by_system() -> Result<()> {
    let instance = begin(&[]).await?;
    for (query, expected) in [
        ("", &[104, 205, 20_101, 20_201][..]),
        ("rule=item_missing", &[20_101, 20_201]),
        ("rule=part_paid_too_long", &[]),
        ("system=sales", &[104, 20_101, 20_201]),
        ("system=accounting&rule=item_missing", &[]),
        ("system=sales&rule=overpaid", &[104]),
    ] {
        // In pages of one, the filters with each cursor.
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/discrepancies?limit=1&{query}{cursor}");
            let page = instance.get(path.trim_end_matches('&')).await?.json()?;
            found.extend(ids(&page));
            match page["next_cursor"].as_str() {
                Some(next) => {
                    let separator = if query.is_empty() { "" } else { "&" };
                    cursor = format!("{separator}cursor={next}");
                }
                None => break,
            }
        }
        ensure!(found == expected, "{query}: {found:?}");
    }
    for query in ["rule=item", "system=nobody", "rule="] {
        let answer = instance.get(&format!("/v1/discrepancies?{query}")).await?;
        answer.problem(400, "invalid_parameter")?;
    }
    let answer = instance.get("/v1/orders?rule=overpaid").await?;
    answer.problem(400, "unknown_parameter")?;
    instance
        .get("/v1/discrepancies/1")
        .await?
        .problem(404, "not_found")?;
    Ok(())
}

#[tokio::test]
async fn rows_are_as_the_model_says() -> Result<()> {
    let instance = begin(&[]).await?;
    let one = async |path: &str| instance.get(path).await?.json();
    insta::assert_json_snapshot!(
        "rows",
        json!({
            "product": one("/v1/products/1").await?,
            "delisted product": one("/v1/products/61").await?,
            "order": one("/v1/orders/1").await?,
            "order before our era": one("/v1/orders/2").await?["ordered_at"],
            "order while accounting loads": one("/v1/orders/3").await?,
            "customer": one("/v1/customers/5").await?,
            "transaction": one("/v1/transactions/1").await?,
            "daily sales": one("/v1/daily-sales/2020-01-31/2").await?,
            "discrepancy": one("/v1/discrepancies/104").await?,
        })
    );
    instance
        .get("/v1/sold-items/4")
        .await?
        .problem(404, "not_found")?;
    Ok(())
}

#[tokio::test]
async fn pages_go_through_a_list_and_stay_stable_under_inserts() -> Result<()> {
    let world = World::new().await?;
    seed(&world).await?;
    let instance = Instance::start(&world, &[]).await?;
    let mut seen = Vec::new();
    let mut path = "/v1/products?limit=20".to_owned();
    loop {
        let page = instance.get(&path).await?.json()?;
        seen.extend(ids(&page));
        // What comes in behind the cursor moves nothing that is still to come.
        world
            .view
            .execute(
                "INSERT INTO public.products (id, unknown, degraded, revision) VALUES ($1, '{}', false, '')",
                &[&-i64::try_from(seen.len())?],
            )
            .await?;
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/products?limit=20&cursor={cursor}"),
            None => break,
        }
    }
    ensure!(seen == (1..=61).collect::<Vec<_>>(), "{seen:?}");
    let mut sold = Vec::new();
    let mut path = "/v1/sold-items?limit=7".to_owned();
    loop {
        let page = instance.get(&path).await?.json()?;
        for row in page["data"].as_array().context("data")? {
            sold.push((
                -row["units_sold"].as_i64().context("units")?,
                row["id"].as_i64().context("id")?,
            ));
        }
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/sold-items?limit=7&cursor={cursor}"),
            None => break,
        }
    }
    ensure!(sold.len() == 46 && sold.is_sorted(), "{sold:?}");
    let cursor = instance.get("/v1/products?limit=20").await?.json()?["next_cursor"].clone();
    let cursor = cursor.as_str().context("a cursor")?.to_owned();
    let elsewhere = instance.get(&format!("/v1/orders?cursor={cursor}")).await?;
    ensure!(elsewhere.problem(400, "invalid_cursor")?["parameter"] == "cursor");
    let damaged = instance
        .get(&format!("/v1/products?cursor=B{}", &cursor[1..]))
        .await?;
    damaged.problem(400, "invalid_cursor")?;
    Ok(())
}

#[tokio::test]
async fn each_wrong_request_is_told_what_is_wrong() -> Result<()> {
    let instance = begin(&[]).await?;
    let long = format!("/v1/orders?cursor={}", "x".repeat(5000));
    for (path, status, code, parameter) in [
        ("/v1/orders?limt=5", 400, "unknown_parameter", Some("limt")),
        (
            "/v1/orders/1?limit=5",
            400,
            "unknown_parameter",
            Some("limit"),
        ),
        (
            "/v1/status?limit=5",
            400,
            "unknown_parameter",
            Some("limit"),
        ),
        (
            "/v1/orders?limit=5&limit=6",
            400,
            "duplicate_parameter",
            Some("limit"),
        ),
        (
            "/v1/orders?limit=0",
            400,
            "invalid_parameter",
            Some("limit"),
        ),
        (
            "/v1/orders?limit=4294967296",
            400,
            "invalid_parameter",
            Some("limit"),
        ),
        (
            "/v1/orders?max_wait_ms=10001",
            400,
            "invalid_parameter",
            Some("max_wait_ms"),
        ),
        ("/v1/orders?cursor=", 400, "invalid_cursor", Some("cursor")),
        ("/v1/orders/x", 400, "invalid_id", Some("id")),
        ("/v1/orders/%FF", 400, "invalid_id", Some("id")),
        (
            "/v1/orders/9223372036854775808",
            400,
            "invalid_id",
            Some("id"),
        ),
        ("/v1/orders/-1", 404, "not_found", None),
        ("/v1/orders/", 404, "no_such_route", None),
        ("/v1/ordres", 404, "no_such_route", None),
        (&long, 414, "uri_too_long", None),
    ] {
        let problem = instance.get(path).await?.problem(status, code)?;
        ensure!(
            problem["parameter"].as_str() == parameter,
            "{path}: {problem}"
        );
    }
    for (minimum, named) in [
        ("sale=0/0", "\"sale\""),
        ("sales", "\"sales\""),
        ("sales=0/0,sales=0/0", "twice"),
    ] {
        let answer = instance
            .get_with("/v1/orders", &[("min-position", minimum)])
            .await?;
        let problem = answer.problem(400, "invalid_min_position")?;
        ensure!(problem["parameter"] == "Min-Position");
        ensure!(
            problem["detail"]
                .as_str()
                .is_some_and(|text| text.contains(named)),
            "{problem}"
        );
    }
    for method in [Method::POST, Method::DELETE, Method::OPTIONS] {
        let answer = instance.send(method, "/v1/orders/1", &[]).await?;
        answer.problem(405, "method_not_allowed")?;
        ensure!(
            answer
                .header("allow")
                .is_some_and(|methods| methods.contains("GET")),
            "{answer:?}"
        );
    }
    let url = format!("http://{}/v1/orders/1", instance.host());
    let large = reqwest::Client::new()
        .get(url)
        .body(vec![0; 20_000])
        .send()
        .await?;
    let problem: Value = serde_json::from_slice(&large.bytes().await?)?;
    ensure!(problem["code"] == "body_too_large", "{problem}");
    Ok(())
}

#[tokio::test]
async fn the_document_its_pages_and_the_admin_port_answer() -> Result<()> {
    let instance = begin(&[]).await?;
    let document = instance.get("/openapi.json").await?;
    ensure!(document.json()?["openapi"] == "3.1.0");
    ensure!(document.header("view-position").is_some());
    let pages = instance.get("/docs/").await?;
    ensure!(
        pages.status == 200 && pages.text.contains("swagger-ui"),
        "{pages:?}"
    );
    for (path, to) in [("/", "/docs/"), ("/docs", "/docs/")] {
        let moved = instance.get(path).await?;
        ensure!(
            moved.status == 303 && moved.header("location") == Some(to),
            "{moved:?}"
        );
    }
    let script = instance.get("/docs/swagger-initializer.js").await?;
    ensure!(script.text.contains("/openapi.json"), "{script:?}");
    ensure!(instance.admin("/livez").await?.status == 200);
    ensure!(instance.admin("/readyz").await?.status == 200);
    instance.get("/v1/orders/1").await?;
    let requests = "http_requests_total{route=\"/v1/orders/{id}\",method=\"GET\",status=\"200\"}";
    ensure!(
        instance.metric(requests).await? >= 1.0,
        "{}",
        instance.admin("/metrics").await?.text
    );
    Ok(())
}

#[tokio::test]
async fn the_status_tells_each_source_apart() -> Result<()> {
    let instance = begin(&[("TRIBUTARY_STALE_AFTER_MS", "500")]).await?;
    let state = async |source: usize| -> Result<Value> {
        Ok(instance.get("/v1/status").await?.json()?["sources"][source].clone())
    };
    let accounting = state(0).await?;
    ensure!(
        accounting
            == json!({"source": "accounting", "state": "loading", "position": null,
        "current_at": null, "lag_ms": null, "lag_bytes": null}),
        "{accounting}"
    );
    let sales = state(1).await?;
    ensure!(
        sales["source"] == "sales" && sales["position"] == "1700000000:0/1A",
        "{sales}"
    );
    ensure!(
        sales["lag_bytes"] == 16 && sales["lag_ms"].is_i64(),
        "{sales}"
    );
    // Nothing tells that it is current any more.
    crate::harness::until("sales is stale", async || {
        Ok((state(1).await?["state"] == "stale").then_some(()))
    })
    .await
}

#[tokio::test]
async fn large_answers_are_compressed_and_small_ones_are_not() -> Result<()> {
    let instance = begin(&[]).await?;
    let ask = [("accept-encoding", "gzip")];
    let encoding = |answer: &Answer| answer.header("content-encoding").map(str::to_owned);
    let client = reqwest::Client::new();
    let large = client
        .get(format!("http://{}/v1/products", instance.host()))
        .header("accept-encoding", "gzip");
    let large = large.send().await?;
    ensure!(large.headers()["content-encoding"] == "gzip");
    ensure!(large.bytes().await?.starts_with(&[0x1F, 0x8B]));
    let small = instance.get_with("/v1/products/1", &ask).await?;
    ensure!(encoding(&small).is_none(), "{small:?}");
    Ok(())
}

/// A head that never ends, one that is too large, and what is no HTTP.
#[tokio::test]
async fn slow_and_broken_clients_are_closed() -> Result<()> {
    let instance = begin(&[("TRIBUTARY_LIMITS__HEADER_TIMEOUT_MS", "100")]).await?;
    for (sent, answer) in [
        ("GET /v1/orders HTTP/1.1\r\nhost: x\r\n".to_owned(), ""),
        (
            format!(
                "GET /v1/orders HTTP/1.1\r\nx: {}\r\n\r\n",
                "x".repeat(20_000)
            ),
            "HTTP/1.1 431",
        ),
        (
            "\r\n\r\nnothing of the kind\r\n\r\n".to_owned(),
            "HTTP/1.1 400",
        ),
    ] {
        let mut stream = TcpStream::connect(instance.host()).await?;
        stream.write_all(sent.as_bytes()).await?;
        let mut got = Vec::new();
        // Ends only because the API closes it; a reset is an end as well.
        let _ = stream.read_to_end(&mut got).await;
        let got = String::from_utf8_lossy(&got);
        ensure!(got.starts_with(answer), "sent {sent:.40?}, got {got:?}");
    }
    Ok(())
}

#[tokio::test]
async fn daily_sales_are_listed_by_day_and_found_by_day_and_product() -> Result<()> {
    let instance = begin(&[]).await?;
    let (mut seen, mut path) = (Vec::new(), "/v1/daily-sales?limit=2".to_owned());
    loop {
        let page = instance.get(&path).await?.json()?;
        for row in page["data"].as_array().context("data")? {
            let (day, product) = (&row["day"], &row["product_id"]);
            seen.push(format!("{}/{product}", day.as_str().context("a day")?));
        }
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/daily-sales?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    let days = ["2020-01-30", "2020-01-31", "2020-02-01"];
    let days = days
        .iter()
        .flat_map(|day| (1..4).map(move |id| format!("{day}/{id}")));
    let mut expected = vec!["-0043-03-15/7".to_owned(), "2018-01-01/144".to_owned()];
    expected.extend(days);
    expected.push("+12020-01-01/7".to_owned());
    ensure!(seen == expected, "{seen:?}");
    let missing = instance.get("/v1/daily-sales/2020-01-31/4").await?;
    missing.problem(404, "not_found")?;
    for (path, parameter) in [
        ("2020-02-30/1", "day"),
        ("2020-1-31/1", "day"),
        ("2020-01-31/01", "product_id"),
    ] {
        let answer = instance.get(&format!("/v1/daily-sales/{path}")).await?;
        let problem = answer.problem(400, "invalid_id")?;
        ensure!(problem["parameter"] == parameter, "{path}: {problem}");
    }
    let alone = instance.get("/v1/daily-sales/2020-01-31").await?;
    alone.problem(404, "no_such_route")?;
    Ok(())
}
