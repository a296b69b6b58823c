//! All public errors go through `?` into any boxed error, and travel between threads.

fn is_an_error<T: std::error::Error + Send + Sync + 'static>() {}

#[test]
fn all_public_errors_can_be_boxed_and_sent() {
    is_an_error::<sas::BuildError>();
    is_an_error::<sas::UnknownPreset>();
    is_an_error::<sas_core::Error>();
    is_an_error::<sas_core::CallError>();
    is_an_error::<sas_core::ClaimError>();
    is_an_error::<sas_core::Denied>();
    is_an_error::<sas_core::EventError>();
    is_an_error::<sas_core::RouteError>();
    is_an_error::<sas_core::SpecErrors>();
    is_an_error::<sas_autoscale::ReplayError>();
    is_an_error::<sas_knative::ParseError>();
    is_an_error::<sas_probe::ProbeFailure>();
    is_an_error::<sas_jq::Error>();
    is_an_error::<sas_jq::ParseError>();
    is_an_error::<sas_pool::trace::TraceError>();
    is_an_error::<sas_trigger::cesql::EvaluationError>();
    is_an_error::<sas_trigger::cesql::ParseError>();
    is_an_error::<sas_trigger::cloudevents::DecodeError>();
    #[cfg(feature = "cron")]
    is_an_error::<sas_trigger::CronError>();
    #[cfg(feature = "wasm")]
    is_an_error::<sas_runtime_wasm::NotAHost>();
    #[cfg(feature = "wasm")]
    is_an_error::<sas_runtime_wasm::NotANetwork>();
}
