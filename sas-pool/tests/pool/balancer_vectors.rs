//! The balancers against picks of Knative's activator. `SAS_VECTORS_DIR` names a directory with a `kpa` folder of
//! further cases of the same shape.

use std::{collections::HashMap, fs, path::PathBuf};

use sas_core::{Balancer, Claim, InstanceId, Pick, RevisionKey, SlotView, TenantKey};
use sas_pool::balance::{FirstAvailable, Knative, RoundRobin};
use serde_json::Value;

fn scenarios() -> Vec<Value> {
    let path = match std::env::var_os("SAS_VECTORS_DIR") {
        Some(dir) => PathBuf::from(dir).join("kpa").join("activator.jsonl"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/activator.jsonl"),
    };
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Replays a scenario; the number of picks that were compared.
fn replay(scenario: &Value, balancer: &dyn Balancer) -> usize {
    let limit = scenario["container_concurrency"].as_u64().unwrap() as u32;
    let claim = Claim::new(RevisionKey(0), TenantKey(0));
    let mut in_flight: HashMap<String, u32> = HashMap::new();
    let mut targets: Vec<String> = Vec::new();
    let mut held: HashMap<u64, String> = HashMap::new();
    let (mut cursor, mut compared) = (0, 0);
    for op in scenario["ops"].as_array().unwrap() {
        match op[0].as_str().unwrap() {
            "targets" => {
                let names = op[1].as_array().unwrap();
                targets = names.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
            }
            "acquire" => {
                let slots: Vec<SlotView> = targets
                    .iter()
                    .enumerate()
                    .map(|(at, name)| {
                        let mut slot = SlotView::new(InstanceId(at as u64), limit);
                        slot.in_flight = in_flight.get(name).copied().unwrap_or(0);
                        slot
                    })
                    .collect();
                let picked = balancer.pick(&slots, &Pick::new(&claim, 0, 0), &mut cursor);
                let expected = op[2].as_str();
                assert_eq!(picked.map(|at| targets[at].as_str()), expected, "{}: {op}", scenario["id"]);
                compared += 1;
                if let Some(at) = picked {
                    *in_flight.entry(targets[at].clone()).or_default() += 1;
                    held.insert(op[1].as_u64().unwrap(), targets[at].clone());
                }
            }
            "release" => {
                let name = held.remove(&op[1].as_u64().unwrap()).unwrap();
                *in_flight.get_mut(&name).unwrap() -= 1;
            }
            other => panic!("unknown operation {other}"),
        }
    }
    compared
}

#[test]
fn first_available_and_round_robin_pick_as_knative() {
    let mut compared = [0, 0];
    for scenario in scenarios() {
        let limit = scenario["container_concurrency"].as_u64().unwrap_or(0);
        match scenario["kind"].as_str().unwrap() {
            "lb_first_available" => {
                compared[0] += replay(&scenario, &FirstAvailable);
                if limit <= 3 {
                    replay(&scenario, &Knative);
                }
            }
            "lb_round_robin" => {
                compared[1] += replay(&scenario, &RoundRobin);
                if limit > 3 {
                    replay(&scenario, &Knative);
                }
            }
            _ => {}
        }
    }
    assert!(compared.iter().all(|count| *count > 0), "{compared:?}");
}
