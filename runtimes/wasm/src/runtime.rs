//! The runtime: code in, instances out.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use bytes::Bytes;
use sas_core::{
    Artifact, ArtifactInfo, Capabilities, Error, ErrorKind, Instance, Isolation, Result, Retry, RevisionSpec,
    Runtime, Source, SpecErrors, StartRequest, TenantKey,
};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use wasmtime_wasi_http::{p2::bindings::ProxyPre, p3::bindings::ServicePre};

use crate::{
    cache::{Cache, Code, Key},
    cgi::Block,
    component::Linked,
    config::WasmConfig,
    function::Function,
    host::{Host, MODULES_PER_SLOT},
    inspect::{assemble, check_form, inspect, is_binary},
    instance::WasmInstance,
    kind::{Kind, invalid},
    linkers::Linkers,
    options::Options,
    preview1::CgiProgram,
    program::Program,
    slots::{FairSlots, RETRY_AFTER, Refusal, SlotPermit, Who},
    sync::Lock,
};

/// Runs WebAssembly functions, each request in a sandbox of its own.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// use sas_core::{RevisionSpec, Runtime, Source};
/// use sas_runtime_wasm::{WasmConfig, WasmRuntime};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// let runtime = WasmRuntime::new(WasmConfig { slots: 10, ..WasmConfig::default() })?;
/// let text = r#"(module
///     (import "wasi_snapshot_preview1" "fd_write"
///         (func $write (param i32 i32 i32 i32) (result i32)))
///     (memory (export "memory") 1)
///     (data (i32.const 0) "\10\00\00\00\1f\00\00\00")
///     (data (i32.const 16) "Content-Type: text/plain\0a\0ahello")
///     (func (export "_start")
///         (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;
/// let source = Source::Bytes { name: "hello.wat".into(), bytes: text.into() };
/// let artifact = runtime.prepare(&RevisionSpec::new("wasm", source)).await?;
/// assert_eq!(artifact.info().notes, ["kind: cgi"]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct WasmRuntime {
    host: Arc<Host>,
    linkers: Linkers,
    cache: Option<Arc<Cache>>,
    compiling: Arc<FairSlots>,
    compiled: Lock<Known>,
}

/// Compiled code that somebody may still hold.
#[derive(Debug, Default)]
struct Known {
    codes: HashMap<Key, Weak<Compiled>>,
    /// So many entries are swept of those that nobody holds any more.
    sweep_at: usize,
}

impl Known {
    fn insert(&mut self, key: Key, code: &Arc<Compiled>) {
        const LEAST: usize = 64;
        self.codes.insert(key, Arc::downgrade(code));
        // At twice what the last sweep left, so that a deploy among many others does not look at all of them.
        if self.codes.len() >= self.sweep_at.max(LEAST) {
            self.codes.retain(|_, weak| weak.strong_count() > 0);
            self.sweep_at = 2 * self.codes.len();
        }
    }
}

/// Compilations that may wait for their turn.
const COMPILES_WAITING: u32 = 1_000;

/// The interfaces through which a component calls other hosts.
const CALLS_OUT: [&str; 2] = ["wasi:http/outgoing-handler@", "wasi:http/client@"];

/// Code that was compiled, shared between all revisions that have it.
struct Compiled {
    code: Code,
    digest: String,
}

impl WasmRuntime {
    /// A runtime. It starts one thread, which sleeps while no guest runs.
    ///
    /// # Errors
    /// `InvalidSpec` for a configuration that can't be; `Exhausted` when the address space for the sandboxes can't be
    /// had.
    pub fn new(config: WasmConfig) -> Result<Self> {
        config.validate()?;
        let cache = config.cache_dir.as_deref().map(Cache::open).transpose()?.map(Arc::new);
        let parallel = config.compile.parallel;
        let compiling = Arc::new(FairSlots::new(parallel, parallel.saturating_sub(1), COMPILES_WAITING));
        let host = Arc::new(Host::new(config)?);
        let linkers = Linkers::new(&host.engine, host.config.wasi_03)?;
        Ok(Self { host, linkers, cache, compiling, compiled: Lock::default() })
    }

