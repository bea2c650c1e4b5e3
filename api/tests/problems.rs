//! What an error says: the body of each problem, and its section in the documentation.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, ensure};
use api::position::{Minimum, Positions};
use api::problem::Problem;

/// One of each.
fn problems() -> Vec<Problem> {
    let sources = ["accounting".to_owned(), "sales".to_owned()];
    let positions = Arc::new(Positions::new(&sources, []));
    let minimum = Minimum::parse("sale=0/0", &sources).expect_err("sale is no source");
    vec![
        Problem::UnknownParameter {
            name: "limt".to_owned(),
            known: &["cursor", "limit", "max_wait_ms"],
        },
        Problem::DuplicateParameter {
            name: "limit".to_owned(),
        },
        Problem::InvalidParameter {
            name: "limit",
            expected: "a whole number from 1 to 1000".to_owned(),
        },
        Problem::InvalidCursor,
        Problem::InvalidId {
            name: "id",
            given: "x".to_owned(),
            expected: "a whole number",
        },
        Problem::InvalidMinPosition(minimum),
        Problem::NotFound {
            resource: "orders",
            key: "7".to_owned(),
            positions: positions.clone(),
        },
        Problem::NoSuchRoute {
            path: "/v2".to_owned(),
        },
        Problem::MethodNotAllowed,
        Problem::UriTooLong { bytes_max: 4096 },
        Problem::BodyTooLarge { bytes_max: 16_384 },
        Problem::PositionNotReached {
            positions,
            waited_ms: 2000,
        },
        Problem::TooManyWaits,
        Problem::TooManyRequests,
        Problem::ViewUnavailable,
        Problem::TimedOut,
        Problem::Internal,
    ]
}

#[test]
fn the_body_of_each_problem_stays() -> Result<()> {
    let mut bodies = BTreeMap::new();
    for problem in problems() {
        bodies.insert(problem.code(), serde_json::to_value(problem.body())?);
    }
    insta::assert_json_snapshot!("problems", bodies);
    Ok(())
}

#[test]
fn each_code_has_a_section_in_the_documentation_and_no_section_is_left_over() -> Result<()> {
    let codes: Vec<_> = problems().iter().map(Problem::code).collect();
    ensure!(codes == Problem::CODES, "{codes:?}");
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md"))?;
    let sections: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    ensure!(
        sections == Problem::CODES,
        "docs/errors.md has {sections:?}"
    );
    Ok(())
}
