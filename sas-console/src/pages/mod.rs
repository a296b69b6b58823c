//! The pages: each asks the admin API, and gives its parts.

mod audit;
mod deploy;
mod events;
pub(crate) mod logs;
mod manifest;
mod overview;
mod platform;
mod pool;
mod request;
mod requests;
mod run;
mod service;
mod steer;
pub(crate) mod workflow;
mod workflows;

use maud::{Markup, html};
use percent_encoding::percent_decode_str;

use crate::{
    api::{Api, Result, Who, escaped},
    form::Form,
    page::Page,
};

pub(crate) use run::RunId;
pub(crate) use steer::told;
use workflow::Workflow;

/// Where one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Overview { search: String, namespace: String, sort: String, page: usize },
    Service(Service),
    Requests(Service),
    Logs(Service, logs::Filter),
    Manifest(Service),
    Steer(Service),
    Request { id: String },
    Events,
    Trigger { namespace: String, name: String },
    Workflows(workflows::Filter),
    Workflow(Workflow),
    Run(RunId),
    Pool,
    Platform,
    Audit,
    Deploy,
}

/// A service, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Service {
    /// Its path in the admin API.
    pub(crate) fn api(&self, rest: &str) -> String {
        format!("/v1/services/{}/{}{rest}", escaped(&self.namespace), escaped(&self.name))
    }

    /// Its path in the console.
    pub(crate) fn page(&self, rest: &str) -> String {
        format!("/console/services/{}/{}{rest}", escaped(&self.namespace), escaped(&self.name))
    }

    /// Refuses pages of what is not there, or not for this token.
    async fn is_there(&self, api: &Api) -> Result<()> {
        api.get::<serde::de::IgnoredAny>(&self.api("/traffic")).await.map(|_| ())
    }

    fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl Place {
    /// The place of a path below the console's, and its query; `None`: there is none.
    pub(crate) fn of(path: &str, query: &Form) -> Option<Self> {
        let decoded =
            |part: &str| percent_decode_str(part).decode_utf8().map(std::borrow::Cow::into_owned).ok();
        let parts: Option<Vec<String>> =
            path.split('/').filter(|part| !part.is_empty()).map(decoded).collect();
        let parts = parts?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let service =
            |namespace: &str, name: &str| Service { namespace: namespace.to_owned(), name: name.to_owned() };
        Some(match parts[..] {
            [] => Self::Overview {
                search: query.get("search").to_owned(),
                namespace: query.get("namespace").to_owned(),
                sort: query.get("sort").to_owned(),
                page: query.get("page").parse().unwrap_or(1).clamp(1, 100_000),
            },
            ["services", namespace, name] => Self::Service(service(namespace, name)),
            ["services", namespace, name, "requests"] => Self::Requests(service(namespace, name)),
            ["services", namespace, name, "logs"] => {
                Self::Logs(service(namespace, name), logs::Filter::of(query))
            }
            ["services", namespace, name, "manifest"] => Self::Manifest(service(namespace, name)),
            ["services", namespace, name, "steer"] => Self::Steer(service(namespace, name)),
            ["requests"] => Self::Request { id: query.get("id").to_owned() },
            ["requests", id] => Self::Request { id: id.to_owned() },
            ["events"] => Self::Events,
            ["events", namespace, name] => {
                Self::Trigger { namespace: namespace.to_owned(), name: name.to_owned() }
            }
            ["workflows"] => Self::Workflows(workflows::Filter::of(query)),
            ["workflows", namespace, name] => Self::Workflow(Workflow {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                version: query.get("version").to_owned(),
            }),
            ["runs", namespace, id] => {
                Self::Run(RunId { namespace: namespace.to_owned(), id: id.to_owned() })
            }
            ["pool"] => Self::Pool,
            ["platform"] => Self::Platform,
            ["audit"] => Self::Audit,
            ["deploy"] => Self::Deploy,
            _ => return None,
        })
    }

    pub(crate) fn is_of_services(&self) -> bool {
        matches!(
            self,
            Self::Overview { .. }
                | Self::Service(_)
                | Self::Requests(_)
                | Self::Logs(..)
                | Self::Manifest(_)
                | Self::Steer(_)
                | Self::Request { .. }
        )
    }

    pub(crate) fn is_of_workflows(&self) -> bool {
        matches!(self, Self::Workflows(_) | Self::Workflow(_) | Self::Run(_))
    }

    /// What there is to be seen. `mark` stands in its forms.
    pub(crate) async fn show(&self, api: &Api, who: &Who, mark: &str) -> Result<Page> {
        match self {
            Self::Overview { search, namespace, sort, page } => {
                overview::show(api, who, search, namespace, sort, *page).await
            }
            Self::Service(service) => service::show(api, who, service).await,
            Self::Requests(service) => {
                service.is_there(api).await?;
                requests::show(api, who, service).await
            }
            Self::Logs(service, filter) => {
                service.is_there(api).await?;
                logs::show(api, who, service, filter).await
            }
            Self::Manifest(service) => {
                service.is_there(api).await?;
                manifest::show(api, who, service).await
            }
            Self::Steer(service) => steer::show(api, who, service, mark).await,
            Self::Request { id } => request::show(api, id).await,
            Self::Events => events::show(api).await,
            Self::Trigger { namespace, name } => events::trigger(api, who, namespace, name, mark).await,
            Self::Workflows(filter) => workflows::show(api, who, filter).await,
            Self::Workflow(workflow) => workflow::show(api, who, workflow, mark).await,
            Self::Run(run) => run::show(api, who, run, mark).await,
            Self::Pool => pool::show(api).await,
            Self::Platform => platform::show(api).await,
            Self::Audit => audit::show(api).await,
            Self::Deploy => Ok(deploy::show(who, mark)),
        }
    }
}

/// The pages of a service.
fn tabs(service: &Service, who: &Who, here: &str) -> Markup {
    let mut tabs = vec![
        ("", "Activity"),
        ("/requests", "Requests"),
        ("/logs", "Logs"),
        ("/manifest", "Manifest and use"),
    ];
    if who.may_deploy() || who.may_invoke() {
        tabs.push(("/steer", "Steer"));
    }
    html! {
        nav.tabs aria-label="Service" {
            ul {
                @for (rest, text) in tabs {
                    li { a href=(service.page(rest)) aria-current=[(rest == here).then_some("page")] { (text) } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_by_their_paths() {
        let of = |path: &str| Place::of(path, &Form::default());
        let service = Service { namespace: "shop".into(), name: "cart".into() };
        assert_eq!(of("/services/shop/cart"), Some(Place::Service(service.clone())));
        assert_eq!(of("/services/shop/cart/"), Some(Place::Service(service)));
        assert_eq!(of("/services/shop/cart/nothing"), None);
        assert_eq!(of("/services/%FF/cart"), None);
        assert!(matches!(of("/"), Some(Place::Overview { page: 1, .. })));
    }
}
