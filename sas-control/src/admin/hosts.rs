//! The hosts that share the platform's state.

use axum::{Json, extract::State};
use sas_core::HostStatus;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;

/// The hosts of the platform.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HostList {
    /// Each live host, by name: `{"name", "address", "draining", "here", "shards"}`. Empty where the platform is one host
    /// alone.
    #[schema(value_type = Vec<Object>)]
    hosts: Vec<HostStatus>,
}

/// Lists the hosts that share the platform's state, and how many shards of services each acts for.
#[utoipa::path(get, path = "/v1/hosts", operation_id = "list_hosts", tag = "platform", security(("token" = ["read", "platform"])),
    responses((status = 200, body = HostList, description = "The hosts, as the one that was asked knows them")))]
pub(super) async fn list(State(api): State<Api>) -> Json<HostList> {
    Json(HostList { hosts: api.control.hosts().map(|hosts| hosts.list()).unwrap_or_default() })
}
