//! The format of everything that a platform stores: files in `golden` show it, one for each time that it changed. What a
//! platform writes looks like the newest, and what any of them shows opens.

mod damaged;
mod golden;
mod opens;
mod recording;
mod scenario;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use golden::{KINDS, Shape};

/// Fields of `these` that `those` have not, or of another type. A field that may be null is one of its name.
fn more(these: &Shape, those: &Shape) -> Vec<String> {
    let is_new = |(path, kind): &&(String, &'static str)| {
        let known: Vec<&str> = those.iter().filter(|(at, _)| at == path).map(|(_, kind)| *kind).collect();
        let is_null = |kind: &str| kind == "null";
        known.is_empty() || !is_null(kind) && !known.contains(kind) && !known.iter().all(|kind| is_null(kind))
    };
    these.iter().filter(is_new).map(|(path, kind)| format!("{path}: {kind}")).collect()
}

/// What changed since a file was written: fields that are new or of another type, and fields that nothing writes any more.
fn changes(shown: &BTreeMap<&'static str, Shape>, now: &BTreeMap<&'static str, Shape>) -> Vec<String> {
    let mut changes = Vec::new();
    for kind in KINDS {
        let (now, shown) = (&now[kind], shown.get(kind).cloned().unwrap_or_default());
        changes.extend(more(now, &shown).into_iter().map(|field| format!("{kind}* has now {field}")));
        // What stands in a list may be there by chance.
        let names = |shape: &Shape| -> BTreeSet<String> {
            shape.iter().map(|(path, _)| path).filter(|path| !path.contains("[]")).cloned().collect()
        };
        let (names_shown, names_now) = (names(&shown), names(now));
        let gone = names_shown.difference(&names_now);
        changes.extend(gone.map(|path| format!("{kind}* has no more {path}")));
    }
    changes
}

#[test]
fn what_a_platform_stores_has_the_format_that_the_newest_file_shows() {
    let (kept, written) = scenario::run();
    let now =
        golden::shapes(written.iter().flat_map(|(key, values)| values.iter().map(move |one| (key, one))));
    let missing: Vec<&str> = KINDS.into_iter().filter(|kind| !now.contains_key(kind)).collect();
    assert!(
        missing.is_empty(),
        "nothing was written below {missing:?}: the scenario has to, or KINDS has too many"
    );

    let files = golden::files();
    let shown = files.last().map(|path| golden::read(&fs::read_to_string(path).expect("a file")));
    let shown = shown.unwrap_or_default();
    let changes = changes(&golden::shapes(shown.iter().map(|(key, value)| (key, value))), &now);
    if !changes.is_empty() && std::env::var_os("SAS_WRITE_GOLDEN").is_some() {
        let path = golden::following(files.last());
        fs::write(&path, golden::print(&golden::chosen(&kept, &written))).expect("written");
        eprintln!("{} shows it from now on:\n{}", path.display(), changes.join("\n"));
        return;
    }
    assert!(
        changes.is_empty(),
        "the format of what is stored changed. Platforms must still open what is in the files of {}, and the version before \
         should open the new. If that is so, SAS_WRITE_GOLDEN=1 adds a file that shows the new; the others stay as they \
         are.\n{}",
        golden::DIR,
        changes.join("\n")
    );
}

#[test]
fn what_any_file_shows_opens() {
    let files = golden::files();
    assert!(!files.is_empty());
    for path in files {
        let shown = golden::read(&fs::read_to_string(&path).expect("a file"));
        // Of a key that is shown in several forms, the last is what was there in the end.
        opens::all(&path, &shown.into_iter().collect());
    }
}

/// Else a field's type could not be told, and any would pass.
#[test]
fn the_newest_file_shows_a_value_of_every_field() {
    let newest = golden::files().pop().expect("a file");
    let shown = golden::read(&fs::read_to_string(&newest).expect("a file"));
    let mut unknown = Vec::new();
    for (kind, shape) in golden::shapes(shown.iter().map(|(key, value)| (key, value))) {
        let known = |path: &String| shape.iter().any(|(at, kind)| at == path && *kind != "null");
        let item = |path: &String| shape.iter().any(|(at, _)| *at == format!("{path}[]"));
        for (path, of) in &shape {
            if *of == "null" && !known(path) || *of == "array" && !item(path) {
                unknown.push(format!("{kind}* {path}"));
            }
        }
    }
    assert_eq!(unknown, NEVER_SHOWN, "the scenario has to write a value of what is new here");
}

/// Fields that no part of this platform gives a value, such as those of containers: that another type takes their place is not
/// seen here.
const NEVER_SHOWN: [&str; 12] = [
    "async/call/* callback",
    "async/calls-of/* callback",
    "service/* revisions[].artifact",
    "service/* revisions[].notes",
    "service/* revisions[].package",
    "service/* revisions[].spec.args",
    "service/* revisions[].spec.command",
    "service/* revisions[].spec.liveness.action.http.port",
    "service/* revisions[].spec.port",
    "service/* revisions[].spec.readiness",
    "service/* revisions[].spec.working_dir",
    "trigger/* done",
];
