//! What one revision asks for, read from its spec and checked against the runtime's configuration.

use std::{path::PathBuf, time::Duration};

use sas_core::{RevisionSpec, SpecErrors, parse_duration};
use sas_knative::parse_quantity;

use crate::{
    config::{CallLimits, PAGE, WasmConfig},
    network::{HostRule, Network, is_public},
};

/// CPU time of one request, such as `250ms`.
pub const CPU_LIMIT: &str = "sas.dev/wasm-cpu-limit";
/// Bytes of one response's body, such as `16Mi`.
pub const RESPONSE_LIMIT: &str = "sas.dev/wasm-response-limit";
/// Bytes of one request's log output, such as `64Ki`.
pub const LOG_LIMIT: &str = "sas.dev/wasm-log-limit";
/// Requests that one sandbox serves before it is thrown away; 1: a fresh one for each. Components only.
pub const REUSE: &str = "sas.dev/wasm-reuse";
/// Age at which a kept sandbox is thrown away, such as `60s`.
pub const REUSE_AGE: &str = "sas.dev/wasm-reuse-age";
/// Sandboxes that an instance keeps for later requests at most.
pub const REUSE_CONCURRENCY: &str = "sas.dev/wasm-reuse-concurrency";
/// Hosts that may be called: `api.example.com, *.example.org:443`.
pub const ALLOW_HOSTS: &str = "sas.dev/wasm-allow-hosts";
/// Non-public networks that may be called: `10.1.0.0/16, fd00::/8`.
pub const ALLOW_NETWORKS: &str = "sas.dev/wasm-allow-networks";
/// Host folders that the guest sees: `/data=/srv/tenant/data:ro`, separated by commas; `rw` to write.
pub const DIRECTORIES: &str = "sas.dev/wasm-directories";

const PREFIX: &str = "sas.dev/wasm-";
const KNOWN: [&str; 9] = [
    CPU_LIMIT,
    RESPONSE_LIMIT,
    LOG_LIMIT,
    REUSE,
    REUSE_AGE,
    REUSE_CONCURRENCY,
    ALLOW_HOSTS,
    ALLOW_NETWORKS,
    DIRECTORIES,
];

/// A host folder as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) guest: String,
    pub(crate) host: PathBuf,
    pub(crate) writable: bool,
}

/// How long sandboxes live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reuse {
    pub(crate) requests: u32,
    pub(crate) age: Duration,
    pub(crate) concurrency: u32,
}

impl Reuse {
    pub(crate) const FRESH: Self = Self { requests: 1, age: Duration::from_secs(60), concurrency: 16 };

    pub(crate) fn keeps(&self) -> bool {
        self.requests > 1
    }
}

/// All that a revision asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) limits: CallLimits,
    pub(crate) reuse: Reuse,
    pub(crate) hosts: Vec<HostRule>,
    pub(crate) networks: Vec<Network>,
    pub(crate) directories: Vec<Directory>,
}

