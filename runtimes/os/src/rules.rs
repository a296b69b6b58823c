//! What landlock lets an instance do: files, TCP ports, signals.
//!
//! A set of rules is made of a hundred system calls, and most of them are the same for every instance. So a cell is given
//! its set when it is made ready, and a start adds what is its own; what every program outside of a cell reads is opened
//! once for all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, Scope,
};

/// The newest landlock whose rights are used. Older kernels give what they have, which the report says.
const NEWEST: ABI = ABI::V6;

/// What programs of any kind read.
const SYSTEM: [&str; 12] =
    ["/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/etc", "/opt", "/nix", "/sys", "/proc"];
const DEVICES: [&str; 9] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/fd",
];

/// How much may be done below a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Read,
    Use,
    All,
}

impl Right {
    fn access(self, is_dir: bool) -> BitFlags<AccessFs> {
        let access = match self {
            Self::Read => AccessFs::from_read(NEWEST),
            Self::Use => AccessFs::from_read(NEWEST) | AccessFs::WriteFile | AccessFs::IoctlDev,
            Self::All => AccessFs::from_all(NEWEST),
        };
        if is_dir { access } else { access & AccessFs::from_file(NEWEST) }
    }
}

/// What the kernel of this machine has, and since which version it has what is missing.
pub(crate) fn missing() -> [Option<String>; 3] {
    let has = |ask: &dyn Fn(Ruleset) -> Result<Ruleset, RulesetError>| {
        ask(Ruleset::default().set_compatibility(CompatLevel::HardRequirement))
            .and_then(Ruleset::create)
            .is_ok()
    };
    let abi = |has: bool, least: &str| (!has).then(|| format!("the kernel has no landlock of {least}"));
    [
        abi(has(&|rules| rules.handle_access(AccessFs::from_all(ABI::V1))), "Linux 5.13"),
        abi(has(&|rules| rules.handle_access(AccessNet::from_all(ABI::V4))), "Linux 6.7"),
        abi(has(&|rules| rules.scope(Scope::from_all(ABI::V6))), "Linux 6.12"),
    ]
}

/// A set of rules that is not in force yet.
#[derive(Debug)]
pub(crate) struct Rules {
    set: RulesetCreated,
    /// Whether ports are bounded.
    ports: bool,
}

/// Places that were opened once, with what may be done there.
#[derive(Debug)]
pub(crate) struct Places(Vec<(PathFd, BitFlags<AccessFs>)>);

impl Places {
    /// The system's files, and what else every instance may read.
    pub(crate) fn of_system(readable: &[PathBuf]) -> Self {
        let system = SYSTEM.into_iter().map(|path| (Path::new(path), Right::Read));
        let devices = DEVICES.into_iter().map(|path| (Path::new(path), Right::Use));
        let readable = readable.iter().map(|path| (path.as_path(), Right::Read));
        Self(system.chain(devices).chain(readable).filter_map(|(path, right)| open(path, right)).collect())
    }
}

/// Whether every instance may read a path anyway.
pub(crate) fn is_systems(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path.starts_with(system))
}

/// `None` for what is not there.
fn open(path: &Path, right: Right) -> Option<(PathFd, BitFlags<AccessFs>)> {
    let is_dir = fs::metadata(path).ok()?.is_dir();
    Some((PathFd::new(path).ok()?, right.access(is_dir)))
}

impl Rules {
    /// Nothing is allowed yet. TCP ports are bounded where the network is shared; signals, where no namespace does it.
    pub(crate) fn new(own_network: bool, signals: bool) -> Result<Self, RulesetError> {
        let scope = if signals { Scope::from_all(NEWEST) } else { Scope::AbstractUnixSocket.into() };
        let mut rules = Ruleset::default().handle_access(AccessFs::from_all(NEWEST))?.scope(scope)?;
        if !own_network {
            rules = rules.handle_access(AccessNet::from_all(NEWEST))?;
        }
        Ok(Self { set: rules.create()?, ports: !own_network })
    }

    /// The same set, by a descriptor of the calling thread's table.
    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { set: self.set.try_clone()?, ports: self.ports })
    }

    pub(crate) fn add_places(mut self, places: &Places) -> Result<Self, RulesetError> {
        for (place, access) in &places.0 {
            self.set = self.set.add_rule(PathBeneath::new(place, *access))?;
        }
        Ok(self)
    }

    /// Nothing for what is not there.
    pub(crate) fn add<'a>(
        mut self,
        paths: impl IntoIterator<Item = &'a Path>,
        right: Right,
    ) -> Result<Self, RulesetError> {
        for path in paths {
            if let Some((place, access)) = open(path, right) {
                self.set = self.set.add_rule(PathBeneath::new(place, access))?;
            }
        }
        Ok(self)
    }

    /// TCP ports to listen on and to connect to, where they are bounded.
    pub(crate) fn add_ports(mut self, listen: &[u16], connect: &[u16]) -> Result<Self, RulesetError> {
        if self.ports {
            for port in listen {
                self.set = self.set.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
            }
            for port in connect {
                self.set = self.set.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
            }
        }
        Ok(self)
    }

    /// Holds the calling thread to it, and what it spawns, for good.
    pub(crate) fn restrict(self) -> Result<(), RulesetError> {
        self.set.restrict_self().map(drop)
    }
}
