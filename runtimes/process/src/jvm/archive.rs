//! Class archives of apps: AppCDS, or an AOT cache on JDK 25 and later, made in `prepare` by running the app once.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sas_core::{Endpoint, EnvValue, Error, ErrorKind, Result, RevisionSpec};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use sas_runtime_os::{Egress, JailLevel};

use crate::{
    artifact::ProcessArtifact,
    beside::Beside,
    config::ARCHIVE_TIMEOUT,
    engine::Engine,
    home::Home,
    jvm::jdk::Jdk,
    package::error::disk,
    ready::{self, Quickest},
    spawn::{self, Environment, SpawnRequest},
};

/// The flag that uses an archive, and the one that writes it.
fn flags(jdk: &Jdk, file: &Path) -> (String, String) {
    let file = file.display();
    if jdk.major >= 25 {
        (format!("-XX:AOTCache={file}"), format!("-XX:AOTCacheOutput={file}"))
    } else {
        (format!("-XX:SharedArchiveFile={file}"), format!("-XX:ArchiveClassesAtExit={file}"))
    }
}

pub(crate) fn use_flag(jdk: &Jdk, file: &Path) -> String {
    flags(jdk, file).0
}

pub(crate) fn write_flag(jdk: &Jdk, file: &Path) -> String {
    flags(jdk, file).1
}

/// Names what an archive depends on: the JVM refuses it, silently, when one of these differs.
pub(crate) fn fingerprint(jdk: &Jdk, options: &[String], more: &[&str]) -> String {
    let mut digest = Sha256::new();
    digest.update(jdk.java.as_os_str().as_encoded_bytes());
    digest.update([0]);
    digest.update(jdk.version.as_bytes());
    for text in options.iter().map(String::as_str).chain(more.iter().copied()) {
        digest.update([0]);
        digest.update(text.as_bytes());
    }
    digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The app's archive, made now unless it is there.
pub(crate) async fn make(
    engine: &Arc<Engine>,
    jdk: &Jdk,
    artifact: &ProcessArtifact,
    jar: &Path,
    options: &[String],
    spec: &RevisionSpec,
) -> Result<PathBuf> {
    let (package, launch) = (&artifact.package, &artifact.launch);
    let name = fingerprint(jdk, options, &[&jar.display().to_string()]);
    let file = package.archive_dir().join(format!("{name}.archive"));
    if file.exists() {
        return Ok(file);
    }
    let dir = package.archive_dir();
    std::fs::create_dir_all(&dir).map_err(|error| disk("create", &dir, error))?;
    let made = engine.store.discard(engine.store.temporary("archive"));
    std::fs::create_dir(made.path()).map_err(|error| disk("create", made.path(), error))?;
    let scratch = made.path().join("archive");
    let port = engine.ports.take()?;
    let home = Home::make(engine)?;
    let mut env = Environment::bare(home.path());
    env.0.insert("PATH".into(), engine.config.path.clone());
    env.add_expected(launch, port.number());
    for (name, value) in &spec.env {
        if let EnvValue::Literal(text) = value {
            env.0.insert(name.clone(), text.clone());
        }
    }
    env.0.insert("PORT".into(), port.number().to_string());
    for name in ["K_SERVICE", "K_CONFIGURATION", "K_REVISION"] {
        env.0.insert(name.into(), "prepare".into());
    }
    let mut args = options.to_vec();
    args.push(write_flag(jdk, &scratch));
    args.push("-jar".into());
    args.push(jar.display().to_string());
    args.extend(launch.args.iter().cloned());
    let args = args.iter().map(|arg| env.expand(arg)).collect();
    let mut jail = artifact.jail(engine, None, port.number());
    jail.data.push(made.path().to_path_buf());
    // It is asked from here, whatever its instances may reach.
    jail.level = jail.level.min(JailLevel::Basic);
    jail.egress = Egress::default();
    let plan = SpawnRequest {
        jail,
        program: jdk.java.clone(),
        args,
        env,
        cwd: launch.cwd.clone(),
        stdin: None,
        rlimits: Vec::new(),
        limits: artifact.ceilings(engine),
        logs: None,
        beside: None,
    };
    let (spawned, placed) = spawn::spawn(engine, plan).await?;
    let beside = Beside::new(engine, spawned.proc(), placed, &[]);
    let number = port.number();
    spawned.proc().hold(Some(port), package);
    spawned.proc().hold_dir(home.into_dir());
    let failed = |what: String| {
        let words = spawned
            .proc()
            .last_words()
            .map(|words| format!("; its last output: {words}"))
            .unwrap_or_default();
        Error::new(ErrorKind::Unavailable, "prepare", format!("{what}{words}"))
    };
    // A run that writes an archive is no measure for those that use it.
    let unknown = Quickest::default();
    let (candidates, last) = (
        ready::candidates(&Endpoint::Tcp((std::net::Ipv4Addr::LOCALHOST, number).into())),
        parking_lot::Mutex::new(None),
    );
    let at = tokio::select! {
        biased;
        report = spawned.proc().exited() => return Err(failed(format!("the program {report} before it was ready"))),
        ready = ready::wait(&candidates, spec, &beside, &unknown, || (), &last) => match ready {
            Ok(at) => at,
            Err(error) => return Err(failed(error.to_string())),
        },
        () = tokio::time::sleep(ARCHIVE_TIMEOUT) => return Err(failed(format!("not ready within {ARCHIVE_TIMEOUT:?}"))),
    };
    // One request, so that the classes that answer are in the archive too. Whatever it answers is fine.
    drop(tokio::time::timeout(Duration::from_secs(5), ask(&at)).await);
    engine.stop(spawned.proc(), ARCHIVE_TIMEOUT);
    spawned.proc().exited().await;
    if !scratch.exists() {
        return Err(failed("the JVM wrote no archive: the program must end by SIGTERM".into()));
    }
    std::fs::rename(&scratch, &file).map_err(|error| disk("move the archive to", &file, error))?;
    Ok(file)
}

async fn ask(at: &Endpoint) -> std::io::Result<()> {
    let Endpoint::Tcp(address) = at else { return Ok(()) };
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = [0u8; 4096];
    while stream.read(&mut answer).await? > 0 {}
    Ok(())
}
