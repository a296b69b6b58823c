//! Settings that every system has, and that do something on Linux.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
};

use sas_core::{Error, ErrorKind, Result};

/// Whether instances with limits get a control group of their own, which holds them to their limits of CPU and memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlGroups {
    /// Below the host's own group, where it may make groups there: version 2 where it has the controllers, else
    /// version 1. Where it may not, limits of memory are bounded per process by an rlimit on its data, those of CPU
    /// not at all, and the notes of what is prepared say why.
    #[default]
    Auto,
    /// No groups.
    Off,
    /// Below this directory of version 2, which was delegated to this host and holds no processes itself (systemd:
    /// `Delegate=yes`, and a group beside the host's own).
    Under(PathBuf),
}

/// How much of the machine is kept from an instance, weakest first. `SECURITY.md` has the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum JailLevel {
    /// Nothing: a process of the host's user like any other. Descriptors of the host are still closed to it.
    None,
    /// What this machine gives: as root namespaces for processes and mounts, a user id per tenant and a writable view
    /// of its own; as an ordinary user landlock and a seccomp filter. What is missing is said at start.
    #[default]
    Basic,
    /// All of it, and a network namespace of its own: a start is refused where something is missing.
    Strict,
}

impl JailLevel {
    /// All levels, weakest first.
    pub const ALL: [Self; 3] = [Self::None, Self::Basic, Self::Strict];

    /// The name by which settings and annotations ask for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Basic => "basic",
            Self::Strict => "strict",
        }
    }
}

impl fmt::Display for JailLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for JailLevel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|level| level.name() == text).ok_or_else(|| {
            Error::new(ErrorKind::InvalidSpec, "jail", format!("jail: {text:?}: none, basic or strict"))
        })
    }
}

/// Which connections an instance may make.
///
/// What each means depends on what the machine gives. With `Denied` and a network namespace there is no way out at
/// all. Without one, TCP is bounded by ports, whatever the address, and UDP is not bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Egress {
    /// To the ports in [`JailConfig::egress_ports`].
    #[default]
    Allowed,
    /// No connection goes out.
    Denied,
    /// To these TCP ports.
    Ports(Vec<u16>),
}

impl FromStr for Egress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "allow" => return Ok(Self::Allowed),
            "deny" => return Ok(Self::Denied),
            _ => {}
        }
        let ports: Option<Vec<u16>> =
            text.split(',').map(|port| port.trim().parse().ok().filter(|port| *port != 0)).collect();
        ports.map(Self::Ports).ok_or_else(|| {
            let what =
                format!("egress: {text:?}: allow, deny, or TCP ports from 1 to 65535 separated by ','");
            Error::new(ErrorKind::InvalidSpec, "jail", what)
        })
    }
}

