//! The description of the API in OpenAPI 3.1, made of the routes and of the types that they answer with.

use utoipa::{
    OpenApi as _,
    openapi::{
        Content, HttpMethod, OpenApi, Ref, RefOr, Response, ResponseBuilder,
        path::{Operation, ParameterIn, PathItem},
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use super::{authorize::SCHEME, problem::PROBLEM_JSON};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "sas admin API",
        description = "Services, revisions, traffic, logs, decisions and usage of a serverless platform. Errors are \
            problem details (RFC 9457). Names are in camel case; a decision's record and a revision's spec keep the \
            names that they are stored with.",
    ),
    components(schemas(super::problem::Problem)),
    tags(
        (name = "services", description = "Deploy, list, change and delete services"),
        (name = "observe", description = "Instances, decisions, logs and usage"),
        (name = "triggers", description = "What sends events to services"),
        (name = "workflows", description = "Definitions of workflows, and their runs"),
        (name = "platform", description = "The platform as a whole"),
        (name = "access", description = "Tokens and the record of changes"),
    )
)]
struct Base;

/// What all routes are added to.
pub(super) fn base() -> OpenApi {
    let mut base = Base::openapi();
    // Of the package, not of who wrote it.
    base.info.contact = None;
    let scheme = Http::builder()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "A token of `POST /v1/tokens`, or the platform's admin token. Scopes: `read`, `deploy` (with `read`), \
             `invoke`, `admin` (all); `platform` beside one: only for tokens that are held to no namespace.",
        ))
        .build();
    base.components.get_or_insert_default().add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
    base
}

/// Adds to each operation the answers that any of its kind may have.
pub(super) fn finish(description: &mut OpenApi) {
    for item in description.paths.paths.values_mut() {
        for (method, operation) in operations(item) {
            let open = operation.security.as_ref().is_none_or(|all| {
                all.iter().all(|one| serde_json::to_value(one).is_ok_and(|one| one.get(SCHEME).is_none()))
            });
            operation.operation_id = operation.operation_id.take().map(|id| camel(&id));
            let mut answers = vec![
                ("400", "The request is malformed"),
                ("403", "Who asks may not, or the host or origin is foreign"),
            ];
            if !open {
                answers.push(("401", "No token, or none that is known"));
                answers.push(("429", "Too many requests of one principal; come back after Retry-After"));
                answers.push(("503", "The platform starts, shuts down, can't reach its store, or has too many changes under way"));
            }
            let parameters = operation.parameters.iter().flatten();
            let places: Vec<ParameterIn> = parameters
                .filter_map(|parameter| match parameter {
                    RefOr::T(parameter) => Some(parameter.parameter_in.clone()),
                    RefOr::Ref(_) => None,
                })
                .collect();
            if places.contains(&ParameterIn::Path) {
                answers.push(("404", "There is no such thing"));
            }
            if !places.is_empty() || operation.request_body.is_some() {
                answers.push(("422", "A field or parameter is wrong; `fields` says which and why"));
            }
            if operation.request_body.is_some() {
                answers.push(("413", "The body is too large"));
                answers.push((
                    "415",
                    "A web page could have sent this type unasked: send JSON or YAML, or a token",
                ));
            }
            if !open && method != HttpMethod::Get {
                answers.push(("409", "Somebody else changed it meanwhile, or a name is taken"));
            }
            for (status, text) in answers {
                let known = &mut operation.responses.responses;
                known.entry(status.to_owned()).or_insert_with(|| RefOr::T(problem(text)));
            }
        }
    }
}

fn problem(description: &str) -> Response {
    let schema = Ref::from_schema_name("Problem");
    ResponseBuilder::new().description(description).content(PROBLEM_JSON, Content::new(Some(schema))).build()
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    let PathItem { get, put, post, delete, .. } = item;
    [
        (HttpMethod::Get, get.as_mut()),
        (HttpMethod::Put, put.as_mut()),
        (HttpMethod::Post, post.as_mut()),
        (HttpMethod::Delete, delete.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation?)))
}

fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.len().min(1));
        camel.push_str(&first.to_ascii_uppercase());
        camel.push_str(rest);
    }
    camel
}
