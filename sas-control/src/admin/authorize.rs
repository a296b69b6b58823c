//! Who may use which route: the scopes that the description of the API names, and the tenant of the path. What the
//! description does not have is not there.

use std::{collections::HashMap, sync::Arc};

use axum::{
    extract::{MatchedPath, RawPathParams, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::Method;
use sas_core::{Principal, Scope};
use utoipa::openapi::OpenApi;

use super::problem::Failure;

/// The name of the security scheme in the description.
pub(super) const SCHEME: &str = "token";
/// Beside a scope in the description: only for tokens that are held to no tenant.
const PLATFORM: &str = "platform";

/// What a route asks of who uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// `None`: nothing.
    pub(super) scope: Option<Scope>,
    /// Not for those who are held to a tenant.
    pub(super) platform: bool,
}

/// The rules of all routes, by path as the description writes it and method.
#[derive(Debug)]
pub(super) struct Rules(HashMap<String, Vec<(Method, Rule)>>);

impl Rules {
    /// Reads them from the description, so that it can't say anything else than what is done. Panics when an operation
    /// has no security requirement, or one that is unknown; a test builds every route.
    pub(super) fn of(description: &OpenApi) -> Self {
        let document = serde_json::to_value(description).expect("a description is JSON");
        let paths = document["paths"].as_object().expect("a description has paths");
        let rules = paths.iter().map(|(path, operations)| {
            let operations = operations.as_object().expect("a path has operations");
            let rules = ["get", "put", "post", "delete"].into_iter().filter_map(|method| {
                let operation = operations.get(method)?;
                let name = format!("{method} {path}");
                let requirement =
                    operation["security"].get(0).unwrap_or_else(|| panic!("{name}: no security"));
                let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).expect("a method");
                Some((method, rule(&name, requirement)))
            });
            (path.clone(), rules.collect())
        });
        Self(rules.collect())
    }

    fn find(&self, path: &str, method: &Method) -> Result<Rule, Failure> {
        let rules = self.0.get(path).map(Vec::as_slice).unwrap_or_default();
        let asked = if method == Method::HEAD { &Method::GET } else { method };
        let found = rules.iter().find(|(known, _)| known == asked).map(|(_, rule)| *rule);
        found.ok_or_else(|| {
            let known: Vec<&str> = rules.iter().map(|(method, _)| method.as_str()).collect();
            Failure::not_allowed(method, known.join(", "))
        })
    }
}

fn rule(name: &str, requirement: &serde_json::Value) -> Rule {
    let Some(scopes) = requirement.get(SCHEME) else { return Rule { scope: None, platform: false } };
    let scopes: Vec<&str> =
        scopes.as_array().into_iter().flatten().filter_map(serde_json::Value::as_str).collect();
    let scope = Scope::ALL.into_iter().find(|scope| scopes.contains(&scope.as_str()));
    let scope = scope.unwrap_or_else(|| panic!("{name}: no scope"));
    Rule { scope: Some(scope), platform: scopes.contains(&PLATFORM) }
}

/// Lets through what the rule of the route allows.
pub(super) async fn authorize(
    State(rules): State<Arc<Rules>>,
    matched: MatchedPath,
    parameters: RawPathParams,
    request: Request,
    next: Next,
) -> Response {
    let namespace = parameters.iter().find(|(name, _)| *name == "namespace").map(|(_, value)| value);
    let principal = request.extensions().get::<Principal>();
    match rules.find(matched.as_str(), request.method()).and_then(|rule| check(rule, principal, namespace)) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

fn check(rule: Rule, principal: Option<&Principal>, namespace: Option<&str>) -> Result<(), Failure> {
    let Some(scope) = rule.scope else { return Ok(()) };
    let principal = principal.ok_or_else(|| Failure::forbidden("it is not known who asks"))?;
    if !principal.may(scope) {
        let message = format!("this needs the scope {scope}, which {principal} does not have");
        return Err(Failure::forbidden(message));
    }
    let Some(tenant) = principal.tenant() else { return Ok(()) };
    if rule.platform {
        let message =
            format!("this is of the whole platform, and {principal} is held to the namespace {tenant}");
        return Err(Failure::forbidden(message));
    }
    match namespace {
        Some(namespace) if namespace != tenant => {
            Err(Failure::forbidden(format!("{principal} is held to the namespace {tenant}")))
        }
        _ => Ok(()),
    }
}