    /// The code of `kind`, from memory, from disk, or from the compiler. Who has a turn already brings it along.
    async fn compiled(
        &self,
        kind: Kind,
        binary: Bytes,
        tenant: Who,
        turn: Option<SlotPermit>,
        deadline: Instant,
    ) -> Result<Arc<Compiled>> {
        let digest: [u8; 32] = Sha256::digest(&binary).into();
        let engine = self.host.engine.clone();
        let key = Key::new(&engine, kind, &digest);
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        let turn = match turn {
            Some(turn) => turn,
            None => self.turn(tenant, deadline).await?,
        };
        // Somebody else may have compiled it meanwhile.
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        let cache = self.cache.clone();
        let host = Arc::clone(&self.host);
        let reaping = self.host.reaping();
        let work = tokio::task::spawn_blocking(move || {
            let made = make(&host, cache.as_deref(), &engine, kind, &key, &binary);
            // Held until the compiler is really done, whoever still waits for it.
            drop((turn, reaping));
            made
        });
        let code = match tokio::time::timeout_at(deadline, work).await {
            Ok(Ok(code)) => code?,
            Ok(Err(error)) => {
                return Err(Error::new(
                    ErrorKind::Unexpected,
                    "prepare",
                    format!("the compiler failed: {error}"),
                ));
            }
            Err(_) => return Err(self.late()),
        };
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let compiled = Arc::new(Compiled { code, digest: format!("sha256:{hex}") });
        self.compiled.lock().insert(key, &compiled);
        Ok(compiled)
    }

    /// A turn of `tenant` at the compiler.
    async fn turn(&self, tenant: Who, deadline: Instant) -> Result<SlotPermit> {
        self.compiling.enter(tenant, 1, deadline).await.map_err(|refusal| match refusal {
            Refusal::Deadline => self.late(),
            Refusal::QueueFull => {
                let message = format!("{COMPILES_WAITING} compilations wait already; try again later");
                Error::new(ErrorKind::Exhausted, "prepare", message).with_retry(Retry::After(RETRY_AFTER))
            }
        })
    }

    fn late(&self) -> Error {
        let most = self.host.config.compile.time;
        let message = format!("not compiled within {most:?} (WasmConfig.compile.time)");
        Error::new(ErrorKind::Timeout, "prepare", message)
    }

    /// Reads, checks and compiles, when it is `tenant`'s turn.
    async fn made(&self, spec: &RevisionSpec, tenant: Who) -> Result<Artifact> {
        let deadline = Instant::now() + self.host.config.compile.time;
        let options = Options::parse(spec, &self.host.config)?;
        let (source, command) = (spec.source.clone(), spec.command.clone());
        let host = Arc::clone(&self.host);
        let (name, code) = off_thread(move || {
            let (name, code) = read(&source, &command, host.config.compile.code_bytes)?;
            check_form(&name, &code, &host.config.compile)?;
            Ok((name, code))
        })
        .await?;
        // A text takes many times its bytes while it is assembled: that is part of what a turn is for.
        let turn = if is_binary(&code) { None } else { Some(self.turn(tenant, deadline).await?) };
        let host = Arc::clone(&self.host);
        let (kind, binary, turn) = off_thread(move || {
            // The turn is held until the reading is really done, whoever still waits for it.
            let binary = if is_binary(&code) { code } else { assemble(&name, &code)?.into() };
            Ok((inspect(&binary, &host.config)?, binary, turn))
        })
        .await?;
        let compiled = self.compiled(kind, binary, tenant, turn, deadline).await?;
        let mut notes = vec![format!("kind: {}", kind.as_str())];
        if let Code::Component(component) = &compiled.code {
            let engine = &self.host.engine;
            let calls = component
                .component_type()
                .imports(engine)
                .any(|(name, _)| CALLS_OUT.iter().any(|interface| name.starts_with(interface)));
            if calls && options.hosts.is_empty() {
                notes.push(format!(
                    "it can call other hosts, but none is granted ({}): such calls fail",
                    crate::options::ALLOW_HOSTS
                ));
            }
        }
        let (function, program) = self.link(kind, &compiled.code, options, spec)?;
        let info =
            ArtifactInfo { digest: compiled.digest.clone(), bytes: compiled.code.size(), stem: None, notes };
        Ok(Artifact::new(Prepared { function: Arc::new(function), program, _compiled: compiled }, info))
    }

    fn known(&self, key: &Key) -> Option<Arc<Compiled>> {
        let known = self.compiled.lock().codes.get(key)?.upgrade()?;
        self.host.metrics.from_memory.increment(1);
        Some(known)
    }

    fn link(
        &self,
        kind: Kind,
        code: &Code,
        options: Options,
        spec: &RevisionSpec,
    ) -> Result<(Function, Program)> {
        let linkers = &self.linkers;
        let options = Arc::new(options);
        let (program, needs) = match code {
            Code::Module(module) => {
                if options.reuse.keeps() {
                    return Err(invalid(format!(
                        "options[{:?}]: a CGI module answers one request per sandbox: leave the option out, or build a \
                         wasi:http component",
                        crate::options::REUSE
                    )));
                }
                let program = if options.directories.is_empty() {
                    Program::Cgi(Arc::new(CgiProgram::link(&linkers.modules, module)?))
                } else {
                    Program::Files(Arc::new(CgiProgram::link(&linkers.modules_with_files, module)?))
                };
                (program, Some(module.resources_required()))
            }
            Code::Component(component) => {
                let program = link_component(linkers, kind, component)?;
                (program, component.resources_required())
            }
        };
        let units = needs.map_or(Ok(1), |needs| units(&needs, &options))?;
        let slots = Arc::clone(&self.host.slots);
        let function = Function {
            kind,
            options,
            arguments: Arc::new(arguments(spec)),
            units: units.min(slots.share()),
            slots,
            code_bytes: code.size(),
            host: Arc::clone(&self.host),
        };
        Ok((function, program))
    }
}

