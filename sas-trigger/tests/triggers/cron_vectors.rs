//! Fire times of four other implementations, row by row.

use std::{collections::BTreeMap, collections::BTreeSet, path::PathBuf};

use jiff::Timestamp as Instant;
use sas_core::{Schedule, Timestamp};
use sas_trigger::{CronOptions, CronSchedule};
use serde_json::Value;

fn file() -> PathBuf {
    match std::env::var_os("SAS_VECTORS_DIR") {
        Some(dir) => PathBuf::from(dir).join("cron/vectors.json"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/cron/vectors.json"),
    }
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_else(|| panic!("{field} of {row}"))
}

fn fires(row: &Value) -> Result<Vec<String>, String> {
    let options = match row["dialect"].as_str() {
        Some("quartz") => CronOptions::quartz(),
        None | Some("common") => CronOptions::default(),
        // Knative's scheduler; its own tests expect its own rule for gaps.
        Some("robfig") => CronOptions::knative(),
        Some(other) => panic!("unknown dialect {other}"),
    };
    let schedule =
        CronSchedule::with_options(text(row, "expr"), text(row, "tz"), options).map_err(|e| e.to_string())?;
    let from: Instant = text(row, "from").parse().expect("a time");
    let mut at = Timestamp(i64::try_from(from.as_nanosecond()).expect("in range"));
    let mut fires = Vec::new();
    for _ in 0..row["n"].as_u64().expect("a count") {
        let Some(next) = schedule.next_after(at) else { break };
        assert!(next > at, "{row}: {next:?} is not after {at:?}");
        at = next;
        fires.push(Instant::from_nanosecond(i128::from(at.0)).expect("in range").to_string());
    }
    Ok(fires)
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().expect("a list").iter().map(|item| item.as_str().expect("text").to_owned()).collect()
}

#[test]
fn every_row_of_the_vectors_is_met() {
    let vectors: Value =
        serde_json::from_str(&std::fs::read_to_string(file()).expect("vectors.json")).expect("JSON");
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    // The oracles that agree with us in every row of policy of a category.
    let mut columns: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for row in vectors["vectors"].as_array().expect("rows") {
        let expect = text(row, "expect");
        *counts.entry(expect).or_default() += 1;
        let fires = fires(row);
        match expect {
            "fires" => {
                if fires.as_ref() != Ok(&strings(&row["next"])) {
                    wrong.push(format!("{row}\n  gave {fires:?}"));
                }
            }
            "invalid" => {
                if fires.is_ok() {
                    wrong.push(format!("{row}\n  was accepted: {fires:?}"));
                }
            }
            "policy" => {
                let met = row["policies"]
                    .as_array()
                    .expect("policies")
                    .iter()
                    .find(|policy| fires.as_ref() == Ok(&strings(&policy["next"])));
                match met {
                    None => wrong.push(format!("{row}\n  gave {fires:?}")),
                    Some(policy) => {
                        let oracles: BTreeSet<String> = strings(&policy["oracles"]).into_iter().collect();
                        let column = columns.entry(text(row, "category")).or_insert_with(|| oracles.clone());
                        *column = column.intersection(&oracles).cloned().collect();
                    }
                }
            }
            "either" => {}
            other => panic!("unknown expectation {other}"),
        }
    }
    for (category, oracles) in &columns {
        println!("{category}: as {oracles:?}");
        assert!(!oracles.is_empty(), "{category}: no oracle agrees in all rows");
    }
    println!("vectors.json: {counts:?}, {} mismatches", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(counts.values().sum::<usize>() >= 300 || std::env::var_os("SAS_VECTORS_DIR").is_some());
}
