//! Scaling through a whole platform: which scalers there are, and what is measured outside.

use sas::{
    core::{Decision, Policy, Reason, ScaleInput},
    prelude::*,
};
use serde_json::Value;

#[derive(Debug)]
struct OneSpare;

impl Policy for OneSpare {
    type State = ();

    fn name(&self) -> &'static str {
        "one-spare"
    }

    fn decide(&self, (): &mut (), input: &ScaleInput<'_>) -> Decision {
        Decision::set(input.load.queued + 1, Reason::Custom(1))
    }
}

async fn platform() -> Platform {
    let runtime =
        InlineRuntime::new().with("good", |_: Request, _cx| async { Response::new(Body::from("good")) });
    Platform::builder()
        .admin_token("a-token-of-the-tests")
        .runtime(runtime)
        .scaler(OneSpare)
        .build()
        .await
        .expect("a platform")
}

fn manifest(name: &str, annotation: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations:\n    \
         sas.dev/function: good\nspec:\n  template:\n    metadata:\n      annotations:\n        {annotation}\n    \
         spec: {{}}\n"
    )
}

async fn admin(platform: &Platform, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("authorization", "Bearer a-token-of-the-tests")
        .body(Body::from(body.to_owned()));
    let response = platform.admin().handle(request.expect("a request")).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect(1 << 20).await.expect("a body");
    (status, serde_json::from_slice(&body).expect("JSON"))
}

#[tokio::test]
async fn a_scaler_that_nobody_has_is_refused_wherever_it_comes_from_and_ones_own_is_known() {
    let platform = platform().await;
    let said_of = |text: &str| {
        ["kpaa", "kpa", "combined", "scheduled", "one-spare"].iter().all(|name| text.contains(name))
    };

    let mut spec = RevisionSpec::new("inline", Source::Function("good".to_owned()));
    spec.scaling.scaler = "kpaa".to_owned();
    let error = platform.deploy("default", "wrong", spec.clone()).await.expect_err("nobody has it");
    assert_eq!(error.kind, ErrorKind::InvalidSpec);
    assert!(said_of(&error.message) && error.message.contains("scaling.scaler"), "{error}");

    for annotation in ["autoscaling.knative.dev/class: kpaa", "sas.dev/scaler: kpaa"] {
        let text = manifest("wrong", annotation);
        let error = platform.apply(&text, None).await.expect_err("nobody has it");
        let key = annotation.split(':').next().unwrap();
        assert!(said_of(&error.message) && error.message.contains(key), "{error}");
        let (status, body) = admin(&platform, "POST", "/v1/services", &text).await;
        assert!((400..500).contains(&status) && said_of(&body.to_string()), "{status} {body}");
    }

    spec.scaling.scaler = "one-spare".to_owned();
    platform.deploy("default", "right", spec).await.expect("a custom scaler is known");
    platform.apply(&manifest("too", "sas.dev/scaler: one-spare"), None).await.expect("in manifests too");
    platform.shutdown(std::time::Duration::from_secs(5)).await;
}
