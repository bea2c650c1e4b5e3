//! Does the view hold what the sources hold? Two questions, asked while everything runs:
//! `source` compares each mirror with its source's table, `unified` each unified row with
//! what the mirrors say.
//!
//! It reads: the sources with the connector's role, the view as its owner, in sessions that may
//! not write. What differs is named by table, key and column; no value is printed.

mod connector;
mod progress;
mod repair;
mod report;
mod row;
mod second_look;
mod source;
pub(crate) mod sweep;
mod unified;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub(crate) use connector::Connector;
pub use progress::Progress;
pub use repair::repair;
pub use report::{Difference, Key, NotCompared, Report};

use crate::config::Config;
use crate::failure::{Failure, in_words};
use crate::mirror::Table;
use crate::session::Session;

/// What to compare, and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The sources whose mirrors are compared.
    pub sources: Vec<String>,
    /// Are the unified tables compared with the mirrors?
    pub unified: bool,
    /// Where progress is kept, so that a run that was cut goes on.
    pub resume: Option<PathBuf>,
}

/// A range that was compared.
struct Slice<K> {
    /// Its last key; none: it is the table's last range.
    end: Option<K>,
    /// Rows read for it, where that counts.
    rows_read: u64,
}

/// Why a part could not be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    #[error("{0}")]
    Cannot(String),
    #[error("cannot {doing}")]
    Database {
        doing: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error(transparent)]
    Session(#[from] Failure),
}

impl VerifyError {
    fn database(doing: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Database { doing, source }
    }

    fn in_words(&self) -> String {
        match self {
            Self::Session(failure) => failure.in_words(),
            Self::Cannot(_) | Self::Database { .. } => in_words(self),
        }
    }
}

/// Compares; `found` is told of each difference at once.
///
/// # Errors
/// Where the view cannot be reached, or the file of an earlier run cannot be read.
pub async fn verify(
    config: &Config,
    options: &Options,
    found: impl Fn(&Difference),
) -> anyhow::Result<Report> {
    let view = open(config).await?;
    let mut progress = Progress::open(options.resume.clone())?;
    let mut report = Report::resumed(&progress);
    for source in &options.sources {
        let ended = match begin(&view, config, source).await {
            Ok(comparison) => comparison.run(&mut progress, &mut report, &found).await,
            Err(error) => Err((source.clone(), error)),
        };
        if let Err((what, error)) = ended {
            report.not_compared(what, error.in_words());
        }
    }
    if options.unified {
        unified::compare(&view, config, &mut progress, &mut report, &found).await;
    }
    progress.end(&report)?;
    Ok(report)
}

/// The sources of which some of these rows still differ; all of them where not all are listed.
async fn still_differing(
    config: &Config,
    keys: &BTreeMap<&'static Table, Vec<i64>>,
    is_listed: bool,
) -> anyhow::Result<Vec<String>> {
    let view = open(config).await?;
    let mut still = Vec::new();
    for (table, keys) in keys {
        let source = table.source.to_owned();
        if still.contains(&source) {
            continue;
        }
        let differs = async {
            let comparison = begin(&view, config, table.source).await?;
            comparison.differs(table, keys.clone()).await
        };
        let differs = differs
            .await
            .map_err(|error| anyhow::anyhow!("{}", error.in_words()))?;
        if differs || !is_listed {
            still.push(source);
        }
    }
    Ok(still)
}

async fn open(config: &Config) -> anyhow::Result<Session> {
    open_view(config, "aggregator verify")
        .await
        .map_err(|failure| anyhow::anyhow!("{}", failure.in_words()))
}

async fn open_view(config: &Config, application_name: &str) -> Result<Session, Failure> {
    let settings = [
        "TimeZone = 'UTC'".to_owned(),
        "default_transaction_read_only = on".to_owned(),
        "max_parallel_workers_per_gather = 0".to_owned(),
    ];
    Session::open(&config.view, application_name, &settings).await
}

async fn begin<'a>(
    view: &'a Session,
    config: &'a Config,
    source: &'a str,
) -> Result<source::Comparison<'a>, VerifyError> {
    let way = config.verify.sources.get(source).ok_or_else(|| {
        VerifyError::Cannot(format!(
            "verify.sources.{source}.url is not set: the connector's \
            postgres://USER:PASSWORD@HOST:PORT/DATABASE"
        ))
    })?;
    source::Comparison::begin(view, config, source, way).await
}
