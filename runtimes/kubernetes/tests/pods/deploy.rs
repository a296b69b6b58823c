//! The manifests of `deploy/kubernetes` are taken by a real API server, as strictly as it can, without being made.

use std::{fs, path::Path};

use crate::support::place;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shipped_manifests_are_taken_by_the_api_server() {
    let Some(place) = place().await else { return };
    let _shared = place.shared().await;
    let cluster = place.cluster.lock().await;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kubernetes");
    let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    // What the others are in has to be there.
    cluster.admin().run(&["apply", "--validate=strict", "-f", "-"], &text("namespaces.yaml"));
    let strictly = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
    for name in ["access.yaml", "postgres.yaml", "hosts.yaml"] {
        println!("{}", cluster.admin().run(&strictly, &text(name)));
    }
    let role = ["-n", "sas-instances", "apply", "--dry-run=server", "--validate=strict", "-f", "-"];
    println!("{}", cluster.admin().run(&role, &text("role.yaml")));
}
