//! Rows come into a mirror in two ways, and are the same.

use std::time::Duration;

use super::*;
use crate::config::{DiscrepanciesConfig, ViewConfig};
use crate::view::View;

const ROWS: i64 = 3 * BULK_ROWS_MIN as i64;

fn number(id: i64) -> Value {
    let text = match id % 8 {
        0 => return Value::Null,
        1 => "0".to_owned(),
        2 => "-0.00".to_owned(),
        3 => format!("{id}.50"),
        4 => format!("-{id}00000000.000{id}"),
        5 => format!("0.0000000{id}"),
        6 => format!("000{id}0000"),
        _ => format!("{}.{}", "9".repeat(100), "7".repeat(100)),
    };
    Value::Text(text)
}

fn value(column: &Column, id: i64) -> Value {
    match column.kind {
        _ if column.name == "id" => Value::Integer(id),
        _ if id % 11 == 0 => Value::Null,
        Kind::Id => Value::Integer(id * (i64::MAX / (2 * ROWS))),
        Kind::Integer => Value::Integer((id - ROWS / 2) * i64::from(i32::MAX) / ROWS),
        Kind::Text if id % 5 == 0 => Value::Text(String::new()),
        Kind::Text => Value::Text(format!("\\N\t{id}\n'\"ž€")),
        Kind::Numeric => number(id),
        Kind::Time => Value::Time(Time((id - ROWS / 2) * 1_000_000_000_000_000)),
    }
}

fn row(table: &Table, id: i64) -> Vec<Value> {
    let columns = table.columns.iter();
    columns.map(|column| value(column, id)).collect()
}

async fn view(name: &str) -> anyhow::Result<Client> {
    let server = fixtures::servers().view().await?;
    let name = fixtures::servers::database(server, name).await?;
    let config = ViewConfig {
        url: server.superuser_url(&name).into(),
        ..ViewConfig::default()
    };
    let (terms, sources) = (DiscrepanciesConfig::default(), crate::SOURCES);
    let within = Duration::from_secs(5);
    drop(View::open(&config, &terms, &sources.map(str::to_owned), within).await?);
    server.superuser(&name).await
}

#[tokio::test]
async fn rows_are_the_same_however_they_are_put_in() -> anyhow::Result<()> {
    let client = view("bulk").await?;
    for table in TABLES {
        let served = Mirror::prepare(&client, table, Side::Served).await?;
        let rebuilt = Mirror::prepare(&client, table, Side::Rebuilt).await?;
        let rows: Vec<_> = (1..=ROWS).map(|id| row(table, id)).collect();
        let rows: Vec<_> = rows.iter().collect();
        let by_bulk = served.bring(&client, rows.clone()).await?;
        let by_upsert = rebuilt.upsert(&client, &rows).await?;
        assert_eq!(by_bulk, by_upsert);
        let list = |side| {
            format!(
                "SELECT ROW({})::text FROM {}",
                table.each("*"),
                table.copy(side)
            )
        };
        let (served, rebuilt) = (list(Side::Served), list(Side::Rebuilt));
        let sql = format!(
            "SELECT count(*), (SELECT count(*) FROM ({served} EXCEPT {rebuilt}) AS x) FROM ({served}) AS s"
        );
        let counts = client.query_one(&sql, &[]).await?;
        assert_eq!(
            (counts.get(0), counts.get(1)),
            (ROWS, 0_i64),
            "{}",
            table.mirror
        );
    }
    Ok(())
}

#[tokio::test]
async fn of_many_rows_those_that_changed_are_reported_and_new_ones_without_an_old_state()
-> anyhow::Result<()> {
    let client = view("bulk_changes").await?;
    let table = &LINE;
    let mirror = Mirror::prepare(&client, table, Side::Served).await?;
    let states = |changed: i64, last: i64| {
        let rows = (1..=last).map(|id| {
            let mut row = row(table, id);
            row[1] = Value::Integer(if id <= changed { -id } else { id });
            (id, State::Row(row))
        });
        rows.collect::<HashMap<_, _>>()
    };
    mirror.apply(&client, &states(0, ROWS)).await?;
    let mut states = states(20, ROWS + 5);
    states.insert(ROWS, State::Gone);
    let mut changed = mirror.apply(&client, &states).await?;
    let id = |of: &Changed| {
        let row = of.new.as_ref().or(of.old.as_ref());
        row.and_then(|row| row.integer("id"))
    };
    changed.sort_by_key(id);
    let ids: Vec<_> = changed.iter().filter_map(id).collect();
    let expected: Vec<_> = (1..=20).chain(ROWS..=ROWS + 5).collect();
    assert_eq!(ids, expected);
    let item = |row: &Option<Reported>| row.as_ref().and_then(|row| row.integer("item_id"));
    for change in &changed {
        let (old, new) = match id(change).unwrap_or_default() {
            id if id <= 20 => (Some(id), Some(-id)),
            ROWS => (Some(ROWS), None),
            id => (None, Some(id)),
        };
        assert_eq!((item(&change.old), item(&change.new)), (old, new));
    }
    Ok(())
}
