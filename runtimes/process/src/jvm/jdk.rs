//! The JRE or JDK of the host.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{config::ProcessConfig, package::detect};

/// Longest run of a JVM that archives the stem's classes.
pub(crate) const TOOL_TIMEOUT: Duration = Duration::from_secs(120);

/// A JVM and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Jdk {
    pub(crate) java: PathBuf,
    /// 17, 21, 25.
    pub(crate) major: u32,
    /// As in the JDK's `release` file.
    pub(crate) version: String,
}

impl Jdk {
    /// The JDK that runs jars. Says why there is none.
    pub(crate) fn find(config: &ProcessConfig) -> Result<Self, String> {
        let java = detect::java(config).map_err(|error| error.message)?;
        // `/usr/bin/java` is a chain of links to the JDK's own directory.
        let real = fs::canonicalize(&java).map_err(|error| format!("{}: {error}", java.display()))?;
        let home = real.parent().and_then(Path::parent).map(Path::to_path_buf).unwrap_or_default();
        let release = fs::read_to_string(home.join("release")).map_err(|error| {
            format!("{}: {error}: not the java of a JDK 17 or later", home.join("release").display())
        })?;
        let version = release
            .lines()
            .find_map(|line| line.strip_prefix("JAVA_VERSION="))
            .map(|value| value.trim_matches('"').to_owned())
            .ok_or_else(|| format!("{} names no JAVA_VERSION", home.join("release").display()))?;
        let major =
            major(&version).ok_or_else(|| format!("the JDK's version {version:?} is not understood"))?;
        Ok(Self { java: real, major, version })
    }
}

fn major(version: &str) -> Option<u32> {
    version.split(['.', '-', '+', '_']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_major_version_is_the_first_number() {
        for (text, expected) in [
            ("17.0.15", Some(17)),
            ("25", Some(25)),
            ("26-ea", Some(26)),
            ("1.8.0_292", Some(1)),
            ("x", None),
        ] {
            assert_eq!(super::major(text), expected, "{text}");
        }
    }
}