/// Slots that a sandbox takes: its memories and tables, whichever are more.
fn units(needs: &wasmtime::ResourcesRequired, options: &Options) -> Result<u32> {
    let limit = options.limits.memory_bytes;
    let pages = needs.max_initial_memory_size.unwrap_or(0);
    let least = pages.saturating_mul(crate::config::PAGE);
    if least > limit {
        return Err(invalid(format!(
            "source: the code starts with a memory of {least} bytes, over the limit of {limit} \
             (resources.memory_limit_bytes)"
        )));
    }
    let elements = needs.max_initial_table_size.unwrap_or(0);
    if elements > options.limits.table_elements as u64 {
        return Err(invalid(format!(
            "source: the code starts with a table of {elements} elements, over the limit of {} (limits.table_elements)",
            options.limits.table_elements
        )));
    }
    Ok(needs.num_memories.max(needs.num_tables.div_ceil(MODULES_PER_SLOT)).max(1))
}

fn link_component(
    linkers: &Linkers,
    kind: Kind,
    component: &wasmtime::component::Component,
) -> Result<Program> {
    let pre = linkers
        .components
        .instantiate_pre(component)
        .map_err(|error| invalid(format!("source: the component does not fit WASI: {error:#}")))?;
    let linked = match kind {
        Kind::Http03 => ServicePre::new(pre).map(Linked::Http03),
        Kind::Http02 | Kind::Cgi => ProxyPre::new(pre).map(Linked::Http02),
    };
    linked.map(|linked| Program::Http(Arc::new(linked))).map_err(|error| {
        invalid(format!("source: the component does not export wasi:http as it should: {error:#}"))
    })
}

fn arguments(spec: &RevisionSpec) -> Block {
    let mut block = Block::default();
    block.push(&[b"function"]);
    for argument in &spec.args {
        block.push(&[argument.as_bytes()]);
    }
    block
}

fn make(
    host: &Host,
    cache: Option<&Cache>,
    engine: &wasmtime::Engine,
    kind: Kind,
    key: &Key,
    binary: &[u8],
) -> Result<Code> {
    if let Some(code) = cache.and_then(|cache| cache.load(engine, kind, key)) {
        host.metrics.from_disk.increment(1);
        return Ok(code);
    }
    let began = Instant::now();
    let code = Code::compile(engine, kind, binary)
        .map_err(|error| invalid(format!("source: the code is not valid: {error:#}")))?;
    host.metrics.compile.record(began.elapsed().as_secs_f64());
    host.metrics.from_compiler.increment(1);
    if let Some(cache) = cache {
        let kept = code.serialize().map_err(std::io::Error::other).and_then(|bytes| cache.store(key, &bytes));
        match kept {
            // Read back, so that the code is a file's pages from now on, shared and given back under pressure.
            Ok(()) => return Ok(cache.load(engine, kind, key).unwrap_or(code)),
            Err(error) => tracing::warn!(%error, "compiled code can't be kept on disk"),
        }
    }
    Ok(code)
}

/// Reads on a thread that may be kept busy.
async fn off_thread<T: Send + 'static>(read: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| Error::new(ErrorKind::Unexpected, "prepare", format!("reading failed: {error}")))?
}

/// The bytes of the function and a name for them.
fn read(source: &Source, command: &[String], most: usize) -> Result<(String, Bytes)> {
    match source {
        Source::Bytes { name, bytes } => Ok((name.clone(), bytes.clone())),
        Source::Path(path) => {
            let file = find(path, command)?;
            let wrong = |error: std::io::Error| invalid(format!("source: {}: {error}", file.display()));
            let size = fs::metadata(&file).map_err(wrong)?.len();
            if size > most as u64 {
                return Err(invalid(format!(
                    "source: {} has {size} bytes: at most {most} are accepted (WasmConfig.compile.code_bytes)",
                    file.display()
                )));
            }
            let bytes = fs::read(&file).map_err(wrong)?;
            Ok((file.display().to_string(), bytes.into()))
        }
        Source::Image(image) => Err(invalid(format!(
            "source.image: {image:?}: the wasm runtime takes a .wasm or .wat file, not an image"
        ))),
        Source::Function(name) => Err(invalid(format!(
            "source.function: {name:?}: the wasm runtime takes a .wasm or .wat file; registered functions are of the \
             runtime inline"
        ))),
        other => Err(invalid(format!("source: {other:?}: the wasm runtime takes a .wasm or .wat file"))),
    }
}

