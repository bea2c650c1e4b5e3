//! The OpenAPI document: it stays as it is, and its examples answer when they are tried.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::harness::instance::Instance;
use crate::harness::world::World;
use crate::routes::seed;

fn document() -> Result<Value> {
    Ok(serde_json::to_value(api::route::document())?)
}

#[test]
fn the_document_stays() -> Result<()> {
    insta::assert_json_snapshot!("openapi", document()?);
    Ok(())
}

/// What Swagger UI sends on "Execute": every parameter that has an example, with it.
#[tokio::test]
async fn every_example_answers_when_it_is_tried() -> Result<()> {
    let world = World::new().await?;
    seed(&world).await?;
    let instance = Instance::start(&world, &[]).await?;
    let document = document()?;
    let paths = document["paths"].as_object().context("paths")?;
    ensure!(paths.len() == 15, "{:?}", paths.keys());
    for (path, item) in paths {
        let (mut target, mut query, mut headers) = (path.clone(), Vec::new(), Vec::new());
        for parameter in item["get"]["parameters"].as_array().context("parameters")? {
            let name = parameter["name"].as_str().context("a name")?;
            let example = match &parameter["example"] {
                Value::Null => continue,
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            match parameter["in"].as_str() {
                Some("path") => target = target.replace(&format!("{{{name}}}"), &example),
                Some("query") => query.push(format!("{name}={example}")),
                Some("header") => headers.push((name, example)),
                place => anyhow::bail!("{path}: a parameter in {place:?}"),
            }
        }
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let answer = instance
            .get_with(&format!("{target}?{}", query.join("&")), &headers)
            .await?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
        fits(&document, &item["get"], &answer.json()?).with_context(|| path.clone())?;
    }
    Ok(())
}

/// Every field of the answer is in its schema, and every field of the schema in the answer.
fn fits(document: &Value, operation: &Value, answer: &Value) -> Result<()> {
    let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
    compare(document, schema, answer)
}

fn compare(document: &Value, schema: &Value, value: &Value) -> Result<()> {
    if let Some(name) = schema["$ref"].as_str() {
        let target = document
            .pointer(name.trim_start_matches('#'))
            .context("a schema")?;
        return compare(document, target, value);
    }
    if let (Some(properties), Some(fields)) = (schema["properties"].as_object(), value.as_object())
    {
        let (known, given): (Vec<_>, Vec<_>) =
            (properties.keys().collect(), fields.keys().collect());
        ensure!(
            known.len() == given.len(),
            "schema {known:?}, answer {given:?}"
        );
        for (name, field) in fields {
            compare(document, &properties[name], field)?;
        }
    }
    if let Some(items) = value.as_array() {
        ensure!(
            !schema["items"].is_null(),
            "{schema} is no schema of a list"
        );
        for item in items {
            compare(document, &schema["items"], item)?;
        }
    }
    Ok(())
}
