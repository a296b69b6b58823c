//! The options that a revision may set, by annotation name.

use std::collections::BTreeMap;

use rustix::process::Resource;
use sas_core::{Result, SpecErrors};
use sas_runtime_os::{Egress, JailLevel};

/// Hand the program its listening socket as this file descriptor; only `0` can be had.
pub const LISTEN_FD: &str = "sas.dev/listen-fd";
/// `true`: the program is a zygote, see [`crate::zygote`].
pub const ZYGOTE: &str = "sas.dev/zygote";
/// Flags for the JVM, separated by blanks.
pub const JAVA_OPTIONS: &str = "sas.dev/java-options";
/// `true`: run the program once in `prepare` and archive its classes; `false`: don't, whatever the runtime is set to.
pub const JAVA_ARCHIVE: &str = "sas.dev/java-archive";
/// `auto` (default): from a stem where that makes no difference; `never`; `always`: also where `prepare` found a
/// reason against it.
pub const JAVA_STEM: &str = "sas.dev/java-stem";

/// The most processes and threads that an instance may have at a time; needs control groups.
pub const PIDS_MAX: &str = "sas.dev/pids-max";

/// The most bytes that an instance may write to its own view of the disk, its home and `/tmp` together.
pub const DISK: &str = "sas.dev/disk-bytes";

/// `basic` or `strict`: how much of the machine is kept from the instances; at least the host's own level.
pub const JAIL: &str = "sas.dev/jail";
/// `allow`, `deny`, or TCP ports separated by commas: where the instances may connect to.
pub const EGRESS: &str = "sas.dev/egress";
/// `true`: the service has a directory that stays, in the variable [`DATA_DIR`]; all its instances share it.
pub const DATA: &str = "sas.dev/data";
/// The variable with the directory of [`DATA`].
pub const DATA_DIR: &str = "SAS_DATA_DIR";

const RLIMITS: [(&str, Resource); 5] = [
    ("sas.dev/rlimit-nofile", Resource::Nofile),
    ("sas.dev/rlimit-fsize", Resource::Fsize),
    ("sas.dev/rlimit-core", Resource::Core),
    ("sas.dev/rlimit-cpu", Resource::Cpu),
    ("sas.dev/rlimit-data", Resource::Data),
];

/// The option that sets a limit of each process.
pub(crate) fn rlimit_name(resource: Resource) -> &'static str {
    RLIMITS.iter().find(|(_, known)| *known == resource).map_or("sas.dev/rlimit", |(name, _)| name)
}

/// Options that begin like this are this runtime's, and must be known to it.
const OURS: [&str; 9] = [
    "sas.dev/disk",
    "sas.dev/pids",
    "sas.dev/listen",
    "sas.dev/zygote",
    "sas.dev/java",
    "sas.dev/rlimit",
    "sas.dev/jail",
    "sas.dev/egress",
    "sas.dev/data",
];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StemUse {
    #[default]
    Auto,
    Never,
    Always,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) listen_fd: bool,
    pub(crate) zygote: bool,
    pub(crate) java_options: Vec<String>,
    pub(crate) java_archive: Option<bool>,
    pub(crate) java_stem: StemUse,
    pub(crate) pids_max: Option<u64>,
    pub(crate) disk_bytes: Option<u64>,
    pub(crate) rlimits: Vec<(Resource, u64)>,
    pub(crate) jail: Option<JailLevel>,
    pub(crate) egress: Option<Egress>,
    pub(crate) data: bool,
}

impl Options {
    pub(crate) fn parse(options: &BTreeMap<String, String>) -> Result<Self> {
        let mut errors = SpecErrors::default();
        let mut parsed = Self::default();
        for (name, value) in options {
            let field = || format!("options.{name}");
            let flag = |errors: &mut SpecErrors| match value.as_str() {
                "true" => Some(true),
                "false" => Some(false),
                other => {
                    errors.push(field(), other, "true or false");
                    None
                }
            };
            match name.as_str() {
                LISTEN_FD if value == "0" => parsed.listen_fd = true,
                LISTEN_FD => errors.push(field(), value, "0, the only descriptor that can be handed over"),
                ZYGOTE => parsed.zygote = flag(&mut errors).unwrap_or(false),
                JAVA_OPTIONS => {
                    parsed.java_options = value.split_whitespace().map(str::to_owned).collect();
                }
                JAVA_ARCHIVE => parsed.java_archive = flag(&mut errors),
                JAVA_STEM => match value.as_str() {
                    "auto" => parsed.java_stem = StemUse::Auto,
                    "never" => parsed.java_stem = StemUse::Never,
                    "always" => parsed.java_stem = StemUse::Always,
                    other => errors.push(field(), other, "auto, never or always"),
                },
                JAIL => match value.parse() {
                    Ok(level) => parsed.jail = Some(level),
                    Err(_) => errors.push(field(), value, "none, basic or strict"),
                },
                EGRESS => match value.parse() {
                    Ok(egress) => parsed.egress = Some(egress),
                    Err(_) => errors.push(field(), value, "allow, deny, or TCP ports separated by commas"),
                },
                DATA => parsed.data = flag(&mut errors).unwrap_or(false),
                DISK => match value.parse::<u64>() {
                    Ok(most) if most >= 1 << 20 => parsed.disk_bytes = Some(most),
                    _ => errors.push(field(), value, "a whole number of bytes from 1048576"),
                },
                PIDS_MAX => match value.parse::<u64>() {
                    Ok(most) if most > 0 => parsed.pids_max = Some(most),
                    _ => errors.push(field(), value, "a whole number from 1"),
                },
                other => match RLIMITS.iter().find(|(known, _)| *known == other) {
                    Some((_, resource)) => match value.parse() {
                        Ok(limit) => parsed.rlimits.push((*resource, limit)),
                        Err(_) => errors.push(field(), value, "a whole number, in the unit of setrlimit(2)"),
                    },
                    // Options of the pool and others are in the same map.
                    None if !OURS.iter().any(|prefix| other.starts_with(prefix)) => {}
                    None => errors.push(
                        field(),
                        value,
                        format!(
                            "the process runtime knows {LISTEN_FD}, {ZYGOTE}, {PIDS_MAX}, {DISK}, {JAIL}, {EGRESS}, {DATA}, {JAVA_OPTIONS}, \
                             {JAVA_ARCHIVE}, {JAVA_STEM} and {}",
                            RLIMITS.map(|(name, _)| name).join(", ")
                        ),
                    ),
                },
            }
        }
        if parsed.listen_fd && parsed.zygote {
            errors.push(
                format!("options.{LISTEN_FD}"),
                "0",
                format!("leave it out: with {ZYGOTE} the listening socket comes with each instance"),
            );
        }
        errors.into_result()?;
        Ok(parsed)
    }
}
