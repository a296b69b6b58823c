//! Identities: small and `Copy` where they are hot, readable where people see them.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A registered revision: a slot of the pool's slab and the slot's generation, in one word.
///
/// Minted by [`crate::Pool::register`]. A key of a revision that was unregistered never names another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RevisionKey(pub u64);

impl RevisionKey {
    /// The key of `slot` in its `generation`.
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | slot as u64)
    }

    /// The slot of the registry, which is given again after the revision is gone.
    #[allow(clippy::cast_possible_truncation, reason = "the low word is the slot")]
    pub const fn slot(self) -> u32 {
        self.0 as u32
    }

    /// The generation of the slot.
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The place of the engine that it runs on: see [`EngineKey::place`].
    pub const fn place(self) -> usize {
        (self.generation() >> EngineKey::GENERATION_BITS) as usize % EngineKey::PLACES
    }
}

/// An engine of a platform, numbered as it was built. Keys of revisions and ids of instances carry its place in their
/// generations, so that those of several engines of a process are never mistaken for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EngineKey(u16);

impl EngineKey {
    /// The first engine of a platform, and the only one of most. Its pool counts generations from zero.
    pub const FIRST: Self = Self(0);
    /// Engines that may be there at a time.
    pub const PLACES: usize = 32;
    /// Engines that a process may build in its life.
    pub const MOST: u16 = 8192;
    const GENERATION_BITS: u32 = 26;
    /// Generations between two engines that have the same place one after the other.
    const LIFE_BITS: u32 = 18;

    /// The engine that is built as number `number`, from 0; `None` from [`EngineKey::MOST`] on.
    pub const fn new(number: u16) -> Option<Self> {
        if number < Self::MOST { Some(Self(number)) } else { None }
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Its place among those that are there at a time, below [`EngineKey::PLACES`].
    pub const fn place(self) -> usize {
        self.0 as usize % Self::PLACES
    }

    /// The generation from which its pool counts those of revisions and instances. Engines that have a place one after
    /// the other begin far apart, so that an old key names nothing of the new one.
    #[allow(clippy::cast_possible_truncation, reason = "a place is below 32")]
    pub const fn first_generation(self) -> u32 {
        let life = self.0 as u32 / Self::PLACES as u32;
        (self.place() as u32) << Self::GENERATION_BITS | life << Self::LIFE_BITS
    }

    /// The last generation of its place: a slot that has reached it is not used again.
    #[allow(clippy::cast_possible_truncation, reason = "a place is below 32")]
    pub const fn last_generation(self) -> u32 {
        (self.place() as u32) << Self::GENERATION_BITS | ((1 << Self::GENERATION_BITS) - 1)
    }
}

/// A tenant, interned by the control plane: whose a revision is, and who pays for what.
///
/// There is no default: whoever knows of no tenant says so by `None` or by [`crate::Payer::Owner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantKey(pub u32);

impl TenantKey {
    /// The host platform itself, which trusts its own code: an edition's rules for tenants do not hold for it. The
    /// control plane gives this key to no namespace.
    pub const HOST: Self = Self(0);

    /// Whether it is the host platform itself.
    pub const fn is_host(self) -> bool {
        self.0 == Self::HOST.0
    }
}

/// An instance. Minted by the pool, never by a runtime; unique within one pool's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub u64);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i-{:08x}", self.0)
    }
}

/// A request, as 32 hexadecimal digits in headers, logs and answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(pub u128);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for RequestId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `namespace/service/revision` in one allocation.
///
/// ```
/// use sas_core::RevisionName;
/// let name = RevisionName::new("default", "hello", "hello-00001");
/// assert_eq!((name.namespace(), name.service(), name.revision()), ("default", "hello", "hello-00001"));
/// assert_eq!(name.to_string(), "default/hello/hello-00001");
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevisionName {
    text: Arc<str>,
    service_at: u16,
    revision_at: u16,
}

impl RevisionName {
    /// A name of three DNS labels. Labels longer than 63 bytes are refused where a service is declared, not here.
    ///
    /// # Panics
    /// When namespace and service together are longer than 65,533 bytes.
    pub fn new(namespace: &str, service: &str, revision: &str) -> Self {
        let service_at = u16::try_from(namespace.len() + 1).expect("a namespace of at most 63 bytes");
        let revision_at =
            u16::try_from(namespace.len() + service.len() + 2).expect("labels of at most 63 bytes each");
        Self { text: Arc::from(format!("{namespace}/{service}/{revision}")), service_at, revision_at }
    }

    /// The namespace that the service is in.
    pub fn namespace(&self) -> &str {
        &self.text[..usize::from(self.service_at) - 1]
    }

    /// The name of the service within its namespace.
    pub fn service(&self) -> &str {
        &self.text[usize::from(self.service_at)..usize::from(self.revision_at) - 1]
    }

    /// The name of the revision within its service.
    pub fn revision(&self) -> &str {
        &self.text[usize::from(self.revision_at)..]
    }

    /// The service with its namespace, as `namespace/service`.
    pub fn service_path(&self) -> &str {
        &self.text[..usize::from(self.revision_at) - 1]
    }

    /// The whole name, as `namespace/service/revision`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for RevisionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for RevisionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for RevisionName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_have_generations_of_their_own() {
        let keys: Vec<EngineKey> = (0..EngineKey::MOST).filter_map(EngineKey::new).collect();
        assert_eq!((keys.len(), EngineKey::new(EngineKey::MOST)), (usize::from(EngineKey::MOST), None));
        assert_eq!(EngineKey::FIRST.first_generation(), 0);
        for key in &keys {
            let (first, last) = (key.first_generation(), key.last_generation());
            assert!(first < last && last >> 31 == 0, "{key:?}");
            for generation in [first, first + 1, last] {
                assert_eq!(RevisionKey::new(u32::MAX, generation).place(), key.place(), "{key:?}");
            }
        }
        let mut firsts: Vec<u32> = keys.iter().map(|key| key.first_generation()).collect();
        firsts.sort_unstable();
        assert!(firsts.windows(2).all(|pair| pair[1] - pair[0] >= 1 << 18), "no two begin near each other");
    }
}
