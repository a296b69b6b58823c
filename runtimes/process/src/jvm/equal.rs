//! Whether an app can be the same in a stem as in a JVM of its own. What can't be made equal is found here, from the
//! jar and the spec, and such an app starts cold.

use std::{
    fs,
    io::{Cursor, Read as _, Seek},
    path::Path,
};

use sas_core::{EnvValue, RevisionSpec};

use super::Manifest;
use crate::package::{PackageLimits, directory};

/// Most bytes of classes that are looked at; a larger jar starts cold.
const MAX_BYTES: u64 = 512 << 20;

/// Why texts beyond ASCII start cold: a JVM without a locale garbles them, and a stem would not.
pub(crate) const BY_LOCALE: &str = "it has characters beyond ASCII, which a JVM decodes by its locale";

/// Variables that the JVM or the C library read when the process starts.
fn read_at_boot(name: &str) -> bool {
    matches!(name, "TZ" | "LANG" | "LANGUAGE" | "JAVA_TOOL_OPTIONS" | "JDK_JAVA_OPTIONS" | "_JAVA_OPTIONS")
        || ["LC_", "LD_", "MALLOC_", "GLIBC_"].iter().any(|prefix| name.starts_with(prefix))
}

/// Properties that classes of the JDK read once, when they are initialised, which in a stem was before the app.
const READ_ONCE: [&str; 12] = [
    "java.util.logging.",
    "sun.net.",
    "jdk.http",
    "com.sun.net.httpserver.",
    "java.net.prefer",
    "java.security.",
    "networkaddress.",
    "java.util.concurrent.",
    "user.timezone",
    "file.encoding",
    "user.language",
    "java.io.tmpdir",
];

/// Services that the JDK looks for once.
fn looked_up_once(service: &str) -> bool {
    ["java.", "jdk.", "sun.", "com.sun."].iter().any(|prefix| service.starts_with(prefix))
        && !matches!(service, "java.sql.Driver" | "java.nio.file.FileTypeDetector")
}

/// A flag that decides about the JVM itself, so that a stem must have been booted with it.
pub(crate) fn is_boot_flag(option: &str) -> bool {
    match option.strip_prefix("-D") {
        Some(property) => {
            ["java.", "sun.", "jdk.", "com.sun.", "user.", "file.", "native.", "stdout.", "stderr."]
                .iter()
                .chain(&READ_ONCE)
                .any(|prefix| property.starts_with(prefix))
        }
        None => true,
    }
}

/// Why the app must start cold; `None`: it may come from a stem. `shared` jars are the operator's and not looked at.
pub(crate) fn reason_against(
    jar: &Path,
    manifest: &Manifest,
    spec: &RevisionSpec,
    shared: &[std::path::PathBuf],
) -> Option<String> {
    if let Some(name) = spec.env.iter().find_map(|(name, value)| {
        (read_at_boot(name) && matches!(value, EnvValue::Literal(_) | EnvValue::Secret(_))).then_some(name)
    }) {
        return Some(format!("env.{name} is read when the JVM boots"));
    }
    let literal = |value: &EnvValue| match value {
        EnvValue::Literal(text) => text.is_ascii(),
        // Looked at when it is resolved, at every start.
        _ => true,
    };
    if let Some((name, _)) = spec.env.iter().find(|(name, value)| !(name.is_ascii() && literal(value))) {
        return Some(format!("env.{name}: {BY_LOCALE}"));
    }
    if !spec.args.iter().chain(&spec.command).all(|arg| arg.is_ascii()) {
        return Some(format!("args: {BY_LOCALE}"));
    }
    if manifest.get("Launcher-Agent-Class").is_some() {
        return Some("its manifest names a Launcher-Agent-Class".into());
    }
    let mut budget = MAX_BYTES;
    let file = fs::File::open(jar).ok()?;
    if let Some(reason) = scan(std::io::BufReader::new(file), &mut budget, 0) {
        return Some(reason);
    }
    let dir = jar.parent()?;
    for other in manifest.get("Class-Path").unwrap_or_default().split_whitespace() {
        let path = dir.join(other.strip_prefix("file:").unwrap_or(other));
        if shared.contains(&path) {
            continue;
        }
        if let Ok(file) = fs::File::open(&path)
            && let Some(reason) = scan(std::io::BufReader::new(file), &mut budget, 0)
        {
            return Some(format!("{other}: {reason}"));
        }
    }
    None
}

fn scan(archive: impl std::io::Read + Seek, budget: &mut u64, depth: u32) -> Option<String> {
    let Ok(mut archive) = directory::open(archive, PackageLimits::default().entries) else { return None };
    for index in 0..archive.len() {
        let Ok(mut entry) = archive.by_index(index) else { continue };
        let name = entry.name().to_owned();
        if let Some(service) = name.strip_prefix("META-INF/services/")
            && looked_up_once(service)
        {
            return Some(format!("it brings a {service}, which the JDK looks for once"));
        }
        let nested = name.ends_with(".jar");
        if !(name.ends_with(".class") || nested) {
            continue;
        }
        let mut bytes = Vec::new();
        let limit = *budget;
        if entry.by_ref().take(limit + 1).read_to_end(&mut bytes).is_err() {
            continue;
        }
        match budget.checked_sub(bytes.len() as u64) {
            Some(left) => *budget = left,
            None => return Some(format!("it has more than {MAX_BYTES} bytes of classes to look at")),
        }
        let found = if nested && depth == 0 {
            scan(Cursor::new(bytes), budget, depth + 1)
        } else if nested {
            None
        } else {
            class(&bytes)
        };
        if let Some(reason) = found {
            return Some(format!("{name}: {reason}"));
        }
    }
    None
}

