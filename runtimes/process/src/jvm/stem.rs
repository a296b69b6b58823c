//! JVM stems: booted JVMs that have used what HTTP apps use, and become one app each.
//!
//! The Java side is in `java/sas/stem`, and comes compiled. `docs/adr/0051-jvm-stem.md` says why it is built like this and what it cannot make equal.

use std::{
    collections::HashMap,
    io::Write as _,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{
    Endpoint, Error, ErrorKind, Instance, Result, StartPhase, StartRequest, Stem, StemClass, StemRequest,
    Usage,
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::{
    archive,
    jdk::{Jdk, TOOL_TIMEOUT},
    tool,
};
use sas_runtime_os::{JailLevel, jail::JailRequest, ports::Port};

use crate::{
    artifact::{ProcessArtifact, StemPlan},
    beside::Beside,
    engine::{Engine, Spawned},
    failure::crashed,
    home::{Home, LANG},
    instance::ProcessInstance,
    launch::{log_target, until_ready},
    package::{error::disk, store::Discard},
    spawn::{self, Environment, Placed, SpawnRequest},
};

/// The Java side, compiled: `java/README.md` says how. A JRE is enough to run it.
const CLASSES: [(&str, &[u8]); 8] = [
    ("Boot$1.class", include_bytes!("../../java/classes/Boot$1.class")),
    ("Boot$Message.class", include_bytes!("../../java/classes/Boot$Message.class")),
    ("Boot.class", include_bytes!("../../java/classes/Boot.class")),
    ("Rewriter.class", include_bytes!("../../java/classes/Rewriter.class")),
    ("Warm$Color.class", include_bytes!("../../java/classes/Warm$Color.class")),
    ("Warm$Point.class", include_bytes!("../../java/classes/Warm$Point.class")),
    ("Warm$Step.class", include_bytes!("../../java/classes/Warm$Step.class")),
    ("Warm.class", include_bytes!("../../java/classes/Warm.class")),
];

/// The oldest JDK for which the Java side is written.
const OLDEST: u32 = 17;

/// How stems of one class are booted.
#[derive(Clone, Debug)]
struct Boot {
    jdk: Jdk,
    options: Vec<String>,
    jar: PathBuf,
}

/// Knows the classes of stems that can be booted here.
#[derive(Debug, Default)]
pub(crate) struct Stems {
    classes: Mutex<HashMap<StemClass, Boot>>,
    /// One jar, and one archive run per class, at a time.
    building: tokio::sync::Mutex<()>,
}

impl Stems {
    /// The class that apps with these flags can come from. Writes the jar of the Java side if that was not done yet.
    ///
    /// # Errors
    /// What is missing, in words.
    pub(crate) async fn class(
        &self,
        engine: &Arc<Engine>,
        jdk: &Jdk,
        options: &[String],
    ) -> std::result::Result<StemClass, String> {
        if !engine.config.java.stems {
            return Err("stems are switched off (ProcessConfig::java.stems)".into());
        }
        if jdk.major < OLDEST {
            return Err(format!("JDK {} is too old for stems; install JDK {OLDEST} or later", jdk.version));
        }
        let jar = self.jar(engine, jdk).await.map_err(|error| error.message)?;
        let print = archive::fingerprint(jdk, options, &[&jar.display().to_string()]);
        let class = StemClass(format!("process/java{}/{}", jdk.major, &print[..8]).into());
        self.classes.lock().entry(class.clone()).or_insert_with(|| Boot {
            jdk: jdk.clone(),
            options: options.to_vec(),
            jar,
        });
        Ok(class)
    }

    /// The jar of the Java side, in the store under what it is made of.
    async fn jar(&self, engine: &Arc<Engine>, jdk: &Jdk) -> Result<PathBuf> {
        let java = &engine.config.java;
        let mut of: Vec<String> =
            CLASSES.iter().map(|(name, bytes)| format!("{name} {:x}", Sha256::digest(bytes))).collect();
        of.extend(java.shared_jars.iter().map(|jar| jar.display().to_string()));
        let name = archive::fingerprint(jdk, &of, &[]);
        let dir = engine.store.stems_dir();
        let jar = dir.join(format!("{name}.jar"));
        if jar.exists() {
            return Ok(jar);
        }
        let _one = self.building.lock().await;
        if jar.exists() {
            return Ok(jar);
        }
        std::fs::create_dir_all(&dir).map_err(|error| disk("create", &dir, error))?;
        let scratch = engine.store.discard(engine.store.temporary("stem"));
        std::fs::create_dir_all(scratch.path()).map_err(|error| disk("create", scratch.path(), error))?;
        let made = scratch.path().join("stem.jar");
        pack(&java.shared_jars, &made)?;
        std::fs::rename(&made, &jar).map_err(|error| disk("move the stem's jar to", &jar, error))?;
        Ok(jar)
    }

    fn boot(&self, class: &StemClass) -> Option<Boot> {
        self.classes.lock().get(class).cloned()
    }

    /// Boots a stem of a class that some artifact has named.
    pub(crate) async fn start(&self, engine: &Arc<Engine>, request: StemRequest) -> Result<Box<dyn Stem>> {
        let boot = self.boot(&request.class).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "start_stem",
                format!(
                    "class {}: no app of this class was prepared yet, so nothing is known of its JVM; prepare one, or \
                     call ProcessRuntime::java_stem_class",
                    request.class
                ),
            )
        })?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()
            .and_then(|(ours, theirs)| ours.set_nonblocking(true).map(|()| (ours, theirs)))
            .map_err(|error| {
                Error::new(ErrorKind::Exhausted, "start_stem", format!("a socket pair: {error}"))
            })?;
        let cwd = engine.store.discard(engine.store.temporary("stem"));
        std::fs::create_dir(cwd.path()).map_err(|error| disk("create", cwd.path(), error))?;
        let mut args = boot.options.clone();
        // A stem without an archive boots slower and is the same otherwise.
        match self.archive(engine, &boot, &request.class).await {
            Ok(file) => args.push(archive::use_flag(&boot.jdk, &file)),
            Err(error) => {
                tracing::warn!(%error, class = %request.class, "stems boot without a class archive")
            }
        }
        args.push("-jar".into());
        args.push(boot.jar.display().to_string());
        args.extend(engine.config.java.shared_classes.iter().cloned());
        let mut env = Environment::default();
        env.0.insert("PATH".into(), engine.config.path.clone());
        env.0.insert("LANG".into(), LANG.to_owned());
        let home = Home::make(engine)?;
        let level = engine.config.jail.level;
        let port = engine.ports.take()?;
        let mut jail = JailRequest::new(level, None);
        jail.egress = engine.config.jail.egress.clone();
        jail.ports = vec![port.number()];
        jail.own_port = Some(port.number());
        jail.later = Some(engine.store.packages_dir());
        jail.data = vec![cwd.path().to_path_buf(), home.path().to_path_buf()];
        jail.readable = vec![engine.store.stems_dir()];
        let plan = SpawnRequest {
            jail,
            program: boot.jdk.java.clone(),
            args,
            env,
            cwd: cwd.path().to_path_buf(),
            stdin: Some(OwnedFd::from(theirs)),
            rlimits: Vec::new(),
            limits: engine.ceilings,
            beside: None,
            logs: None,
        };
        let (spawned, _) = spawn::spawn(engine, plan).await?;
        let mut control = UnixStream::from_std(ours).map_err(|error| {
            Error::new(ErrorKind::Unavailable, "start_stem", format!("tokio's reactor: {error}"))
        })?;
        let died = |report: &sas_core::ExitReport| {
            let words = spawned.proc().last_words().map(|words| format!(": {words}")).unwrap_or_default();
            Error::new(ErrorKind::Crashed, "start_stem", format!("the JVM {report} while it booted{words}"))
        };
        let mut said = [0u8; 1];
        tokio::select! {
            biased;
            report = spawned.proc().exited() => return Err(died(&report)),
            read = control.read_exact(&mut said) => {
                if read.is_err() || said != *b"R" {
                    let report = spawned.proc().exited().await;
                    return Err(died(&report));
                }
            }
            () = tokio::time::sleep_until(request.deadline) => {
                return Err(Error::new(ErrorKind::Timeout, "start_stem", "the JVM had not booted by the deadline"));
            }
        }
        if let Err(report) = spawned.proc().started(request.id, request.events) {
            return Err(died(&report));
        }
        engine.metrics.stems.increment(1);
        let stem =
            JvmStem { class: request.class, engine: Arc::clone(engine), spawned, control, cwd, home, port };
        Ok(Box::new(stem))
    }

    /// The archive with which stems of a class boot: the JVM's own form of what the exercise has loaded.
    async fn archive(&self, engine: &Arc<Engine>, boot: &Boot, class: &StemClass) -> Result<PathBuf> {
        let name = class.0.rsplit('/').next().unwrap_or_default().to_owned();
        let file = engine.store.stems_dir().join(format!("{name}.archive"));
        if file.exists() {
            return Ok(file);
        }
        let _one = self.building.lock().await;
        if file.exists() {
            return Ok(file);
        }
        let scratch = engine.store.discard(engine.store.temporary("stem-archive"));
        std::fs::create_dir(scratch.path()).map_err(|error| disk("create", scratch.path(), error))?;
        let made = scratch.path().join("archive");
        let mut args = boot.options.clone();
        args.push(archive::write_flag(&boot.jdk, &made));
        args.push("-jar".into());
        args.push(boot.jar.display().to_string());
        args.push("train".into());
        args.extend(engine.config.java.shared_classes.iter().cloned());
        tool::run(engine, boot.jdk.java.clone(), args, scratch.path().to_path_buf(), TOOL_TIMEOUT).await?;
        std::fs::rename(&made, &file).map_err(|error| disk("move the stem's archive to", &file, error))?;
        Ok(file)
    }
}

