//! Tokens, and the record of changes.

use std::time::Duration;

use axum::{Json, extract::State};
use http::StatusCode;
use sas_core::{Principal, Scope};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    extract::{Caller, PageQuery, Path, Query, Sent, after, cursor, page_size},
    problem::Failure,
};
use crate::{
    audit::AuditRecord,
    tokens::{MadeToken, NewToken, TokenView},
};

/// A token that is to be made.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct TokenRequest {
    /// Who will use it: 1 to 63 letters, digits, `.`, `_`, `@` or `-`.
    #[schema(required, max_length = 63)]
    name: Option<String>,
    /// What it is for.
    #[schema(required, min_items = 1)]
    scopes: Option<Vec<Scope>>,
    /// The namespace that it is held to; the maker's own unless the maker is held to none.
    namespace: Option<String>,
    /// How long it lives: 90 days unless it is given.
    #[schema(minimum = 1, maximum = 315360000)]
    expires_in_seconds: Option<u64>,
}

/// Tokens, by name.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenList {
    tokens: Vec<TokenView>,
    /// For the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A token, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct TokenPath {
    /// Its id, which is no secret.
    id: String,
}

/// Who asks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Identity {
    /// The name that changes are kept with.
    name: String,
    /// What they may do.
    scopes: Vec<Scope>,
    /// The namespace that they are held to; `null`: none.
    namespace: Option<String>,
}

impl From<&Principal> for Identity {
    fn from(principal: &Principal) -> Self {
        Self {
            name: principal.name().to_owned(),
            scopes: Scope::ALL.into_iter().filter(|scope| principal.may(*scope)).collect(),
            namespace: principal.tenant().map(str::to_owned),
        }
    }
}

/// How much of the audit log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// At most so many; 100 without it.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Goes on after the page that said this.
    #[serde(rename = "continue")]
    #[param(rename = "continue")]
    next: Option<String>,
}

/// Changes, youngest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditPage {
    records: Vec<AuditRecord>,
    /// For the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Tells who asks, and what they may do.
#[utoipa::path(get, path = "/v1/whoami", tag = "access", security(("token" = ["read"])),
    responses((status = 200, body = Identity, description = "Who asks")))]
pub(super) async fn whoami(Caller(caller): Caller) -> Json<Identity> {
    Json(Identity::from(&caller))
}

/// Lists tokens: those of the own namespace, for who is held to one. What opens anything is not shown.
#[utoipa::path(get, path = "/v1/tokens", tag = "access", operation_id = "list_tokens", params(PageQuery),
    security(("token" = ["admin"])), responses((status = 200, body = TokenList, description = "A page of tokens, by name")))]
pub(super) async fn tokens(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<PageQuery>,
) -> Result<Json<TokenList>, Failure> {
    // Several may have one name. A blank is less than all that names have.
    let place = |token: &TokenView| format!("{} {}", token.name, token.id);
    let (tokens, next) = query.of(api.control.tokens().list(&caller).await?, place)?;
    Ok(Json(TokenList { tokens, next }))
}

/// Makes a token. The answer is the only time that it is shown.
#[utoipa::path(post, path = "/v1/tokens", tag = "access", operation_id = "create_token",
    security(("token" = ["admin"])), request_body = TokenRequest,
    responses((status = 201, body = MadeToken, description = "The token")))]
pub(super) async fn create_token(
    State(api): State<Api>,
    Caller(caller): Caller,
    body: Sent,
) -> Result<(StatusCode, Json<MadeToken>), Failure> {
    let asked: TokenRequest = body
        .object()
        .map_err(|problem| Failure::field("$", "", format!("not a token's request: {problem}")))?;
    let namespace = asked.namespace.or_else(|| caller.tenant().map(str::to_owned));
    if namespace.as_deref().is_some_and(|namespace| !caller.reaches(namespace)) {
        return Err(Failure::forbidden(format!("{caller} makes tokens for its own namespace only")));
    }
    let mut new = NewToken::new(asked.name.unwrap_or_default(), asked.scopes.unwrap_or_default());
    new.namespace = namespace;
    if let Some(seconds) = asked.expires_in_seconds {
        new.life = Duration::from_secs(seconds);
    }
    let made = api.control.tokens().create(&caller, new).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Takes a token back: it opens nothing from now on.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "access", operation_id = "revoke_token", params(TokenPath),
    security(("token" = ["admin"])), responses((status = 200, body = TokenView, description = "What it was")))]
pub(super) async fn revoke_token(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<TokenPath>,
) -> Result<Json<TokenView>, Failure> {
    Ok(Json(api.control.tokens().revoke(&caller, &at.id).await?))
}

/// Lists who changed what, youngest first: those of the own namespace, for who is held to one.
#[utoipa::path(get, path = "/v1/audit", tag = "access", params(AuditQuery), security(("token" = ["admin"])),
    responses((status = 200, body = AuditPage, description = "A page of changes")))]
pub(super) async fn audit(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<AuditQuery>,
) -> Result<Json<AuditPage>, Failure> {
    let (limit, from) = (page_size(query.limit, 100, 1000)?, after(query.next.as_deref())?);
    let (records, next) = api.control.audit.list(&caller, from, limit).await?;
    Ok(Json(AuditPage { records, next: next.as_deref().map(cursor) }))
}
