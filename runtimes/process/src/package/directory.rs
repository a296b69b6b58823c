//! A zip's central directory, bounded before anything of it is parsed.
//!
//! The crate `zip` makes some 300 bytes of memory of each entry, and reserves them by a number that the archive itself
//! states; and where it does not like the end of an archive, it looks for another end before it. So what it may see
//! is decided here: the last end record says how many entries there are and how long the directory is, both are held
//! to limits, no other end record near it may say that it is a large one (zip64), and nothing before the directory can
//! be read until the directory has been parsed.

use std::{
    cell::Cell,
    io::{self, Read, Seek, SeekFrom},
    rc::Rc,
};

use zip::ZipArchive;

/// The longest central directory: some 300,000 entries with paths of 60 bytes.
const MAX_DIRECTORY: u64 = 32 << 20;
/// An end record with the longest comment, and what zip64 puts before it.
const MAX_END: u64 = 22 + 65_535;
const ZIP64_END: u64 = 56 + 20;
/// How far before the directory the search for it may look.
const MARGIN: u64 = 64 << 10;

/// A reader that shows nothing before `floor` while the directory is parsed.
#[derive(Debug)]
pub(crate) struct Shown<R> {
    inner: R,
    at: u64,
    floor: Rc<Cell<u64>>,
}

impl<R: Read> Read for Shown<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at < self.floor.get() {
            return Err(invalid("its end does not lead to its directory"));
        }
        let n = self.inner.read(buffer)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl<R: Seek> Seek for Shown<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = self.inner.seek(to)?;
        Ok(self.at)
    }
}

/// The archive is whole, and more than is read. Its message stands for itself.
fn too_large(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, message)
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

/// Where a directory is, and how large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    entries: u64,
    start: u64,
    /// Where its records at the end of the archive begin.
    end: u64,
    /// Bytes before the archive itself, as in a jar that is a script, too.
    offset: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 2).map_or(0, |two| u64::from(u16::from_le_bytes([two[0], two[1]])))
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u16_at(bytes, at) | u16_at(bytes, at + 2) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u32_at(bytes, at) | u32_at(bytes, at + 4) << 32
}

const END: &[u8] = b"PK\x05\x06";
const LOCATOR: &[u8] = b"PK\x06\x07";
const END64: &[u8] = b"PK\x06\x06";

fn may_be_zip64(record: &[u8]) -> bool {
    u16_at(record, 8) == 0xffff
        || u16_at(record, 10) == 0xffff
        || u32_at(record, 12) == 0xffff_ffff
        || u32_at(record, 16) == 0xffff_ffff
}

