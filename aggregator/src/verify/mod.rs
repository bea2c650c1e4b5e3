//! Does the view hold what the sources hold? Two questions, asked while everything runs:
//! `source` compares each mirror with its source's table, `unified` each unified row with
//! what the mirrors say.
//!
//! It reads: the sources with the connector's role, the view as its owner, in sessions that may
//! not write. What differs is named by table, key and column; no value is printed.

mod progress;
mod report;
mod row;
mod source;
mod unified;

use std::path::PathBuf;

pub use progress::Progress;
pub use report::{Difference, NotCompared, Report};

use crate::config::Config;
use crate::failure::{Failure, in_words};
use crate::session::Session;

/// What to compare, and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Only these sources' mirrors; none named: all, and the unified tables.
    pub sources: Vec<String>,
    /// Where progress is kept, so that a run that was cut goes on.
    pub resume: Option<PathBuf>,
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
    let settings = [
        "TimeZone = 'UTC'".to_owned(),
        "default_transaction_read_only = on".to_owned(),
    ];
    let view = Session::open(&config.view.url, "aggregator verify", &settings)
        .await
        .map_err(|failure| anyhow::anyhow!("{}", failure.in_words()))?;
    let mut progress = Progress::open(options.resume.clone())?;
    let mut report = Report::resumed(&progress);
    let wanted = |source: &&String| options.sources.is_empty() || options.sources.contains(source);
    for source in config.sources.iter().filter(wanted) {
        let ended = match config.verify.sources.get(source) {
            Some(url) => source::Comparison::begin(&view, config, source, url)
                .await
                .map_err(|error| (source.clone(), error)),
            None => Err((
                source.clone(),
                VerifyError::Cannot(format!(
                    "verify.sources.{source} is not set: the connector's \
                    postgres://USER:PASSWORD@HOST:PORT/DATABASE"
                )),
            )),
        };
        let ended = match ended {
            Ok(comparison) => comparison.run(&mut progress, &mut report, &found).await,
            Err(error) => Err(error),
        };
        if let Err((what, error)) = ended {
            report.not_compared(what, error.in_words());
        }
    }
    if options.sources.is_empty() {
        unified::compare(&view, config, &mut progress, &mut report, &found).await;
    }
    progress.end(&report)?;
    Ok(report)
}