impl Options {
    /// Reads and checks the options of `spec`.
    pub(crate) fn parse(spec: &RevisionSpec, config: &WasmConfig) -> Result<Self, SpecErrors> {
        let mut errors = SpecErrors::default();
        let mut own = Self {
            limits: config.limits,
            reuse: Reuse::FRESH,
            hosts: Vec::new(),
            networks: Vec::new(),
            directories: Vec::new(),
        };
        for (key, value) in spec.options.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
            own.read(key, value.trim(), config, &mut errors);
        }
        if let Some(memory) = spec.resources.memory_limit_bytes {
            let field = "resources.memory_limit_bytes";
            if memory < PAGE {
                errors.push(field, memory, "at least 64 KiB, one page of WebAssembly");
            } else if memory > config.ceiling.memory_bytes {
                let most = config.ceiling.memory_bytes;
                errors.push(field, memory, format!("at most {most}, the ceiling of this platform"));
            } else {
                own.limits.memory_bytes = memory;
            }
        }
        if spec.port.is_some() {
            errors.push(
                "port",
                spec.port.unwrap_or_default(),
                "leave it out: a WebAssembly function has none",
            );
        }
        errors.into_result()?;
        Ok(own)
    }

    fn read(&mut self, key: &str, value: &str, config: &WasmConfig, errors: &mut SpecErrors) {
        let field = format!("options[{key:?}]");
        let ceiling = &config.ceiling;
        match key {
            CPU_LIMIT => match duration(value) {
                Some(cpu) if cpu >= config.tick && cpu <= ceiling.cpu => self.limits.cpu = cpu,
                Some(_) => {
                    errors.push(field, value, format!("between {:?} and {:?}", config.tick, ceiling.cpu));
                }
                None => errors.push(field, value, "a duration such as 250ms or 2s"),
            },
            RESPONSE_LIMIT | LOG_LIMIT => {
                let (limit, most) = match key {
                    RESPONSE_LIMIT => (&mut self.limits.response_bytes, ceiling.response_bytes),
                    _ => (&mut self.limits.log_bytes, ceiling.log_bytes),
                };
                match parse_quantity(value, 1) {
                    Some(bytes) if bytes <= most => *limit = bytes,
                    Some(_) => errors.push(field, value, format!("at most {most} bytes")),
                    None => errors.push(field, value, "bytes, such as 65536 or 64Ki"),
                }
            }
            REUSE | REUSE_CONCURRENCY => match value.parse::<u32>() {
                Ok(count) if count > 0 && key == REUSE => self.reuse.requests = count,
                Ok(count) if count > 0 && count <= config.slots => self.reuse.concurrency = count,
                _ => errors.push(field, value, "a whole number of at least 1"),
            },
            REUSE_AGE => match duration(value) {
                Some(age) if !age.is_zero() => self.reuse.age = age,
                _ => errors.push(field, value, "a duration such as 60s"),
            },
            ALLOW_HOSTS => {
                let ceilings: Vec<HostRule> =
                    config.grants.hosts.iter().filter_map(|rule| rule.parse().ok()).collect();
                for text in list(value) {
                    match text.parse::<HostRule>() {
                        Ok(rule) if ceilings.iter().any(|wide| wide.covers(&rule)) => self.hosts.push(rule),
                        Ok(_) => errors.push(
                            field.clone(),
                            text,
                            "not among the hosts that this platform grants (WasmConfig.grants.hosts)",
                        ),
                        Err(wrong) => errors.push(field.clone(), text, wrong.to_string()),
                    }
                }
            }
            ALLOW_NETWORKS => {
                for text in list(value) {
                    match text.parse::<Network>() {
                        Ok(network) if config.grants.private_networks.iter().any(|own| own.covers(&network)) => {
                            self.networks.push(network);
                        }
                        Ok(_) => errors.push(
                            field.clone(),
                            text,
                            "not within the networks that this platform grants (WasmConfig.grants.private_networks)",
                        ),
                        Err(wrong) => errors.push(field.clone(), text, wrong.to_string()),
                    }
                }
            }
            DIRECTORIES => {
                for text in list(value) {
                    match directory(text, config) {
                        Ok(directory) => self.directories.push(directory),
                        Err(problem) => errors.push(field.clone(), text, problem),
                    }
                }
            }
            _ => errors.push(field, value, format!("no such option; there are {}", KNOWN.join(", "))),
        }
    }

    /// Whether a guest may connect to this address.
    pub(crate) fn allows_address(&self, address: std::net::IpAddr) -> bool {
        is_public(address) || self.networks.iter().any(|network| network.contains(address))
    }

    /// Whether a guest may call this host.
    pub(crate) fn allows_host(&self, host: &str, port: u16) -> bool {
        self.hosts.iter().any(|rule| rule.allows(host, port))
    }
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|text| !text.is_empty())
}

fn directory(text: &str, config: &WasmConfig) -> Result<Directory, String> {
    const FORM: &str = "a folder as /guest/path=/host/path:ro (or :rw)";
    let (guest, host) = text.split_once('=').ok_or(FORM)?;
    let (host, writable) = match host.rsplit_once(':') {
        Some((host, "ro")) => (host, false),
        Some((host, "rw")) => (host, true),
        _ => return Err(FORM.to_owned()),
    };
    if !guest.starts_with('/') {
        return Err(FORM.to_owned());
    }
    // Resolved, so that neither `..` nor a symbolic link leads out of what the platform grants.
    let host =
        std::fs::canonicalize(host).map_err(|error| format!("the host folder can't be opened: {error}"))?;
    let granted = config
        .grants
        .directories
        .iter()
        .filter_map(|granted| std::fs::canonicalize(granted).ok())
        .any(|granted| host.starts_with(granted));
    if !granted {
        return Err("not below a folder that this platform grants (WasmConfig.grants.directories)".to_owned());
    }
    if !host.is_dir() {
        return Err("a folder, not a file".to_owned());
    }
    Ok(Directory { guest: guest.to_owned(), host, writable })
}

