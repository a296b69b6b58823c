//! Manifests of real projects: each is read, or refused for what is wrong with it. And: nothing makes the reader panic.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use proptest::prelude::*;
use sas_core::{EnvValue, Metric, ProbeAction, Protocol, Source, SpecErrors};
use sas_knative::manifest::{Manifest, ParseOptions, ServiceManifest, parse};
use serde_json::Value;

fn vectors() -> PathBuf {
    match std::env::var_os("SAS_VECTORS_DIR") {
        Some(dir) => PathBuf::from(dir).join("knative"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/knative"),
    }
}

fn files() -> Vec<(String, String, Value)> {
    let index = std::fs::read_to_string(vectors().join("index.json")).expect("index.json");
    let index: Vec<Value> = serde_json::from_str(&index).expect("index.json is JSON");
    index
        .into_iter()
        .map(|entry| {
            let file = entry["file"].as_str().expect("a file name").to_owned();
            let text = std::fs::read_to_string(vectors().join("services").join(&file)).expect("the file");
            (file, text, entry)
        })
        .collect()
}

fn read(text: &str) -> Result<ServiceManifest, SpecErrors> {
    let mut manifests = parse(text, &ParseOptions::default())?;
    match (manifests.pop(), manifests.is_empty()) {
        (Some(Manifest::Service(service)), true) => Ok(*service),
        other => panic!("not one service: {other:?}"),
    }
}

/// What is wrong with those that are refused: fields and the reason, by file.
fn refused() -> BTreeMap<&'static str, Vec<&'static str>> {
    const CONTAINERS: &str = "spec.template.spec.containers";
    BTreeMap::from([
        // A key is misspelt.
        ("IBM_knative-quarkus-bench__f975dac266.yaml", vec!["spec.template.metedata"]),
        // Fragments of the documentation that name no container.
        ("knative_docs__0b31bf0f93.yaml", vec![CONTAINERS]),
        ("knative_docs__4e869c87e7.yaml", vec![CONTAINERS]),
        ("knative_docs__83e221315a.yaml", vec![CONTAINERS]),
        ("knative_docs__e6419bb591.yaml", vec![CONTAINERS]),
        // Placeholders in the place of a name.
        ("knative_docs__14d12ad38d.yaml", vec!["metadata.name", CONTAINERS]),
        ("knative_docs__58f46951e4.yaml", vec!["metadata.name"]),
        // Wrong indentation: the containers are beside `spec`, not in it.
        ("knative_docs__7fb44fa91c.yaml", vec!["spec.template.containers"]),
        ("knative_docs__ecdc7ebf2c.yaml", vec!["spec.template.containers"]),
    ])
}

#[test]
fn real_manifests_are_read_or_refused_for_a_reason() {
    let refused = refused();
    let (mut accepted, mut justified) = (0, 0);
    for (file, text, _) in files() {
        match (read(&text), refused.get(file.as_str())) {
            (Ok(_), None) => accepted += 1,
            (Err(errors), Some(expected)) => {
                let fields: Vec<&str> = errors.0.iter().map(|error| error.field.as_str()).collect();
                assert_eq!(&fields, expected, "{file}: {errors}");
                justified += 1;
            }
            (Ok(_), Some(expected)) => panic!("{file} was read, though {expected:?} are wrong"),
            // Files that this copy does not know may have mistakes of their own; each has a field and a reason.
            (Err(errors), None) if std::env::var_os("SAS_VECTORS_DIR").is_some() => {
                println!("{file}: refused:\n{errors}");
                assert!(errors.0.iter().all(|error| !error.field.is_empty() && !error.problem.is_empty()));
                justified += 1;
            }
            (Err(errors), None) => panic!("{file}: {errors}"),
        }
    }
    println!(
        "knative/services: {} files, {accepted} read, {justified} refused for a reason",
        accepted + justified
    );
    if std::env::var_os("SAS_VECTORS_DIR").is_none() {
        assert_eq!((accepted, justified), (74, 9));
    }
}

/// Why a field is right here that Knative refuses.
fn right_here(field: &str) -> Option<&'static str> {
    let in_a_sidecar = field.starts_with("spec.template.spec.containers[1].");
    match field.rsplit('.').next()? {
        "image" => Some("placeholders as `{username}`: what an image may be called is for who pulls it"),
        "initContainers" | "persistentVolumeClaim" => Some("behind a flag there, which is off at first"),
        "livenessProbe" | "readinessProbe" | "successThreshold" if in_a_sidecar => {
            Some("behind the flag `multi-container-probing` there")
        }
        _ => None,
    }
}

/// `verdicts.txt` has what `oracle` said, which runs the validation of Knative 1.15.
#[test]
fn nothing_is_refused_that_knative_accepts_and_nothing_accepted_that_it_refuses_but_for_a_reason() {
    let table = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/knative/verdicts.txt");
    let table = std::fs::read_to_string(table).expect("verdicts.txt");
    let verdicts: BTreeMap<&str, &str> =
        table.lines().map(|line| line.split_once(' ').expect("a verdict")).collect();
    let (mut accepted, mut refused, mut reasoned) = (0, 0, 0);
    for (file, text, _) in files() {
        let Some(verdict) = verdicts.get(file.as_str()) else {
            assert!(std::env::var_os("SAS_VECTORS_DIR").is_some(), "{file}: run the oracle");
            continue;
        };
        let wrong: Vec<&str> = verdict.split(' ').filter(|field| *field != "accepted").collect();
        match read(&text) {
            Ok(_) => {
                let without: Vec<_> = wrong.iter().filter(|field| right_here(field).is_none()).collect();
                assert!(without.is_empty(), "{file} is accepted, and Knative refuses {without:?}");
                *(if wrong.is_empty() { &mut accepted } else { &mut reasoned }) += 1;
            }
            Err(errors) => {
                for error in &errors.0 {
                    assert!(
                        wrong.contains(&error.field.as_str()),
                        "{file}: Knative refuses {wrong:?}: {error:?}"
                    );
                }
                refused += 1;
            }
        }
    }
    if std::env::var_os("SAS_VECTORS_DIR").is_none() {
        assert_eq!((accepted, refused, reasoned), (59, 9, 15));
    }
}

