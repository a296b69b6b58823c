//! The runtimes of one engine, and what tenants may ask of them.

use std::{collections::BTreeMap, sync::Arc};

use sas_core::{
    EngineKind, Error, ErrorKind, ProbeAction, Result, RevisionSpec, Runtime, Source, SpecErrors, TenantKey,
};

/// The runtimes of one engine, by name, and for whom they are.
#[derive(Clone, Debug)]
pub struct RuntimeRegistry {
    kind: EngineKind,
    runtimes: BTreeMap<&'static str, Arc<dyn Runtime>>,
}

impl RuntimeRegistry {
    /// These runtimes, known by their names.
    pub fn new(kind: EngineKind, runtimes: impl IntoIterator<Item = Arc<dyn Runtime>>) -> Self {
        Self { kind, runtimes: runtimes.into_iter().map(|runtime| (runtime.name(), runtime)).collect() }
    }

    /// For whom they are.
    pub const fn kind(&self) -> EngineKind {
        self.kind
    }

    /// All of them, by name.
    pub fn runtimes(&self) -> impl Iterator<Item = &Arc<dyn Runtime>> {
        self.runtimes.values()
    }

    /// The runtime that is to serve `spec` for `tenant`: the one that it names, or, where it names none, the one that
    /// accepts it. It is asked what it accepts either way, and nothing is read from disk for that.
    ///
    /// # Errors
    /// As [`RuntimeRegistry::runtime`]; and with the fields that stand against it, each with the runtime that says so,
    /// when none accepts it (`Unsupported` for what needs a container, else `InvalidSpec`) or, with the remedy, when
    /// several do.
    pub fn choose(&self, spec: &RevisionSpec, tenant: TenantKey) -> Result<&Arc<dyn Runtime>> {
        let needs_container = spec.container.is_some() || matches!(spec.source, Source::Image(_));
        let kind = if needs_container { ErrorKind::Unsupported } else { ErrorKind::InvalidSpec };
        let refuse = |message: String, errors| Error::new(kind, "deploy", message).with_source(errors);
        if !spec.runtime.is_empty() {
            let runtime = self.runtime(&spec.runtime, tenant)?;
            return match accepts(runtime.as_ref(), spec) {
                Ok(()) => Ok(runtime),
                Err(errors) => Err(refuse(errors.to_string(), errors)),
            };
        }
        let mut accepting = Vec::new();
        let mut reasons = SpecErrors::default();
        for (name, runtime) in &self.runtimes {
            match accepts(runtime.as_ref(), spec) {
                Ok(()) => accepting.push(*name),
                Err(errors) => reasons.0.extend(errors.0.into_iter().map(|mut error| {
                    error.problem = format!("{name} runtime: {}", error.problem);
                    error
                })),
            }
        }
        match accepting.as_slice() {
            [name] => self.runtime(name, tenant),
            [] => {
                if reasons.is_empty() {
                    reasons.push("runtime", "", "this platform has no runtime");
                }
                Err(refuse(format!("no runtime of this platform accepts it: {reasons}"), reasons))
            }
            several => {
                let mut errors = SpecErrors::default();
                let problem = "several runtimes accept it: name one, in a manifest by sas.dev/runtime";
                errors.push("runtime", several.join(", "), problem);
                Err(refuse(errors.to_string(), errors))
            }
        }
    }

    /// The runtime that `tenant` asks for by name.
    ///
    /// # Errors
    /// `Unsupported` when there is none of that name, or when it keeps tenants apart less than the engine is to.
    pub fn runtime(&self, name: &str, tenant: TenantKey) -> Result<&Arc<dyn Runtime>> {
        let refuse = |problem: String| {
            let mut errors = SpecErrors::default();
            errors.push("runtime", name, &problem);
            let message = format!("unsupported: {name} runtime: {problem}");
            Error::new(ErrorKind::Unsupported, "deploy", message).with_source(errors)
        };
        let Some(runtime) = self.runtimes.get(name) else {
            let known: Vec<&str> = self.runtimes.keys().copied().collect();
            let hint = if name == "container" {
                "; an image needs a container runtime, which the operator adds (feature `container`, on Linux as root with crun \
                 or runc: docs/images.md): until then give a package by the annotation sas.dev/package instead"
            } else {
                ""
            };
            return Err(refuse(format!("this platform has: {}{hint}", known.join(", "))));
        };
        let given = runtime.capabilities().isolation;
        match self.kind.isolation() {
            Some(asked) if given < asked && !tenant.is_host() => Err(refuse(format!(
                "this {} engine asks for isolation {asked:?} or stronger, and this runtime gives {given:?}",
                self.kind
            ))),
            _ => Ok(runtime),
        }
    }
}