/// The file of a package: itself, the one that the command names, or the only one in the folder.
fn find(path: &Path, command: &[String]) -> Result<PathBuf> {
    let wrong = |error: std::io::Error| invalid(format!("source: {}: {error}", path.display()));
    if !fs::metadata(path).map_err(wrong)?.is_dir() {
        return Ok(path.to_owned());
    }
    if let Some(name) = command.first() {
        if name.starts_with('/') || name.split('/').any(|part| part == "..") {
            return Err(invalid(format!("command[0]: {name:?}: the path of a file inside of the package")));
        }
        return Ok(path.join(name));
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(wrong)? {
        let file = entry.map_err(wrong)?.path();
        if file.extension().is_some_and(|extension| extension == "wasm" || extension == "wat") {
            found.push(file);
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        count => Err(invalid(format!(
            "source: {} has {count} .wasm and .wat files: name the function's in command[0]",
            path.display()
        ))),
    }
}

/// What files of code are called, without the dot.
const EXTENSIONS: [&str; 2] = ["wasm", "wat"];

#[async_trait]
impl Runtime for WasmRuntime {
    fn name(&self) -> &'static str {
        "wasm"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(Isolation::Sandbox);
        capabilities.called = true;
        capabilities.usage = true;
        capabilities.limits = true;
        capabilities
    }

    fn accepts(&self, spec: &RevisionSpec) -> std::result::Result<(), SpecErrors> {
        let mut errors = spec.container_fields(self.name());
        let asked = spec.runtime == self.name();
        match &spec.source {
            Source::Path(_) | Source::Bytes { .. } if asked || spec.source.has_extension(&EXTENSIONS) => {}
            other => errors.push("source", other, "the wasm runtime takes a .wasm or .wat file"),
        }
        errors.into_result()
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        self.made(spec, None).await
    }

    async fn prepare_for(&self, spec: &RevisionSpec, tenant: TenantKey) -> Result<Artifact> {
        self.made(spec, Some(tenant)).await
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        start(&request)
    }

    fn try_start(&self, request: &StartRequest) -> Option<Result<Arc<dyn Instance>>> {
        Some(start(request))
    }

    async fn quiesce(&self) {
        self.host.quiesce().await;
    }
}

/// What an artifact holds: the function with its code, and its place among the compiled code that is shared.
struct Prepared {
    function: Arc<Function>,
    program: Program,
    _compiled: Arc<Compiled>,
}

fn start(request: &StartRequest) -> Result<Arc<dyn Instance>> {
    let prepared: &Prepared = request.deployed.artifact.downcast().ok_or_else(|| {
        Error::new(ErrorKind::InvalidSpec, "start", "the artifact was not prepared by the wasm runtime")
    })?;
    Ok(Arc::new(WasmInstance::start(Arc::clone(&prepared.function), prepared.program.clone(), request)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::CompileLimits;

    #[tokio::test]
    async fn a_text_is_not_parsed_before_it_is_its_tenants_turn() {
        let compile = CompileLimits { time: Duration::from_millis(100), ..CompileLimits::default() };
        let config = WasmConfig { slots: 1, compile, ..WasmConfig::default() };
        let runtime = WasmRuntime::new(config).unwrap();
        let wrong = |name: &str, code: &'static [u8]| {
            RevisionSpec::new("wasm", Source::Bytes { name: name.into(), bytes: Bytes::from_static(code) })
        };
        let text = wrong("wrong.wat", b"(module (func (unknown)))");
        let held: Vec<_> = [1, 2].map(|n| runtime.compiling.try_enter(Some(TenantKey(n)), 1).unwrap()).into();
        // Whoever had read it would say what is wrong with it.
        let error = runtime.prepare_for(&text, TenantKey(3)).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Timeout, "{error}");
        // A binary is checked in no more than its own bytes, and so is what is neither.
        for other in [wrong("wrong.wasm", b"\0asm"), wrong("wrong.wat", b"#!/bin/sh")] {
            let error = runtime.prepare_for(&other, TenantKey(3)).await.err().unwrap();
            assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
        }
        drop(held);
        let error = runtime.prepare_for(&text, TenantKey(3)).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
        assert!(runtime.compiling.try_enter(Some(TenantKey(3)), 1).is_some(), "the turn came back");
    }
}
