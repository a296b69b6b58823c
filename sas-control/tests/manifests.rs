//! Manifests of real projects: each is read, or refused for what is wrong with it.

use std::{collections::BTreeMap, path::PathBuf};

use sas_control::manifest::{Manifest, ParseOptions, ServiceManifest, parse};
use serde_json::Value;

fn vectors() -> PathBuf {
    match std::env::var_os("SAS_VECTORS_DIR") {
        Some(dir) => PathBuf::from(dir).join("knative"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/knative"),
    }
}

fn files() -> Vec<(String, String)> {
    let index = std::fs::read_to_string(vectors().join("index.json")).expect("index.json");
    let index: Vec<Value> = serde_json::from_str(&index).expect("index.json is JSON");
    index
        .iter()
        .map(|entry| {
            let file = entry["file"].as_str().expect("a file name").to_owned();
            let text = std::fs::read_to_string(vectors().join("services").join(&file)).expect("the file");
            (file, text)
        })
        .collect()
}

#[test]
fn dump() {
    for (file, text) in files() {
        match parse(&text, &ParseOptions::default()) {
            Ok(_) => {}
            Err(errors) => println!("{file}:\n{errors}\n"),
        }
    }
}