/// What a simple, independent walk over the YAML finds must be in the result.
#[test]
fn what_real_manifests_say_is_in_the_result() {
    let mut checked = 0;
    for (file, text, _) in files() {
        let Ok(service) = read(&text) else { continue };
        let document: Value = serde_saphyr::from_str(&text).expect("YAML");
        let template = &document["spec"]["template"];
        let pod = &template["spec"];
        let containers = pod["containers"].as_array().expect("containers");
        let serving = containers.iter().find(|c| c["ports"].is_array()).unwrap_or(&containers[0]);
        assert_eq!(service.name, document["metadata"]["name"], "{file}");
        assert_eq!(
            service.namespace,
            document["metadata"]["namespace"].as_str().unwrap_or("default"),
            "{file}"
        );
        assert_eq!(service.revision.as_deref(), template["metadata"]["name"].as_str(), "{file}");
        assert_eq!(
            service.spec.source,
            Source::Image(serving["image"].as_str().expect("an image").to_owned()),
            "{file}"
        );
        assert_eq!(service.spec.runtime, "", "{file}: whichever accepts it");
        assert_eq!(
            u64::from(service.spec.concurrency),
            pod["containerConcurrency"].as_u64().unwrap_or(0),
            "{file}"
        );
        let timeout = pod["timeoutSeconds"].as_u64().unwrap_or(300);
        assert_eq!(service.spec.timeouts.request, Duration::from_secs(timeout), "{file}");
        let env = serving["env"].as_array().cloned().unwrap_or_default();
        assert_eq!(service.spec.env.len(), env.len(), "{file}");
        for variable in env {
            let value = &service.spec.env[variable["name"].as_str().expect("a name")];
            match value {
                EnvValue::Literal(text) => {
                    assert_eq!(text, variable["value"].as_str().unwrap_or_default(), "{file}")
                }
                EnvValue::Secret(reference) => {
                    let (kind, from) = match &variable["valueFrom"]["secretKeyRef"] {
                        Value::Null => ("configmap", &variable["valueFrom"]["configMapKeyRef"]),
                        from => ("secret", from),
                    };
                    let expected = format!(
                        "{kind}/{}/{}",
                        from["name"].as_str().unwrap(),
                        from["key"].as_str().unwrap()
                    );
                    assert_eq!(reference, &expected, "{file}");
                }
                other => panic!("{file}: {other:?}"),
            }
        }
        let port = serving["ports"][0]["containerPort"].as_u64().map(|port| u16::try_from(port).unwrap());
        assert_eq!(service.spec.port, port, "{file}");
        assert_eq!(service.spec.readiness.is_some(), serving["readinessProbe"].is_object(), "{file}");
        assert_eq!(service.spec.startup.is_some(), serving["startupProbe"].is_object(), "{file}");
        assert_eq!(service.spec.liveness.is_some(), serving["livenessProbe"].is_object(), "{file}");
        let annotation = |names: [&str; 2]| {
            let annotations = &template["metadata"]["annotations"];
            names.iter().find_map(|name| {
                annotations[format!("autoscaling.knative.dev/{name}")].as_str().map(str::to_owned)
            })
        };
        let number = |names| annotation(names).and_then(|text| text.parse::<f64>().ok());
        assert_eq!(
            f64::from(service.spec.scaling.min),
            number(["min-scale", "minScale"]).unwrap_or(0.0),
            "{file}"
        );
        assert_eq!(
            f64::from(service.spec.scaling.max),
            number(["max-scale", "maxScale"]).unwrap_or(0.0),
            "{file}"
        );
        assert_eq!(
            service.spec.scaling.target_burst_capacity,
            number(["target-burst-capacity", "targetBurstCapacity"]).unwrap_or(211.0),
            "{file}"
        );
        let traffic = document["spec"]["traffic"].as_array();
        assert_eq!(service.traffic.as_ref().map(Vec::len), traffic.map(Vec::len), "{file}");
        let container = service.spec.container.clone().unwrap_or_default();
        let count = |node: &Value| node.as_array().map_or(0, Vec::len);
        assert_eq!(container.volumes.len(), count(&pod["volumes"]), "{file}");
        assert_eq!(container.mounts.len(), count(&serving["volumeMounts"]), "{file}");
        assert_eq!(container.env_from.len(), count(&serving["envFrom"]), "{file}");
        assert_eq!(container.init.len(), count(&pod["initContainers"]), "{file}");
        assert_eq!(container.sidecars.len(), containers.len() - 1, "{file}");
        assert_eq!(container.pull_secrets.len(), count(&pod["imagePullSecrets"]), "{file}");
        let context = &serving["securityContext"];
        assert_eq!(container.security.run_as_non_root, context["runAsNonRoot"].as_bool(), "{file}");
        assert_eq!(
            container.security.drop_capabilities.len(),
            count(&context["capabilities"]["drop"]),
            "{file}"
        );
        assert!(container.other.is_empty(), "{file}: {:?}", container.other);
        checked += 1;
    }
    assert!(checked > 0);
}

