//! What is done by a click: a form becomes one request to the admin API, under the token of who sent it.

use http::Method;
use sas_core::Body;
use serde_json::{Value, json};

use crate::{
    api::{Api, Result, escaped, query},
    form::Form,
    pages,
    session::Said,
};

/// What became of it, and where to go on.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) said: Said,
    pub(crate) to: Option<String>,
}

/// Does what a form asks for; `None`: there is no such action. The admin API decides whether the token may.
pub(crate) async fn perform(path: &str, form: &Form, api: &Api) -> Option<Done> {
    let name = path.strip_prefix("/do/")?;
    let done = match name {
        "deploy" => deploy(form, api).await,
        "trigger-pause" | "trigger-resume" | "trigger-redrive" | "trigger-discard" => {
            trigger(name, form, api).await
        }
        "test" | "traffic" | "rollout" | "rollback" | "disable" | "enable" | "delete" => {
            service(name, form, api).await
        }
        _ => return None,
    };
    Some(match done {
        Ok((text, to)) => Done { said: Said { fine: true, text }, to },
        Err(problem) => Done { said: Said { fine: false, text: problem.sentence() }, to: None },
    })
}

type Sentence = Result<(String, Option<String>)>;

fn fine(text: impl Into<String>) -> Sentence {
    Ok((text.into(), None))
}

/// A refusal of the console itself: what is wrong with the form.
fn wrong(text: impl Into<String>) -> Sentence {
    Err(crate::api::Problem::new(http::StatusCode::BAD_REQUEST, text))
}

async fn deploy(form: &Form, api: &Api) -> Sentence {
    let manifest = form.get("manifest").to_owned();
    if manifest.is_empty() {
        return wrong("the manifest is empty");
    }
    let done = api.post("/v1/services", "application/yaml", Body::from(manifest)).await?;
    let applied: Vec<&Value> = done["applied"].as_array().into_iter().flatten().collect();
    let mut told = Vec::new();
    let mut to = None;
    for one in &applied {
        let kind = one["kind"].as_str().unwrap_or_default();
        let (namespace, name) = (one["namespace"].as_str(), one["name"].as_str().unwrap_or_default());
        match (kind, namespace) {
            ("Service", Some(namespace)) => {
                let state = match (one["created"].as_bool(), one["newRevision"].as_bool()) {
                    (Some(true), _) => "is new",
                    (_, Some(true)) => "has a new revision",
                    _ => "is as it was",
                };
                told.push(format!(
                    "{namespace}/{name} {state}: {}",
                    one["revision"].as_str().unwrap_or_default()
                ));
                to = Some(format!("/console/services/{}/{}", escaped(namespace), escaped(name)));
            }
            _ => told.push(format!("{kind} {name} is applied")),
        }
    }
    Ok((told.join("; "), to.filter(|_| applied.len() == 1)))
}

/// Sends a package, and gives a manifest that names it by its digest.
pub(crate) async fn package(name: &str, body: Body, api: &Api) -> Result<String> {
    let sent = api
        .post(&format!("/v1/packages{}", query(&[("name", name)])), "application/octet-stream", body)
        .await?;
    let digest = sent["digest"].as_str().unwrap_or_default();
    let stem: String = name.split('.').next().unwrap_or_default().to_lowercase().replace(['_', ' '], "-");
    let stem = Some(stem).filter(|stem| {
        !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    });
    Ok(format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {}\n  annotations:\n    sas.dev/package: {digest}\n\
         spec:\n  template:\n    spec:\n      containers:\n        - image: \"\"\n",
        stem.as_deref().unwrap_or("my-service"),
    ))
}

async fn trigger(action: &str, form: &Form, api: &Api) -> Sentence {
    let full = form.get("trigger");
    let Some((namespace, name)) = full.split_once('/') else { return wrong("no trigger is named") };
    let path = format!("/v1/triggers/{}/{}", escaped(namespace), escaped(name));
    match action {
        "trigger-pause" => {
            api.change(Method::POST, &format!("{path}/pause"), &Value::Null).await?;
            fine(format!("{full} is paused: what waits upstream goes on waiting."))
        }
        "trigger-resume" => {
            api.change(Method::POST, &format!("{path}/resume"), &Value::Null).await?;
            fine(format!("{full} goes on."))
        }
        "trigger-redrive" => {
            let reason = Some(form.get("reason")).filter(|reason| !reason.is_empty());
            let done =
                api.change(Method::POST, &format!("{path}/redrive"), &json!({"reason": reason})).await?;
            let mut text = format!("{} were delivered, {} failed again", done["delivered"], done["failed"]);
            if let Some(error) = done["lastError"].as_str() {
                text.push_str(&format!(", the last one: {error}"));
            }
            if done["next"].is_string() {
                text.push_str(". There are more: deliver again");
            }
            fine(text)
        }
        _ => {
            let done = api.change(Method::DELETE, &format!("{path}/deadletters"), &Value::Null).await?;
            fine(format!("{} dead letters are forgotten.", done["discarded"]))
        }
    }
}

async fn service(action: &str, form: &Form, api: &Api) -> Sentence {
    let service =
        pages::Service { namespace: form.get("namespace").to_owned(), name: form.get("service").to_owned() };
    let name = format!("{}/{}", service.namespace, service.name);
    let given = |field: &str| Some(form.get(field)).filter(|value| !value.is_empty()).map(str::to_owned);
    match action {
        "test" => {
            let asked = json!({
                "revision": given("revision"), "method": given("method"), "path": given("path"), "body": given("body"),
            });
            let report = api.change(Method::POST, &service.api("/invoke"), &asked).await?;
            fine(pages::told(&report))
        }
        "traffic" => {
            let mut targets = Vec::new();
            for (revision, percent) in form.with_prefix("percent.") {
                let Ok(percent) = percent.parse::<u32>() else {
                    return wrong(format!(
                        "{revision}: {percent:?} is no share; write a whole number from 0 to 100"
                    ));
                };
                if percent > 0 {
                    targets.push(json!({"revisionName": revision, "percent": percent}));
                }
            }
            api.change(Method::PUT, &service.api("/traffic"), &json!({"traffic": targets})).await?;
            fine(format!("The traffic of {name} moves."))
        }
        "rollout" => {
            let action = form.get("action");
            api.change(Method::POST, &service.api("/rollout"), &json!({"action": action})).await?;
            fine(format!("The roll-out of {name}: {action} is done."))
        }
        "rollback" => {
            let revision = given("revision");
            let body = revision.map_or(json!({}), |revision| json!({"revision": revision}));
            api.change(Method::POST, &service.api("/rollback"), &body).await?;
            fine(format!("{name} is rolled back."))
        }
        "disable" => {
            let body = given("reason").map_or(json!({}), |reason| json!({"reason": reason}));
            api.change(Method::POST, &service.api("/disable"), &body).await?;
            fine(format!("{name} is switched off."))
        }
        "enable" => {
            api.change(Method::POST, &service.api("/enable"), &Value::Null).await?;
            fine(format!("{name} is switched on again."))
        }
        _ => {
            if form.get("confirm") != service.name {
                return wrong(format!("nothing was deleted: write {:?} to confirm", service.name));
            }
            api.change(Method::DELETE, &service.api(""), &Value::Null).await?;
            Ok((format!("{name} is deleted."), Some("/console/".to_owned())))
        }
    }
}
