//! A definition of a workflow: its picture, its document, and a start of it.

use http::StatusCode;
use maud::{Markup, html};
use serde_json::Value;

use crate::{
    api::{Api, Problem, Result, Who, escaped, query},
    form::Form,
    page::{Page, form_token, wide},
    text::data,
};

/// A definition; without a version, the greatest one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workflow {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Workflow {
    /// Its path in the admin API.
    pub(crate) fn api(&self, rest: &str) -> String {
        let version = query(&[("version", &self.version)]);
        format!("/v1/workflows/{}/{}{rest}{version}", escaped(&self.namespace), escaped(&self.name))
    }

    /// Its path in the console.
    pub(crate) fn page(&self) -> String {
        let version = query(&[("version", &self.version)]);
        format!("/console/workflows/{}/{}{version}", escaped(&self.namespace), escaped(&self.name))
    }
}

/// Where pictures are: the console gives them from its own address, since its pages load nothing from elsewhere.
///
/// Gives the path in the admin API; `None`: there is no such picture.
pub(crate) fn picture(path: &str, of: &Form) -> Option<String> {
    let rest = path.strip_prefix("/pictures/")?;
    match rest.split('/').collect::<Vec<_>>()[..] {
        ["runs", namespace, id] => Some(format!("/v1/runs/{namespace}/{id}/graph")),
        ["workflows", namespace, name] => Some(format!(
            "/v1/workflows/{namespace}/{name}/graph{}",
            query(&[("version", of.get("version"))])
        )),
        _ => None,
    }
}

/// A picture that scrolls by itself where it is wider than the page.
pub(super) fn drawn(address: &str, told: &str) -> Markup {
    wide("The picture", html! { img.graph src=(address) alt=(told); })
}

pub(super) async fn show(api: &Api, who: &Who, workflow: &Workflow, mark: &str) -> Result<Page> {
    let document: Option<Value> = api.find(&workflow.api("")).await?;
    let missing = || {
        let detail =
            format!("there is no workflow {}/{} {}", workflow.namespace, workflow.name, workflow.version);
        Problem::new(StatusCode::NOT_FOUND, detail.trim_end())
    };
    let document = document.ok_or_else(missing)?;
    let version = document["document"]["version"].as_str().unwrap_or(&workflow.version).to_owned();
    let runs = query(&[("namespace", &workflow.namespace), ("workflow", &workflow.name)]);
    let address = format!(
        "/console/pictures/workflows/{}/{}{}",
        escaped(&workflow.namespace),
        escaped(&workflow.name),
        query(&[("version", &version)])
    );
    let mut page = Page::new(format!("{}/{} {version}", workflow.namespace, workflow.name));
    // A version is for ever.
    page.live = false;
    Ok(page
        .above(html! { p.where { "A workflow: " a href=(format!("/console/workflows{runs}")) { "its runs" } } })
        .with("start", html! {
            @if who.may_invoke() {
                details #start-run {
                    summary { "Start a run…" }
                    form.filters method="post" action="/console/do/run-start" {
                        (form_token(mark))
                        input type="hidden" name="back" value=(workflow.page());
                        input type="hidden" name="namespace" value=(workflow.namespace);
                        input type="hidden" name="workflow" value=(workflow.name);
                        input type="hidden" name="version" value=(version);
                        label { span { "Id" } input name="id" maxlength="100" placeholder="one is made up"; }
                        label.grow { span { "Input, in JSON" } input name="input" placeholder="{}"; }
                        button type="submit" { "Start" }
                    }
                }
            }
        })
        .with("graph", html! {
            h2 { "What it does" }
            (drawn(&address, &format!("The steps of {} {version}; the document below says the same.", workflow.name)))
        })
        .with("document", html! {
            h2 { "Document" }
            pre.code tabindex="0" aria-label="The document" { (data(&document)) }
        }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_those_of_runs_and_workflows_alone() {
        let of = |path: &str| picture(path, &Form::parse("version=1.0.0%2B%26a&other=1"));
        assert_eq!(of("/pictures/runs/shop/o%2F17").as_deref(), Some("/v1/runs/shop/o%2F17/graph"));
        let workflow = of("/pictures/workflows/shop/order");
        assert_eq!(workflow.as_deref(), Some("/v1/workflows/shop/order/graph?version=1.0.0%2B%26a"));
        for other in
            ["/pictures/services/shop/cart", "/pictures/runs/shop", "/pictures/runs/a/b/c", "/runs/a/b"]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
