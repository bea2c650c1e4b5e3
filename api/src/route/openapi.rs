//! The OpenAPI document: what all routes have in common is said once, here, from the same
//! constants that the parameters are checked with.

use std::sync::Arc;

use utoipa::OpenApi as _;
use utoipa::PartialSchema as _;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ArrayItems, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{OpenApi, Ref, RefOr, Required, Response, ResponseBuilder, Schema};

use crate::parameters::{self, LIMIT_DEFAULT, LIMIT_MAX, MAX_WAIT_MS_DEFAULT, MAX_WAIT_MS_MAX};
use crate::problem::{Problem, ProblemBody};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Tributary",
        description = "One read API over the Warehouse, Accounting and Sales systems, kept live \
            by change data capture.\n\n\
            Every answer carries `View-Position`: how far in each source it is. Send it back as \
            `Min-Position` and no later answer is older. Money is a decimal string with two \
            places, a time RFC 3339 in UTC with microseconds. Fields of a source that was not \
            read yet are null and named in `unknown`. Errors are `application/problem+json` with \
            a stable `code`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/", description = "this instance")),
    tags(
        (name = "products", description = "Items of the warehouse, and what sales sold"),
        (name = "orders", description = "Orders with their lines and payments"),
        (name = "customers", description = "Customers by what they ordered and paid"),
        (name = "transactions", description = "Transactions of accounting"),
        (name = "discrepancies", description = "What does not fit between the systems"),
        (name = "sold-items", description = "Products that were sold, most sold first"),
        (name = "daily-sales", description = "What each product sold on each day"),
        (name = "status", description = "How far the view is")
    ),
    components(schemas(ProblemBody))
)]
struct Document;

/// The document without its routes.
pub(super) fn document() -> OpenApi {
    Document::openapi()
}

/// Adds parameters, headers and problems to every route.
pub(super) fn add_what_all_share(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        if let Some(operation) = &mut item.get {
            add_to(operation, path);
        }
    }
    for (name, schema) in &mut document.components.get_or_insert_default().schemas {
        if let Some(row) = name.strip_prefix("Page_") {
            name_rows(schema, row);
        }
    }
}

/// A page's rows are said by name, as everywhere else, not once more in full.
fn name_rows(page: &mut RefOr<Schema>, row: &str) {
    if let RefOr::T(Schema::Object(page)) = page
        && let Some(RefOr::T(Schema::Array(rows))) = page.properties.get_mut("data")
    {
        rows.items = ArrayItems::RefOrSchema(Box::new(Ref::from_schema_name(row).into()));
    }
}

/// A row that there is in the data that `make run` begins with.
fn example_id(path: &str) -> i64 {
    match path {
        "/v1/discrepancies/{id}" => super::discrepancies::EXAMPLE_ID,
        _ => 1,
    }
}

fn add_to(operation: &mut Operation, path: &str) {
    let is_one = path.ends_with('}');
    let is_list = !is_one && path != "/v1/status";
    let mut parameters = Vec::new();
    // Other keys are declared by their routes.
    if path.ends_with("{id}") {
        parameters.push(
            text(ParameterIn::Path, "id", "Which row.")
                .required(Required::True)
                .schema(Some(
                    ObjectBuilder::new().schema_type(Type::Integer).format(Some(
                        utoipa::openapi::SchemaFormat::KnownFormat(
                            utoipa::openapi::KnownFormat::Int64,
                        ),
                    )),
                ))
                .example(Some(example_id(path).into()))
                .build(),
        );
    }
    if is_list {
        parameters.push(bounded(
            "limit",
            "Rows a page.",
            1,
            LIMIT_MAX.into(),
            LIMIT_DEFAULT.into(),
            10,
        ));
        parameters.push(
            text(
                ParameterIn::Query,
                "cursor",
                "The `next_cursor` of the page before; opaque.",
            )
            .build(),
        );
    }
    parameters.push(bounded(
        "max_wait_ms",
        "How long to wait for `Min-Position`, milliseconds; then 503 `position_not_reached`.",
        0,
        MAX_WAIT_MS_MAX,
        MAX_WAIT_MS_DEFAULT,
        MAX_WAIT_MS_DEFAULT,
    ));
    parameters.push(
        text(
            ParameterIn::Header,
            "Min-Position",
            "Answer with nothing older: `SOURCE=EPOCH:LSN`, comma-separated. The epoch may be \
             left out; `none` asks nothing, so that a `View-Position` can be sent as it came.",
        )
        .example(Some("sales=0/0".into()))
        .build(),
    );
    let declared = operation.parameters.get_or_insert_default();
    declared.extend(parameters.into_iter().map(RefOr::T));
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            add_headers(response, is_one);
        }
    }
    let mut problems = vec![
        (
            "A parameter or header is wrong; `parameter` names it",
            Problem::UnknownParameter {
                name: "limt".to_owned(),
                known: parameters::OF_LIST,
            },
        ),
        ("Something is wrong on this side", Problem::Internal),
        (
            "Not now: `position_not_reached`, `view_unavailable`, `too_many_requests` or \
             `too_many_waits`",
            Problem::PositionNotReached {
                positions: Arc::default(),
                waited_ms: MAX_WAIT_MS_DEFAULT,
            },
        ),
        ("The answer took too long", Problem::TimedOut),
    ];
    if is_one {
        let missing = Problem::NotFound {
            resource: "orders",
            key: "999999".to_owned(),
            positions: Arc::default(),
        };
        problems.push(("There is no such row", missing));
    }
    for (description, example) in problems {
        let body = example.body();
        let response = RefOr::T(problem(description, &body));
        let responses = &mut operation.responses.responses;
        responses.insert(body.status().to_string(), response);
    }
}

fn add_headers(response: &mut Response, is_one: bool) {
    let header = |description: &str| {
        HeaderBuilder::new()
            .schema(Some(String::schema()))
            .description(Some(description))
            .build()
    };
    response.headers.insert(
        "View-Position".to_owned(),
        header("How far in each source this answer is: `sales=EPOCH:LSN, …`, or `none`").into(),
    );
    if is_one {
        response.headers.insert(
            "View-Stale".to_owned(),
            header("`true` where the view's database is down and a cached row is answered").into(),
        );
    }
}

fn problem(description: &str, example: &ProblemBody) -> Response {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("ProblemBody")))
        .example(serde_json::to_value(example).ok())
        .build();
    let mut response = ResponseBuilder::new()
        .description(description)
        .content("application/problem+json", content)
        .build();
    add_headers(&mut response, false);
    response
}

fn text(place: ParameterIn, name: &str, description: &str) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(
            ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)),
        ))
}

fn bounded(
    name: &str,
    description: &str,
    min: u64,
    max: u64,
    default: u64,
    example: u64,
) -> Parameter {
    let schema = ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::Integer))
        .minimum(Some(min))
        .maximum(Some(max))
        .default(Some(default.into()));
    text(ParameterIn::Query, name, description)
        .schema(Some(Schema::from(schema)))
        .example(Some(example.into()))
        .build()
}