/// What `runtime` says of `spec`, and what its abilities say of the probes: those that it can't ask are refused here for
/// all runtimes alike.
fn accepts(runtime: &dyn Runtime, spec: &RevisionSpec) -> std::result::Result<(), SpecErrors> {
    let mut errors = runtime.accepts(spec).err().unwrap_or_default();
    for (name, probe) in
        [("startup", &spec.startup), ("readiness", &spec.readiness), ("liveness", &spec.liveness)]
    {
        if let Some(probe) = probe
            && let Some((field, value, problem)) = unasked(runtime, name, &probe.action)
        {
            errors.push(format!("{name}.action.{field}"), value, problem);
        }
    }
    errors.into_result()
}

/// Why `runtime` can't ask this probe: the field of the action, its value, and what to do. An instance that is called is
/// ready once its start has returned, so only its liveness is asked, by a call.
fn unasked(
    runtime: &dyn Runtime,
    name: &str,
    action: &ProbeAction,
) -> Option<(&'static str, String, String)> {
    let can = runtime.capabilities();
    let who = runtime.name();
    let no_socket = || format!("instances of the {who} runtime listen on no socket");
    let (field, value) = match action {
        ProbeAction::Exec { command } if !can.exec => {
            let remedy = if can.called { "ask for liveness by HTTP" } else { "ask by HTTP" };
            let problem = format!("the {who} runtime runs no commands in its instances; {remedy}");
            return Some(("exec", command.join(" "), problem));
        }
        ProbeAction::Http { port: Some(port), .. } if can.called && name == "liveness" => {
            let problem = format!("{}; leave the port out, and they are asked by a call", no_socket());
            return Some(("http.port", port.to_string(), problem));
        }
        ProbeAction::Http { path, .. } if can.called && name != "liveness" => ("http", path.clone()),
        ProbeAction::Tcp { port } if can.called => {
            ("tcp", port.map_or_else(String::new, |port| port.to_string()))
        }
        ProbeAction::Grpc { service, .. } if can.called => ("grpc", service.clone().unwrap_or_default()),
        _ => return None,
    };
    let problem = if name == "liveness" {
        format!("{}; ask by HTTP, which calls them", no_socket())
    } else {
        format!(
            "{} and are ready once they are started, so nobody asks; leave it out, or ask for liveness by HTTP",
            no_socket()
        )
    };
    Some((field, value, problem))
}

#[cfg(test)]
mod tests {
    use sas_core::{Capabilities, ContainerSpec, Isolation, Probe};
    use sas_testkit::fake::FakeRuntime;

    use super::*;

    /// Takes packages whose file name ends with this, and everything that names it.
    #[derive(Debug)]
    struct Takes(&'static str, Arc<FakeRuntime>, Capabilities);

    #[async_trait::async_trait]
    impl Runtime for Takes {
        fn name(&self) -> &'static str {
            self.0
        }
        fn capabilities(&self) -> Capabilities {
            self.2
        }
        fn accepts(&self, spec: &RevisionSpec) -> std::result::Result<(), SpecErrors> {
            let mut errors = spec.container_fields(self.0);
            if spec.runtime != self.0 && !spec.source.has_extension(&[self.0, "any"]) {
                errors.push("source", &spec.source, format!("not a .{}", self.0));
            }
            errors.into_result()
        }
        async fn prepare(&self, spec: &RevisionSpec) -> Result<sas_core::Artifact> {
            self.1.prepare(spec).await
        }
        async fn start(&self, request: sas_core::StartRequest) -> Result<Arc<dyn sas_core::Instance>> {
            self.1.start(request).await
        }
        async fn quiesce(&self) {}
    }

    fn takes(name: &'static str, can: Capabilities) -> Arc<dyn Runtime> {
        Arc::new(Takes(name, FakeRuntime::new(), can))
    }