/// A jar with the classes of the Java side and a manifest that makes it an app with an agent.
fn pack(shared: &[PathBuf], to: &Path) -> Result<()> {
    let failed =
        |error: String| Error::new(ErrorKind::Unavailable, "prepare", format!("the stem's jar: {error}"));
    let file = std::fs::File::create(to).map_err(|error| disk("create", to, error))?;
    let mut jar = zip::ZipWriter::new(file);
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    jar.start_file("META-INF/MANIFEST.MF", options).map_err(|error| failed(error.to_string()))?;
    jar.write_all(manifest(shared).as_bytes()).map_err(|error| failed(error.to_string()))?;
    for (name, bytes) in CLASSES {
        let name = format!("sas/stem/{name}");
        jar.start_file(name, options).map_err(|error| failed(error.to_string()))?;
        jar.write_all(bytes).map_err(|error| failed(error.to_string()))?;
    }
    jar.finish().map_err(|error| failed(error.to_string()))?;
    Ok(())
}

fn manifest(shared: &[PathBuf]) -> String {
    let mut text = String::from(
        "Manifest-Version: 1.0\r\nMain-Class: sas.stem.Boot\r\nLauncher-Agent-Class: sas.stem.Boot\r\n",
    );
    if !shared.is_empty() {
        let paths: Vec<String> = shared.iter().map(|jar| jar.display().to_string()).collect();
        // Lines of at most 72 bytes; the rest follows after a blank.
        let line = format!("Class-Path: {}", paths.join(" "));
        let mut width = 0;
        for c in line.chars() {
            if width + c.len_utf8() > 70 {
                text.push_str("\r\n ");
                width = 1;
            }
            text.push(c);
            width += c.len_utf8();
        }
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text
}

/// A JVM that waits.
#[derive(Debug)]
struct JvmStem {
    class: StemClass,
    engine: Arc<Engine>,
    spawned: Spawned,
    control: UnixStream,
    cwd: Discard,
    home: Home,
    /// The only one on which it may listen.
    port: Port,
}

#[async_trait]
impl Stem for JvmStem {
    async fn specialize(self: Box<Self>, request: StartRequest) -> Result<Arc<dyn Instance>> {
        let Self { class, engine, spawned, mut control, cwd, home, port } = *self;
        let began = tokio::time::Instant::now();
        let deployed = Arc::clone(&request.deployed);
        let wrong = |what: &str| Error::new(ErrorKind::InvalidSpec, "specialize", what.to_owned());
        let artifact = deployed
            .artifact
            .downcast::<ProcessArtifact>()
            .ok_or_else(|| wrong("artifact: it was prepared by another runtime; prepare it with this one"))?;
        let plan = artifact
            .stem
            .as_ref()
            .filter(|plan| plan.class == class)
            .ok_or_else(|| wrong("artifact: it can't come from a stem of this class; start it cold"))?;
        let proc = spawned.proc();
        proc.restarted();
        proc.log_to(log_target(&request));
        let port = match request.spec().port {
            Some(number) => engine.ports.take_fixed(number)?,
            None => port,
        };
        let number = port.number();
        proc.hold(Some(port), &artifact.package);
        let mut env = Environment::of(&request, number, &engine.config.path, &artifact.launch, home.path());
        proc.hold_dir(home.into_dir());
        if proc.has_cell() {
            spawn::own_places(&mut env, engine.store.run_dir());
        }
        if let Some((name, _)) = env.0.iter().find(|(name, value)| !(name.is_ascii() && value.is_ascii())) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "specialize",
                format!("env.{name}: {}", super::equal::BY_LOCALE),
            ));
        }
        let (shown, here) = (Arc::clone(proc), Arc::clone(&engine));
        let (package, readable) = (Arc::clone(&artifact.package), vec![artifact.package.archive_dir()]);
        let shown =
            tokio::task::spawn_blocking(move || shown.show(&here.jails, package.dir(), &readable)).await;
        shown.map_err(std::io::Error::other).flatten().map_err(|error| {
            Error::new(
                ErrorKind::Unavailable,
                "specialize",
                format!("the package in the stem's jail: {error}"),
            )
            .with_source(error)
        })?;
        // Relative paths that native code opens are seen from the stem's own directory: it gets what the app's has.
        mirror(&artifact.launch.cwd, cwd.path())?;
        proc.hold_dir(cwd);
        let rlimits = artifact.rlimits(&engine);
        let placed = Placed {
            env: env.clone(),
            cwd: artifact.launch.cwd.clone(),
            jail: artifact.jail(&engine, Some(request.tenant()), number),
            copied: 0,
        };
        let beside = Beside::new(&engine, proc, placed, &rlimits);
        if artifact.level != JailLevel::None {
            engine.bound_disk(proc, artifact.disk_bytes(&engine), 0);
        }
        spawn::limit(&engine, proc, &rlimits, &artifact.ceilings(&engine))?;
        let args: Vec<String> = artifact.launch.args.iter().map(|arg| env.expand(arg)).collect();
        let message = message(&env, plan, &artifact.launch.cwd, &args);
        request.events.phase(request.id, StartPhase::Spawned);
        let answered = async {
            control.write_all(&message).await?;
            let mut said = [0u8; 1];
            control.read_exact(&mut said).await?;
            if said == *b"S" {
                return Ok(None);
            }
            let mut reason = vec![0u8; usize::try_from(control.read_u32().await?.min(65_536)).unwrap_or(0)];
            control.read_exact(&mut reason).await?;
            Ok::<_, std::io::Error>(Some(String::from_utf8_lossy(&reason).into_owned()))
        };
        tokio::select! {
            biased;
            answered = answered => match answered {
                Ok(None) => {}
                Ok(Some(reason)) => {
                    return Err(Error::new(ErrorKind::Unsupported, "specialize", format!("the stem refused: {reason}")));
                }
                Err(_) => {
                    let report = proc.exited().await;
                    return Err(crashed(proc, &report, number, None));
                }
            },
            () = tokio::time::sleep_until(request.deadline) => {
                return Err(Error::new(ErrorKind::Timeout, "specialize", "the stem did not answer by the deadline"));
            }
        }
        // A stem answers long before a cold start would.
        let at = Endpoint::Tcp((std::net::Ipv4Addr::LOCALHOST, number).into());
        let endpoint =
            until_ready(&request, proc, &beside, &artifact.quickest_from_stem, &at, number).await?;
        if let Err(report) = proc.started(request.id, Arc::clone(&request.events)) {
            return Err(crashed(proc, &report, number, None));
        }
        request.events.phase(request.id, StartPhase::Ready);
        engine.metrics.ready.record(began.elapsed().as_secs_f64());
        let proc = spawned.keep();
        let instance = ProcessInstance::new(request.id, endpoint, proc, beside);
        Ok(Arc::new(instance))
    }

    fn usage(&self) -> Option<Usage> {
        self.spawned.proc().usage()
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        let proc = Arc::clone(self.spawned.proc());
        drop(self);
        proc.exited().await;
        Ok(())
    }
}