const GOOD: &str = r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: shop
  namespace: store
  labels: {team: a}
  annotations:
    sas.dev/package: file:///srv/apps/shop%20v1.jar
    sas.dev/command: java -Xmx64m -jar app.jar
spec:
  template:
    metadata:
      name: shop-v1
      annotations:
        autoscaling.knative.dev/metric: rps
        autoscaling.knative.dev/target: "50"
        autoscaling.knative.dev/min-scale: "1"
        autoscaling.knative.dev/max-scale: "9"
        sas.dev/java-options: -Xss1m
        sas.dev/stop-grace: 3s
        sas.dev/queue-limit: "77"
    spec:
      containerConcurrency: 20
      timeoutSeconds: 60
      responseStartTimeoutSeconds: 10
      idleTimeoutSeconds: 5
      enableServiceLinks: false
      containers:
        - image: ""
          args: [--verbose]
          workingDir: bin
          ports: [{name: h2c, containerPort: 9000}]
          env:
            - {name: HOST, value: db}
            - {name: URL, value: "http://$(HOST):1/$(NONE)$$(HOST)"}
            - {name: KEY, valueFrom: {secretKeyRef: {name: keys, key: api}}}
          resources:
            requests: {cpu: 100m, memory: 64Mi}
            limits: {cpu: "1", memory: 128Mi}
          readinessProbe:
            httpGet: {path: /ready, port: 9000, httpHeaders: [{name: X-Probe, value: "1"}]}
            periodSeconds: 2
            timeoutSeconds: 3
            successThreshold: 2
          livenessProbe: {tcpSocket: {port: 9100}, failureThreshold: 7}
          startupProbe: {grpc: {service: shop}, periodSeconds: 2, failureThreshold: 15, initialDelaySeconds: 1}
  traffic:
    - {latestRevision: true, percent: 90}
    - {revisionName: shop-v0, percent: 10, tag: old}
"#;

#[test]
fn every_field_that_is_known_arrives_where_it_belongs() {
    let service = read(GOOD).unwrap_or_else(|errors| panic!("{errors}"));
    let spec = &service.spec;
    assert_eq!((service.namespace.as_str(), service.name.as_str()), ("store", "shop"));
    assert_eq!(service.revision.as_deref(), Some("shop-v1"));
    assert_eq!(spec.source, Source::Path("/srv/apps/shop v1.jar".into()));
    assert_eq!(spec.runtime, "", "whichever accepts it");
    assert_eq!(spec.command, ["java", "-Xmx64m", "-jar", "app.jar"]);
    assert_eq!(
        (spec.args.as_slice(), spec.working_dir.as_deref()),
        (&["--verbose".to_owned()][..], Some("bin"))
    );
    assert_eq!((spec.concurrency, spec.queue_limit, spec.protocol), (20, 77, Protocol::H2c));
    assert_eq!(spec.port, None, "a package is given its port in PORT");
    assert_eq!(spec.timeouts.request, Duration::from_secs(60));
    assert_eq!(spec.timeouts.response_start, Duration::from_secs(10));
    assert_eq!(spec.timeouts.idle, Duration::from_secs(5));
    assert_eq!(spec.timeouts.stop_grace, Duration::from_secs(3));
    assert_eq!(spec.timeouts.start, Duration::from_secs(31), "the startup probe's budget");
    assert_eq!(spec.env["URL"], EnvValue::Literal("http://db:1/$(NONE)$(HOST)".to_owned()));
    assert_eq!(spec.env["KEY"], EnvValue::Secret("secret/keys/api".to_owned()));
    assert_eq!((spec.resources.cpu_request_millis, spec.resources.cpu_limit_millis), (Some(100), Some(1000)));
    assert_eq!(
        (spec.resources.memory_request_bytes, spec.resources.memory_limit_bytes),
        (Some(64 << 20), Some(128 << 20))
    );
    let readiness = spec.readiness.as_ref().unwrap();
    let headers = vec![("X-Probe".to_owned(), "1".to_owned())];
    assert_eq!(readiness.action, ProbeAction::Http { path: "/ready".into(), port: None, headers });
    assert_eq!(
        (readiness.period, readiness.timeout, readiness.success_threshold),
        (Duration::from_secs(2), Duration::from_secs(3), 2)
    );
    let liveness = spec.liveness.as_ref().unwrap();
    assert_eq!(
        (&liveness.action, liveness.period, liveness.failure_threshold),
        (&ProbeAction::Tcp { port: Some(9100) }, Duration::from_secs(10), 7)
    );
    assert_eq!(
        (spec.scaling.metric, spec.scaling.target, spec.scaling.min, spec.scaling.max),
        (Metric::Rps, 50.0, 1, 9)
    );
    assert_eq!(spec.options, BTreeMap::from([("sas.dev/java-options".to_owned(), "-Xss1m".to_owned())]));
    let traffic = service.traffic.unwrap();
    assert_eq!((traffic[0].revision_name.as_deref(), traffic[0].percent), (None, 90));
    assert_eq!(
        (traffic[1].revision_name.as_deref(), traffic[1].tag.as_deref()),
        (Some("shop-v0"), Some("old"))
    );
    assert_eq!(spec.container, None);
    assert!(spec.startup.is_some(), "asked before readiness");
}

