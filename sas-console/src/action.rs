//! What is done by a click: a form becomes one request to the admin API, under the token of who sent it.

use http::{Method, StatusCode, header};
use sas_core::Body;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    api::{Api, Problem, Result, escaped, query},
    form::Form,
    pages,
    session::{self, Said},
    text::tame,
};

/// What became of it, and where to go on.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) said: Said,
    pub(crate) to: Option<String>,
}

/// Does what a form asks for; `None`: there is no such action. The admin API decides whether the token may: who may not gets
/// its refusal, for no page of theirs has such a form.
pub(crate) async fn perform(path: &str, form: &Form, api: &Api) -> Option<Result<Done>> {
    let name = path.strip_prefix("/do/")?;
    let done = match name {
        "deploy" => deploy(form, api).await,
        "trigger-pause" | "trigger-resume" | "trigger-redrive" | "trigger-discard" => {
            trigger(name, form, api).await
        }
        "run-start" | "run-suspend" | "run-resume" | "run-cancel" | "run-retry" | "run-skip"
        | "run-event" => run(name, form, api).await,
        "test" | "traffic" | "rollout" | "rollback" | "disable" | "enable" | "delete" => {
            service(name, form, api).await
        }
        _ => return None,
    };
    Some(match done {
        Ok((text, to)) => Ok(Done { said: Said { fine: true, text }, to }),
        Err(problem) if problem.is(StatusCode::FORBIDDEN) => Err(problem),
        Err(problem) => Ok(Done { said: Said { fine: false, text: problem.sentence() }, to: None }),
    })
}

type Sentence = Result<(String, Option<String>)>;

fn fine(text: impl Into<String>) -> Sentence {
    Ok((text.into(), None))
}

/// A refusal of the console itself: what is wrong with the form.
fn wrong(text: impl Into<String>) -> Sentence {
    Err(Problem::new(StatusCode::BAD_REQUEST, text))
}

