//! What arrives, in which order, and what the source remembers.

use std::time::Instant;

use anyhow::{Result, bail};
use connectors::replication::{
    OldRow, RelationColumn, ReplicaIdentity, ReplicationMessage as Message,
};
use kafka::Lsn;

use super::{Source, end_of, next, next_change, next_transaction, texts};

#[tokio::test]
async fn a_transaction_arrives_as_it_was_written() -> Result<()> {
    let source = Source::new().await?;
    let long = "x".repeat(100_000);
    source
        .sql
        .batch_execute(&format!(
            "begin;
             insert into item values (1, 'pen', null), (2, 'ein \"Füller\" 🖋', '{long}');
             update item set name = 'fountain pen' where id = 2;
             update item set id = 3 where id = 2;
             delete from item where id = 1;
             commit"
        ))
        .await?;
    let end = source.wal_end().await?;
    let mut stream = source.stream().await?;
    let (changes, end_lsn) = next_transaction(&mut stream).await?;
    assert!(end_lsn <= end, "other tests write to the same server");
    let [first, second, renamed, rekeyed, deleted] = &changes[..] else {
        bail!("{changes:?}");
    };
    let Message::Insert { new, .. } = first else {
        bail!("{first:?}");
    };
    assert_eq!(texts(new), [Some("1"), Some("pen"), None]);
    let Message::Insert { new, .. } = second else {
        bail!("{second:?}");
    };
    assert_eq!(
        texts(new),
        [Some("2"), Some("ein \"Füller\" 🖋"), Some(&long[..])]
    );
    let Message::Update { old: None, new, .. } = renamed else {
        bail!("{renamed:?}");
    };
    assert!(new.has_unchanged());
    assert_eq!(
        texts(new),
        [Some("2"), Some("fountain pen"), Some("(unchanged)")]
    );
    let Message::Update {
        old: Some(OldRow::Key(key)),
        new,
        ..
    } = rekeyed
    else {
        bail!("{rekeyed:?}");
    };
    assert_eq!(texts(key), [Some("2"), None, None]);
    assert_eq!(new.cell(0), Some(super::Cell::Text(b"3")));
    let Message::Delete {
        old: OldRow::Key(key),
        ..
    } = deleted
    else {
        bail!("{deleted:?}");
    };
    assert_eq!(texts(key), [Some("1"), None, None]);
    Ok(())
}