/// How instances are jailed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JailConfig {
    /// The least that every instance gets; a service may ask for more.
    pub level: JailLevel,
    /// User ids that no account of this machine has, one per tenant; the first is the group that owns packages.
    /// Used as root only. Default 1900000000 to 1900065535, which systemd and `useradd` leave alone.
    pub uids: RangeInclusive<u32>,
    /// Namespaces that are kept ready, so that a start need not make them, and as many again that show the package which
    /// was started last, when it was started twice in a row. Each is a process that sleeps, and takes about 300 KiB of memory in all. Default 2.
    pub ready: usize,
    /// What instances may connect to unless they say otherwise.
    pub egress: Egress,
    /// The TCP ports of [`Egress::Allowed`] where an instance shares the host's network: those of the web, mail, name
    /// servers, and the usual databases and brokers. None of them should be the admin API's or another instance's.
    pub egress_ports: Vec<u16>,
    /// TCP ports that a service may list for itself beside those that instances reach anyway. None by default: where the
    /// host's network is shared a port is open at every address, loopback among them, so list only what nothing on this
    /// host's loopback is to be kept from instances.
    pub egress_grants: Vec<u16>,
    /// TCP ports of the host's own, such as the admin API's and the gateway's: no instance connects to them or listens on
    /// them where it shares the host's network, whatever the lists above say, and a service that names one is refused.
    pub closed_ports: Vec<u16>,
    /// Networks (address and length of the prefix) that no instance reaches where it shares the host's network, over TCP or
    /// UDP; name servers (port 53) in them are reached. By default link-local addresses and what else the metadata
    /// services of clouds answer at, since these hand out the machine's credentials. Held as root at the level `basic`, by rules
    /// of routing for [`uids`](Self::uids), which stay when the host ends (`ip rule` lists them); addresses of this machine
    /// itself can't be closed so.
    pub closed_networks: Vec<(IpAddr, u8)>,
    /// Bytes that an instance may write to its own view of the disk, its home and `/tmp` together; it is held in
    /// memory, and counts as the instance's. Default 512 MiB. As an ordinary user: the largest file.
    pub disk_bytes: u64,
    /// The most that a service may ask for instead of [`disk_bytes`](Self::disk_bytes). Default 2 GiB.
    pub max_disk_bytes: u64,
    /// The most bytes that the directory of a service holds that stays (`sas.dev/data`), over all its instances. Looked at
    /// every two seconds; above it the instances are stopped with the reason, until somebody has removed something. No file
    /// of it grows larger. Default 2 GiB.
    pub data_bytes: u64,
    /// Open files of each process, unless the service says otherwise; at most what the host may have. Default 65536.
    pub open_files: u64,
    /// Processes and threads of each tenant, in all its instances; used with user ids. Default 32768.
    pub processes: u64,
    /// Bytes of memory of each instance that has no limit of its own. `None`, the default: half of what the host may use
    /// (the machine's, or its control group's limit), so that one instance never takes the machine. Held by control
    /// groups; without them each process is bounded by an rlimit on its data.
    pub instance_memory: Option<u64>,
    /// Processes and threads of each instance that has no limit of its own. Default 1024. Held by control groups only.
    pub instance_processes: u64,
    /// The most that a service may ask for instead of [`instance_processes`](Self::instance_processes). Default 8192.
    pub max_instance_processes: u64,
    /// Bytes of memory of all instances together, what each may have aside. `None`: seven eighths of the machine's, or of
    /// the host's own control group, so that the host keeps an eighth; 256 MiB at least, where that is not more than
    /// half. The instance that asks for more than all may have is ended, or another that holds more; never the host. Held
    /// by control groups; without them not at all.
    pub total_memory: Option<u64>,
    /// Processes and threads of all instances together. `None`: three quarters of what the kernel or the host's own
    /// control group allows. Held by control groups only.
    pub total_processes: Option<u64>,
    /// Files and directories that instances may read beside the system's own.
    pub readable: Vec<PathBuf>,
}

impl Default for JailConfig {
    fn default() -> Self {
        Self {
            level: JailLevel::default(),
            uids: 1_900_000_000..=1_900_065_535,
            ready: 2,
            egress: Egress::default(),
            egress_ports: vec![
                22, 25, 53, 80, 143, 389, 443, 465, 587, 636, 853, 993, 995, 1433, 1521, 1883, 2181, 2379,
                3306, 4222, 5432, 5671, 5672, 6379, 6380, 8443, 8883, 9000, 9042, 9092, 9093, 9200, 9243,
                11211, 26257, 27017,
            ],
            egress_grants: Vec::new(),
            closed_ports: Vec::new(),
            closed_networks: vec![
                // Link-local: AWS, Google, Azure, Oracle, OpenStack, DigitalOcean, ...
                (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
                (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
                // AWS and Google over IPv6.
                (IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), 128),
                (IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)), 128),
                // Alibaba Cloud, and the host's agent of Azure.
                (IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), 32),
                (IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)), 32),
            ],
            disk_bytes: 512 << 20,
            max_disk_bytes: 2 << 30,
            data_bytes: 2 << 30,
            open_files: 65_536,
            processes: 32_768,
            instance_memory: None,
            instance_processes: 1024,
            max_instance_processes: 8192,
            total_memory: None,
            total_processes: None,
            readable: Vec::new(),
        }
    }
}

