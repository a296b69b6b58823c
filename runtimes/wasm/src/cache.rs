//! Compiled code on disk: trusted only when it is whole, ours, and made by this very compiler with these settings.
//!
//! Machine code that is loaded runs as part of this process, so that an entry is believed only if all of this holds:
//! it lies in a folder that belongs to this user and that nobody else can write; its name is the digest of the code,
//! the compiler's version and its settings; and a digest of its content, written beside it, matches. Everything else
//! is compiled again. (Someone with this user's rights can forge all three; that someone can replace the program too.)

use std::{
    fs,
    hash::{Hash, Hasher},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use sas_core::{Error, ErrorKind, Result};
use sha2::{Digest as _, Sha256};
use wasmtime::{Engine, Module, component::Component};

use crate::kind::Kind;

/// What the compiler made.
#[derive(Clone)]
pub(crate) enum Code {
    Module(Module),
    Component(Component),
}

impl Code {
    pub(crate) fn compile(engine: &Engine, kind: Kind, binary: &[u8]) -> wasmtime::Result<Self> {
        match kind {
            Kind::Cgi => Module::from_binary(engine, binary).map(Self::Module),
            Kind::Http02 | Kind::Http03 => Component::from_binary(engine, binary).map(Self::Component),
        }
    }

    pub(crate) fn serialize(&self) -> wasmtime::Result<Vec<u8>> {
        match self {
            Self::Module(module) => module.serialize(),
            Self::Component(component) => component.serialize(),
        }
    }

    /// Bytes of the loaded image.
    pub(crate) fn size(&self) -> u64 {
        let range = match self {
            Self::Module(module) => module.image_range(),
            Self::Component(component) => component.image_range(),
        };
        (range.end as usize).saturating_sub(range.start as usize) as u64
    }
}

/// The digest of code, compiler and settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

impl Key {
    pub(crate) fn new(engine: &Engine, kind: Kind, binary_digest: &[u8; 32]) -> Self {
        // Sha256 behind `Hash`, because the settings can only be had as something to hash.
        struct Into256(Sha256);
        impl Hasher for Into256 {
            fn finish(&self) -> u64 {
                0
            }
            fn write(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }
        }
        let mut hasher = Into256(Sha256::new());
        hasher.0.update(b"sas-wasm-1\0");
        hasher.0.update(kind.as_str());
        hasher.0.update(binary_digest);
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Self(hasher.0.finalize().into())
    }

    fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A folder of compiled code.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// When it can't be made, or others than this user can write to it.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let refused = |problem: String| {
            Error::new(
                ErrorKind::InvalidSpec,
                "open cache",
                format!("cache_dir: {}: {problem}", folder.display()),
            )
        };
        make_private(folder).map_err(|error| refused(error.to_string()))?;
        let folder = fs::canonicalize(folder).map_err(|error| refused(error.to_string()))?;
        check_private(&folder, true).map_err(refused)?;
        Ok(Self { folder })
    }

    fn paths(&self, key: &Key) -> (PathBuf, PathBuf) {
        let name = key.hex();
        (self.folder.join(format!("{name}.cwasm")), self.folder.join(format!("{name}.sha256")))
    }

    /// The code of an entry, if there is one that can be trusted. One that can't is removed.
    pub(crate) fn load(&self, engine: &Engine, kind: Kind, key: &Key) -> Option<Code> {
        let (code, digest) = self.paths(key);
        match self.try_load(engine, kind, &code, &digest) {
            Ok(code) => Some(code),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, entry = %code.display(), "a cache entry is not used and made anew");
                }
                let _ = fs::remove_file(&digest);
                let _ = fs::remove_file(&code);
                None
            }
        }
    }

    fn try_load(&self, engine: &Engine, kind: Kind, code: &Path, digest: &Path) -> io::Result<Code> {
        let bad = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
        let expected = fs::read(digest)?;
        check_private(&self.folder, true).map_err(bad)?;
        check_private(code, false).map_err(bad)?;
        let found = digest_of(code)?;
        if expected != found {
            return Err(bad("its digest does not match".to_owned()));
        }
        deserialize(engine, kind, code).map_err(|error| bad(format!("{error:#}")))
    }

    /// Writes an entry: the code first, under a name of its own, then the digest that makes it valid.
    pub(crate) fn store(&self, key: &Key, serialized: &[u8]) -> io::Result<()> {
        let (code, digest) = self.paths(key);
        write_private(&self.folder, &code, serialized)?;
        write_private(&self.folder, &digest, &Sha256::digest(serialized))
    }
}

fn digest_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut hasher = Sha256::new();
    io::copy(&mut fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().to_vec())
}

#[allow(unsafe_code, reason = "wasmtime can't check machine code that it loads; `Cache` has")]
fn deserialize(engine: &Engine, kind: Kind, code: &Path) -> wasmtime::Result<Code> {
    // SAFETY: the file must be what `serialize` wrote and must not change while it is mapped. The caller has checked
    // that it lies in a folder which only this user can write, and that its content has the digest that was recorded
    // when this program wrote it; nothing in this program writes to an entry after that: entries are made under
    // another name and renamed. wasmtime itself refuses code of another version or other settings.
    unsafe {
        match kind {
            Kind::Cgi => Module::deserialize_file(engine, code).map(Code::Module),
            Kind::Http02 | Kind::Http03 => Component::deserialize_file(engine, code).map(Code::Component),
        }
    }
}