#[tokio::test]
async fn a_truncate_names_its_tables_and_its_options() -> Result<()> {
    let source = Source::new().await?;
    source
        .sql
        .batch_execute(
            "create table child (id bigserial primary key, item bigint references item);
             alter publication tributary add table child;
             truncate item restart identity cascade",
        )
        .await?;
    let mut stream = source.stream().await?;
    let (changes, _) = next_transaction(&mut stream).await?;
    let [
        Message::Truncate {
            relations,
            cascade: true,
            restart_identity: true,
        },
    ] = &changes[..]
    else {
        bail!("{changes:?}");
    };
    assert_eq!(relations.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_table_is_described_before_its_first_change_and_after_it_was_altered() -> Result<()> {
    let source = Source::new().await?;
    source
        .sql
        .batch_execute(
            "create type colour as enum ('red');
             insert into item values (1);
             alter table item add column hue colour, add column price numeric(8, 2);
             alter table item replica identity full;
             update item set price = 1.5;",
        )
        .await?;
    let mut stream = source.stream().await?;
    let (mut relations, mut types, mut update) = (Vec::new(), Vec::new(), None);
    while update.is_none() {
        match next_change(&mut stream).await?.message {
            Message::Relation(relation) => relations.push(relation),
            Message::Type { schema, name, .. } => types.push((schema, name)),
            Message::Update { old, new, .. } => update = Some((old, new)),
            _ => {}
        }
    }
    let [first, second] = &relations[..] else {
        bail!("{relations:?}");
    };
    assert_eq!((&*first.schema, &*first.name), ("public", "item"));
    assert_eq!(first.replica_identity, ReplicaIdentity::Default);
    let columns = |of: &[RelationColumn]| -> Vec<(String, bool)> {
        of.iter().map(|c| (c.name.clone(), c.key)).collect()
    };
    let named = |names: &[(&str, bool)]| -> Vec<(String, bool)> {
        names.iter().map(|(n, k)| ((*n).to_owned(), *k)).collect()
    };
    assert_eq!(
        columns(&first.columns),
        named(&[("id", true), ("name", false), ("note", false)])
    );
    assert_eq!(second.replica_identity, ReplicaIdentity::Full);
    assert_eq!(second.columns.len(), 5);
    let price = &second.columns[4];
    assert_eq!(
        (price.type_oid, price.type_modifier),
        (1700, (8 << 16 | 2) + 4),
        "numeric(8, 2)"
    );
    assert_eq!(types, [("public".to_owned(), "colour".to_owned())]);
    let Some((Some(OldRow::Full(old)), new)) = update else {
        bail!("no old row");
    };
    assert_eq!(texts(&old), [Some("1"), None, None, None, None]);
    assert_eq!(texts(&new)[4], Some("1.50"));
    Ok(())
}

/// The database's and the role's settings would show in every text.
#[tokio::test]
async fn no_setting_of_the_source_shows_in_a_value() -> Result<()> {
    let source = Source::new().await?;
    source
        .sql
        .batch_execute(
            "do $$ begin
               execute format('alter database %I set DateStyle = \"SQL, DMY\"', current_database());
               execute format('alter database %I set TimeZone = \"Asia/Tokyo\"', current_database());
               execute format('alter database %I set IntervalStyle = iso_8601', current_database());
               execute format('alter database %I set bytea_output = escape', current_database());
               execute format('alter database %I set extra_float_digits = -5', current_database());
             end $$;
             create table odd (id int primary key, at timestamptz, span interval, raw bytea,
               number float8);
             alter publication tributary add table odd;
             insert into odd values (1, '2020-02-03 04:05:06.7+00', '1 year 2 days', 'a\\000b', 0.1::float8 + 0.2::float8);",
        )
        .await?;
    let mut stream = source.stream().await?;
    let (changes, _) = next_transaction(&mut stream).await?;
    let [Message::Insert { new, .. }] = &changes[..] else {
        bail!("{changes:?}");
    };
    assert_eq!(
        texts(new),
        [
            Some("1"),
            Some("2020-02-03 04:05:06.7+00"),
            Some("1 year 2 days"),
            Some("\\x610062"),
            Some("0.30000000000000004"),
        ]
    );
    Ok(())
}

#[tokio::test]
async fn keepalives_carry_the_position_of_an_idle_source() -> Result<()> {
    let source = Source::new().await?;
    let mut stream = source.stream().await?;
    let mut waits = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        source
            .sql
            .batch_execute("insert into unpublished values (1)")
            .await?;
        let target = source.wal_end().await?;
        loop {
            let event = next(&mut stream).await?;
            let Message::Keepalive { wal_end, .. } = event.message else {
                bail!("{event:?}");
            };
            assert_eq!(event.wal_end, wal_end);
            if wal_end >= target {
                break;
            }
        }
        waits.push(begun.elapsed());
    }
    waits.sort();
    assert!(
        waits[waits.len() / 2].as_millis() < 100,
        "from the change to its keepalive: {waits:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_keepalive_that_is_asked_for_comes_at_once() -> Result<()> {
    let source = Source::new().await?;
    let config = connectors::replication::ReplicationConfig {
        status_interval: super::PATIENCE,
        ..source.config()?
    };
    let client = super::ReplicationClient::connect(&config).await?;
    let mut stream = client.start(&source.slot, "tributary").await?;
    // The first status asks by itself.
    next(&mut stream).await?;
    let (feedback, begun) = (stream.feedback(), Instant::now());
    for _ in 0..5 {
        feedback.request_keepalive();
        next(&mut stream).await?;
    }
    assert!(begun.elapsed() < super::PATIENCE / 6);
    Ok(())
}

#[tokio::test]
async fn what_is_confirmed_is_remembered_and_not_sent_again() -> Result<()> {
    let source = Source::new().await?;
    let before = source.confirmed().await?;
    for id in 1..=2 {
        let insert = format!("insert into item values ({id})");
        source.sql.batch_execute(&insert).await?;
    }
    let mut stream = source.stream().await?;
    let (_, first_end) = next_transaction(&mut stream).await?;
    let (_, second_end) = next_transaction(&mut stream).await?;
    assert!(first_end < second_end);
    source.is_told(&stream).await?;
    assert_eq!(source.confirmed().await?, before, "nothing was confirmed");
    stream.feedback().confirm(first_end);
    let slot = &source.slot;
    let reached = |lsn: Lsn| {
        format!(
            "select confirmed_flush_lsn = '{lsn}' from pg_replication_slots where slot_name = '{slot}'"
        )
    };
    source.until(&reached(first_end)).await?;
    stream.feedback().confirm(before);
    source.is_told(&stream).await?;
    assert_eq!(
        source.confirmed().await?,
        first_end,
        "a slot went backwards"
    );
    drop(stream);
    source.slot_is_free().await?;
    let mut stream = source.stream().await?;
    let (changes, end) = next_transaction(&mut stream).await?;
    let [Message::Insert { new, .. }] = &changes[..] else {
        bail!("{changes:?}");
    };
    assert_eq!((texts(new)[0], end), (Some("2"), second_end));
    Ok(())
}

#[tokio::test]
async fn closing_tells_the_last_position_and_frees_the_slot() -> Result<()> {
    let source = Source::new().await?;
    source
        .sql
        .batch_execute("insert into item values (1)")
        .await?;
    let mut stream = source.stream().await?;
    let (_, end) = next_transaction(&mut stream).await?;
    stream.feedback().confirm(end);
    stream.close().await?;
    assert_eq!(source.confirmed().await?, end);
    source.client().await?.drop_slot(&source.slot).await?;
    Ok(())
}

#[tokio::test]
async fn a_terminated_backend_ends_the_stream_with_the_servers_words() -> Result<()> {
    let source = Source::new().await?;
    let client = source.client().await?;
    let pid = client.backend_pid();
    let mut stream = client.start(&source.slot, "tributary").await?;
    next(&mut stream).await?;
    source
        .sql
        .execute("select pg_terminate_backend($1)", &[&pid])
        .await?;
    let error = end_of(&mut stream).await;
    assert_eq!(
        error.sql_state().map(|s| s.code()),
        Some("57P01"),
        "{error}"
    );
    assert!(error.is_retriable());
    let again = end_of(&mut stream).await;
    assert!(again.is_retriable(), "an end stays an end: {again}");
    Ok(())
}