/// A change of the good manifest, and the fields that are wrong then.
#[test]
fn each_mistake_is_told_with_its_field() {
    let c = "spec.template.spec.containers[0]";
    for (from, to, fields) in [
        (
            "apiVersion: serving.knative.dev/v1",
            "apiVersion: serving.knative.dev/v2",
            vec!["apiVersion".to_owned()],
        ),
        ("kind: Service", "kind: Deployment", vec!["kind".into()]),
        ("  name: shop\n", "", vec!["metadata.name".into(), "spec.template.metadata.name".into()]),
        (
            "  name: shop\n",
            "  name: Shop_1\n",
            vec!["metadata.name".into(), "spec.template.metadata.name".into()],
        ),
        ("name: shop-v1", "name: other-v1", vec!["spec.template.metadata.name".into()]),
        ("labels: {team: a}", "labels: {team: 1}", vec!["metadata.labels.team".into()]),
        (
            "containerConcurrency: 20",
            "containerConcurrency: 1001",
            vec!["spec.template.spec.containerConcurrency".into()],
        ),
        (
            "containerConcurrency: 20",
            "containerConcurrency: '20'",
            vec!["spec.template.spec.containerConcurrency".into()],
        ),
        (
            "timeoutSeconds: 60",
            "timeoutSeconds: 7",
            vec!["spec.template.spec.responseStartTimeoutSeconds".into()],
        ),
        (
            "enableServiceLinks: false",
            "restartPolicy: Always",
            vec!["spec.template.spec.restartPolicy".into()],
        ),
        ("{name: HOST, value: db}", "{name: HOST, value: 1}", vec![format!("{c}.env[0].value")]),
        ("{name: HOST, value: db}", "{name: PORT, value: '1'}", vec![format!("{c}.env[0].name")]),
        ("{name: HOST, value: db}", "{value: db}", vec![format!("{c}.env[0].name")]),
        (
            "{name: HOST, value: db}",
            "{name: HOST, value: a, valueFrom: {}}",
            vec![format!("{c}.env[0].value")],
        ),
        (
            "{name: HOST, value: db}",
            "{name: HOST, valueFrom: {fieldRef: {fieldPath: x}}}",
            vec![format!("{c}.env[0].valueFrom.fieldRef")],
        ),
        ("{name: keys, key: api}", "{name: keys}", vec![format!("{c}.env[2].valueFrom.secretKeyRef.key")]),
        (
            "{name: keys, key: api}",
            "{name: keys, key: api, optional: true}",
            vec![format!("{c}.env[2].valueFrom.secretKeyRef.optional")],
        ),
        ("cpu: 100m", "cpu: 1x", vec![format!("{c}.resources.requests.cpu")]),
        ("cpu: 100m", "cpu: 2", vec![format!("{c}.resources.requests.cpu")]),
        ("memory: 64Mi", "disk: 64Mi", vec![format!("{c}.resources.requests.disk")]),
        ("{name: h2c,", "{name: http3,", vec![format!("{c}.ports[0].name")]),
        ("containerPort: 9000", "containerPort: 90000", vec![format!("{c}.ports[0].containerPort")]),
        (
            "tcpSocket: {port: 9100}",
            "tcpSocket: {port: 9100}, exec: {command: [a]}",
            vec![format!("{c}.livenessProbe")],
        ),
        (
            "path: /ready, port: 9000",
            "path: /ready, scheme: HTTPS",
            vec![format!("{c}.readinessProbe.httpGet.scheme")],
        ),
        ("failureThreshold: 7", "failureThreshold: 0", vec![format!("{c}.livenessProbe.failureThreshold")]),
        ("failureThreshold: 7", "successThreshold: 2", vec![format!("{c}.livenessProbe.successThreshold")]),
        ("percent: 90", "percent: 91", vec!["spec.traffic".into()]),
        (
            "latestRevision: true, percent: 90",
            "latestRevision: false, percent: 90",
            vec!["spec.traffic[0].revisionName".into()],
        ),
        ("tag: old", "tag: Old", vec!["spec.traffic[1].tag".into()]),
        (
            "target: \"50\"",
            "target: 50",
            vec!["spec.template.metadata.annotations[autoscaling.knative.dev/target]".into()],
        ),
        (
            "target: \"50\"",
            "target: many",
            vec!["spec.template.metadata.annotations[autoscaling.knative.dev/target]".into()],
        ),
        ("max-scale: \"9\"", "max-scale: \"0\"", vec![]),
        ("file:///srv", "https:///srv", vec!["metadata.annotations[sas.dev/package]".into()]),
        ("file:///srv", "file://other/srv", vec!["metadata.annotations[sas.dev/package]".into()]),
        ("java -Xmx64m", "'java -Xmx64m", vec!["$".into()]),
        (
            "sas.dev/command: java -Xmx64m -jar app.jar",
            "sas.dev/command: '[\"a\", 1]'",
            vec!["metadata.annotations[sas.dev/command]".into()],
        ),
        ("args: [--verbose]", "command: [x]", vec![format!("{c}.command")]),
        ("workingDir: bin", "workingDir: ../bin", vec![format!("{c}.workingDir")]),
        (
            "stop-grace: 3s",
            "stop-grace: 3",
            vec!["spec.template.metadata.annotations[sas.dev/stop-grace]".into()],
        ),
        (
            "sas.dev/java-options: -Xss1m",
            "sas.dev/package: other.jar",
            vec!["metadata.annotations[sas.dev/package]".into()],
        ),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let text = GOOD.replacen(from, to, 1);
        let found: Vec<String> = match read(&text) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.0.into_iter().map(|error| error.field).collect(),
        };
        assert_eq!(found, fields, "{from} -> {to}");
    }
}

