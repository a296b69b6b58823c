//! The directory that is an instance's own, and what programs expect of an environment besides what was declared.

use std::path::Path;

use sas_core::{EnvValue, Result, RevisionSpec, SpecErrors};

use crate::{
    engine::Engine,
    package::{error::disk, store::Discard},
};

/// The locale of instances: UTF-8, and nothing else of any country's.
pub(crate) const LANG: &str = "C.UTF-8";
/// The name in `USER` and `LOGNAME`.
pub(crate) const USER: &str = "app";

/// The kernel's bound on one string of the environment, `NAME=value` and its NUL together (MAX_ARG_STRLEN).
const STRING_BYTES: usize = 128 << 10;
/// The bound on all strings of arguments and environment: a quarter of the usual limit of the stack (8 MiB), less what
/// the arguments and the platform's own variables may need.
const TOTAL_BYTES: usize = (2 << 20) - (256 << 10);

/// The writable directory of one instance, removed after it: `HOME`, and `TMPDIR` in it.
#[derive(Debug)]
pub(crate) struct Home(Discard);

impl Home {
    pub(crate) fn make(engine: &Engine) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let dir = engine.store.discard(engine.store.temporary("home"));
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        for path in [dir.path().to_owned(), tmp(dir.path())] {
            builder.create(&path).map_err(|error| disk("create", &path, error))?;
        }
        Ok(Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn into_dir(self) -> Discard {
        self.0
    }
}

/// Where temporary files of an instance go.
pub(crate) fn tmp(home: &Path) -> std::path::PathBuf {
    home.join("tmp")
}

/// What the kernel would refuse at every start is refused at deploy, with the variable that is to blame. Secrets are
/// known only at a start.
pub(crate) fn check_size(spec: &RevisionSpec, errors: &mut SpecErrors) {
    let (mut total, mut largest) = (0, ("", 0));
    for (name, value) in &spec.env {
        let EnvValue::Literal(value) = value else { continue };
        // With the equals sign, the NUL and the pointer to it.
        let bytes = name.len() + value.len() + 2;
        if bytes > STRING_BYTES {
            errors.push(
                format!("env.{name}"),
                format!("{bytes} bytes"),
                format!("a program can be given {STRING_BYTES} bytes in one variable, its name included; put it into a file"),
            );
        }
        if bytes > largest.1 {
            largest = (name, bytes);
        }
        total += bytes + size_of::<usize>();
    }
    if total > TOTAL_BYTES && errors.is_empty() {
        errors.push(
            format!("env.{}", largest.0),
            format!("{} bytes", largest.1),
            format!(
                "the environment has {total} bytes and a program can be given {TOTAL_BYTES}; this variable is the largest: \
                 put it into a file"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use sas_core::Source;

    use super::*;

    fn refused(env: impl IntoIterator<Item = (String, usize)>) -> Vec<String> {
        let mut spec = RevisionSpec::new("process", Source::Path("x".into()));
        spec.env =
            env.into_iter().map(|(name, bytes)| (name, EnvValue::Literal("x".repeat(bytes)))).collect();
        let mut errors = SpecErrors::default();
        check_size(&spec, &mut errors);
        errors.0.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn an_environment_too_large_is_refused_by_the_name_of_its_variable() {
        assert_eq!(refused([("A".into(), STRING_BYTES - 3), ("B".into(), 10)]), [""; 0]);
        assert_eq!(refused([("A".into(), STRING_BYTES - 2), ("B".into(), 10)]), ["env.A"]);
        let many = |bytes: usize| (0..20usize).map(move |at| (format!("V{at:02}"), bytes + at));
        assert_eq!(refused(many(80_000)), [""; 0]);
        assert_eq!(refused(many(100_000)), ["env.V19"], "all of them together, and the largest");
    }
}
