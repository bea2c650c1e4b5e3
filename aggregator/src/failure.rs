//! Why a life of the aggregator ended, and what follows from it.

use tokio_postgres::error::{DbError, SqlState};

/// After any of these the process drops everything it holds; [`Failure::is_final`] says
/// whether it starts anew.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nothing that trying again would change: one sentence that says what to do.
    #[error("{0}")]
    Prerequisite(String),
    /// Another aggregator moved the view.
    #[error("the fence was moved by another aggregator")]
    Fenced,
    /// The session that holds the advisory lock ended, or has not answered in time.
    #[error("the view database's lock was lost")]
    LockLost,
    #[error("the view database did not answer in time")]
    Silent,
    #[error("cannot {doing}")]
    Database {
        doing: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("a task of the aggregator ended before its time")]
    TaskEnded,
}

impl Failure {
    /// Is it for the operator to act first?
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Prerequisite(_) => true,
            Self::Fenced
            | Self::LockLost
            | Self::Silent
            | Self::Database { .. }
            | Self::TaskEnded => false,
        }
    }

    /// The whole story in a line: each cause after the one that it led to.
    #[must_use]
    pub fn in_words(&self) -> String {
        in_words(self)
    }

    /// A database's refusal, as a prerequisite where the operator has to act.
    pub(crate) fn database(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| match advice(source.as_db_error()) {
            Some(advice) => Self::Prerequisite(format!(
                "cannot {doing}: {}; {advice}",
                source
                    .as_db_error()
                    .map_or("refused", |error| error.message())
            )),
            None => Self::Database { doing, source },
        }
    }
}

/// An error, and each cause after the one that it led to.
pub(crate) fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}

/// What the operator has to do about this refusal; none: trying again is enough.
fn advice(refusal: Option<&DbError>) -> Option<&'static str> {
    let (code, said) = refusal.map(|refusal| (refusal.code(), refusal.message()))?;
    // pg_hba.conf lets nobody in who speaks without TLS, or shows no certificate.
    let is_of_tls = ["no encryption", "client certificate"]
        .iter()
        .any(|word| said.contains(word));
    if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION && is_of_tls {
        Some("set mode = \"verify-full\", and what else the server asks for, in [view.tls]")
    } else if [
        SqlState::INVALID_PASSWORD,
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
    ]
    .contains(code)
    {
        Some("set user and password in view.url")
    } else if *code == SqlState::INVALID_CATALOG_NAME {
        Some(
            "create it, as a superuser: CREATE DATABASE view OWNER aggregator; or correct view.url",
        )
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        Some(
            "make the role of view.url the owner of the view database, as a superuser: ALTER DATABASE view OWNER TO aggregator;",
        )
    } else {
        None
    }
}