#[test]
fn all_mistakes_of_all_documents_are_told_at_once() {
    let bad = GOOD
        .replace("containerConcurrency: 20", "containerConcurrency: x")
        .replace("timeoutSeconds: 60", "timeoutSeconds: y");
    let errors =
        parse(&format!("{GOOD}\n---\n{bad}\n---\nkind: Pod\n"), &ParseOptions::default()).unwrap_err();
    let fields: Vec<&str> = errors.0.iter().map(|error| error.field.as_str()).collect();
    assert!(fields.contains(&"documents[1].spec.template.spec.containerConcurrency"), "{fields:?}");
    assert!(fields.contains(&"documents[1].spec.template.spec.timeoutSeconds"), "{fields:?}");
    assert!(fields.contains(&"documents[2].kind"), "{fields:?}");
    let known = errors.0.iter().find(|error| error.field == "documents[2].kind").unwrap();
    assert!(known.problem.contains("Service") && known.problem.contains("PingSource"), "{}", known.problem);
    let twice = parse(&format!("{GOOD}\n---\n{GOOD}"), &ParseOptions::default()).unwrap_err();
    assert_eq!(twice.0[0].field, "documents[1].metadata.name");
}

#[test]
fn hints_name_the_field_that_was_meant() {
    let errors = read(&GOOD.replace("timeoutSeconds: 60", "timeoutsSeconds: 60")).unwrap_err();
    assert!(errors.0[0].problem.contains("did you mean timeoutSeconds?"), "{errors}");
}

#[test]
fn a_runtime_is_named_by_annotation_alone() {
    let package = "file:///srv/apps/shop%20v1.jar";
    for other in [package, "a.wasm", "dir"] {
        assert_eq!(read(&GOOD.replace(package, other)).unwrap().spec.runtime, "", "{other}");
    }
    let text = GOOD.replace("sas.dev/java-options: -Xss1m", "sas.dev/runtime: microvm");
    assert_eq!(read(&text).unwrap().spec.runtime, "microvm");
    let text = GOOD.replace("sas.dev/package: file:///srv/apps/shop%20v1.jar", "sas.dev/function: resize");
    let spec = read(&text).unwrap().spec;
    assert_eq!((spec.runtime.as_str(), spec.source), ("", Source::Function("resize".to_owned())));
}

#[test]
fn routing_annotations_are_for_the_service_and_not_for_the_runtime() {
    let with = |annotation: &str| read(&GOOD.replace("sas.dev/java-options: -Xss1m", annotation));
    let service = with("sas.dev/affinity: cookie=sid\n        sas.dev/placeholder: \"true\"").unwrap();
    assert_eq!(service.affinity, sas_core::Affinity::Cookie("sid".to_owned()));
    assert!(service.placeholder && service.spec.options.is_empty());
    for annotation in ["sas.dev/affinity: sid", "sas.dev/affinity: 'cookie=a b'", "sas.dev/placeholder: sure"]
    {
        let errors = with(annotation).unwrap_err();
        assert!(errors.0[0].field.starts_with("spec.template.metadata.annotations[sas.dev/"), "{errors}");
    }
}

#[test]
fn a_ping_source_is_a_cron_trigger() {
    let text = "
apiVersion: sources.knative.dev/v1
kind: PingSource
metadata:
  name: nightly
  annotations: {sas.dev/misfire: skip}
spec:
  schedule: '0 2 * * *'
  timezone: Europe/Berlin
  contentType: application/json
  data: '{\"a\": 1}'
  ceOverrides: {extensions: {team: a}}
  sink:
    ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: report}
    uri: /run?full=1
";
    let manifests = parse(text, &ParseOptions::default()).unwrap_or_else(|errors| panic!("{errors}"));
    let [Manifest::Trigger(trigger)] = &manifests[..] else { panic!("{manifests:?}") };
    assert_eq!(
        (trigger.name.as_str(), trigger.kind.as_str(), trigger.target.as_str()),
        ("default/nightly", "cron", "default/report")
    );
    assert_eq!((trigger.path.as_str(), trigger.data.as_slice()), ("/run?full=1", &b"{\"a\": 1}"[..]));
    assert_eq!(
        (trigger.options["schedule"].as_str(), trigger.options["misfire"].as_str()),
        ("0 2 * * *", "skip")
    );
    for (from, to, field) in [
        ("kind: Service, ", "kind: Broker, ", "spec.sink.ref"),
        ("name: report", "nam: report", "spec.sink.ref.name"),
        ("  contentType", "  dataBase64: '!'\n  contentType", "spec.data"),
        ("uri: /run?full=1", "uri: http://elsewhere/x", "spec.sink.uri"),
        ("timezone: Europe/Berlin", "timeZone: Europe/Berlin", "spec.timeZone"),
    ] {
        let errors = parse(&text.replace(from, to), &ParseOptions::default()).unwrap_err();
        assert_eq!(errors.0[0].field, field, "{errors}");
    }
}

