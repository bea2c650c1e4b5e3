//! What a connector would stream: topics, tables, keys, types. Asks, and changes nothing.

use std::fmt::Write as _;

use kafka::topic::examine::{Observation, observe};
use serde::Serialize;

use crate::check::Finding;
use crate::config::ConnectorConfig;
use crate::encode::Kind;
use crate::life::{checkpoint_topic, quarantine_topic, table_topic, topic_names};
use crate::source::session::{self, Session, SourceError, literal};
use crate::source::{Catalog, Table};

const DOING: &str = "read the catalog";

/// The answer of `connector plan`.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub source: String,
    pub server_version: String,
    pub slot: SlotPlan,
    pub publication: String,
    pub tables: Vec<TablePlan>,
    pub checkpoint: TopicPlan,
    pub quarantine: TopicPlan,
    /// Tables of the configuration that cannot be captured as they are; `check` says why.
    pub left_out: Vec<String>,
}

/// The replication slot.
#[derive(Debug, Serialize)]
pub struct SlotPlan {
    pub name: String,
    /// Does it exist? Else the first start makes it and reads all tables.
    pub exists: bool,
    pub confirmed_flush_lsn: Option<String>,
}

/// A topic.
#[derive(Debug, Serialize)]
pub struct TopicPlan {
    pub name: String,
    /// None: Kafka was not reached.
    pub exists: Option<bool>,
    /// What it has, or will be made with.
    pub partitions: i32,
}

/// A table and its topic.
#[derive(Debug, Serialize)]
pub struct TablePlan {
    pub table: String,
    pub topic: TopicPlan,
    /// The columns of a record's key, in order.
    pub key: Vec<ColumnPlan>,
    pub columns: Vec<ColumnPlan>,
    /// `default`, `index`, `full` or `nothing`.
    pub replica_identity: String,
    /// The planner's estimate; none where the table was never analysed.
    pub rows_estimate: Option<u64>,
    pub bytes: u64,
}

/// A column and what stands for it in an event.
#[derive(Debug, Clone, Serialize)]
pub struct ColumnPlan {
    pub name: String,
    /// As SQL names it.
    pub r#type: String,
    /// What a consumer finds.
    pub event: &'static str,
    pub nullable: bool,
}

/// Reads what there is to stream. Where Kafka cannot be asked, the plan says so.
///
/// # Errors
/// Where the source cannot be asked.
pub async fn plan(config: &ConnectorConfig) -> Result<Plan, Vec<Finding>> {
    let (postgres, _) = crate::check::address(config)?;
    let refused = |error: SourceError| vec![crate::check::refused(&postgres, &error)];
    let session = Session::connect(&postgres, &[]).await.map_err(refused)?;
    let topics = topic_names(config);
    let (checkpoint, quarantine) = (checkpoint_topic(config), quarantine_topic(config));
    let asked = observe(&config.kafka, &topics, &checkpoint, &quarantine).await;
    let observation = asked.ok();
    read(&session, config, observation.as_ref())
        .await
        .map_err(refused)
}

async fn read(
    session: &Session,
    config: &ConnectorConfig,
    observation: Option<&Observation>,
) -> Result<Plan, SourceError> {
    let publication = &config.postgres.publication;
    let catalog = Catalog::read(session, publication, &config.tables).await?;
    let topic = |name: String, partitions: i32| {
        let known = observation.map(|seen| seen.topics.get(&name));
        TopicPlan {
            exists: known.map(|known| known.is_some()),
            partitions: known.flatten().map_or(partitions, |known| known.partitions),
            name,
        }
    };
    let mut plan = Plan {
        source: config.source.clone(),
        server_version: version(session).await?,
        slot: slot(session, &config.postgres.slot).await?,
        publication: publication.clone(),
        tables: Vec::new(),
        checkpoint: topic(checkpoint_topic(config), 1),
        quarantine: topic(quarantine_topic(config), 1),
        left_out: Vec::new(),
    };
    for qualified in &config.tables {
        let found = catalog.tables.get(qualified);
        match found.filter(|table| !table.columns.is_empty()) {
            None => plan.left_out.push(qualified.clone()),
            Some(table) => {
                let topic = topic(table_topic(config, qualified), config.kafka.partitions);
                let table = table_plan(session, qualified, table, topic).await?;
                plan.tables.push(table);
            }
        }
    }
    Ok(plan)
}

async fn version(session: &Session) -> Result<String, SourceError> {
    let row = session.row(DOING, "SHOW server_version").await?;
    session::get(DOING, &row, 0)
}