/// Links to everything in `from`, in `to`.
fn mirror(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from).map_err(|error| disk("read", from, error))?.flatten() {
        let link = to.join(entry.file_name());
        std::os::unix::fs::symlink(entry.path(), &link).map_err(|error| disk("link", &link, error))?;
    }
    Ok(())
}

fn message(env: &Environment, plan: &StemPlan, cwd: &Path, args: &[String]) -> Vec<u8> {
    let mut body = Vec::new();
    let number = |body: &mut Vec<u8>, n: usize| {
        body.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes());
    };
    let text = |body: &mut Vec<u8>, text: &str| {
        number(body, text.len());
        body.extend_from_slice(text.as_bytes());
    };
    let list = |body: &mut Vec<u8>, list: &[String]| {
        number(body, list.len());
        for one in list {
            text(body, one);
        }
    };
    number(&mut body, env.0.len());
    for (name, value) in &env.0 {
        text(&mut body, name);
        text(&mut body, value);
    }
    number(&mut body, plan.properties.len());
    for (name, value) in &plan.properties {
        text(&mut body, name);
        text(&mut body, value);
    }
    text(&mut body, &cwd.display().to_string());
    text(&mut body, &plan.jar.display().to_string());
    text(&mut body, &plan.main_class);
    list(&mut body, args);
    list(&mut body, &plan.exports);
    list(&mut body, &plan.opens);
    let mut message = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    message.extend_from_slice(&body);
    message
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_classes_are_what_the_source_compiles_to() {
        let Ok(version) = std::process::Command::new("javac").arg("-version").output() else {
            return sas_testkit::skip("javac is not installed");
        };
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        if !version.starts_with("javac 17.") {
            return sas_testkit::skip(&format!(
                "the classes were compiled by javac 17, and this is {version}"
            ));
        }
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("java/sas/stem");
        let dir = tempfile::tempdir().unwrap();
        let sources = ["Boot.java", "Rewriter.java", "Warm.java"].map(|name| here.join(name));
        let made = std::process::Command::new("javac")
            .args(["--release", "17", "-nowarn", "-encoding", "UTF-8", "-d"])
            .arg(dir.path())
            .args(sources)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let made = dir.path().join("sas/stem");
        assert_eq!(std::fs::read_dir(&made).unwrap().count(), super::CLASSES.len());
        for (name, bytes) in super::CLASSES {
            assert!(
                std::fs::read(made.join(name)).unwrap() == bytes,
                "{name}: compile it again: java/README.md"
            );
        }
    }

    #[test]
    fn a_long_class_path_is_folded_so_that_it_reads_back_whole() {
        let shared: Vec<std::path::PathBuf> =
            (0..9).map(|n| format!("/usr/share/java/library-{n}.jar").into()).collect();
        let text = super::manifest(&shared);
        assert!(text.lines().all(|line| line.len() <= 72), "{text}");
        let unfolded = text.replace("\r\n ", "");
        assert!(
            unfolded.contains("/usr/share/java/library-0.jar /usr/share/java/library-1.jar"),
            "{unfolded}"
        );
        assert!(unfolded.contains("/usr/share/java/library-8.jar\r\n"));
    }
}
