//! The API as its clients see it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kafka::{Lsn, Position};
use reqwest::StatusCode;
use serde_json::Value;

/// How long a client of the tests goes on asking. A state is awaited, never a time.
const ANSWERED_WITHIN: Duration = Duration::from_secs(120);

/// One answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    /// `View-Position`: per source, `None` while it is not read yet.
    pub positions: Positions,
    /// The header as it came.
    pub view_position: String,
    pub body: Value,
}

/// Per source where an answer stands.
pub type Positions = BTreeMap<String, Option<Position>>;

/// A client of the API.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    client: reqwest::Client,
}

impl Api {
    /// # Errors
    /// Where no client can be made.
    pub fn new(base: impl Into<String>) -> Result<Self> {
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(15))
            .build()
            .context("cannot make an HTTP client")?;
        Ok(Self {
            base: base.into(),
            client,
        })
    }

    /// One request; `Err` only where no whole answer came.
    ///
    /// # Errors
    /// Where the API is down, or what it sends is not what it says.
    pub async fn get(&self, path: &str, min_position: Option<&str>) -> Result<Answer> {
        let mut request = self.client.get(format!("{}{path}", self.base));
        if let Some(min_position) = min_position {
            request = request.header("Min-Position", min_position);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let view_position = answer
            .headers()
            .get("View-Position")
            .map(|header| header.to_str().map(str::to_owned))
            .transpose()?
            .unwrap_or_default();
        let body = answer.bytes().await?;
        let body = serde_json::from_slice(&body)
            .with_context(|| format!("{path} answered {status} with what is not JSON"))?;
        Ok(Answer {
            status,
            positions: positions(&view_position)?,
            view_position,
            body,
        })
    }

    /// Asks until the answer is neither a failure to connect nor 503: what a patient client does
    /// while the API is restarted or behind `min_position`.
    ///
    /// # Errors
    /// Where no such answer comes in time.
    pub async fn patient(&self, path: &str, min_position: Option<&str>) -> Result<Answer> {
        let deadline = Instant::now() + ANSWERED_WITHIN;
        loop {
            let refused = match self.get(path, min_position).await {
                Ok(answer) if answer.status != StatusCode::SERVICE_UNAVAILABLE => {
                    return Ok(answer);
                }
                Ok(answer) => format!("503 at {}: {}", answer.view_position, answer.body),
                Err(error) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    format!("{error:#}")
                }
            };
            if Instant::now() > deadline {
                bail!("{path} with Min-Position {min_position:?}: {refused}");
            }
        }
    }

    /// Where the view itself stands: lists are read from it, and what is cached may be older.
    ///
    /// # Errors
    /// Where no answer comes in time.
    pub async fn view_stands_at(&self) -> Result<Positions> {
        let answer = self.patient("/v1/sold-items?limit=1", None).await?;
        ensure!(answer.status == StatusCode::OK, "{}", answer.body);
        Ok(answer.positions)
    }

    /// Asks until the answer says that it stands at `least` or later: a cached row may be older, and
    /// says so. Without `Min-Position`, so that the cache has to get there by itself.
    ///
    /// # Errors
    /// Where no such answer comes in time.
    pub async fn at(&self, path: &str, least: &Positions) -> Result<Answer> {
        let deadline = Instant::now() + ANSWERED_WITHIN;
        loop {
            let answer = self.patient(path, None).await?;
            let stands = |source: &str| answer.positions.get(source).copied().flatten();
            if least.iter().all(|(source, least)| stands(source) >= *least) {
                return Ok(answer);
            }
            ensure!(
                Instant::now() < deadline,
                "{path} stays at {}, before {least:?}: {}",
                answer.view_position,
                answer.body
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Every row of a list, walked by its cursors.
    ///
    /// # Errors
    /// Where a page is refused or a cursor does not end.
    pub async fn walk(
        &self,
        resource: &str,
        limit: u32,
        min_position: Option<&str>,
    ) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        let mut path = format!("/v1/{resource}?limit={limit}");
        loop {
            let answer = self.patient(&path, min_position).await?;
            ensure!(
                answer.status == StatusCode::OK,
                "{path}: {} {}",
                answer.status,
                answer.body
            );
            let page = answer.body["data"]
                .as_array()
                .with_context(|| format!("{path} has no data: {}", answer.body))?;
            ensure!(page.len() <= limit as usize, "{path}: {} rows", page.len());
            rows.extend(page.iter().cloned());
            match &answer.body["next_cursor"] {
                Value::Null => return Ok(rows),
                Value::String(cursor) => {
                    ensure!(!page.is_empty(), "{path}: an empty page with a cursor");
                    path = format!("/v1/{resource}?limit={limit}&cursor={cursor}");
                }
                other => bail!("{path}: next_cursor is {other}"),
            }
        }
    }
}

/// Reads `View-Position`: `sales=1763900000:0/1A2B3C, warehouse=none`.
///
/// # Errors
/// Where it is something else.
pub fn positions(header: &str) -> Result<Positions> {
    header
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (source, position) = part
                .split_once('=')
                .with_context(|| format!("{part:?} is not a position"))?;
            if position == "none" {
                return Ok((source.to_owned(), None));
            }
            let (epoch, lsn) = position
                .split_once(':')
                .with_context(|| format!("{part:?} has no epoch"))?;
            let position = Position {
                epoch: epoch.parse()?,
                lsn: lsn.parse::<Lsn>()?,
            };
            Ok((source.to_owned(), Some(position)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_position_is_read_per_source() {
        let read = positions("accounting=1763900000:0/1A2B3C, sales=none").unwrap();
        let accounting = Position {
            epoch: 1_763_900_000,
            lsn: Lsn(0x1A_2B3C),
        };
        assert_eq!(read["accounting"], Some(accounting));
        assert_eq!(read["sales"], None);
    }
}
