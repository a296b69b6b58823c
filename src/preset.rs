//! What is on: one name for a choice of everything that works ahead of demand.

use std::{fmt, str::FromStr, sync::Arc};

use sas_core::Fidelity;
use sas_pool::{
    PoolConfig,
    capacity::Seasonal,
    config::{AutomaticStems, IdleRule},
    keep_alive::Hazard,
};
use sas_router::ServerConfig;

use crate::machine::Machine;

/// What a platform does ahead of demand, and how closely its scaling follows Knative. Each choice can be changed by
/// itself ([`crate::PlatformBuilder::configure_pool`], [`crate::PlatformBuilder::fidelity`]); `docs/presets.md` has
/// the table of what is on, off, and why.
///
/// ```
/// use sas::prelude::*;
/// assert_eq!("frugal".parse(), Ok(Preset::Frugal));
/// assert_eq!(Preset::default().to_string(), "default");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Preset {
    /// The best that is known: stems for the classes that deployed services can use, held by a seasonal capacity law;
    /// instances kept and woken ahead by what was learnt of their calls; bounds from the machine or its control group.
    #[default]
    Default,
    /// Scales as Knative's autoscaler does, bit for bit, and sleeps when it says so. Stems make starts quicker; nothing
    /// else works ahead.
    Knative,
    /// Holds nothing ahead of demand: every first request is a cold start, and an idle platform is as small as it can be.
    Frugal,
}

/// The name of a preset that there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: no preset; name one of default, knative, frugal")]
pub struct UnknownPreset(String);

impl FromStr for Preset {
    type Err = UnknownPreset;

    fn from_str(name: &str) -> Result<Self, UnknownPreset> {
        match name {
            "default" => Ok(Self::Default),
            "knative" => Ok(Self::Knative),
            "frugal" => Ok(Self::Frugal),
            other => Err(UnknownPreset(other.to_owned())),
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::Knative => "knative",
            Self::Frugal => "frugal",
        })
    }
}

/// The share of the memory that instances and stems may count with, in percent. The rest is the host's: requests under
/// way, the page cache, what an instance takes beyond what it counts with.
const MEMORY_PERCENT: u64 = 80;
/// The share of it that stems may hold, in percent.
const STEMS_PERCENT: u64 = 15;
/// What an instance of a process counts with until it was measured, unless its service says.
const ASSUMED_BYTES: u64 = 32 << 20;
/// Descriptors that an instance of a process takes while it serves: two pipes, a handle of the process, a connection.
const DESCRIPTORS_PER_INSTANCE: u64 = 4;
/// Stems of one class per core: a burst takes them at once, but they boot one per core.
const STEMS_PER_CORE: u32 = 16;

impl Preset {
    /// How closely scaling follows Knative.
    pub(crate) fn fidelity(self) -> Fidelity {
        match self {
            Self::Knative => Fidelity::Exact,
            _ => Fidelity::Corrected,
        }
    }

    /// The most connections of a listener: as many as it was told, else what this machine is enough for, where each takes
    /// a descriptor, and one to an instance, of the quarter that instances leave.
    pub(crate) fn connections(machine: Machine, asked: Option<usize>) -> usize {
        asked.unwrap_or_else(|| {
            let share = machine.descriptors.map_or(u64::MAX, |descriptors| (descriptors / 8).max(16));
            ServerConfig::DEFAULT_MAX_CONNECTIONS.min(usize::try_from(share).unwrap_or(usize::MAX))
        })
    }

    /// The pool's configuration on this machine.
    pub(crate) fn pool(self, machine: Machine) -> PoolConfig {
        let mut pool = PoolConfig::default();
        pool.gate.starts = machine.cores.saturating_add(1);
        pool.budget.assumed_memory_bytes = ASSUMED_BYTES;
        if let Some(memory) = machine.memory_bytes {
            pool.budget.memory_bytes = memory / 100 * MEMORY_PERCENT;
            pool.stems.memory_bytes = pool.budget.memory_bytes / 100 * STEMS_PERCENT;
        }
        if let Some(descriptors) = machine.descriptors {
            // More would only fail to start.
            let instances = ((descriptors - descriptors / 4) / DESCRIPTORS_PER_INSTANCE).max(1);
            pool.budget.instances = u32::try_from(instances).unwrap_or(u32::MAX);
        }
        if self != Self::Frugal {
            let mut automatic = AutomaticStems::default();
            automatic.max = machine.cores.saturating_mul(STEMS_PER_CORE);
            // A machine too small for one stem holds none.
            pool.stems.automatic = (automatic.memory_bytes <= pool.stems.memory_bytes).then_some(automatic);
            pool.stems.capacity = Some(Arc::new(|_| Box::new(Seasonal::default())));
        }
        if self == Self::Default {
            pool.idle = IdleRule::policy(Hazard::default());
        }
        pool
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn connections_and_instances_share_the_descriptors() {
        let machine = |descriptors| Machine { cores: 1, memory_bytes: None, descriptors };
        let connections = |descriptors| Preset::connections(machine(descriptors), None);
        assert_eq!(connections(Some(1024)), 128, "each takes two, of the quarter that instances leave");
        assert_eq!(connections(Some(1_048_576)), 10_000);
        assert_eq!(connections(None), 10_000);
        assert_eq!(connections(Some(20)), 16, "some can always come");
        let asked = Preset::connections(machine(Some(1024)), Some(10_000));
        assert_eq!(asked, 10_000, "what was asked for stays, also when it is the default's number");
    }

    #[test]
    fn bounds_come_from_the_machine() {
        for preset in [Preset::Default, Preset::Knative, Preset::Frugal] {
            for memory_bytes in [None, Some(GIB / 4), Some(GIB), Some(64 * GIB)] {
                let pool = preset.pool(Machine { cores: 4, memory_bytes, descriptors: Some(1024) });
                assert_eq!(
                    pool.budget.instances, 192,
                    "{preset}: as many as three quarters of its descriptors are enough for"
                );
                pool.validate().expect("every preset is valid on every machine");
                if let Some(memory) = memory_bytes {
                    assert!(pool.budget.memory_bytes < memory, "{preset}: the host keeps a part");
                    assert!(pool.stems.memory_bytes < pool.budget.memory_bytes);
                }
                assert!(preset != Preset::Frugal || pool.stems.automatic.is_none());
            }
        }
        let small =
            Preset::Default.pool(Machine { cores: 1, memory_bytes: Some(GIB / 4), descriptors: None });
        assert_eq!(small.budget.instances, u32::MAX, "nothing bounds them");
        assert_eq!(small.stems.automatic, None, "it could not hold one");
    }
}