#[test]
fn hostile_yaml_is_refused_in_bounded_time() {
    let bomb = {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let inner = format!("*a{}", level - 1);
            text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![inner; 9].join(", ")));
        }
        text
    };
    let deep = format!("a: {}{}", "[".repeat(5000), "]".repeat(5000));
    let wide = format!("kind: [{}]", "1,".repeat(400_000));
    let long = "a".repeat(5 << 20);
    for text in [
        bomb.as_str(),
        &deep,
        &wide,
        &long,
        "a: b: c",
        "\t",
        "? [a]: b",
        "!!binary x",
        "a: *nope",
        "%YAML 9.9\n---\n",
        "- - - -",
        "{",
        "'",
        "\u{0}",
    ] {
        assert!(parse(text, &ParseOptions::default()).is_err(), "{:.40}", text);
    }
    let duplicate = GOOD.replace("kind: Service\n", "kind: Service\nkind: Service\n");
    assert!(read(&duplicate).is_err(), "a key that is there twice");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,400}") {
        let _ = parse(&text, &ParseOptions::default());
    }

    /// Any stretch of a good manifest replaced by anything of its own pieces and of what YAML is made of.
    #[test]
    fn any_mutation_of_a_manifest_is_read_or_refused(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..40, "[-\\[\\]{}:,&*!|>'\"#%@` \\n\\ta-z0-9.]{0,12}"), 1..6)
    ) {
        let mut text: Vec<char> = GOOD.chars().collect();
        for (at, length, with) in edits {
            let at = at.index(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, with.chars());
        }
        let text: String = text.into_iter().collect();
        match parse(&text, &ParseOptions::default()) {
            Ok(manifests) => prop_assert!(!manifests.is_empty()),
            Err(errors) => prop_assert!(!errors.is_empty()),
        }
    }
}

const POD: &str = r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: shop}
spec:
  template:
    spec:
      securityContext: {runAsUser: 1000, fsGroup: 2000, supplementalGroups: [3000], sysctls: [{name: a, value: b}]}
      imagePullSecrets: [{name: registry}]
      nodeSelector: {zone: a}
      initContainers:
        - {name: migrate, image: tools, command: [migrate], volumeMounts: [{name: work, mountPath: /work}]}
      containers:
        - {name: proxy, image: proxy, readinessProbe: {tcpSocket: {port: 9000}}}
        - name: web
          image: web
          workingDir: /srv
          ports: [{containerPort: 3000}]
          envFrom:
            - {prefix: DB_, secretRef: {name: db}}
            - configMapRef: {name: flags, optional: true}
          volumeMounts:
            - {name: work, mountPath: /work}
            - {name: files, mountPath: /etc/files, subPath: a/b, readOnly: true}
          securityContext:
            runAsUser: 7
            readOnlyRootFilesystem: true
            allowPrivilegeEscalation: false
            privileged: true
            capabilities: {add: [NET_BIND_SERVICE], drop: [all]}
            seccompProfile: {type: RuntimeDefault}
      volumes:
        - {name: work, emptyDir: {sizeLimit: 64Mi, medium: Memory}}
        - name: files
          projected:
            defaultMode: 0o440
            sources:
              - secret: {name: tls, items: [{key: cert, path: a/b/cert.pem}]}
              - configMap: {name: app}
        - {name: keys, secret: {secretName: keys, defaultMode: 256, optional: true}}
        - {name: state, persistentVolumeClaim: {claimName: disk, readOnly: true}}
        - {name: host, hostPath: {path: /etc}}
"#;

#[test]
fn what_a_pod_says_of_its_containers_is_in_the_spec() {
    let service = read(POD).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!((service.serving, service.spec.port), (1, Some(3000)));
    let pod = service.spec.container.as_deref().expect("something was asked for");
    assert_eq!(pod.working_dir.as_deref(), Some("/srv"));
    assert_eq!(
        (pod.init[0].name.as_str(), pod.init[0].command.as_slice()),
        ("migrate", &["migrate".into()][..])
    );
    assert_eq!((pod.sidecars[0].image.as_str(), pod.sidecars[0].security.run_as_user), ("proxy", Some(1000)));
    assert!(pod.sidecars[0].readiness.is_some());
    assert_eq!(pod.pull_secrets, ["registry"]);
    let from: Vec<_> =
        pod.env_from.iter().map(|from| (&*from.reference, &*from.prefix, from.optional)).collect();
    assert_eq!(from, [("secret/db", "DB_", false), ("configmap/flags", "", true)]);
    let mount = &pod.mounts[1];
    assert_eq!((mount.sub_path.as_deref(), mount.read_only), (Some("a/b"), true));
    let security = &pod.security;
    assert_eq!((security.run_as_user, security.fs_group), (Some(7), Some(2000)));
    assert_eq!(security.supplemental_groups, [3000]);
    assert_eq!(
        (security.read_only_root_filesystem, security.allow_privilege_escalation),
        (Some(true), Some(false))
    );
    assert_eq!(
        (security.add_capabilities.len(), security.drop_capabilities.as_slice()),
        (1, &["all".into()][..])
    );
    assert_eq!(security.seccomp_profile.as_deref(), Some("RuntimeDefault"));
    use sas_core::VolumeSource::{Claim, ConfigMap, EmptyDir, Other, Projected, Secret};
    let sources: Vec<_> = pod.volumes.iter().map(|volume| volume.source.clone()).collect();
    let items = vec![("cert".to_owned(), "a/b/cert.pem".to_owned())];
    assert_eq!(
        sources,
        [
            EmptyDir { size_limit_bytes: Some(64 << 20), memory: true },
            Projected(vec![
                Secret { name: "tls".into(), items, mode: Some(0o440), optional: false },
                ConfigMap { name: "app".into(), items: Vec::new(), mode: Some(0o440), optional: false },
            ]),
            Secret { name: "keys".into(), items: Vec::new(), mode: Some(0o400), optional: true },
            Claim { name: "disk".into(), read_only: true },
            Other("hostPath: {path}".into()),
        ]
    );
    let other: Vec<_> = pod.other.keys().map(String::as_str).collect();
    assert_eq!(
        other,
        ["containers[1].securityContext.privileged", "nodeSelector", "securityContext.sysctls"]
    );
}