/// What the constants of a class say about it.
fn class(bytes: &[u8]) -> Option<String> {
    let constants = Constants::read(bytes)?;
    let calls = constants.calls();
    let any = |class: &str, names: &[&str]| {
        calls.iter().any(|(of, name)| {
            *of == class.as_bytes()
                && (names.is_empty() || names.iter().any(|wanted| *name == wanted.as_bytes()))
        })
    };
    if any("java/lang/ProcessBuilder", &[]) || any("java/lang/Runtime", &["exec"]) {
        return Some("it starts processes, which would get the stem's environment and directory".into());
    }
    if any("java/lang/System", &["load", "loadLibrary"])
        || any("java/lang/Runtime", &["load", "loadLibrary"])
        || any("java/lang/foreign/Linker", &[])
    {
        return Some("it loads native code, which sees the stem's environment and directory".into());
    }
    if any("java/lang/management/ManagementFactory", &["getRuntimeMXBean"]) {
        return Some("it reads the JVM's flags and start time, which are the stem's".into());
    }
    if any("java/lang/ProcessHandle$Info", &[]) {
        return Some("it reads the command line or start time of its process, which are the stem's".into());
    }
    if any("java/lang/System", &["setProperty", "setProperties"])
        && let Some(property) =
            constants.texts().find(|text| READ_ONCE.iter().any(|once| text.starts_with(once)))
    {
        return Some(format!("it sets the property {property}, which the JDK reads once"));
    }
    None
}

/// The parts of a class file's constant pool that matter here (JVMS, section 4.4).
struct Constants<'a>(Vec<Constant<'a>>);

#[derive(Clone, Copy)]
enum Constant<'a> {
    Text(&'a [u8]),
    Class(usize),
    NameAndType(usize),
    Call { class: usize, name_and_type: usize },
    Other,
}

impl<'a> Constants<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let short = |at: usize| Some(usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
        if bytes.get(..4)? != [0xca, 0xfe, 0xba, 0xbe] {
            return None;
        }
        let count = short(8)?;
        let mut at = 10;
        let mut pool = vec![Constant::Other];
        while pool.len() < count {
            let (constant, size) = match bytes.get(at)? {
                1 => {
                    let length = short(at + 1)?;
                    (Constant::Text(bytes.get(at + 3..at + 3 + length)?), 3 + length)
                }
                7 => (Constant::Class(short(at + 1)?), 3),
                12 => (Constant::NameAndType(short(at + 1)?), 5),
                10 | 11 => (Constant::Call { class: short(at + 1)?, name_and_type: short(at + 3)? }, 5),
                3 | 4 | 9 | 17 | 18 => (Constant::Other, 5),
                8 | 16 | 19 | 20 => (Constant::Other, 3),
                15 => (Constant::Other, 4),
                // Long and double take two places.
                5 | 6 => {
                    pool.push(Constant::Other);
                    (Constant::Other, 9)
                }
                _ => return None,
            };
            pool.push(constant);
            at += size;
        }
        Some(Self(pool))
    }

    fn text(&self, at: usize) -> Option<&'a [u8]> {
        match self.0.get(at)? {
            Constant::Text(text) => Some(text),
            _ => None,
        }
    }

    fn texts(&self) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter_map(|constant| match constant {
            Constant::Text(text) => std::str::from_utf8(text).ok(),
            _ => None,
        })
    }

    /// Class and name of every method that the class calls or refers to.
    fn calls(&self) -> Vec<(&'a [u8], &'a [u8])> {
        self.0
            .iter()
            .filter_map(|constant| {
                let Constant::Call { class, name_and_type } = constant else { return None };
                let (Constant::Class(class), Constant::NameAndType(name)) =
                    (self.0.get(*class)?, self.0.get(*name_and_type)?)
                else {
                    return None;
                };
                Some((self.text(*class)?, self.text(*name)?))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{is_boot_flag, read_at_boot};

    #[test]
    fn flags_and_variables_that_the_jvm_reads_at_boot_are_known() {
        for (option, boot) in [
            ("-Xmx64m", true),
            ("-XX:+UseSerialGC", true),
            ("-javaagent:x.jar", true),
            ("-Duser.timezone=UTC", true),
            ("-Dfile.encoding=UTF-8", true),
            ("-Dapp.name=x", false),
            ("-Dspring.profiles.active=prod", false),
        ] {
            assert_eq!(is_boot_flag(option), boot, "{option}");
        }
        assert!(read_at_boot("TZ") && read_at_boot("LC_ALL") && read_at_boot("JAVA_TOOL_OPTIONS"));
        assert!(!read_at_boot("DATABASE_URL"));
    }
}