async fn deploy(form: &Form, api: &Api) -> Sentence {
    let manifest = form.get("manifest").to_owned();
    if manifest.is_empty() {
        return wrong("the manifest is empty");
    }
    let condition = match form.get("expects") {
        "new" => Some((header::IF_NONE_MATCH, "*")),
        "change" => Some((header::IF_MATCH, "*")),
        _ => None,
    };
    let done = api.post("/v1/services", "application/yaml", condition, Body::from(manifest)).await?;
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
        .post(&format!("/v1/packages{}", query(&[("name", name)])), "application/octet-stream", None, body)
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

/// The JSON of a field; `None`: there is none.
fn json_of(form: &Form, field: &str) -> Result<Option<Value>> {
    let text = form.get(field);
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(text).map(Some).map_err(|error| {
        let (shown, _) = tame(text, 40);
        let detail = format!("{field}: {shown:?} is no JSON ({error}); a text stands in double quotes");
        Problem::new(StatusCode::BAD_REQUEST, detail)
    })
}

async fn run(action: &str, form: &Form, api: &Api) -> Sentence {
    let run = pages::RunId { namespace: form.get("namespace").to_owned(), id: form.get("run").to_owned() };
    let name = format!("{}/{}", run.namespace, run.id);
    let steer = async |rest: &str, body: &Value| api.change(Method::POST, &run.api(rest), body).await;
    match action {
        "run-start" => {
            let workflow = form.get("workflow");
            let id = Some(form.get("id")).filter(|id| !id.is_empty());
            let version = Some(form.get("version")).filter(|version| !version.is_empty());
            let mut asked = json!({"id": id, "version": version});
            if let Some(input) = json_of(form, "input")? {
                asked["input"] = input;
            }
            let path = format!("/v1/workflows/{}/{}/runs", escaped(&run.namespace), escaped(workflow));
            let started = api.change(Method::POST, &path, &asked).await?;
            let id = started["id"].as_str().unwrap_or_default().to_owned();
            let told = format!("{}/{id} runs, or ran already.", run.namespace);
            Ok((told, Some(pages::RunId { id, ..run }.page())))
        }
        "run-suspend" => {
            steer("/suspend", &Value::Null).await?;
            fine(format!("{name} is suspended: what is under way ends, and no step begins."))
        }
        "run-resume" => {
            steer("/resume", &Value::Null).await?;
            fine(format!("{name} goes on."))
        }
        "run-cancel" => {
            steer("/cancel", &Value::Null).await?;
            fine(format!("{name} is cancelled."))
        }
        "run-retry" => {
            steer("/retry", &Value::Null).await?;
            fine(format!("{name} goes on from the step that failed."))
        }
        "run-skip" => {
            let step = form.get("step");
            let output = json_of(form, "output")?.unwrap_or_default();
            steer("/skip", &json!({"step": step, "output": output})).await?;
            fine(format!("{name} goes on as if {step} had given that."))
        }
        _ => {
            let mut event = json!({
                "specversion": "1.0", "id": random()?, "source": "/console", "type": form.get("type"),
            });
            if let Some(data) = json_of(form, "data")? {
                event["data"] = data;
            }
            steer("/events", &event).await?;
            fine(format!("{name} has the event."))
        }
    }
}

/// An id that nobody else makes: events with the same one count once.
fn random() -> Result<String> {
    session::random().map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
}

/// Where the traffic of a service is to go, and which revision the latest one is.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Now {
    spec: Vec<Target>,
    latest_ready_revision: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Target {
    /// `None`: the latest one.
    revision_name: Option<String>,
    percent: u32,
    tag: Option<String>,
}

/// The same targets with other shares: each keeps its tag, and what followed the latest revision goes on following it. What
/// the form did not name keeps its share; a target that has neither a share nor a tag goes, unless it follows the latest.
fn moved(now: &Now, wanted: Vec<(String, u32)>) -> Vec<Value> {
    let mut targets = now.spec.clone();
    for (revision, percent) in wanted {
        let leads = |target: &Target| {
            target.revision_name.as_ref().or(now.latest_ready_revision.as_ref()) == Some(&revision)
        };
        // Of several that lead there, that takes the share which has one now.
        let takes = (0..targets.len())
            .filter(|at| leads(&targets[*at]))
            .max_by_key(|at| (targets[*at].percent, std::cmp::Reverse(*at)));
        for target in targets.iter_mut().filter(|target| leads(target)) {
            target.percent = 0;
        }
        match takes {
            Some(at) => targets[at].percent = percent,
            None => targets.push(Target { revision_name: Some(revision), percent, tag: None }),
        }
    }
    let stays =
        |target: &Target| target.percent > 0 || target.tag.is_some() || target.revision_name.is_none();
    let shown = targets.into_iter().filter(stays).map(|target| {
        let mut shown = json!({"percent": target.percent});
        match target.revision_name {
            Some(name) => shown["revisionName"] = name.into(),
            None => shown["latestRevision"] = true.into(),
        }
        if let Some(tag) = target.tag {
            shown["tag"] = tag.into();
        }
        shown
    });
    shown.collect()
}

/// The tag of a service as it is now: what is to be done at once does not wait until somebody has seen the last change.
async fn current(api: &Api, service: &pages::Service) -> Result<String> {
    Ok(api.get_tagged::<serde::de::IgnoredAny>(&service.api("")).await?.1)
}

/// The tag that the page of the form was made of.
async fn seen(form: &Form, api: &Api, service: &pages::Service) -> Result<String> {
    match form.get("seen") {
        "" => current(api, service).await,
        seen => Ok(seen.to_owned()),
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
            let mut wanted = Vec::new();
            for (revision, percent) in form.with_prefix("percent.") {
                let Ok(percent) = percent.parse::<u32>() else {
                    return wrong(format!(
                        "{revision}: {percent:?} is no share; write a whole number from 0 to 100"
                    ));
                };
                wanted.push((revision.to_owned(), percent));
            }
            let (now, tag): (Now, String) = api.get_tagged(&service.api("")).await?;
            let seen = given("seen").unwrap_or(tag);
            let targets = moved(&now, wanted);
            let body = json!({"traffic": targets});
            api.change_seen(Method::PUT, &service.api("/traffic"), &seen, &body).await?;
            fine(format!("The traffic of {name} moves."))
        }
        "rollout" => {
            let action = form.get("action");
            let seen = current(api, &service).await?;
            let body = json!({"action": action});
            api.change_seen(Method::POST, &service.api("/rollout"), &seen, &body).await?;
            fine(format!("The roll-out of {name}: {action} is done."))
        }
        "rollback" => {
            let revision = given("revision");
            let body = revision.map_or(json!({}), |revision| json!({"revision": revision}));
            let seen = seen(form, api, &service).await?;
            api.change_seen(Method::POST, &service.api("/rollback"), &seen, &body).await?;
            fine(format!("{name} is rolled back."))
        }
        "disable" => {
            let body = given("reason").map_or(json!({}), |reason| json!({"reason": reason}));
            let seen = current(api, &service).await?;
            api.change_seen(Method::POST, &service.api("/disable"), &seen, &body).await?;
            fine(format!("{name} is switched off."))
        }
        "enable" => {
            let seen = current(api, &service).await?;
            api.change_seen(Method::POST, &service.api("/enable"), &seen, &Value::Null).await?;
            fine(format!("{name} is switched on again."))
        }
        _ => {
            if form.get("confirm") != service.name {
                return wrong(format!("nothing was deleted: write {:?} to confirm", service.name));
            }
            let seen = seen(form, api, &service).await?;
            api.change_seen(Method::DELETE, &service.api(""), &seen, &Value::Null).await?;
            Ok((format!("{name} is deleted."), Some("/console/".to_owned())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_move_and_tags_and_the_latest_stay() {
        let now = json!({
            "latestReadyRevision": "cart-00003",
            "spec": [
                {"percent": 90, "tag": "live"},
                {"revisionName": "cart-00001", "percent": 10},
                {"revisionName": "cart-00002", "percent": 0, "tag": "try"},
                {"revisionName": "cart-00003", "percent": 0, "tag": "pinned"},
            ],
        });
        let now: Now = serde_json::from_value(now).unwrap();
        let wanted = [("cart-00003", 60), ("cart-00001", 0), ("cart-00000", 40)];
        let wanted = wanted.map(|(revision, percent)| (revision.to_owned(), percent)).to_vec();
        assert_eq!(
            Value::Array(moved(&now, wanted)),
            json!([
                {"latestRevision": true, "percent": 60, "tag": "live"},
                {"revisionName": "cart-00002", "percent": 0, "tag": "try"},
                {"revisionName": "cart-00003", "percent": 0, "tag": "pinned"},
                {"revisionName": "cart-00000", "percent": 40},
            ])
        );
    }

    #[test]
    fn what_follows_the_latest_goes_on_following_it_without_a_share() {
        let now: Now = serde_json::from_value(json!({
            "latestReadyRevision": "cart-00002", "spec": [{"percent": 100}],
        }))
        .unwrap();
        let moved = moved(&now, vec![("cart-00002".into(), 0), ("cart-00001".into(), 100)]);
        assert_eq!(
            Value::Array(moved),
            json!([{"latestRevision": true, "percent": 0}, {"revisionName": "cart-00001", "percent": 100}])
        );
    }
}
