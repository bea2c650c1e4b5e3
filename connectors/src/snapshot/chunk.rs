//! A table read, chunk by chunk in key order.

use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt as _, pin_mut};
use kafka::checkpoint::Read;
use kafka::event::Op;
use metrics::{counter, histogram};
use service::fault;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::view::View;
use crate::captured::{Captured, Change};
use crate::encode::envelope::{Origin, Value};
use crate::error::LifeError;
use crate::life::Life;
use crate::source::{Session, SourceError, identifier, literal, session};
use crate::status::names;

const DOING: &str = "read a table";

/// Rows fetched at once; a chunk's bounds are looked at in between.
const FETCH_ROWS: usize = 500;

impl Life<'_> {
    /// The next chunk of the table read, or the next batch of the reconciliation; if the source
    /// is in the way (a lock, a transaction that is not shown yet), nothing now.
    pub(crate) async fn read_some(&mut self) -> Result<(), LifeError> {
        // A slow query must not outlast an open Kafka transaction.
        self.record_if_any().await?;
        let session = Arc::clone(&self.reads);
        let begun = Instant::now();
        let next = self
            .progress
            .next_read()
            .map(|(table, read)| (table.to_owned(), read.clone()));
        let kind = if next.is_some() { "chunk" } else { "reconcile" };
        let outcome = match next {
            Some((table, read)) => self.read_chunk(&session, &table, &read).await,
            None => self.reconcile_batch(&session).await,
        };
        match outcome {
            Ok(true) => {
                counter!(names::READS, "kind" => kind).increment(1);
                histogram!(names::READ_MS, "kind" => kind)
                    .record(begun.elapsed().as_secs_f64() * 1000.0);
                Ok(())
            }
            Ok(false) => {
                self.step_back();
                Ok(())
            }
            // With rows sent there is no stepping back: no record may cover half a read, so the
            // life ends, and Kafka aborts them.
            Err(LifeError::Source(error)) if error.is_passing() && self.delivery.events() == 0 => {
                tracing::debug!(%error, "a read steps back");
                View::close(&session).await?;
                self.step_back();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// True if the chunk was read, or the table's read starts over.
    async fn read_chunk(
        &mut self,
        session: &Session,
        name: &str,
        read: &Read,
    ) -> Result<bool, LifeError> {
        let Some(view) = self.try_view(session).await? else {
            return Ok(false);
        };
        let Some(oid) = self.catalog.tables.get(name).map(|table| table.oid) else {
            return Err(LifeError::Order("a table to be read is not in the catalog"));
        };
        let publication = &self.config.postgres.publication;
        let columns = self.catalog.columns(session, publication, oid).await?;
        let columns_names: Vec<_> = columns.iter().map(|c| c.name.clone()).collect();
        let over = self.progress.learn_from_catalog(name, &columns_names);
        if over && *read != Read::First {
            View::close(session).await?;
            return Ok(true);
        }
        let captured = self.captured(name, &columns)?;
        open_cursor(session, &captured, read).await?;
        if is_moved(session, oid).await? {
            View::close(session).await?;
            return Ok(false);
        }
        let next = self.send_chunk(session, &captured, &view).await?;
        let lsn = self.lsn_of_read(session, &view).await?;
        View::close(session).await?;
        self.count_read(lsn).await?;
        self.progress.chunk_sent(name, next);
        fault::point("connector.after_chunk").await;
        Ok(true)
    }

    /// Sends the cursor's rows up to a chunk's bounds; where the next chunk begins.
    async fn send_chunk(
        &mut self,
        session: &Session,
        captured: &Captured,
        view: &View,
    ) -> Result<Read, LifeError> {
        let limits = &self.config.reads;
        let origin = self.origin_of_read(view);
        let (mut rows, mut bytes, mut last) = (0, 0, None);
        loop {
            let fetch = FETCH_ROWS.min(limits.chunk_rows - rows);
            let batch = session
                .stream(DOING, &format!("FETCH {fetch} FROM chunk"))
                .await?;
            pin_mut!(batch);
            let mut fetched = 0;
            while let Some(message) = batch.next().await {
                let row = match message {
                    Ok(SimpleQueryMessage::Row(row)) => row,
                    Ok(_) => continue,
                    Err(source) => {
                        return Err(SourceError::Query {
                            doing: DOING,
                            source,
                        }
                        .into());
                    }
                };
                if rows + fetched == 0 {
                    fault::point("connector.in_read").await;
                }
                fetched += 1;
                let texts = key_texts(captured, &row)?;
                bytes += self.send_row(captured, &row, &origin).await?;
                last = Some(texts);
            }
            rows += fetched;
            if fetched < fetch {
                return Ok(Read::Done);
            }
            let full = rows >= limits.chunk_rows || bytes >= limits.chunk_bytes_max;
            if full || view.opened.elapsed().as_millis() >= u128::from(limits.chunk_ms_max) {
                return Ok(last.map_or(Read::Done, Read::After));
            }
        }
    }

    async fn send_row(
        &mut self,
        captured: &Captured,
        row: &SimpleQueryRow,
        origin: &Origin,
    ) -> Result<usize, LifeError> {
        let value_at = |column| match session::value(row, column) {
            Some(text) => Value::Text(text),
            None => Value::Null,
        };
        let values = (0..captured.columns.len()).map(value_at);
        let key = captured.key_of(value_at);
        let change = Change {
            op: Op::Read,
            key: &key,
            origin,
            text_bytes: values.clone().map(Value::bytes).sum(),
            bytes_max: self.delivery.record_bytes_max(),
        };
        let encoded = captured.upsert(&change, None, values);
        if let Some(undecodable) = &encoded.quarantined {
            self.quarantine(captured, undecodable).await?;
        }
        if let (Some(event), Ok(key)) = (&encoded.event, &key) {
            self.delivery
                .upsert(captured.target(), &key.json, event, &[])
                .await?;
        }
        Ok(encoded.event.map_or(0, |event| event.len()))
    }
}

/// Opens the cursor `chunk` over the rows above `read`, in key order. Cursor and comparison use
/// each key column's own collation, as the primary key's index does.
async fn open_cursor(
    session: &Session,
    captured: &Captured,
    read: &Read,
) -> Result<(), SourceError> {
    let columns = list(captured.columns.iter().map(|name| identifier(name)));
    let key = list(captured.key.iter().map(|column| identifier(&column.name)));
    let above = match read {
        Read::After(texts) => {
            let values = captured.key.iter().zip(texts);
            let values = values.map(|(column, text)| constant(text, &column.type_name));
            format!("WHERE ({key}) > ({})", list(values))
        }
        Read::First | Read::Done => String::new(),
    };
    let sql = format!(
        "DECLARE chunk NO SCROLL CURSOR FOR SELECT {columns} FROM {} {above} ORDER BY {key}",
        captured.sql
    );
    session.execute(DOING, &sql).await
}

/// See [`View::moved_sql`].
async fn is_moved(session: &Session, table: u32) -> Result<bool, SourceError> {
    let rows = session.rows(DOING, &View::moved_sql(table)).await?;
    Ok(rows.first().and_then(|row| session::text(row, 0)) != Some("f"))
}

fn key_texts(captured: &Captured, row: &SimpleQueryRow) -> Result<Vec<String>, SourceError> {
    let texts = captured.key_at.iter().map(|at| {
        session::text(row, *at)
            .map(str::to_owned)
            .ok_or(SourceError::Answer { doing: DOING })
    });
    texts.collect()
}

/// A constant of a column's type, from its text.
pub(super) fn constant(text: &str, type_name: &str) -> String {
    format!("{}::{type_name}", literal(text))
}

pub(super) fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}
