//! A platform whose instances are Pods of a real cluster: from nothing to many and back, by requests alone.

use std::{collections::BTreeSet, path::Path, time::Duration};

use futures_util::future::join_all;
use sas::prelude::*;
use sas_testkit::server::{KubernetesCluster, PAUSE};
use tokio::time::Instant;

const MANIFEST: &str = r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: page}
spec:
  template:
    metadata:
      annotations:
        autoscaling.knative.dev/window: 6s
        autoscaling.knative.dev/max-scale: "4"
    spec:
      containerConcurrency: 1
      nodeSelector: {kubernetes.io/os: linux}
      containers:
        - image: sas.test/busybox:1
          args: [httpd, -f, -p, "8080", -h, /]
          resources: {limits: {cpu: 500m, memory: 64Mi}}
"#;

/// What Knative declares of its Services, as far as an API server has to know to keep them.
const KNATIVE: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: services.serving.knative.dev}
spec:
  group: serving.knative.dev
  scope: Namespaced
  names: {kind: Service, plural: services, singular: service, shortNames: [ksvc]}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;

async fn ask(platform: &Platform) -> String {
    let request = http::Request::get("/etc/hostname").header("host", "page").body(Body::empty()).unwrap();
    let answer = platform.call("default", "page", request).await;
    let answer = answer.unwrap_or_else(|error| panic!("lost: {}", error.error));
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().collect(1024).await.unwrap();
    String::from_utf8_lossy(&body).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_go_from_nothing_to_many_pods_and_back_and_no_request_is_lost() {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|path| path.is_file());
    assert!(busybox.is_some() || std::env::var_os("CI").is_none(), "CI installs busybox-static");
    let (Some(busybox), Some(cluster)) = (busybox, KubernetesCluster::start_with_node().await) else {
        return;
    };
    let admin = cluster.admin();
    cluster.import(PAUSE, busybox, &["sleep", "1000000"]);
    cluster.import("sas.test/busybox:1", busybox, &[]);
    admin.run(&["create", "-f", "-"], "apiVersion: v1\nkind: Namespace\nmetadata: {name: sas-instances}\n");
    admin.run(&["apply", "-n", "sas-instances", "-f", "deploy/kubernetes/role.yaml"], "");
    let mut config = KubernetesConfig::new("sas-instances");
    config.access = Access::Kubeconfig(cluster.account_kubeconfig("sas-instances", "sas-host"));
    let bind = ["-n", "sas-instances", "create", "rolebinding", "sas-host", "--role=sas-host"];
    let bound = admin.command().args(bind).arg("--serviceaccount=sas-instances:sas-host").status();
    assert!(bound.unwrap().success());
    let pods = || admin.names("sas-instances", "pods").len();
    let runtime = KubernetesRuntime::open(config).await.unwrap_or_else(|error| panic!("{error}"));
    let platform = Platform::builder().runtime(runtime).build().await.unwrap();
    // It stood in the cluster as a Service of Knative, and moves here as the cluster writes it.
    admin.run(&["create", "-f", "-"], KNATIVE);
    admin.run(
        &["wait", "--for=condition=established", "--timeout=60s", "crd/services.serving.knative.dev"],
        "",
    );
    admin.run(&["apply", "-n", "default", "-f", "-"], MANIFEST);
    let exported = admin.run(&["get", "ksvc", "-n", "default", "-o", "yaml"], "");
    assert!(exported.contains("resourceVersion"), "{exported}");
    platform.apply(&exported, None).await.unwrap_or_else(|error| panic!("{error}"));

    let began = Instant::now();
    ask(&platform).await;
    println!("the first answer after {:?}", began.elapsed());
    // Each instance takes one at a time, and each answer is the name of the Pod that gave it.
    // One Pod may be through with forty before a second is there: they are asked for until one is.
    let (mut names, began) = (BTreeSet::new(), Instant::now());
    while names.len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(120), "{names:?}");
        names.extend(join_all((0..40).map(|_| ask(&platform))).await);
    }
    println!("40 requests at once were answered by {} Pods after {:?}", names.len(), began.elapsed());
    assert!(names.len() <= 4, "{names:?}");

    let began = Instant::now();
    while pods() > 0 {
        assert!(began.elapsed() < Duration::from_secs(120), "{} Pods are left", pods());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("no Pod was left {:?} after the last answer", began.elapsed());
    ask(&platform).await;
    let report = platform.shutdown(Duration::from_secs(20)).await;
    assert!(report.drained, "{report:?}");
    assert_eq!(pods(), 0, "Pods outlive the platform");
}