#[cfg(unix)]
fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn make_private(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)
}

/// That a path is what it says, belongs to this user, and that nobody else can write to it.
#[cfg(unix)]
fn check_private(path: &Path, folder: bool) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    let found = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    let own = rustix::process::geteuid().as_raw();
    if found.is_dir() != folder || found.is_symlink() {
        return Err(format!("is not a {}", if folder { "folder" } else { "file" }));
    }
    if found.uid() != own {
        return Err(format!("belongs to user {}, not to this one ({own})", found.uid()));
    }
    if found.mode() & 0o022 != 0 {
        return Err(format!("others can write to it (mode {:03o}): chmod go-w", found.mode() & 0o777));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_private(path: &Path, folder: bool) -> Result<(), String> {
    let found = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if found.is_dir() == folder { Ok(()) } else { Err("is of the wrong kind".to_owned()) }
}

fn write_private(folder: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let temporary = folder.join(format!("{:016x}.tmp", u64::from_le_bytes(random)));
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    let written = options
        .open(&temporary)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(text: &str) -> (Engine, Key, Code) {
        let engine = Engine::default();
        let binary = wat::parse_str(text).unwrap();
        let key = Key::new(&engine, Kind::Cgi, &Sha256::digest(&binary).into());
        let code = Code::compile(&engine, Kind::Cgi, &binary).unwrap();
        (engine, key, code)
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::open(&home.path().join("compiled")).unwrap();
        (home, cache)
    }

    fn files(cache: &Cache) -> usize {
        fs::read_dir(&cache.folder).unwrap().count()
    }

    #[test]
    fn an_entry_is_loaded_again() {
        let (_home, cache) = cache();
        let (engine, key, code) = compiled("(module (func (export \"f\")))");
        assert!(cache.load(&engine, Kind::Cgi, &key).is_none());
        cache.store(&key, &code.serialize().unwrap()).unwrap();
        assert_eq!(files(&cache), 2);
        let Some(Code::Module(module)) = cache.load(&engine, Kind::Cgi, &key) else { panic!("no module") };
        assert!(module.get_export("f").is_some());
    }

    #[test]
    fn a_damaged_entry_is_removed_and_never_loaded() {
        let (_home, cache) = cache();
        let (engine, key, code) = compiled("(module (func (export \"f\")))");
        let whole = code.serialize().unwrap();
        let damages: [fn(&mut Vec<u8>); 4] = [
            |bytes| bytes[0] ^= 1,
            |bytes| *bytes.last_mut().unwrap() ^= 0x80,
            |bytes| bytes.truncate(bytes.len() / 2),
            |bytes| bytes.push(0),
        ];
        for damage in damages {
            cache.store(&key, &whole).unwrap();
            let (path, _) = cache.paths(&key);
            let mut bytes = whole.clone();
            damage(&mut bytes);
            fs::write(&path, bytes).unwrap();
            assert!(cache.load(&engine, Kind::Cgi, &key).is_none());
            assert_eq!(files(&cache), 0);
        }
    }

    #[test]
    fn code_without_its_digest_or_with_anothers_is_not_loaded() {
        let (_home, cache) = cache();
        let (engine, key, code) = compiled("(module (func (export \"f\")))");
        cache.store(&key, &code.serialize().unwrap()).unwrap();
        let (_, digest) = cache.paths(&key);
        fs::remove_file(&digest).unwrap();
        assert!(cache.load(&engine, Kind::Cgi, &key).is_none());
        cache.store(&key, &code.serialize().unwrap()).unwrap();
        fs::write(&digest, Sha256::digest(b"other")).unwrap();
        assert!(cache.load(&engine, Kind::Cgi, &key).is_none());
    }

    #[test]
    fn code_of_other_settings_has_another_key_and_is_refused_under_this_one() {
        let (_home, cache) = cache();
        let (engine, key, code) = compiled("(module (func (export \"f\")))");
        let mut config = wasmtime::Config::new();
        config.epoch_interruption(true);
        let other = Engine::new(&config).unwrap();
        let binary = wat::parse_str("(module (func (export \"f\")))").unwrap();
        let other_key = Key::new(&other, Kind::Cgi, &Sha256::digest(&binary).into());
        assert_ne!(key, other_key);
        cache.store(&other_key, &code.serialize().unwrap()).unwrap();
        assert!(
            cache.load(&other, Kind::Cgi, &other_key).is_none(),
            "wasmtime sees the settings in the file"
        );
        assert!(cache.load(&engine, Kind::Cgi, &key).is_none());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_or_entry_that_others_can_write_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt as _;
        let (home, cache) = cache();
        let (engine, key, code) = compiled("(module (func (export \"f\")))");
        cache.store(&key, &code.serialize().unwrap()).unwrap();
        let (path, _) = cache.paths(&key);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(cache.load(&engine, Kind::Cgi, &key).is_none());
        cache.store(&key, &code.serialize().unwrap()).unwrap();
        fs::set_permissions(&cache.folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(cache.load(&engine, Kind::Cgi, &key).is_none());
        let error = Cache::open(&home.path().join("compiled")).unwrap_err();
        assert!(error.message.contains("others can write to it"), "{error}");
    }
}
