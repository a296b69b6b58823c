//! The few requests to the API server that this runtime makes.

use std::time::Duration;

use http::{Method, Request};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, Config, api::DeleteParams, config::KubeConfigOptions, config::Kubeconfig};
use sas_core::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    config::{Access, KubernetesConfig},
    failure::{away, failure},
};

/// A namespace of a cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    patience: Duration,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Reads how the cluster is reached.
    ///
    /// # Errors
    /// `InvalidSpec` when that can't be read.
    pub(crate) async fn new(config: &KubernetesConfig) -> Result<Self> {
        let wrong = |what: String| Error::new(ErrorKind::InvalidSpec, "configure", what);
        let mut access = match &config.access {
            Access::InCluster => Config::incluster().map_err(|error| {
                wrong(format!("access: InCluster: {error}: run in a Pod, or name a kubeconfig"))
            })?,
            Access::Kubeconfig(path) => {
                let shown = path.display();
                let read = Kubeconfig::read_from(path)
                    .map_err(|error| wrong(format!("access: kubeconfig {shown}: {error}")))?;
                Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                    .await
                    .map_err(|error| wrong(format!("access: kubeconfig {shown}: {error}")))?
            }
        };
        access.connect_timeout = Some(config.patience);
        // Who asks decides whether to ask again, and for how long.
        access.default_retry = false;
        let client = Client::try_from(access).map_err(|error| failure("configure", error))?;
        Ok(Self { client, namespace: config.namespace.clone(), patience: config.patience })
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn ask<T>(
        &self,
        operation: &'static str,
        asked: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T> {
        match tokio::time::timeout(self.patience, asked).await {
            Ok(answer) => answer.map_err(|error| failure(operation, error)),
            Err(_) => {
                let what = format!("the API server of the cluster did not answer within {:?}", self.patience);
                Err(away(operation, &what))
            }
        }
    }

    async fn request<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<T> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some((kind, _)) = body {
            request = request.header(http::header::CONTENT_TYPE, kind);
        }
        let body = body.map(|(_, body)| body.to_string().into_bytes()).unwrap_or_default();
        let request = request
            .body(body)
            .map_err(|error| Error::new(ErrorKind::Unexpected, operation, format!("{path}: {error}")))?;
        self.ask(operation, self.client.request(request)).await
    }

    /// Makes an object, which the cluster checks strictly; `dry_run`: only checks it.
    pub(crate) async fn create(
        &self,
        operation: &'static str,
        kind: &str,
        object: &Value,
        dry_run: bool,
    ) -> Result<Value> {
        let mut path = format!("{}?fieldValidation=Strict&fieldManager=sas", self.path(kind));
        if dry_run {
            path.push_str("&dryRun=All");
        }
        self.request(operation, Method::POST, &path, Some(("application/json", object))).await
    }

    fn path(&self, kind: &str) -> String {
        match kind {
            "leases" => format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace),
            _ => format!("/api/v1/namespaces/{}/{kind}", self.namespace),
        }
    }

    /// All objects of a kind that `selector` selects, in one answer.
    pub(crate) async fn list(&self, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let path = format!("{}?labelSelector={}", self.path(kind), encoded(selector));
        let mut answer: Value = self.request("list", Method::GET, &path, None).await?;
        match answer["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }

    /// Changes some fields of an object.
    pub(crate) async fn merge(&self, kind: &str, name: &str, change: &Value) -> Result<Value> {
        let path = format!("{}/{name}?fieldManager=sas", self.path(kind));
        self.request("renew", Method::PATCH, &path, Some(("application/merge-patch+json", change))).await
    }

    /// Deletes an object as it is in this version.
    pub(crate) async fn delete_version(&self, kind: &str, name: &str, version: &str) -> Result<Value> {
        let body = serde_json::json!({"preconditions": {"resourceVersion": version}});
        self.delete_with(kind, name, &body).await
    }

    pub(crate) async fn delete(&self, kind: &str, name: &str) -> Result<Value> {
        self.delete_with(kind, name, &serde_json::json!({})).await
    }

    async fn delete_with(&self, kind: &str, name: &str, body: &Value) -> Result<Value> {
        let path = format!("{}/{name}", self.path(kind));
        self.request("delete", Method::DELETE, &path, Some(("application/json", body))).await
    }

    /// Asks for the end of a Pod. `false`: there is none of that name.
    pub(crate) async fn end_pod(&self, name: &str, grace_seconds: u32) -> Result<bool> {
        let params = DeleteParams { grace_period_seconds: Some(grace_seconds), ..DeleteParams::default() };
        match self.ask("stop", async { self.pods().delete(name, &params).await }).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the Pods use now, as metrics-server says; `NotFound` where the cluster has none.
    pub(crate) async fn usage(&self, selector: &str) -> Result<Value> {
        let path = format!(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods?labelSelector={}",
            self.namespace,
            encoded(selector)
        );
        self.request("usage", Method::GET, &path, None).await
    }
}

/// A selector of labels as a part of a URL.
fn encoded(selector: &str) -> String {
    selector
        .bytes()
        .map(|byte| match byte {
            b'=' => "%3D".to_owned(),
            b'!' => "%21".to_owned(),
            b',' => "%2C".to_owned(),
            b'/' => "%2F".to_owned(),
            byte => char::from(byte).to_string(),
        })
        .collect()
}
