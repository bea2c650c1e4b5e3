//! Commands in the life's task: checked against the source, then written into a record.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka::checkpoint::{Read, ReadRequest, Reconcile};
use service::fault::{self, in_force};

use super::{Asked, EpochEnds, ReadAccepted, ReadOrder, Refusal, condition};
use crate::encode::envelope::now_us;
use crate::error::LifeError;
use crate::life::Life;
use crate::progress::RequestError;
use crate::slot::{self, GivenUp};
use crate::source::catalog::Table;
use crate::source::{SourceError, identifier};

const DOING: &str = "look at a condition";

impl Life<'_> {
    /// Takes a command and answers it: once it is recorded, or why not. An epoch that is to end
    /// ends the life.
    pub(crate) async fn obey(&mut self, asked: Asked) -> Result<(), LifeError> {
        let (order, reply) = match asked {
            Asked::Read { order, reply } => (order, reply),
            Asked::Epoch { reply } => {
                let epoch = self.progress.epoch();
                // Without a slot the next life begins an epoch, whoever's it is.
                let (slot, hold) = (&self.config.postgres.slot, self.control.hold());
                slot::give_up(slot, GivenUp::Asked, &hold, self.status).await?;
                _ = reply.send(Ok(EpochEnds { epoch }));
                return Err(LifeError::EpochAsked { epoch });
            }
        };
        let answer = match self.accept(&order).await? {
            Ok(accepted) => {
                fault::point("connector.before_request").await;
                if in_force("request_recorded") {
                    self.record().await?;
                }
                fault::point("connector.after_request").await;
                Ok(accepted)
            }
            Err(refusal) => Err(refusal),
        };
        // Whoever asked may have gone; the read is asked for all the same.
        _ = reply.send(answer);
        Ok(())
    }

    async fn accept(
        &mut self,
        order: &ReadOrder,
    ) -> Result<Result<ReadAccepted, Refusal>, LifeError> {
        let Some(table) = self.catalog.tables.get(&order.table).cloned() else {
            let unknown = RequestError::UnknownTable(order.table.clone());
            return Ok(Err(unknown.into()));
        };
        if order.rows_per_second_max == Some(0) {
            return Ok(Err(Refusal::NoRows));
        }
        let comparable = match &order.condition {
            None => true,
            Some(condition) => match self.weigh(&table, condition).await? {
                Ok(comparable) => comparable,
                Err(refusal) => return Ok(Err(refusal)),
            },
        };
        if order.reconcile == Some(true) && !comparable {
            return Ok(Err(Refusal::NotOfTheKey));
        }
        let reconcile = order.reconcile.unwrap_or(comparable);
        let stale = match reconcile {
            true => self.all_of_topic(&order.table).await?,
            false => BTreeMap::new(),
        };
        let now_us = now_us();
        let now_s = now_us.unsigned_abs() / 1_000_000;
        let id = now_s.max(self.progress.last_request().max(self.last_request) + 1);
        let request = ReadRequest {
            id,
            condition: order.condition.clone(),
            rows_per_second_max: order.rows_per_second_max,
            requested_at_us: now_us,
            read: Read::First,
            reconcile: stale,
        };
        if let Err(error) = self.progress.ask(&order.table, request) {
            return Ok(Err(error.into()));
        }
        self.last_request = id;
        let table = &order.table;
        // The condition may quote values, and stays out of the log.
        tracing::info!(
            table,
            request = id,
            reconcile,
            "read {id} of {table} is asked for"
        );
        Ok(Ok(ReadAccepted {
            id,
            table: table.clone(),
            reconcile,
        }))
    }

    /// Can the condition be used, and does it speak of nothing but the key, so that it tells
    /// which keys are meant that the source no longer has?
    async fn weigh(&self, table: &Table, text: &str) -> Result<Result<bool, Refusal>, LifeError> {
        if let Some(fault) = condition::fault(text) {
            return Ok(Err(Refusal::Condition(fault.to_owned())));
        }
        let session = Arc::clone(&self.reads);
        let parses = async |from: &str| {
            let sql = format!("SELECT 1 FROM {from} WHERE (\n{text}\n)");
            session.prepare(DOING, &sql).await
        };
        match parses(&table.sql()).await {
            Ok(()) => {}
            Err(error) if error.is_locked() => return Ok(Err(Refusal::Locked)),
            Err(error) if error.is_of_the_statement() => {
                return Ok(Err(Refusal::Condition(server_says(&error))));
            }
            Err(error) => return Err(error.into()),
        }
        let key: Vec<_> = table.key.iter().map(|c| identifier(&c.name)).collect();
        let (key, sql, name) = (key.join(", "), table.sql(), identifier(&table.name));
        match parses(&format!("(SELECT {key} FROM {sql}) AS {name}")).await {
            Ok(()) => Ok(Ok(true)),
            Err(error) if error.is_locked() => Ok(Err(Refusal::Locked)),
            Err(error) if error.is_of_the_statement() => Ok(Ok(false)),
            Err(error) => Err(error.into()),
        }
    }

    /// All that a table's topic holds now.
    async fn all_of_topic(&self, table: &str) -> Result<BTreeMap<i32, Reconcile>, LifeError> {
        let captured = self.captured_now(table)?;
        let ends = self.topics.ends(&captured.topic).await?;
        let ends = ends.into_iter().filter(|(_, end)| *end > 0);
        Ok(ends
            .map(|(partition, end)| (partition, Reconcile { next: 0, end }))
            .collect())
    }
}

/// The server's message alone.
fn server_says(error: &SourceError) -> String {
    let text = error.to_string();
    match text.split_once(": ") {
        Some((_, reason)) => reason.to_owned(),
        None => text,
    }
}