#[test]
fn what_a_runtime_refuses_is_told_at_the_field_of_the_document() {
    let service = read(POD).unwrap_or_else(|errors| panic!("{errors}"));
    let mut told: Vec<String> = service
        .spec
        .container_fields("process")
        .0
        .iter()
        .map(|error| service.field_of(&error.field))
        .collect();
    told.push(service.field_of("container.sidecars[1].security.run_as_user"));
    told.push(service.field_of("liveness.action.exec"));
    told.push(service.field_of("startup.action.tcp"));
    told.push(service.field_of("liveness.action.http.port"));
    told.push(service.field_of("runtime"));
    let pod = "spec.template.spec";
    let web = "spec.template.spec.containers[1]";
    let expected = [
        format!("{web}.workingDir"),
        format!("{web}.envFrom[0]"),
        format!("{web}.envFrom[1]"),
        format!("{pod}.volumes[0]"),
        format!("{pod}.volumes[1]"),
        format!("{pod}.volumes[2]"),
        format!("{pod}.volumes[3]"),
        format!("{pod}.volumes[4]"),
        format!("{web}.volumeMounts[0]"),
        format!("{web}.volumeMounts[1]"),
        format!("{web}.securityContext.runAsUser"),
        format!("{web}.securityContext.fsGroup"),
        format!("{web}.securityContext.supplementalGroups"),
        format!("{web}.securityContext.readOnlyRootFilesystem"),
        format!("{web}.securityContext.allowPrivilegeEscalation"),
        format!("{web}.securityContext.capabilities.add"),
        format!("{web}.securityContext.capabilities.drop"),
        format!("{web}.securityContext.seccompProfile"),
        format!("{pod}.initContainers[0]"),
        format!("{pod}.containers[0]"),
        format!("{web}.securityContext.privileged"),
        format!("{pod}.nodeSelector"),
        format!("{pod}.securityContext.sysctls"),
        format!("{pod}.containers[2].securityContext.runAsUser"),
        format!("{web}.livenessProbe.exec"),
        format!("{web}.startupProbe.tcpSocket"),
        format!("{web}.livenessProbe.httpGet.port"),
        "runtime".to_owned(),
    ];
    assert_eq!(told, expected);
}

#[test]
fn mistakes_in_what_a_pod_says_are_told_with_their_fields() {
    let pod = "spec.template.spec";
    let web = "spec.template.spec.containers[1]";
    for (from, to, field) in [
        (
            "mountPath: /work}]}",
            "mountPath: work}]}",
            format!("{pod}.initContainers[0].volumeMounts[0].mountPath"),
        ),
        ("name: files, mountPath", "name: nothing, mountPath", format!("{web}.volumeMounts[1].name")),
        ("/etc/files, subPath: a/b", "/etc/files, subPath: ../b", format!("{web}.volumeMounts[1].subPath")),
        ("mountPath: /etc/files", "mountPath: /work", format!("{web}.volumeMounts[1].mountPath")),
        ("secretRef: {name: db}", "secretRef: {name: a/b}", format!("{web}.envFrom[0].secretRef.name")),
        ("runAsUser: 7", "runAsUser: -1", format!("{web}.securityContext.runAsUser")),
        ("{type: RuntimeDefault}", "{type: None}", format!("{web}.securityContext.seccompProfile.type")),
        ("medium: Memory", "medium: Disk", format!("{pod}.volumes[0].emptyDir.medium")),
        ("sizeLimit: 64Mi", "sizeLimit: many", format!("{pod}.volumes[0].emptyDir.sizeLimit")),
        (
            "path: a/b/cert.pem",
            "path: /cert.pem",
            format!("{pod}.volumes[1].projected.sources[0].secret.items[0].path"),
        ),
        ("name: state,", "name: keys,", format!("{pod}.volumes[3].name")),
        ("hostPath: {path: /etc}", "", format!("{pod}.volumes[4]")),
        ("image: tools, command", "command", format!("{pod}.initContainers[0].image")),
        ("workingDir: /srv", "workingDir: srv", format!("{web}.workingDir")),
    ] {
        let text = POD.replacen(from, to, 1);
        assert_ne!(text, POD, "{from}");
        let errors = read(&text).expect_err(to);
        let fields: Vec<_> = errors.0.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, [field.as_str()], "{from} -> {to}: {errors}");
    }
}