/// Reads `length` bytes at `at`.
fn region<R: Read + Seek>(reader: &mut R, at: u64, length: u64) -> io::Result<Vec<u8>> {
    reader.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    reader.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last end record of the archive.
fn end<R: Read + Seek>(reader: &mut R) -> io::Result<End> {
    let length = reader.seek(SeekFrom::End(0))?;
    let from = length.saturating_sub(MAX_END + ZIP64_END);
    let tail = region(reader, from, MAX_END + ZIP64_END)?;
    let whole = |at: &usize| tail.len() >= at + 22 && at + 22 + u16_at(&tail, at + 20) as usize <= tail.len();
    let at = (0..tail.len().saturating_sub(21))
        .rev()
        .find(|at| tail[*at..].starts_with(END) && whole(at))
        .ok_or_else(|| invalid("it has no end record"))?;
    let record = &tail[at..];
    let position = from + at as u64;
    let (entries, size, start) =
        (u16_at(record, 10).max(u16_at(record, 8)), u32_at(record, 12), u32_at(record, 16));
    let zip64 = may_be_zip64(record);
    if zip64 && at >= 20 && tail[at - 20..].starts_with(LOCATOR) {
        let locator = position - 20;
        let said = u64_at(&tail[at - 20..], 8);
        // Bytes before the archive move the record, as they move all else; it is the last thing before its locator.
        let found = region(reader, locator.saturating_sub(56), 56)?;
        if !found.starts_with(END64) || said > locator - 56 {
            return Err(invalid("its zip64 record is not where it should be"));
        }
        let record64 = locator - 56;
        let offset = record64 - said;
        let (entries, size, start) =
            (u64_at(&found, 32).max(u64_at(&found, 24)), u64_at(&found, 40), u64_at(&found, 48));
        return Ok(End { entries, start: placed(record64, size, start, offset)?, end: record64, offset });
    }
    // Some write records of zip64 also where none are needed: then what is said is more than what is behind.
    if entries > 0 && start < position && region(reader, start, 4)?.starts_with(b"PK\x01\x02") {
        return Ok(End { entries, start, end: position, offset: 0 });
    }
    let begin = position.checked_sub(size).ok_or_else(|| invalid("its directory is longer than itself"))?;
    let offset = begin.checked_sub(start).ok_or_else(|| invalid("its directory begins after its end"))?;
    Ok(End { entries, start: begin, end: position, offset })
}

/// Where a directory of zip64 begins, if it ends at its record.
fn placed(record: u64, size: u64, start: u64, offset: u64) -> io::Result<u64> {
    let begin =
        start.checked_add(offset).filter(|begin| begin.checked_add(size).is_some_and(|end| end <= record));
    begin.ok_or_else(|| invalid("its directory is not where its end says"))
}

/// Opens an archive whose directory has at most `entries` entries.
///
/// # Errors
/// `FileTooLarge` beyond a limit, which the message names; else what is wrong with the archive.
pub(crate) fn open<R: Read + Seek>(mut reader: R, entries: u64) -> io::Result<ZipArchive<Shown<R>>> {
    let end = end(&mut reader)?;
    let directory = end.end - end.start;
    if end.entries > entries {
        return Err(too_large(format!(
            "it has {} entries, more than the {entries} that a package may have; leave out what the program does not \
             need, or raise PackageLimits::entries",
            end.entries
        )));
    }
    if directory > MAX_DIRECTORY {
        return Err(too_large(format!(
            "its directory has {directory} bytes, more than {MAX_DIRECTORY}; pack fewer files or shorter names"
        )));
    }
    let floor = end.start.saturating_sub(MARGIN);
    let shown = region(&mut reader, floor, end.end - floor)?;
    let other = shown.windows(4).enumerate().find(|(at, bytes)| *bytes == END && may_be_zip64(&shown[*at..]));
    if other.is_some() {
        return Err(invalid("it has another end record within; pack it again"));
    }
    let floor = Rc::new(Cell::new(floor));
    let shown = Shown { inner: reader, at: 0, floor: Rc::clone(&floor) };
    let config = zip::read::Config { archive_offset: zip::read::ArchiveOffset::Known(end.offset) };
    let archive = ZipArchive::with_config(config, shown).map_err(io::Error::other)?;
    if archive.len() as u64 > entries {
        return Err(invalid("it has more entries than its end says"));
    }
    floor.set(0);
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write as _};

    use super::{MAX_DIRECTORY, open};

    fn archive(names: &[&str]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for name in names {
            writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            writer.write_all(name.as_bytes()).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    fn end(entries: u16, size: u32, start: u32) -> Vec<u8> {
        let mut record = b"PK\x05\x06\0\0\0\0".to_vec();
        record.extend(entries.to_le_bytes());
        record.extend(entries.to_le_bytes());
        record.extend(size.to_le_bytes());
        record.extend(start.to_le_bytes());
        record.extend([0, 0]);
        record
    }

    fn zip64(entries: u64, size: u64, start: u64, at: u64) -> Vec<u8> {
        let mut record = b"PK\x06\x06".to_vec();
        record.extend(44u64.to_le_bytes());
        record.extend([45, 0, 45, 0]);
        record.extend([0; 8]);
        for field in [entries, entries, size, start] {
            record.extend(field.to_le_bytes());
        }
        record.extend(b"PK\x06\x07");
        record.extend([0; 4]);
        record.extend(at.to_le_bytes());
        record.extend(1u32.to_le_bytes());
        record.extend(end(u16::MAX, u32::MAX, u32::MAX));
        record
    }

    #[test]
    fn whole_archives_open_also_behind_a_script_and_before_a_comment() {
        let plain = archive(&["a", "b/c"]);
        let mut behind = b"#!/bin/sh\nexec java -jar \"$0\"\n".repeat(100);
        behind.extend(&plain);
        let mut commented = plain.clone();
        let at = commented.len() - 2;
        commented.truncate(at);
        commented.extend([5, 0]);
        commented.extend(b"hello");
        for (what, bytes) in
            [("plain", plain), ("behind", behind), ("commented", commented), ("empty", archive(&[]))]
        {
            let expected = if what == "empty" { 0 } else { 2 };
            let mut archive = open(Cursor::new(bytes), 2).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(archive.len(), expected, "{what}");
            if expected > 0 {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut archive.by_name("b/c").unwrap(), &mut text).unwrap();
                assert_eq!(text, "b/c", "{what}");
            }
        }
    }

    #[test]
    fn what_would_take_memory_is_refused_by_its_end() {
        let three = archive(&["a", "b", "c"]);
        let length = u32::try_from(MAX_DIRECTORY).unwrap() + 1;
        let mut large = vec![0u8; length as usize];
        large.extend(end(1000, length, 0));
        let mut many = vec![0u8; 4096];
        many.extend(zip64(1 << 40, 4096, 0, 4096));
        // A last end that the crate would not like, and before it one that asks for much.
        let mut second = b"PK\x03\x04".repeat(1024);
        let at = second.len() as u64;
        second.extend(zip64(u64::from(u32::MAX), 0, at, at));
        let directory = second.len() as u32;
        second.extend(b"PK\x01\x02 no entry");
        second.extend(end(1, 15, directory));
        for (what, bytes, said) in [
            ("more than allowed", three, "3 entries"),
            ("a long directory", large, "directory has"),
            ("zip64", many, "1099511627776 entries"),
            ("a second end", second, "another end record"),
            ("nothing", Vec::new(), "no end record"),
        ] {
            let error =
                open(Cursor::new(bytes), if what == "more than allowed" { 2 } else { 2000 }).unwrap_err();
            assert!(error.to_string().contains(said), "{what}: {error}");
        }
    }
}