/// A duration that is not negative.
fn duration(text: &str) -> Option<Duration> {
    parse_duration(text).ok().and_then(|nanos| u64::try_from(nanos).ok()).map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use sas_core::Source;

    use super::*;
    use crate::Ceilings;

    fn spec(options: &[(&str, &str)]) -> RevisionSpec {
        let mut spec = RevisionSpec::new("wasm", Source::Path("hello.wat".into()));
        spec.options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        spec
    }

    fn parsed(options: &[(&str, &str)]) -> Result<Options, SpecErrors> {
        let config = WasmConfig {
            grants: Ceilings {
                hosts: vec!["*.example.com".into(), "127.0.0.1".into()],
                private_networks: vec!["127.0.0.0/8".parse().unwrap()],
                ..Ceilings::default()
            },
            ..WasmConfig::default()
        };
        Options::parse(&spec(options), &config)
    }

    #[test]
    fn a_revision_without_options_computes_and_nothing_else() {
        let options = parsed(&[("autoscaling.knative.dev/target", "5")]).unwrap();
        assert_eq!(options.limits, CallLimits::default());
        assert!(!options.reuse.keeps());
        assert!(!options.allows_host("example.com", 443));
        assert!(!options.allows_address("127.0.0.1".parse().unwrap()));
        assert!(options.allows_address("1.1.1.1".parse().unwrap()));
    }

    #[test]
    fn options_are_read_with_their_units() {
        let options = parsed(&[
            (CPU_LIMIT, "250ms"),
            (RESPONSE_LIMIT, "16Mi"),
            (LOG_LIMIT, "1000"),
            (REUSE, "100"),
            (REUSE_AGE, "5m"),
            (REUSE_CONCURRENCY, "4"),
            (ALLOW_HOSTS, "api.example.com:443, *.b.example.com"),
            (ALLOW_NETWORKS, "127.0.0.1"),
        ])
        .unwrap();
        assert_eq!(options.limits.cpu, Duration::from_millis(250));
        assert_eq!(options.limits.response_bytes, 16 << 20);
        assert_eq!(options.limits.log_bytes, 1_000);
        assert_eq!(options.reuse, Reuse { requests: 100, age: Duration::from_secs(300), concurrency: 4 });
        assert!(options.allows_host("api.example.com", 443) && !options.allows_host("api.example.com", 80));
        assert!(options.allows_address("127.0.0.1".parse().unwrap()));
        assert!(!options.allows_address("127.0.0.2".parse().unwrap()));
    }

    #[test]
    fn every_mistake_is_named_with_field_value_and_remedy() {
        let cases = [
            (CPU_LIMIT, "fast", "a duration such as 250ms"),
            (CPU_LIMIT, "0s", "between 1ms and 300s"),
            (CPU_LIMIT, "-1s", "a duration"),
            (RESPONSE_LIMIT, "1Xi", "bytes, such as"),
            (RESPONSE_LIMIT, "1Ti", "at most"),
            (RESPONSE_LIMIT, "999Gi", "at most"),
            (LOG_LIMIT, "99999999999999999999", "bytes, such as"),
            (REUSE, "0", "at least 1"),
            (REUSE_CONCURRENCY, "2000", "at least 1"),
            (ALLOW_HOSTS, "evil.test", "not among the hosts"),
            (ALLOW_HOSTS, "*", "not among the hosts"),
            (ALLOW_HOSTS, "http://a.example.com", "is not a host"),
            (ALLOW_NETWORKS, "10.0.0.0/8", "not within the networks"),
            (ALLOW_NETWORKS, "0.0.0.0/0", "not within the networks"),
            (DIRECTORIES, "/data", "a folder as"),
            (DIRECTORIES, "/data=/:rw", "not below a folder"),
            (DIRECTORIES, "/data=/no/such/folder:ro", "can't be opened"),
            ("sas.dev/wasm-ruse", "1", "no such option"),
        ];
        for (key, value, problem) in cases {
            let errors = parsed(&[(key, value)]).unwrap_err();
            let text = errors.to_string();
            assert!(text.contains(key) && text.contains(problem), "{key}={value}: {text}");
        }
    }

    #[test]
    fn granted_folders_can_not_be_left_by_links_or_dots() {
        let home = tempfile::tempdir().unwrap();
        let (granted, other) = (home.path().join("granted"), home.path().join("other"));
        for path in [&granted, &granted.join("inner"), &other] {
            std::fs::create_dir(path).unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(&other, granted.join("link")).unwrap();
        let config = WasmConfig {
            grants: Ceilings { directories: vec![granted.clone()], ..Ceilings::default() },
            ..WasmConfig::default()
        };
        let read = |host: &str| {
            let value = format!("/data={}/{host}:ro", granted.display());
            Options::parse(&spec(&[(DIRECTORIES, &value)]), &config)
        };
        assert_eq!(read("inner").unwrap().directories[0].guest, "/data");
        assert!(read("../other").is_err());
        #[cfg(unix)]
        assert!(read("link").is_err());
    }
}
