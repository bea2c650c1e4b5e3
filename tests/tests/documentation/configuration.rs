//! `docs/configuration.md`: every key of every binary, from the types that read it.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value};

const HEAD: &str = "\
# Configuration

Generated from the types that read it; a test keeps it true. Write nothing here by hand.

A binary reads one TOML file (`--config`), then the environment: `TRIBUTARY_POSTGRES__URL` is `url`
in `[postgres]`: the prefix, then the path with `__` between its parts. An unknown key is an
error in both. Whatever has no default must be given; `–` is a key that may be left out.
";

type Object = Map<String, Value>;

#[test]
fn configuration_md_has_every_key_of_every_binary() -> Result<()> {
    let mut page = HEAD.to_owned();
    for (binary, schema) in [
        ("connector", schema::<connectors::config::ConnectorConfig>()),
        ("aggregator", schema::<aggregator::config::Config>()),
        ("api", schema::<api::config::Config>()),
    ] {
        let schema = schema.as_object().context("a schema is an object")?;
        _ = writeln!(page, "\n## `{binary}`");
        section(&mut page, schema, schema, &[])?;
    }
    crate::is_fresh("configuration.md", &page)
}

fn schema<T: JsonSchema>() -> Schema {
    SchemaGenerator::default().into_root_schema_for::<T>()
}

/// A table of a section's keys, then its own sections.
fn section(page: &mut String, root: &Object, object: &Object, path: &[&str]) -> Result<()> {
    let properties = object.get("properties").and_then(Value::as_object);
    let properties = properties.with_context(|| format!("{path:?} has no keys"))?;
    let required: Vec<&str> = object
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let mut sections = Vec::new();
    let mut rows = String::new();
    for (key, property) in properties {
        let property = property.as_object().context("a key is an object")?;
        let target = resolve(root, property)?;
        let text = meaning(property, target);
        ensure!(!text.is_empty(), "{path:?} {key} has no description");
        if target.contains_key("properties") {
            sections.push((vec![key.as_str()], target));
            continue;
        }
        if let Some(each) = each(root, target)? {
            sections.push((vec![key.as_str(), "NAME"], each));
            continue;
        }
        let default = match property.get("default").or_else(|| target.get("default")) {
            _ if required.contains(&key.as_str()) => "**required**".to_owned(),
            None | Some(Value::Null) => "–".to_owned(),
            Some(value) => format!("`{value}`"),
        };
        let kind = kind(root, target)?;
        _ = writeln!(
            rows,
            "| `{key}` | {kind} | {default} | {} |",
            text.replace('|', "\\|")
        );
    }
    if !rows.is_empty() {
        if !path.is_empty() {
            _ = writeln!(page, "\n### `[{}]`", path.join("."));
        }
        _ = write!(
            page,
            "\n| key | type | default | meaning |\n|---|---|---|---|\n{rows}"
        );
    }
    for (below, target) in sections {
        section(page, root, target, &[path, &below].concat())?;
    }
    Ok(())
}

/// What a table has by name, if that is a section.
fn each<'a>(root: &'a Object, target: &'a Object) -> Result<Option<&'a Object>> {
    let each = target
        .get("additionalProperties")
        .and_then(Value::as_object);
    let each = each.map(|each| resolve(root, each)).transpose()?;
    Ok(each.filter(|each| each.contains_key("properties")))
}

/// What a reference, alone or beside `null`, stands for.
fn resolve<'a>(root: &'a Object, property: &'a Object) -> Result<&'a Object> {
    let choices = property.get("anyOf").and_then(Value::as_array);
    let choice = choices.and_then(|all| all.iter().find_map(|one| one.get("$ref")));
    let Some(reference) = property.get("$ref").or(choice).and_then(Value::as_str) else {
        return Ok(property);
    };
    let name = reference.trim_start_matches("#/$defs/");
    let found = root.get("$defs").and_then(|all| all.get(name));
    found
        .and_then(Value::as_object)
        .with_context(|| format!("{reference} leads nowhere"))
}

/// One paragraph, without the default, which has a column of its own.
fn meaning(property: &Object, target: &Object) -> String {
    let text = [property, target]
        .iter()
        .find_map(|object| object.get("description")?.as_str())
        .unwrap_or_default();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.rsplit_once(" Default ") {
        Some((before, default)) if default.ends_with('.') && !default.contains(". ") => {
            before.to_owned()
        }
        _ => text,
    }
}

fn kind(root: &Object, target: &Object) -> Result<String> {
    if let Some(values) = values(target) {
        return Ok(values);
    }
    let name = match target.get("type") {
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .find(|name| *name != "null")
            .unwrap_or_default(),
        _ => "",
    };
    if name == "array" {
        let items = target.get("items").and_then(Value::as_object);
        let items = resolve(root, items.context("an array has items")?)?;
        return Ok(format!("list of {}", kind(root, items)?));
    }
    if name == "object" {
        return Ok("table of string".to_owned());
    }
    ensure!(!name.is_empty(), "a key of no type: {target:?}");
    let bound = |key: &str| target.get(key).and_then(Value::as_f64);
    Ok(match (bound("minimum"), bound("maximum")) {
        (Some(least), Some(most)) if name != "string" => format!("{name}, {least} to {most}"),
        (Some(least), None) if name != "string" => format!("{name}, at least {least}"),
        _ => name.to_owned(),
    })
}

/// The words that an enum takes.
fn values(target: &Object) -> Option<String> {
    let words: Vec<String> = match (target.get("enum"), target.get("oneOf")) {
        (Some(Value::Array(words)), _) => words
            .iter()
            .filter_map(|word| Some(format!("`{}`", word.as_str()?)))
            .collect(),
        (_, Some(Value::Array(choices))) => choices
            .iter()
            .flat_map(|choice| match (choice.get("const"), choice.get("enum")) {
                (Some(Value::String(word)), _) => vec![format!("`{word}`")],
                (_, Some(Value::Array(words))) => words
                    .iter()
                    .filter_map(|word| Some(format!("`{}`", word.as_str()?)))
                    .collect(),
                _ => Vec::new(),
            })
            .collect(),
        _ => return None,
    };
    Some(words.join(", "))
}