impl JailConfig {
    /// The TCP ports that some instance may connect to: those of the list, and those that a service may ask for. No
    /// instance is given one of these to listen on, since others would reach it there past the gateway.
    pub fn reachable_ports(&self) -> Vec<u16> {
        [self.open_ports(), self.egress_grants.clone()].concat()
    }

    /// The TCP ports that instances reach by default, where they share the host's network: none that is closed.
    pub(crate) fn open_ports(&self) -> Vec<u16> {
        let ports: &[u16] = match &self.egress {
            Egress::Allowed => &self.egress_ports,
            Egress::Ports(ports) => ports,
            Egress::Denied => &[],
        };
        ports.iter().copied().filter(|port| !self.closed_ports.contains(port)).collect()
    }

    /// What a service gets that asks for `asked`, no more than this host allows.
    ///
    /// # Errors
    /// What can't be had, and the remedy, as words that follow the value.
    pub fn grant(&self, asked: &Egress) -> std::result::Result<Egress, String> {
        match asked {
            Egress::Denied => Ok(Egress::Denied),
            Egress::Allowed => match &self.egress {
                Egress::Allowed => Ok(Egress::Allowed),
                _ => Err("this host does not give it; leave it out for what the host gives, or say deny"
                    .to_owned()),
            },
            Egress::Ports(ports) => {
                let open = self.open_ports();
                if let Some(port) = ports.iter().find(|port| self.closed_ports.contains(port)) {
                    return Err(format!(
                        "port {port} is the host's own, which no instance reaches; leave it out"
                    ));
                }
                match ports.iter().find(|port| !open.contains(port) && !self.egress_grants.contains(port)) {
                    Some(port) => Err(format!(
                        "port {port} is none that this host lets services reach; leave it out, or have the host's \
                         operator add it to jail.egress_grants"
                    )),
                    None => Ok(Egress::Ports(ports.clone())),
                }
            }
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// `InvalidSpec` with the field, the value and the remedy.
    pub fn validate(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::new(ErrorKind::InvalidSpec, "configure", message));
        if self.uids.start() == self.uids.end() || self.uids.is_empty() || *self.uids.start() == 0 {
            return wrong(format!("jail.uids: {:?}: at least two user ids, none of them 0", self.uids));
        }
        if *self.uids.end() >= u32::MAX - 1 {
            return wrong(format!("jail.uids: {:?}: user ids below 4294967294", self.uids));
        }
        for (address, prefix) in &self.closed_networks {
            let most = if address.is_ipv4() { 32 } else { 128 };
            if *prefix == 0 || *prefix > most || address.is_loopback() {
                return wrong(format!(
                    "jail.closed_networks: {address}/{prefix}: a network that is not this machine's own, with a prefix from \
                     1 to {most}; the egress deny closes all of them"
                ));
            }
        }
        if self.disk_bytes < 1 << 20 {
            return wrong(format!("jail.disk_bytes: {}: at least 1048576", self.disk_bytes));
        }
        for (field, value, least) in [
            ("max_disk_bytes", self.max_disk_bytes, self.disk_bytes),
            ("max_instance_processes", self.max_instance_processes, self.instance_processes),
            ("data_bytes", self.data_bytes, 1 << 20),
            ("open_files", self.open_files, 64),
            ("processes", self.processes, 16),
            ("instance_processes", self.instance_processes, 2),
            ("instance_memory", self.instance_memory.unwrap_or(u64::MAX), 16 << 20),
            ("total_memory", self.total_memory.unwrap_or(u64::MAX), self.instance_memory.unwrap_or(16 << 20)),
            ("total_processes", self.total_processes.unwrap_or(u64::MAX), self.instance_processes),
        ] {
            if value < least {
                return wrong(format!("jail.{field}: {value}: at least {least}"));
            }
        }
        if self.ready > 256 {
            return wrong(format!("jail.ready: {}: at most 256", self.ready));
        }
        if let Some(path) = self.readable.iter().find(|path| !path.is_absolute()) {
            return wrong(format!("jail.readable: {}: absolute paths", path.display()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_egress_are_read_by_name_and_refused_with_the_names() {
        assert_eq!("strict".parse::<JailLevel>().unwrap(), JailLevel::Strict);
        assert!(JailLevel::None < JailLevel::Basic && JailLevel::Basic < JailLevel::Strict);
        let error = "hard".parse::<JailLevel>().unwrap_err().to_string();
        assert!(error.contains("none, basic or strict"), "{error}");
        assert_eq!("443, 5432".parse::<Egress>().unwrap(), Egress::Ports(vec![443, 5432]));
        assert_eq!("deny".parse::<Egress>().unwrap(), Egress::Denied);
        for wrong in ["", "0", "443;80", "all", "70000"] {
            assert!(wrong.parse::<Egress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_service_is_granted_no_port_that_the_host_does_not_let_it_reach() {
        let mut config = JailConfig {
            egress_grants: vec![7000, 8081],
            closed_ports: vec![8081, 9000],
            ..JailConfig::default()
        };
        assert_eq!(config.grant(&Egress::Ports(vec![443, 7000])), Ok(Egress::Ports(vec![443, 7000])));
        for (port, why) in [(8081, "the host's own"), (9000, "the host's own"), (20_001, "egress_grants")] {
            let refused = config.grant(&Egress::Ports(vec![443, port])).unwrap_err();
            assert!(refused.contains(&port.to_string()) && refused.contains(why), "{refused}");
        }
        assert!(!config.open_ports().contains(&9000) && config.open_ports().contains(&443));
        config.egress = Egress::Ports(vec![443, 9000]);
        assert_eq!(config.open_ports(), [443]);
        assert!(config.grant(&Egress::Allowed).is_err(), "a service asks for no more than the host gives");
        config.egress = Egress::Denied;
        assert!(config.grant(&Egress::Ports(vec![443])).is_err());
        assert_eq!(config.grant(&Egress::Denied), Ok(Egress::Denied));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let mut config = JailConfig::default();
        config.validate().unwrap();
        config.uids = 0..=10;
        assert!(config.validate().unwrap_err().to_string().contains("jail.uids"));
        config = JailConfig { disk_bytes: 1, ..JailConfig::default() };
        assert!(config.validate().unwrap_err().to_string().contains("jail.disk_bytes"));
        for (network, fine) in
            [("10.0.0.0/8", true), ("10.0.0.0/33", false), ("0.0.0.0/0", false), ("127.0.0.0/8", false)]
        {
            let (address, prefix) = network.split_once('/').unwrap();
            let closed_networks = vec![(address.parse().unwrap(), prefix.parse().unwrap())];
            let config = JailConfig { closed_networks, ..JailConfig::default() };
            let said = config.validate().map_err(|error| error.to_string());
            assert_eq!(said.is_ok(), fine, "{network}: {said:?}");
            assert!(fine || said.unwrap_err().contains(network));
        }
        config = JailConfig { total_processes: Some(1023), ..JailConfig::default() };
        let said = config.validate().unwrap_err().to_string();
        assert!(said.contains("jail.total_processes: 1023: at least 1024"), "{said}");
        config = JailConfig {
            total_memory: Some(1 << 30),
            instance_memory: Some(2 << 30),
            ..JailConfig::default()
        };
        assert!(config.validate().unwrap_err().to_string().contains("jail.total_memory"));
    }
}