async fn slot(session: &Session, name: &str) -> Result<SlotPlan, SourceError> {
    let sql = format!(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = {}",
        literal(name)
    );
    let rows = session.rows(DOING, &sql).await?;
    Ok(SlotPlan {
        name: name.to_owned(),
        exists: !rows.is_empty(),
        confirmed_flush_lsn: rows
            .first()
            .and_then(|row| session::text(row, 0))
            .map(str::to_owned),
    })
}

async fn table_plan(
    session: &Session,
    qualified: &str,
    table: &Table,
    topic: TopicPlan,
) -> Result<TablePlan, SourceError> {
    let sql = format!(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull, \
             CASE c.relreplident WHEN 'd' THEN 'default' WHEN 'i' THEN 'index' \
                 WHEN 'f' THEN 'full' ELSE 'nothing' END, \
             nullif(c.reltuples, -1)::int8, pg_table_size(c.oid) \
         FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
         WHERE c.oid = {} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        table.oid
    );
    let rows = session.rows(DOING, &sql).await?;
    let mut columns = Vec::new();
    for row in &rows {
        let name = session::text(row, 0).unwrap_or_default();
        if let Some(column) = table.columns.iter().find(|column| column.name == name) {
            columns.push(ColumnPlan {
                name: name.to_owned(),
                r#type: session::get(DOING, row, 1)?,
                event: event(column.kind),
                nullable: session::text(row, 2) == Some("t"),
            });
        }
    }
    let key = table.key.iter().filter_map(|key| {
        let column = columns.iter().find(|column| column.name == key.name);
        column.cloned()
    });
    let first = rows.first().ok_or(SourceError::Answer { doing: DOING })?;
    Ok(TablePlan {
        table: qualified.to_owned(),
        topic,
        key: key.collect(),
        replica_identity: session::get(DOING, first, 3)?,
        rows_estimate: session::get(DOING, first, 4).ok(),
        bytes: session::get(DOING, first, 5)?,
        columns,
    })
}

/// A value's form in an event, as `docs/topics.md` has it.
fn event(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "boolean",
        Kind::Integer => "number",
        Kind::Float => "number (NaN and infinities: string)",
        Kind::Numeric => "string, exact decimal",
        Kind::Date => "number, days since 1970",
        Kind::Timestamp => "number, microseconds since 1970",
        Kind::TimestampMillis => "number, milliseconds since 1970",
        Kind::TimestampTz => "string, RFC 3339 in UTC",
        Kind::Bytes => "string, base64",
        Kind::Uuid | Kind::Text => "string",
        Kind::Other => "string, PostgreSQL's text",
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "source {}: PostgreSQL {}",
            self.source, self.server_version
        )?;
        writeln!(f, "publication {}", self.publication)?;
        match (&self.slot.confirmed_flush_lsn, self.slot.exists) {
            (Some(lsn), _) => writeln!(f, "slot {}, confirmed {lsn}", self.slot.name)?,
            (None, true) => writeln!(f, "slot {}", self.slot.name)?,
            (None, false) => writeln!(
                f,
                "slot {}, which the first start makes; it reads all tables",
                self.slot.name
            )?,
        }
        writeln!(f, "checkpoints in {}", self.checkpoint)?;
        writeln!(f, "what cannot be sent in {}", self.quarantine)?;
        for table in &self.tables {
            write!(f, "\n{table}")?;
        }
        for table in &self.left_out {
            writeln!(
                f,
                "\n{table}: cannot be captured as it is; `connector check` says why"
            )?;
        }
        Ok(())
    }
}

impl std::fmt::Display for TopicPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let made = match self.exists {
            None => ", Kafka not reached",
            Some(true) => "",
            Some(false) => ", to be made",
        };
        let s = if self.partitions == 1 { "" } else { "s" };
        write!(f, "{} ({} partition{s}{made})", self.name, self.partitions)
    }
}

impl std::fmt::Display for TablePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rows = match self.rows_estimate {
            None => "rows not counted yet".to_owned(),
            Some(rows) => format!("about {rows} rows"),
        };
        let key: Vec<_> = self.key.iter().map(|column| column.name.as_str()).collect();
        writeln!(f, "{} -> {}", self.table, self.topic)?;
        writeln!(
            f,
            "  {rows}, {} KiB; replica identity {}; key: {}",
            self.bytes.div_ceil(1024),
            self.replica_identity,
            key.join(", ")
        )?;
        let width = |part: fn(&ColumnPlan) -> &str| {
            let widths = self
                .columns
                .iter()
                .map(|column| part(column).chars().count());
            widths.max().unwrap_or_default()
        };
        let (names, types) = (width(|column| &column.name), width(|column| &column.r#type));
        let mut text = String::new();
        for column in &self.columns {
            let null = if column.nullable { " or null" } else { "" };
            writeln!(
                text,
                "  {:names$}  {:types$}  {}{null}",
                column.name, column.r#type, column.event
            )?;
        }
        f.write_str(&text)
    }
}
