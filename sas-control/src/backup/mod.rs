//! A copy of the state while it is used, and the state from a copy.
//!
//! A copy is a tar archive: `sas-backup.json` (which format, when, by which version of the platform), entries of the store
//! in `store/NNNNNN`, packages in `packages/NNNNNN/NAME`, and at last `end.json` with the SHA-256 of all bytes before it.
//! What does not end so is no copy.

mod restore;
mod write;

use std::io::{self, Read};

use bytes::Bytes;
use sas_core::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

pub use restore::{Restored, restore};
pub use write::BackupStream;

/// The format that is written, and the youngest that is read.
const FORMAT: u32 = 1;
const HEAD: &str = "sas-backup.json";
const END: &str = "end.json";

/// The first file of a copy.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    /// Says that it is a copy of a platform's state.
    kind: String,
    format: u32,
    /// The version of this crate.
    platform: String,
    made: String,
}

const KIND: &str = "sas-backup";

/// A package of a copy, by the number of its directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct PackageDigest {
    number: u64,
    digest: String,
}

/// The last file of a copy.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct End {
    /// Of all bytes before this file.
    sha256: String,
    /// The version of the store that this is a copy of.
    version: u64,
    /// Writes in it; one key may have several, of which the last counts.
    writes: u64,
    packages: Vec<PackageDigest>,
    /// Whose packages they are.
    owner: Option<String>,
}

/// A write of the store as a copy has it: what was put, or `None` for what was deleted.
#[derive(Debug, PartialEq)]
struct Entry {
    key: String,
    value: Option<Bytes>,
}

/// The most that a key or a value may have: more than any store takes.
const LONGEST: u32 = 64 << 20;

impl Entry {
    fn encode(&self, into: &mut Vec<u8>) {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        into.push(u8::from(self.value.is_some()));
        into.extend(length(self.key.as_bytes()));
        into.extend(self.key.as_bytes());
        if let Some(value) = &self.value {
            into.extend(length(value));
            into.extend(value);
        }
    }

    /// The next one; `None` at the end.
    fn decode(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut kind = [0];
        if from.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut bytes = || {
            let mut length = [0; 4];
            from.read_exact(&mut length)?;
            let length = u32::from_le_bytes(length);
            if length > LONGEST {
                return Err(invalid("an entry that is longer than any store takes"));
            }
            let mut bytes = vec![0; length as usize];
            from.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let key = String::from_utf8(bytes()?).map_err(|_| invalid("a key that is no text"))?;
        let value = match kind[0] {
            0 => None,
            1 => Some(bytes()?.into()),
            _ => return Err(invalid("an entry of an unknown kind")),
        };
        Ok(Some(Self { key, value }))
    }
}

fn failed(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, "backup", message.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_were_written_and_torn_ones_are_errors() {
        let entries = [
            Entry { key: "a".to_owned(), value: Some(Bytes::from_static(b"\0\xff")) },
            Entry { key: "b/ü".to_owned(), value: None },
            Entry { key: "c".to_owned(), value: Some(Bytes::new()) },
        ];
        let mut text = Vec::new();
        entries.iter().for_each(|entry| entry.encode(&mut text));
        let mut from = text.as_slice();
        for entry in &entries {
            assert_eq!(Entry::decode(&mut from).unwrap().as_ref(), Some(entry));
        }
        assert_eq!(Entry::decode(&mut from).unwrap(), None);
        for cut in [3, 6, 9] {
            let mut torn = &text[..cut];
            let outcome = loop {
                match Entry::decode(&mut torn) {
                    Ok(Some(_)) => {}
                    other => break other,
                }
            };
            assert!(outcome.is_err(), "{cut}");
        }
        assert!(
            Entry::decode(&mut [1, 255, 255, 255, 255].as_slice()).is_err(),
            "no memory for what is not there"
        );
    }
}