#[test]
fn a_sidecar_may_be_told_a_port_and_the_serving_container_may_not() {
    let sidecar = POD.replace(
        "{name: proxy, image: proxy,",
        "{name: proxy, image: proxy, env: [{name: PORT, value: '9000'}],",
    );
    let pod = read(&sidecar).unwrap_or_else(|errors| panic!("{errors}")).spec.container.expect("a pod");
    assert_eq!(pod.sidecars[0].env["PORT"], EnvValue::Literal("9000".to_owned()));
    let pod = "spec.template.spec";
    for (from, to, field) in [
        (
            "image: web\n",
            "image: web\n          env: [{name: PORT, value: '1'}]\n",
            format!("{pod}.containers[1].env[0].name"),
        ),
        (
            "{name: proxy, image: proxy,",
            "{name: proxy, image: proxy, env: [{name: K_REVISION, value: x}],",
            format!("{pod}.containers[0].env[0].name"),
        ),
        (
            "command: [migrate]",
            "command: [migrate], env: [{name: PORT}]",
            format!("{pod}.initContainers[0].env[0].name"),
        ),
        ("name: proxy, image", "name: queue-proxy, image", format!("{pod}.containers[0].name")),
        (
            "mountPath: /work}\n",
            "mountPath: /var/log/}\n",
            format!("{pod}.containers[1].volumeMounts[0].mountPath"),
        ),
    ] {
        let text = POD.replacen(from, to, 1);
        assert_ne!(text, POD, "{from}");
        let errors = read(&text).expect_err(to);
        assert_eq!(errors.0[0].field, field, "{errors}");
    }
    let alone = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{image: i, env: [{name: PORT, value: '1'}]}]}}}";
    assert_eq!(read(alone).unwrap_err().0[0].field, format!("{pod}.containers[0].env[0].name"));
}

#[test]
fn a_list_of_manifests_is_read_as_its_items() {
    let service = |name: &str| {
        format!(
            "{{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {{name: {name}}}, spec: {{template: {{spec: {{containers: [{{image: i}}]}}}}}}}}"
        )
    };
    let list = |items: &str| {
        format!("apiVersion: v1\nkind: List\nmetadata: {{resourceVersion: ''}}\nitems: {items}")
    };
    let read = |text: &str| parse(text, &ParseOptions::default());
    let mapping = "{apiVersion: serving.knative.dev/v1beta1, kind: DomainMapping, metadata: {name: a.example.org}, spec: {ref: {name: a, kind: Service, apiVersion: serving.knative.dev/v1}}}";
    let two = read(&list(&format!("[{}, {}, {mapping}]", service("a"), service("b")))).unwrap();
    let names: Vec<String> = two.iter().map(Manifest::identity).collect();
    assert_eq!(names, ["Service default/a", "Service default/b", "DomainMapping a.example.org"]);
    let services = list(&format!("[{}]", service("a")))
        .replace("v1\nkind: List", "serving.knative.dev/v1\nkind: ServiceList");
    assert_eq!(read(&services).unwrap().len(), 1);
    for (text, field) in [
        (list("[]"), "items"),
        (list("nothing"), "items"),
        (list(&format!("[{}, {}]", service("a"), service("a"))), "items[1].metadata.name"),
        (list(&format!("[{}, {}]", service("a"), service("B"))), "items[1].metadata.name"),
        (list("[{apiVersion: v1, kind: List, items: []}]"), "items[0].kind"),
        (list("[7]"), "items[0].$"),
        (
            format!("{}\n---\n{}", service("x"), list(&format!("[{}]", service("x")))),
            "documents[1].items[0].metadata.name",
        ),
        (format!("{}\nmore: 1", list(&format!("[{}]", service("x")))), "more"),
    ] {
        let errors = read(&text).expect_err(&text);
        assert_eq!(errors.0[0].field, field, "{text}: {errors}");
    }
}

#[test]
fn a_domain_mapping_names_a_host_and_a_service_of_its_namespace() {
    let text = "
apiVersion: serving.knative.dev/v1beta1
kind: DomainMapping
metadata: {name: shop.example.org, namespace: web}
spec: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: shop, namespace: web}}
";
    let read = |text: &str| parse(text, &ParseOptions::default());
    let mut mappings = read(text).unwrap_or_else(|errors| panic!("{errors}"));
    let Some(Manifest::Domain(mapping)) = mappings.pop() else { panic!("no mapping") };
    assert_eq!(
        (mapping.host.as_str(), mapping.namespace.as_str(), mapping.service.as_str()),
        ("shop.example.org", "web", "shop")
    );
    for (from, to, field) in [
        ("shop.example.org", "shop", "metadata.name"),
        ("shop.example.org", "Shop.example.org", "metadata.name"),
        ("shop.example.org", "10.0.0.1", "metadata.name"),
        ("shop.example.org", "a.b.svc.cluster.local", "metadata.name"),
        ("namespace: web}}", "namespace: other}}", "spec.ref.namespace"),
        ("kind: Service", "kind: Route", "spec.ref"),
        ("name: shop, namespace: web}}", "namespace: web}}", "spec.ref.name"),
        ("spec: {ref", "spec: {tls: {secretName: a}, ref", "spec.tls"),
    ] {
        let errors = read(&text.replacen(from, to, 1)).expect_err(to);
        assert_eq!(errors.0[0].field, field, "{to}: {errors}");
    }
}

/// What was read is kept whole, so that it can be exported again.
#[test]
fn a_service_keeps_the_document_that_it_was_read_from() {
    for (file, text, _) in files() {
        let Ok(service) = read(&text) else { continue };
        let mut written: Value = serde_saphyr::from_str(&text).expect("YAML");
        written.as_object_mut().expect("a mapping").remove("status");
        let document = service.document.expect("a document");
        assert_eq!(*document, written, "{file}");
        let again = read(&serde_json::to_string(&*document).expect("JSON")).expect("read again");
        assert_eq!(again.spec, service.spec, "{file}");
        assert_eq!(again.traffic, service.traffic, "{file}");
    }
}