    fn chosen(runtime: &str, source: Source, container: bool) -> Result<&'static str> {
        let runtimes = ["jar", "wasm"].map(|name| takes(name, Capabilities::new(Isolation::None)));
        let mut spec = RevisionSpec::new(runtime, source);
        spec.container = container.then(|| {
            let mut container = ContainerSpec::default();
            container.working_dir = Some("/srv".to_owned());
            Box::new(container)
        });
        RuntimeRegistry::new(EngineKind::Dedicated, runtimes)
            .choose(&spec, TenantKey(1))
            .map(|found| found.name())
    }

    #[test]
    fn a_spec_goes_to_the_runtime_that_accepts_it_or_hears_from_each_why_not() {
        let path = |path: &str| Source::Path(path.into());
        assert_eq!(chosen("", path("a.wasm"), false).unwrap(), "wasm");
        assert_eq!(chosen("", path("a.jar"), false).unwrap(), "jar");
        assert_eq!(chosen("wasm", path("a.jar"), false).unwrap(), "wasm", "who names one gets it");

        let none = chosen("", path("a.py"), false).unwrap_err();
        let fields: Vec<_> =
            none.fields().unwrap().0.iter().map(|e| (&*e.field, &*e.value, &*e.problem)).collect();
        let expected =
            [("source", "a.py", "jar runtime: not a .jar"), ("source", "a.py", "wasm runtime: not a .wasm")];
        assert_eq!((none.kind, fields.as_slice()), (ErrorKind::InvalidSpec, expected.as_slice()));

        let several = chosen("", path("a.any"), false).unwrap_err();
        assert_eq!(several.fields().unwrap().0[0].value, "jar, wasm");

        let image = chosen("", Source::Image("nginx".to_owned()), false).unwrap_err();
        assert_eq!((image.kind, image.fields().unwrap().0.len()), (ErrorKind::Unsupported, 2));
        let container = chosen("jar", path("a.jar"), true).unwrap_err();
        assert_eq!(container.kind, ErrorKind::Unsupported, "the runtime says so, not the control plane");
        assert_eq!(container.fields().unwrap().0[0].field, "container.working_dir");
        assert_eq!(chosen("container", path("a.jar"), false).unwrap_err().kind, ErrorKind::Unsupported);
    }

    #[test]
    fn a_probe_that_the_runtime_cannot_ask_is_refused_at_its_field() {
        let runtime = |exec: bool, called: bool| {
            let mut can = Capabilities::new(Isolation::Sandbox);
            (can.exec, can.called) = (exec, called);
            takes("wasm", can)
        };
        let refused = |runtime: Arc<dyn Runtime>, name: &str, action: ProbeAction| {
            let refused = |set: fn(&mut RevisionSpec, Probe)| {
                let mut spec = RevisionSpec::new(name, Source::Path("a.wasm".into()));
                set(&mut spec, Probe::new(action.clone()));
                let registry = RuntimeRegistry::new(EngineKind::Dedicated, [Arc::clone(&runtime)]);
                registry.choose(&spec, TenantKey(1)).err().map(|error| {
                    assert_eq!(error.kind, ErrorKind::InvalidSpec);
                    error.fields().unwrap().0.iter().map(|error| error.field.clone()).collect::<Vec<_>>()
                })
            };
            [
                refused(|spec, probe| spec.startup = Some(probe)),
                refused(|spec, probe| spec.readiness = Some(probe)),
                refused(|spec, probe| spec.liveness = Some(probe)),
            ]
        };
        let each =
            |end: &str| ["startup", "readiness", "liveness"].map(|name| Some(vec![format!("{name}{end}")]));
        let nowhere = [None, None, None];
        let exec = || ProbeAction::Exec { command: vec!["true".to_owned()] };
        let grpc = || ProbeAction::Grpc { port: None, service: None };
        let tcp = |port| ProbeAction::Tcp { port };
        let http = |port| ProbeAction::Http { path: "/".to_owned(), port, headers: Vec::new() };
        for name in ["", "wasm"] {
            assert_eq!(refused(runtime(false, false), name, exec()), each(".action.exec"));
            assert_eq!(refused(runtime(true, false), name, exec()), nowhere);
            assert_eq!(refused(runtime(false, true), name, grpc()), each(".action.grpc"));
            for port in [None, Some(9100)] {
                assert_eq!(refused(runtime(false, true), name, tcp(port)), each(".action.tcp"));
            }
            // A call can ask how an instance is, and only once it runs.
            let [startup, readiness, _] = each(".action.http");
            assert_eq!(refused(runtime(false, true), name, http(None)), [startup, readiness, None]);
            let [.., port] = refused(runtime(false, true), name, http(Some(9100)));
            assert_eq!(port, Some(vec!["liveness.action.http.port".to_owned()]));
            for asked in [grpc(), tcp(None), tcp(Some(9100)), http(None), http(Some(9100))] {
                assert_eq!(refused(runtime(false, false), name, asked), nowhere);
            }
        }
    }

    #[test]
    fn a_refused_probe_is_told_with_its_value_and_what_to_do_instead() {
        let mut can = Capabilities::new(Isolation::Sandbox);
        can.called = true;
        let registry = RuntimeRegistry::new(EngineKind::Dedicated, [takes("wasm", can)]);
        let mut spec = RevisionSpec::new("wasm", Source::Path("a.wasm".into()));
        let path = "/ready".to_owned();
        spec.readiness = Some(Probe::new(ProbeAction::Http { path, port: None, headers: Vec::new() }));
        let error = registry.choose(&spec, TenantKey(1)).unwrap_err();
        let told = &error.fields().unwrap().0[0];
        assert_eq!((&*told.field, &*told.value), ("readiness.action.http", "/ready"));
        assert!(told.problem.contains("leave it out, or ask for liveness by HTTP"), "{}", told.problem);
    }
}
