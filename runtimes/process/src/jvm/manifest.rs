//! What a jar's manifest says.

use std::{collections::BTreeMap, fs, io::Read as _, path::Path};

use sas_core::Result;

use crate::package::{PackageLimits, directory, error::refused};

/// The longest manifest that is read.
const MAX_MANIFEST: u64 = 1 << 20;

/// The main section of a jar's `META-INF/MANIFEST.MF`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest(BTreeMap<String, String>);

impl Manifest {
    pub(crate) fn read(jar: &Path) -> Result<Self> {
        let name = jar.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let broken = |error: String| {
            refused(format!("jar {name:?}: it is no whole jar ({error}); build or upload it again"))
        };
        let file = fs::File::open(jar).map_err(|error| broken(error.to_string()))?;
        let opened = directory::open(std::io::BufReader::new(file), PackageLimits::default().entries);
        let mut archive = opened.map_err(|error| match error.kind() {
            std::io::ErrorKind::FileTooLarge => refused(format!("jar {name:?}: {error}")),
            _ => broken(error.to_string()),
        })?;
        let entry = match archive.by_name("META-INF/MANIFEST.MF") {
            Ok(entry) => entry,
            Err(zip::result::ZipError::FileNotFound) => return Ok(Self::default()),
            Err(error) => return Err(broken(error.to_string())),
        };
        let mut text = Vec::new();
        entry.take(MAX_MANIFEST).read_to_end(&mut text).map_err(|error| broken(error.to_string()))?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    pub(crate) fn parse(text: &str) -> Self {
        let mut attributes: BTreeMap<String, String> = BTreeMap::new();
        let mut last: Option<String> = None;
        for line in text.lines() {
            if line.is_empty() {
                break;
            }
            // A line is at most 72 bytes; longer values go on after a blank.
            if let Some(more) = line.strip_prefix(' ') {
                if let Some(value) = last.as_ref().and_then(|name| attributes.get_mut(name)) {
                    value.push_str(more);
                }
            } else if let Some((name, value)) = line.split_once(':') {
                let name = name.trim().to_ascii_lowercase();
                attributes.insert(name.clone(), value.trim_start().to_owned());
                last = Some(name);
            }
        }
        Self(attributes)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(&name.to_ascii_lowercase()).map(|value| value.trim())
    }

    pub(crate) fn main_class(&self) -> Option<&str> {
        self.get("Main-Class").filter(|class| !class.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::Manifest;

    #[test]
    fn a_long_value_goes_on_after_a_blank_and_other_sections_do_not_count() {
        let text = "Manifest-Version: 1.0\r\nClass-Path: a.jar b\r\n .jar\r\nmain-class: demo.Main\r\n\r\nName: x\r\nMain-Class: no\r\n";
        let manifest = Manifest::parse(text);
        assert_eq!(manifest.get("Class-Path"), Some("a.jar b.jar"));
        assert_eq!(manifest.main_class(), Some("demo.Main"));
    }
}
