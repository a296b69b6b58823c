//! Times, printed: pulls of 1 and 100 MB, and the time from a start to the first answer by each program that runs containers.
//! Only with `SAS_TIMES=1`, in a release build:
//! `SAS_TIMES=1 cargo test --release -p sas-runtime-container --test times -- --nocapture`.

#![allow(clippy::print_stdout, reason = "it prints what it measures")]

mod support;

use std::{fs, sync::Arc, time::Duration};

use sas_core::{RevisionSpec, Runtime as _, Source, TenantKey};
use sas_runtime_container::{ContainerRuntime, ImageSettings, write_image};
use support::{Workplace, get, prepare, start_deployed};
use tokio::time::Instant;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times() {
    if std::env::var_os("SAS_TIMES").is_none() {
        println!("skipped: set SAS_TIMES=1");
        return;
    }
    support::needs_containers!();
    let place = Workplace::new();
    if let Some(registry) = support::Registry::start().await {
        for megabytes in [1usize, 100] {
            let files = place.dir.path().join(format!("files-{megabytes}"));
            fs::create_dir_all(&files).unwrap();
            // Bytes that do not pack.
            let mut state = 0x9e37_79b9_7f4a_7c15u64;
            let bytes: Vec<u8> = (0..megabytes << 20)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            fs::write(files.join("data"), bytes).unwrap();
            let tag = format!("m{megabytes}");
            write_image(&files, &place.layout, &tag, &ImageSettings::new(["/app/data"])).unwrap();
            registry.push(&place.layout, &tag, &format!("size/{tag}:1")).await;
            let mut config = place.config();
            config.store = place.dir.path().join(format!("store-{megabytes}"));
            config.registries.plain_http.push(registry.address.to_string());
            let runtime = ContainerRuntime::new(config).unwrap();
            let spec =
                RevisionSpec::new("container", Source::Image(format!("{}/size/{tag}:1", registry.address)));
            let began = Instant::now();
            let pinned = runtime.pin(&spec, TenantKey(1)).await.unwrap();
            let resolved = began.elapsed();
            runtime.prepare(&pinned).await.unwrap();
            let pulled = began.elapsed();
            let again = Instant::now();
            runtime.prepare(&pinned).await.unwrap();
            println!(
                "pull of {megabytes} MB: tag {resolved:.1?}, whole {pulled:.1?}, again {:.1?}",
                again.elapsed()
            );
        }
    }
    for program in ["crun", "runc"] {
        let mut config = place.config();
        config.store = place.dir.path().join(format!("store-{program}"));
        config.programs = vec![program.to_owned()];
        let Ok(runtime) = ContainerRuntime::new(config).map(Arc::new) else { continue };
        let deployed = prepare(&runtime, place.app(&[])).await.unwrap();
        let mut times = Vec::new();
        for id in 0..20 {
            let began = Instant::now();
            let started = start_deployed(&runtime, &deployed, id).await.unwrap();
            get(&*started.instance, "/").await;
            times.push(began.elapsed());
            started.instance.stop(Duration::ZERO).await.unwrap();
        }
        println!("start to first answer by {}: median of 20 {:.1?}", runtime.program(), median(times));
        let began = Instant::now();
        // As the pool's gate lets them through: one more than there are cores.
        let gate =
            Arc::new(tokio::sync::Semaphore::new(1 + std::thread::available_parallelism().unwrap().get()));
        let many = (100..200).map(|id| {
            let (runtime, deployed, gate) = (Arc::clone(&runtime), Arc::clone(&deployed), Arc::clone(&gate));
            tokio::spawn(async move {
                let _turn = gate.acquire().await.unwrap();
                start_deployed(&runtime, &deployed, id).await.unwrap()
            })
        });
        let mut all = Vec::new();
        for one in many.collect::<Vec<_>>() {
            all.push(one.await.unwrap());
        }
        println!("  100 asked for at once, through a gate: all ready after {:.1?}", began.elapsed());
        for one in all {
            one.instance.stop(Duration::ZERO).await.unwrap();
        }
        runtime.quiesce().await;
    }
}
