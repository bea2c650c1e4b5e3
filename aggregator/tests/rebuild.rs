//! Sources that are read again from the first record on while the view serves.

use std::time::Instant;

#[cfg(feature = "faults")]
use anyhow::bail;
use anyhow::{Result, ensure};

#[cfg(feature = "faults")]
use crate::topics::{Aggregator, wait};
use crate::topics::{Place, WITHIN};

/// Rows that no event ever said: what a fault of the database, or of a hand, leaves behind.
const DAMAGE: &str = "
    UPDATE sales.sls_orderdetail SET quantity = quantity + 1000
        WHERE id IN (SELECT id FROM sales.sls_orderdetail ORDER BY id LIMIT 3);
    DELETE FROM sales.sls_order WHERE id = (SELECT min(id) FROM sales.sls_order);
    INSERT INTO sales.sls_order (id, customer_id, date) VALUES (999999, 999999, now());
    UPDATE public.products SET units_sold = -1
        WHERE id = (SELECT min(id) FROM public.products);
    INSERT INTO public.quarantine (source, \"table\", key, reason, record, at, revision)
        VALUES ('sales', 'public.sls_order', '1', 'none', 'none', now(), '');
    INSERT INTO aggregator.degraded (resource, id, source, \"table\", key)
        VALUES ('orders', 2, 'sales', 'public.sls_order', '1')";

#[tokio::test]
async fn a_rebuild_mends_what_differs_from_the_topics_and_touches_nothing_else() -> Result<()> {
    let mut place = Place::new(11).await?;
    for _ in 0..20 {
        place.work().await?;
    }
    // Steps of a few events: the rebuild takes many transactions.
    let aggregator = place.start("step_events_max = 3", &[])?;
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await?;
    place.database.client.batch_execute(DAMAGE).await?;
    ensure!(place.is_right().await.is_err(), "nothing is damaged");
    let sound = "SELECT coalesce(max(revision), '') FROM public.transactions";
    let sound_before: String = place.database.one(sound).await?;

    let (code, body) = aggregator.ask("POST", "/rebuild?source=sales").await?;
    assert_eq!((code, body.as_str()), (202, r#"{"rebuilds":["sales"]}"#));
    // What goes on meanwhile is served, now or with the rebuild.
    for _ in 0..5 {
        place.shop.work("sales");
        place.commit("sales").await?;
        place.shop.work("warehouse");
        place.commit("warehouse").await?;
    }
    aggregator.says("sales is rebuilt and served").await?;
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await?;
    assert_eq!(quarantined(&place).await?, 0);
    // Payments were right, and did not move.
    let sound_after: String = place.database.one(sound).await?;
    assert_eq!(sound_after, sound_before);

    // And it goes on from there.
    place.work().await?;
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await?;
    let (code, body) = aggregator.ask("GET", "/status").await?;
    ensure!(code == 200 && body.contains(r#""rebuild":null"#), "{body}");
    ensure!(!body.contains(r#""rebuild":{"#), "{body}");
    Ok(())
}

async fn quarantined(place: &Place) -> Result<i64> {
    let count = "SELECT (SELECT count(*) FROM public.quarantine)
        + (SELECT count(*) FROM aggregator.degraded)";
    place.database.one(count).await
}

#[tokio::test]
async fn a_rebuild_of_what_is_right_changes_no_row() -> Result<()> {
    let mut place = Place::new(12).await?;
    for _ in 0..10 {
        place.work().await?;
    }
    let aggregator = place.start("", &[])?;
    place.caught_up(&[&aggregator]).await?;
    let revisions = "SELECT string_agg(revision, ',' ORDER BY revision) FROM (
        SELECT revision FROM public.products UNION ALL SELECT revision FROM public.orders
        UNION ALL SELECT revision FROM public.customers
        UNION ALL SELECT revision FROM public.transactions) AS r";
    let before: String = place.database.one(revisions).await?;
    // The command returns when all is served.
    let command = aggregator.command(&["rebuild"]).await?;
    ensure!(command.status.success(), "{command:?}");
    for source in aggregator::SOURCES {
        let said = format!("{source} is rebuilt and served");
        aggregator.says(&said).await?;
        ensure!(
            aggregator
                .log()
                .contains("0 of its rows and 0 unified rows differed"),
            "{}",
            aggregator.log()
        );
    }
    let after: String = place.database.one(revisions).await?;
    assert_eq!(after, before);
    let status = aggregator.command(&["status"]).await?;
    let status = String::from_utf8(status.stdout)?;
    ensure!(status.contains("aggregator: ready"), "{status}");
    for source in aggregator::SOURCES {
        let line = format!("{source}:");
        ensure!(status.contains(&line), "{status}");
    }
    place.is_right().await
}

#[tokio::test]
async fn commands_that_cannot_be_taken_say_why() -> Result<()> {
    let mut place = Place::new(13).await?;
    place.work().await?;
    let first = place.start("", &[])?;
    place.caught_up(&[&first]).await?;
    let (code, body) = first.ask("POST", "/rebuild?source=shop").await?;
    ensure!(
        code == 400 && body.contains("shop is not a source") && body.contains("warehouse"),
        "{code} {body}"
    );
    let command = first.command(&["rebuild", "--source", "shop"]).await?;
    let said = String::from_utf8(command.stderr)?;
    ensure!(
        !command.status.success() && said.contains("shop is not a source"),
        "{said}"
    );
    let standby = place.start("", &[])?;
    standby
        .says("standby: another aggregator holds the lock")
        .await?;
    let (code, body) = standby.ask("POST", "/rebuild").await?;
    ensure!(code == 409 && body.contains("standby"), "{code} {body}");
    let (code, body) = first.ask("POST", "/rebuild?sources=sales").await?;
    ensure!(
        code == 400 && body.contains("sources is not a parameter"),
        "{code} {body}"
    );
    Ok(())
}

#[cfg(feature = "faults")]
#[tokio::test]
async fn killed_at_any_point_of_a_rebuild_it_goes_on_with_it() -> Result<()> {
    let mut place = Place::new(14).await?;
    for _ in 0..4 {
        place.work().await?;
    }
    let apply = "step_events_max = 2";
    let aggregator = place.start(apply, &[])?;
    place.caught_up(&[&aggregator]).await?;
    place.database.client.batch_execute(DAMAGE).await?;
    aggregator.ask("POST", "/rebuild").await?;
    drop(aggregator);
    for pass in [1, 4, 9] {
        for point in [
            "before_fence",
            "after_mirror",
            "before_commit",
            "after_commit",
        ] {
            let faults = format!("aggregator.{point}:kill:{pass}");
            let aggregator = place.start(apply, &[("FAULT_POINTS", &faults)])?;
            let deadline = Instant::now() + WITHIN;
            while aggregator.process.status().is_none() {
                ensure!(Instant::now() < deadline, "{}", aggregator.log());
                place.work().await?;
            }
        }
    }
    let aggregator = place.start(apply, &[])?;
    no_rebuild_is_left(&place, &aggregator).await?;
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await
}

/// A rebuild reaches its checkpoint when the view is past it already.
#[cfg(feature = "faults")]
#[tokio::test]
async fn a_rebuild_that_is_behind_the_view_goes_on_until_it_is_not() -> Result<()> {
    let mut place = Place::new(16).await?;
    place.work().await?;
    let gate = place.folder().join("gate");
    let faults = format!("aggregator.before_rebuilt:hold:1:{}", gate.display());
    let aggregator = place.start("", &[("FAULT_POINTS", &faults)])?;
    place.caught_up(&[&aggregator]).await?;
    place
        .database
        .client
        .batch_execute(
            "CREATE FUNCTION never_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF new.lsn::pg_lsn < old.lsn::pg_lsn THEN RAISE 'went back'; END IF;
                RETURN new;
            END $$;
            CREATE TRIGGER never_back BEFORE UPDATE ON public.positions
                FOR EACH ROW EXECUTE FUNCTION never_back()",
        )
        .await?;
    place.database.client.batch_execute(DAMAGE).await?;
    aggregator.ask("POST", "/rebuild?source=sales").await?;
    aggregator.says("before_rebuilt: holds").await?;
    place.work().await?;
    place.caught_up(&[&aggregator]).await?;
    std::fs::write(&gate, "")?;
    aggregator.says("sales is rebuilt and served").await?;
    ensure!(
        !aggregator.log().contains("starts anew"),
        "{}",
        aggregator.log()
    );
    place.caught_up(&[&aggregator]).await?;
    place.is_right().await
}

/// A source that was dead for longer than a reader may lag.
#[tokio::test]
async fn a_source_that_comes_back_too_late_is_rebuilt_and_the_others_go_on() -> Result<()> {
    const LATENESS_MAX_MS: i64 = 6000;
    const OTHERS: [&str; 2] = ["accounting", "warehouse"];
    let settings = |kafka: &mut kafka::KafkaConfig| kafka.lateness_max_ms = LATENESS_MAX_MS;
    let mut place = Place::with(15, settings).await?;
    place.work().await?;
    let aggregator = place.start("", &[])?;
    place.caught_up(&[&aggregator]).await?;
    let since = Instant::now();
    while since.elapsed().as_millis() <= LATENESS_MAX_MS.unsigned_abs().into() {
        for source in OTHERS {
            place.shop.work(source);
            place.commit(source).await?;
        }
        place.stands_at(&OTHERS, &[&aggregator]).await?;
    }
    let deadline = Instant::now() + WITHIN;
    while !aggregator.log().contains("sales is rebuilt and served") {
        ensure!(Instant::now() < deadline, "{}", aggregator.log());
        // A checkpoint counts only while it is young.
        place.work().await?;
        place.stands_at(&OTHERS, &[&aggregator]).await?;
    }
    let log = aggregator.log();
    ensure!(log.contains("too far behind sales"), "{log}");
    for source in OTHERS {
        ensure!(!log.contains(&format!("{source} is rebuilt")), "{log}");
    }
    place.work().await?;
    place.caught_up(&[&aggregator]).await?;
    assert_eq!(aggregator.readiness().await?, "ready");
    place.is_right().await
}

/// A view that was away for longer than topics keep everything, and then fails over within each
/// rebuild: every life finds the source too far behind again.
#[cfg(feature = "faults")]
#[tokio::test]
async fn a_rebuild_of_what_is_too_far_behind_goes_on_with_every_life() -> Result<()> {
    let mut place = Place::new(17).await?;
    for _ in 0..5 {
        place.work().await?;
    }
    let aggregator = place.start("", &[])?;
    place.caught_up(&[&aggregator]).await?;
    drop(aggregator);
    let eight_days_ago = "UPDATE aggregator.standing SET standing = jsonb_set(standing, \
        '{since_ms}', to_jsonb((standing->>'since_ms')::bigint - 8 * 86400000::bigint))
        WHERE source = 'sales'";
    place.database.client.batch_execute(eight_days_ago).await?;
    place.work().await?;
    let gate = place.folder().join("gate");
    let faults = format!("aggregator.before_rebuilt:hold:1:{}", gate.display());
    let faults = [("FAULT_POINTS", faults.as_str())];
    let mut before: Option<(i64, i64)> = None;
    for _ in 0..3 {
        let aggregator = place.start("step_events_max = 3", &faults)?;
        aggregator.says("too far behind sales").await?;
        // All but the last step has been read.
        aggregator.says("before_rebuilt: holds").await?;
        // What the applier had in hand is done once it has taken another source's.
        place.shop.work("accounting");
        place.commit("accounting").await?;
        place.stands_at(&["accounting"], &[&aggregator]).await?;
        ensure!(
            aggregator.readiness().await?.contains("too far behind"),
            "it is ready"
        );
        let (began, read) = under_way(&place).await?;
        let log = aggregator.log();
        if let Some((began_before, read_before)) = before {
            assert_eq!(began, began_before, "{log}");
            ensure!(read >= read_before, "{read} of {read_before}: {log}");
            ensure!(log.contains("goes on to rebuild sales"), "{log}");
        }
        // In the first life: the later ones have read all but the last step.
        if before.is_none() {
            let (_, status) = aggregator.ask("GET", "/status").await?;
            let status: serde_json::Value = serde_json::from_str(&status)?;
            let all = status["sources"].as_array().into_iter().flatten();
            let rebuild = all.filter_map(|source| source["rebuild"].as_object());
            let rebuild: Vec<_> = rebuild.collect();
            let [rebuild] = rebuild[..] else {
                bail!("{status}");
            };
            let all = rebuild["offsets"].as_i64().unwrap_or_default();
            ensure!(0 < read && read <= all, "{read}: {status}");
            ensure!(rebuild["offsets_read"].as_i64() >= Some(read), "{status}");
            let metrics = aggregator.ask("GET", "/metrics").await?.1;
            let gauge = "aggregator_rebuild_offsets{source=\"sales\"}";
            ensure!(metrics.contains(&format!("{gauge} {all}")), "{metrics}");
            let none_read = "aggregator_rebuild_read_offsets{source=\"sales\"} 0";
            ensure!(!metrics.contains(none_read), "{metrics}");
            ensure!(
                metrics.contains("aggregator_rebuild_read_offsets"),
                "{metrics}"
            );
        }
        before = Some((began, read));
    }
    let aggregator = place.start("step_events_max = 3", &[])?;
    aggregator.says("sales is rebuilt and served").await?;
    place.work().await?;
    place.caught_up(&[&aggregator]).await?;
    assert_eq!(aggregator.readiness().await?, "ready");
    place.is_right().await
}

/// When the rebuild of sales began, and how many offsets it has read since.
#[cfg(feature = "faults")]
async fn under_way(place: &Place) -> Result<(i64, i64)> {
    let sql = "SELECT (standing->>'since_ms')::bigint, (
            SELECT sum(ends.value::bigint)::bigint FROM jsonb_each(standing->'offsets') AS topic
            CROSS JOIN jsonb_each_text(topic.value) AS ends
        ) FROM rebuild.standing WHERE source = 'sales'";
    let row = place.database.client.query_one(sql, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

#[cfg(feature = "faults")]
async fn no_rebuild_is_left(place: &Place, aggregator: &Aggregator) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    loop {
        let left: i64 = place
            .database
            .one("SELECT count(*) FROM rebuild.standing")
            .await?;
        if left == 0 {
            return wait("follows every source", aggregator, || {
                aggregator.log().contains("follows every source")
            })
            .await;
        }
        ensure!(Instant::now() < deadline, "{}", aggregator.log());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
