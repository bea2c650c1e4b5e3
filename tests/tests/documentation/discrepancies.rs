//! `docs/discrepancies.md` and the API name the rules that there are.

use aggregator::view::RULES;
use anyhow::{Result, ensure};

#[test]
fn the_rules_are_as_the_catalogue_has_them() -> Result<()> {
    let path = fixtures::place::repository().join("docs/discrepancies.md");
    let page = std::fs::read_to_string(path)?;
    let rows: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit())
        .collect();
    let expected: Vec<_> = RULES
        .iter()
        .map(|rule| {
            format!(
                "| {} | `{}` | {} | {} | {} |",
                rule.number,
                rule.name,
                rule.sentence,
                rule.systems.join(", "),
                rule.resource
            )
        })
        .collect();
    ensure!(rows == expected, "found {rows:#?}\nwanted {expected:#?}");
    let names: Vec<_> = RULES.iter().map(|rule| rule.name).collect();
    ensure!(names == api::route::discrepancies::RULES);
    Ok(())
}
