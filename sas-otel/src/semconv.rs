//! The names of OpenTelemetry's semantic conventions that are used here, as of version 1.42.0. Those of `faas.*` are still
//! called in development there: they stand here once, so that a later version is one change.

/// The version of the conventions, as OTLP tells it.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.42.0";

pub(crate) const SERVICE_NAME: &str = "service.name";
pub(crate) const SERVICE_NAMESPACE: &str = "service.namespace";
pub(crate) const SERVICE_VERSION: &str = "service.version";
pub(crate) const SERVICE_INSTANCE_ID: &str = "service.instance.id";
pub(crate) const TELEMETRY_SDK_NAME: &str = "telemetry.sdk.name";
pub(crate) const TELEMETRY_SDK_LANGUAGE: &str = "telemetry.sdk.language";
pub(crate) const TELEMETRY_SDK_VERSION: &str = "telemetry.sdk.version";

pub(crate) const ERROR_TYPE: &str = "error.type";
pub(crate) const HTTP_REQUEST_METHOD: &str = "http.request.method";
pub(crate) const HTTP_REQUEST_METHOD_ORIGINAL: &str = "http.request.method_original";
pub(crate) const HTTP_REQUEST_BODY_SIZE: &str = "http.request.body.size";
pub(crate) const HTTP_REQUEST_RESEND_COUNT: &str = "http.request.resend_count";
pub(crate) const HTTP_RESPONSE_BODY_SIZE: &str = "http.response.body.size";
pub(crate) const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
pub(crate) const SERVER_ADDRESS: &str = "server.address";
pub(crate) const SERVER_PORT: &str = "server.port";
pub(crate) const URL_PATH: &str = "url.path";
pub(crate) const URL_SCHEME: &str = "url.scheme";

pub(crate) const FAAS_TRIGGER: &str = "faas.trigger";
pub(crate) const FAAS_INVOCATION_ID: &str = "faas.invocation_id";
pub(crate) const FAAS_COLDSTART: &str = "faas.coldstart";
pub(crate) const FAAS_NAME: &str = "faas.name";
pub(crate) const FAAS_VERSION: &str = "faas.version";
pub(crate) const FAAS_INSTANCE: &str = "faas.instance";
pub(crate) const FAAS_INVOKED_NAME: &str = "faas.invoked_name";
pub(crate) const FAAS_INVOKED_PROVIDER: &str = "faas.invoked_provider";

pub(crate) const CLOUDEVENTS_EVENT_ID: &str = "cloudevents.event_id";
pub(crate) const CLOUDEVENTS_EVENT_SOURCE: &str = "cloudevents.event_source";
pub(crate) const CLOUDEVENTS_EVENT_TYPE: &str = "cloudevents.event_type";
pub(crate) const MESSAGING_BATCH_MESSAGE_COUNT: &str = "messaging.batch.message_count";

/// Ours, where the conventions have no word.
pub(crate) const SAS_PURPOSE: &str = "sas.purpose";
pub(crate) const SAS_ABORTED: &str = "sas.aborted";
pub(crate) const SAS_FROM_STEM: &str = "sas.from_stem";
pub(crate) const SAS_TRIGGER: &str = "sas.trigger";
pub(crate) const SAS_WORKFLOW: &str = "sas.workflow";
pub(crate) const SAS_WORKFLOW_VERSION: &str = "sas.workflow.version";
pub(crate) const SAS_WORKFLOW_RUN: &str = "sas.workflow.run";
pub(crate) const SAS_WORKFLOW_STEP: &str = "sas.workflow.step";
pub(crate) const SAS_TARGET: &str = "sas.target";
