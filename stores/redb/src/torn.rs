//! The store in a file on a disk that tears writes: at a crash any part of what was not flushed is there, whole writes,
//! first parts of writes, later ones without earlier ones.

use std::{collections::BTreeMap, fmt, io, path::Path, sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex};
use redb::{Database, StorageBackend};
use sas_core::{Error, ErrorKind, Store as _, Version};

use crate::store::{RedbStore, prepare};

#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Platter>>, Arc<Flushing>);

/// Flushes take as long as they are held.
#[derive(Default)]
struct Flushing {
    state: Mutex<Held>,
    changed: Condvar,
}

#[derive(Default)]
struct Held {
    held: bool,
    /// A flush waits.
    waits: bool,
}

#[derive(Default)]
struct Platter {
    /// What was flushed.
    durable: Vec<u8>,
    /// What was written since, in order.
    pending: Vec<Write>,
    /// What a reader sees.
    seen: Vec<u8>,
    /// Writes and flushes until the power fails; `None`: it does not.
    left: Option<u64>,
    /// Flushes are acknowledged and not done.
    lies: bool,
}

enum Write {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

fn apply(image: &mut Vec<u8>, write: &Write, most: usize) {
    match write {
        Write::Length(length) => image.resize(*length, 0),
        Write::Bytes(at, bytes) => {
            let bytes = &bytes[..bytes.len().min(most)];
            if image.len() < at + bytes.len() {
                image.resize(at + bytes.len(), 0);
            }
            image[*at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
}

impl Platter {
    fn power(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("the power failed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn write(&mut self, write: Write) -> io::Result<()> {
        // The write at which it fails is under way, so a part of it may be there.
        let power = self.power();
        apply(&mut self.seen, &write, usize::MAX);
        self.pending.push(write);
        power
    }
}

impl Disk {
    /// The power fails after so many more writes and flushes.
    fn fails_after(&self, operations: u64) {
        self.0.lock().left = Some(operations);
    }

    /// The disk as it is found after the power failed.
    fn found(&self, mut draw: impl FnMut(u64) -> u64) -> Self {
        let platter = self.0.lock();
        let mut image = platter.durable.clone();
        for write in &platter.pending {
            let length = if let Write::Bytes(_, bytes) = write { bytes.len() } else { 0 };
            match draw(4) {
                0 => {}
                1 if length > 0 => apply(&mut image, write, draw(length as u64) as usize),
                _ => apply(&mut image, write, usize::MAX),
            }
        }
        let (durable, seen) = (image.clone(), image);
        Self(Arc::new(Mutex::new(Platter { durable, seen, ..Platter::default() })), Arc::default())
    }

    fn hold_flushes(&self, held: bool) {
        self.1.state.lock().held = held;
        self.1.changed.notify_all();
    }

    /// Returns when a flush is held.
    async fn flushes(&self) {
        while !self.1.state.lock().waits {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").finish_non_exhaustive()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock();
        let at = offset as usize;
        let found = platter.seen.get(at..at + out.len());
        out.copy_from_slice(found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().write(Write::Length(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut flushing = self.1.state.lock();
        while flushing.held {
            flushing.waits = true;
            self.1.changed.wait(&mut flushing);
        }
        drop(flushing);
        let mut platter = self.0.lock();
        platter.power()?;
        if platter.lies {
            return Ok(());
        }
        platter.durable = platter.seen.clone();
        platter.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().write(Write::Bytes(offset as usize, data.to_vec()))
    }
}

fn open(disk: &Disk) -> RedbStore {
    let path: Box<Path> = Path::new("a disk of the test").into();
    let database = Database::builder().create_with_backend(disk.clone()).expect("repaired");
    prepare(&database, &path).expect("tables");
    let again = disk.clone();
    let reopen = move || {
        let failed = |why: String| Error::new(ErrorKind::Unavailable, "open", why);
        if again.0.lock().left == Some(0) {
            return Err(failed("there is no power".to_owned()));
        }
        let database = Database::builder().create_with_backend(again.clone());
        database.map_err(|error| failed(error.to_string()))
    };
    RedbStore::on(database, path, Box::new(reopen)).expect("a store")
}

/// What is there must be what was acknowledged last, or what was asked for last.
async fn check(store: &RedbStore, kept: &BTreeMap<String, Option<String>>, asked: Option<&(String, String)>) {
    for (key, acknowledged) in kept {
        let found = store.get(key).await.expect("a read");
        let found = found.map(|entry| String::from_utf8(entry.value.to_vec()).expect("text"));
        let tried = asked.filter(|(tried, _)| tried == key).map(|(_, value)| value.clone());
        let told = found == *acknowledged || found.is_some() && found == tried;
        let short =
            |text: &Option<String>| text.as_ref().map(|it| (it.len(), it[..it.len().min(12)].to_owned()));
        assert!(
            told,
            "{key}: found {:?}, acknowledged {:?}, asked for {:?}",
            short(&found),
            short(acknowledged),
            short(&tried)
        );
    }
}

/// Three lives on one disk; crashes with writes under way.
async fn lives(seed: u64, lies: bool) -> u32 {
    let mut state = seed << 32;
    let mut draw = move |below: u64| {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % below.max(1)
    };
    let mut disk = Disk::default();
    let mut kept: BTreeMap<String, Option<String>> = (0..3).map(|key| (format!("k{key}"), None)).collect();
    let (mut asked, mut torn) = (None, 0);
    for life in 0..3 {
        let store = open(&disk);
        check(&store, &kept, asked.as_ref()).await;
        let mut versions: BTreeMap<String, Option<Version>> = BTreeMap::new();
        for (key, value) in &mut kept {
            // From here on what is there is what was acknowledged.
            let entry = store.get(key).await.expect("a read");
            *value = entry.as_ref().map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
            versions.insert(key.clone(), entry.map(|entry| entry.version));
        }
        disk.0.lock().lies = lies;
        disk.fails_after(draw(60));
        asked = None;
        while asked.is_none() {
            let key = format!("k{}", draw(3));
            let value = format!("{seed}/{life}/{}", "x".repeat(draw(6000) as usize));
            match store.put(&key, versions[&key], value.clone().into()).await {
                Ok(version) => {
                    kept.insert(key.clone(), Some(value));
                    versions.insert(key, Some(version));
                }
                Err(_) => asked = Some((key, value)),
            }
        }
        store.close().await;
        torn += u32::from(!disk.0.lock().pending.is_empty());
        disk = disk.found(&mut draw);
    }
    check(&open(&disk), &kept, asked.as_ref()).await;
    torn
}

/// `SAS_TORN_SEEDS` of them in a long run.
fn seeds() -> u64 {
    std::env::var("SAS_TORN_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(12)
}

#[tokio::test]
async fn after_a_torn_write_the_old_value_is_there_or_the_new_one() {
    let (seeds, mut torn) = (seeds(), 0);
    for seed in 0..seeds {
        torn += lives(seed, false).await;
    }
    println!("{} crashes, {torn} of them with writes under way", seeds * 3);
    assert!(u64::from(torn) > seeds, "{torn} of {} crashes had writes under way", seeds * 3);
}

/// That the test above can fail.
#[tokio::test]
async fn a_disk_that_lies_about_flushing_is_found_out() {
    let mut found = false;
    for seed in 0..12 {
        found |= tokio::spawn(lives(seed, true)).await.is_err();
    }
    assert!(found, "it lost nothing");
}

#[tokio::test]
async fn a_medium_that_failed_for_a_while_is_used_again_without_a_restart() {
    for operations in 0..40 {
        let disk = Disk::default();
        let store = open(&disk);
        store.put("before", None, "kept".into()).await.expect("written");
        disk.fails_after(operations);
        let mut taken = Vec::new();
        let refused = loop {
            let key = format!("k{:03}", taken.len());
            match store.put(&key, None, "x".repeat(3_000).into()).await {
                Ok(version) => taken.push((key, version)),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
        assert!(store.put("meanwhile", None, "x".into()).await.is_err(), "it is still broken");
        assert!(store.get("before").await.is_err(), "and says so");
        disk.0.lock().left = None;
        let again = store.put("again", None, "x".into()).await.expect("it works again");
        assert_eq!(store.get("before").await.expect("read").expect("there").value, "kept");
        for (key, version) in &taken {
            assert_eq!(
                store.get(key).await.expect("read").map(|entry| entry.version),
                Some(*version),
                "{key}"
            );
            assert!(*version < again);
        }
        assert_eq!(store.get("meanwhile").await.expect("read"), None);
        store.close().await;
        assert!(store.get("before").await.is_err(), "closed is closed");
    }
}

#[tokio::test]
async fn a_read_waits_for_a_flush_only_when_what_is_flushed_was_given_up() {
    let disk = Disk::default();
    let store = open(&disk);
    let version = store.put("k", None, "old".into()).await.expect("written");
    disk.hold_flushes(true);
    let mut write = Box::pin(store.put("k", Some(version), "new".into()));
    tokio::select! {
        written = &mut write => panic!("it is not flushed yet: {written:?}"),
        () = disk.flushes() => {}
    }
    let read = tokio::time::timeout(Duration::from_secs(60), store.get("k")).await.expect("it does not wait");
    assert_eq!(read.expect("read").expect("there").value, "old");

    drop(write);
    let mut read = Box::pin(store.get("k"));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut read).await.is_err(), "not known yet");
    disk.hold_flushes(false);
    assert_eq!(read.await.expect("read").expect("there").value, "new");
    store.close().await;
}
