//! What the console costs: the server's CPU time for a page of a large platform, and that of pages that are kept live.
//!
//! An unoptimised build, four to six times slower than others, gets a fifth of the services and instances for the same bound;
//! `SAS_LONG=1` gives it all ten thousand, and twice the time. `cargo test --test facade console::load -- --nocapture` shows the figures.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http_body_util::BodyExt as _;
use sas::prelude::*;
use tokio::time::{Instant, sleep};

use super::world::{TOKEN, World};

/// Of a core, in percent, for fifty live pages: two, and in a build without optimisation on cores that others use three times that.
const MOST: f64 = if cfg!(debug_assertions) { 6.0 } else { 2.0 };

/// So many services, instances of one of them, and the most time that a page may take.
fn large() -> (usize, usize, Duration) {
    match (cfg!(debug_assertions), std::env::var_os("SAS_LONG").is_some()) {
        (false, _) => (10_000, 1_000, Duration::from_millis(100)),
        (true, true) => (10_000, 1_000, Duration::from_millis(200)),
        (true, false) => (2_000, 200, Duration::from_millis(100)),
    }
}

/// Runs a test on threads of its own name, so that what they use can be told from what other tests use.
fn alone(name: &str, test: impl Future<Output = ()> + Send + 'static) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).thread_name(name).enable_all().build().expect("a runtime");
    runtime.block_on(runtime.spawn(test)).expect("the test ends well");
}

/// What the threads of this name have used of a core so far.
async fn used(name: &str) -> Duration {
    // The system counts when a thread rests.
    sleep(Duration::from_millis(2)).await;
    let mut sum = 0;
    for thread in std::fs::read_dir("/proc/self/task").expect("threads").flatten() {
        let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        if read("comm").trim() == name {
            let nanoseconds = read("schedstat");
            sum += nanoseconds.split(' ').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(sum)
}

#[test]
fn a_page_of_a_large_platform_takes_at_most_a_tenth_of_a_second() {
    const PAGES: &str = "load-pages";
    alone(PAGES, async {
        let (services, instances, bound) = large();
        let world = Arc::new(World::new().await);
        let began = Instant::now();
        let halves = [0, 1].map(|half| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                for at in (0..services).filter(|at| at % 2 == half) {
                    world.deploy(&format!("tenant-{}", at % 100), &format!("service-{at}"), "good").await;
                }
            })
        });
        for half in halves {
            half.await.expect("deployed");
        }
        let wide = format!("{{autoscaling.knative.dev/min-scale: '{instances}'}}");
        world.deploy_with("shop", "wide", "good", &wide).await;
        println!("{services} services are deployed after {:?}", began.elapsed());
        while (world.platform.pool().totals().instances as usize) < instances {
            assert!(began.elapsed() < Duration::from_secs(120), "{:?}", world.platform.pool().totals());
            sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(world.call("shop", "wide", "/").await, http::StatusCode::OK);
        let cookie = world.sign_in(TOKEN).await;
        for path in [
            "/console/",
            "/console/?search=service-9&sort=name&page=2",
            "/console/services/shop/wide",
            "/console/services/shop/wide/requests",
            "/console/services/shop/wide/logs",
            "/console/pool",
            "/console/events",
            "/console/workflows",
            "/console/platform",
        ] {
            // What the threads used, not how long it took: others may run beside. The least of five, for the platform's own
            // ticks run on these threads, too.
            let mut shortest = Duration::MAX;
            let mut bytes = 0;
            for _ in 0..5 {
                let before = used(PAGES).await;
                let page = world.page(&cookie, path).await;
                shortest = shortest.min(used(PAGES).await - before);
                assert_eq!(page.status, http::StatusCode::OK, "{path}: {}", page.text);
                bytes = page.text.len();
            }
            println!("{path}: {shortest:?}, {bytes} bytes");
            assert!(shortest < bound, "{path}: {shortest:?}");
        }
        let map = world.page(&cookie, "/console/services/shop/wide").await;
        assert_eq!(map.text.matches("<i class=\"ready").count(), instances, "all instances are drawn");
    });
}

#[test]
fn fifty_live_pages_cost_little_of_a_core() {
    const NAME: &str = "load-live";
    const SPAN: Duration = Duration::from_secs(8);
    alone(NAME, async {
        let world = Arc::new(World::new().await);
        for at in 0..20 {
            world.deploy("shop", &format!("service-{at}"), if at == 7 { "bad" } else { "good" }).await;
        }
        // Twenty requests per second, so that pages have something to say.
        let asked = Arc::clone(&world);
        let load = tokio::spawn(async move {
            for at in 0_usize.. {
                asked.call("shop", &format!("service-{}", at % 20), "/").await;
                sleep(Duration::from_millis(50)).await;
            }
        });
        sleep(Duration::from_secs(2)).await;
        let before = used(NAME).await;
        sleep(SPAN).await;
        let idle = used(NAME).await - before;

        // Ten operators, each with five pages: some look at the same, some at what nobody else looks at.
        let sent = Arc::new(AtomicU64::new(0));
        let mut tabs = Vec::new();
        for operator in 0..10 {
            let token = world.token(&format!("operator-{operator}"), r#""read", "deploy""#, "").await;
            let cookie = world.sign_in(&token).await;
            let pages = [
                "/console/".to_owned(),
                format!("/console/services/shop/service-{}", operator * 2),
                format!("/console/services/shop/service-{}/requests", operator % 4),
                format!("/console/services/shop/service-{}/logs", operator % 4),
                ["/console/pool", "/console/events"][operator % 2].to_owned(),
            ];
            for page in pages {
                let live = format!("/console/live?page={page}");
                let request = http::Request::get(live).header("host", "localhost").header("cookie", &cookie);
                let request = request.body(Body::empty()).expect("a request");
                let mut body = world.console.handle(request).await.into_body();
                let sent = Arc::clone(&sent);
                tabs.push(tokio::spawn(async move {
                    while let Some(Ok(frame)) = body.frame().await {
                        let bytes = frame.into_data().map_or(0, |data| data.len() as u64);
                        sent.fetch_add(bytes, Ordering::Relaxed);
                    }
                }));
            }
        }
        assert_eq!(tabs.len(), 50);
        sleep(Duration::from_secs(3)).await;
        let (before, bytes) = (used(NAME).await, sent.load(Ordering::Relaxed));
        sleep(SPAN).await;
        let live = used(NAME).await - before;
        let bytes = sent.load(Ordering::Relaxed) - bytes;
        let percent = |span: Duration| span.as_secs_f64() / SPAN.as_secs_f64() * 100.0;
        let added = percent(live) - percent(idle);
        println!(
            "fifty live pages add {added:.2} % of a core to {:.2} %, and are sent {} KiB/s",
            percent(idle),
            bytes / 1024 / SPAN.as_secs()
        );
        assert!(bytes > 0, "pages go on");
        assert!(added <= MOST, "{added:.2} % of a core");
        load.abort();
        tabs.iter().for_each(tokio::task::JoinHandle::abort);
    });
}
