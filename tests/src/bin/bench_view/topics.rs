//! What connectors would write: change events of the shop, and checkpoints, in Kafka transactions.

use anyhow::{Context, Result};
use kafka::producer::Producer;
use kafka::topic::{self, Topics};
use kafka::{Checkpoint, KafkaConfig, Lsn, Offsets};
use serde_json::{Value, json};

use crate::shop;

/// The epoch of every checkpoint here.
const EPOCH: u64 = 1_763_900_000;
/// Bytes of WAL that a transaction here is.
const TRANSACTION_BYTES: u64 = 64;

/// The one writer of a source's topics.
pub(crate) struct Writer {
    pub(crate) source: &'static str,
    kafka: KafkaConfig,
    producer: Producer,
    offsets: Offsets,
    /// Where the last transaction ended.
    pub(crate) lsn: Lsn,
    system: String,
}

impl Writer {
    /// Makes the source's topics.
    pub(crate) async fn connect(
        kafka: &KafkaConfig,
        source: &'static str,
        tables: &[&str],
    ) -> Result<Self> {
        let tables: Vec<_> = tables.iter().map(|t| name(kafka, source, t)).collect();
        let checkpoint = topic::checkpoint(kafka, source);
        Topics::connect(kafka)?.ensure(&tables, &checkpoint).await?;
        let id = topic::transactional_id(kafka, source);
        Ok(Self {
            source,
            kafka: kafka.clone(),
            producer: Producer::connect(kafka, &id).await?,
            offsets: Offsets::new(),
            lsn: Lsn(1 << 20),
            system: "7000000000000000001".to_owned(),
        })
    }

    /// A row is now this.
    pub(crate) async fn send(&mut self, table: &str, row: &Value) -> Result<()> {
        let id = row["id"].as_i64().context("a row without id")?;
        let (ms, source) = (1_763_900_000_000_i64, self.source);
        let lsn = self.lsn.0 + TRANSACTION_BYTES;
        // As long as a connector's.
        let event = format!(
            r#"{{"before":null,"after":{row},"source":{{"version":"3.6.3.Final","connector":"postgresql","name":"{source}","ts_ms":{ms},"snapshot":"false","db":"{source}","sequence":"[\"{lsn}\",\"{lsn}\"]","ts_us":{ms}000,"ts_ns":{ms}000000,"schema":"public","table":"{table}","txId":1000,"lsn":{lsn},"xmin":null}},"transaction":null,"op":"c","ts_ms":{ms},"ts_us":{ms}000,"ts_ns":{ms}000000}}"#
        );
        let key = format!(r#"{{"id":{id}}}"#);
        let topic = name(&self.kafka, self.source, table);
        let sent = self
            .producer
            .send(&topic, key.as_bytes(), Some(event.as_bytes()), &[]);
        Ok(sent.await?)
    }

    /// Ends the Kafka transaction within a source transaction: no reader may take its record.
    pub(crate) async fn commit_half(&mut self) -> Result<()> {
        let reach = Lsn(self.lsn.0 + TRANSACTION_BYTES);
        self.end(self.lsn, reach).await
    }

    /// Ends source and Kafka transaction. The position that it makes.
    pub(crate) async fn commit(&mut self) -> Result<Lsn> {
        let end = Lsn(self.lsn.0 + TRANSACTION_BYTES);
        self.end(end, end).await?;
        self.lsn = end;
        Ok(end)
    }

    async fn end(&mut self, position: Lsn, reach: Lsn) -> Result<()> {
        for (topic, ends) in self.producer.delivered().await? {
            self.offsets.entry(topic).or_default().extend(ends);
        }
        let record = Checkpoint {
            epoch: EPOCH,
            system_identifier: self.system.clone(),
            timeline: 1,
            position,
            reach,
            committed_at_us: Some(1_763_900_000_000_000),
            current_at_us: Some(1_763_900_000_000_000),
            wal_end: reach,
            offsets: self.offsets.clone(),
            half_sent: None,
            quarantine: Default::default(),
            tables: Default::default(),
        };
        let topic = topic::checkpoint(&self.kafka, self.source);
        self.producer.commit(&topic, &record).await?;
        Ok(())
    }

    /// An order with its lines.
    pub(crate) async fn order(&mut self, order: i64) -> Result<()> {
        let row = json!({"id": order, "customer_id": shop::customer(order), "date": shop::DATE});
        self.send("sls_order", &row).await?;
        for place in 0..shop::LINES {
            self.line(order, place, shop::line(order, place).2).await?;
        }
        Ok(())
    }

    /// One line of an order, with this quantity.
    pub(crate) async fn line(&mut self, order: i64, place: i64, quantity: i64) -> Result<()> {
        let (id, product, _) = shop::line(order, place);
        let row = json!({
            "id": id, "item_id": product, "unit_price": shop::UNIT_PRICE, "quantity": quantity,
            "order_id": order,
        });
        self.send("sls_orderdetail", &row).await
    }

    /// An order's payment.
    pub(crate) async fn payment(&mut self, order: i64) -> Result<()> {
        let row = json!({"id": order, "order_id": order});
        self.send("ac_transaction", &row).await?;
        let row = json!({
            "id": order, "sum": shop::PAID, "date": shop::DATE, "transaction_id": order,
        });
        self.send("ac_transactiondetail", &row).await
    }

    /// The products.
    pub(crate) async fn items(&mut self) -> Result<Lsn> {
        for id in 1..=shop::PRODUCTS {
            let row = json!({
                "id": id, "name": format!("item {id}"), "description": "of the benchmark",
                "country_of_origin": "Chile",
            });
            self.send("wh_item", &row).await?;
            let row = json!({"id": id, "price": "3.00", "item_id": id});
            self.send("wh_price", &row).await?;
            let row = json!({"id": id, "quantity": 100, "item_id": id});
            self.send("wh_quantity", &row).await?;
        }
        self.commit().await
    }
}

fn name(kafka: &KafkaConfig, source: &str, table: &str) -> String {
    topic::table(kafka, source, "public", table)
}
