//! What waits costs nothing: schedules have no task, and idle sources wake for nothing. On real time, in one thread, so
//! that the processor time of this process is theirs.

use std::{sync::Arc, time::Duration};

use sas_core::{Body, BrokerSpec, Invoker, MemoryStore, Response, Store, TriggerSpec, Triggers as _};
use sas_testkit::fake::FakeInvoker;
use sas_trigger::{TriggerHost, TriggerHostConfig};
use tokio::time::Instant;

fn host() -> (Arc<TriggerHost>, Arc<FakeInvoker>) {
    let invoker = FakeInvoker::new(|_| Ok(Response::new(Body::empty())));
    let store = Arc::new(MemoryStore::default()) as Arc<dyn Store>;
    (TriggerHost::new(TriggerHostConfig::new(Arc::clone(&invoker) as Arc<dyn Invoker>, store)), invoker)
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// One test at a time: they share the process that is measured.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Processor time of this process so far.
#[cfg(target_os = "linux")]
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10)
}

#[cfg(feature = "cron")]
#[tokio::test]
async fn a_hundred_thousand_schedules_cost_no_task() {
    let _alone = ALONE.lock().await;
    let (host, invoker) = host();
    for at in 0..100_000 {
        let name = format!("default/t{at}");
        // Cron expressions take their time to be read, in a build for tests: one in a hundred.
        let spec = if at % 100 == 0 {
            let schedule = format!("{} {} 1 1 *", at % 60, at % 24);
            TriggerSpec::new(name, "cron", "default/hello").with_option("schedule", schedule)
        } else {
            TriggerSpec::new(name, "timer", "default/hello").with_option("period", "8000h")
        };
        host.apply(spec).await.expect("applied");
        if at % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    // Each was woken once, and sleeps.
    for _ in 0..1500 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if tasks() <= 1 {
            break;
        }
    }
    assert!(tasks() <= 1, "the timer, and {} more tasks", tasks() - 1);
    assert_eq!((host.status().len(), invoker.seen().len()), (100_000, 0));
    assert!(host.status().iter().all(|status| status.running && status.fires.next.is_some()));
    #[cfg(target_os = "linux")]
    {
        let before = processor();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let used = processor() - before;
        assert!(used < Duration::from_millis(100), "a second of waiting cost {used:?}");
    }
    host.shutdown(Instant::now() + Duration::from_secs(5)).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_thousand_idle_sources_cost_no_thread_and_wake_for_nothing() {
    let _alone = ALONE.lock().await;
    let (host, _) = host();
    host.apply_broker(BrokerSpec::new("default/orders")).await.expect("made");
    let threads = || std::fs::read_dir("/proc/self/task").expect("Linux").count();
    let before_threads = threads();
    for at in 0..1000 {
        let spec = TriggerSpec::new(format!("default/t{at}"), "broker", "default/hello")
            .with_option("broker", "orders");
        host.apply(spec).await.expect("applied");
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = processor();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = processor() - before;
    assert!(used < Duration::from_millis(60), "two seconds of waiting cost {used:?}");
    assert!(threads() <= before_threads);
    host.shutdown(Instant::now() + Duration::from_secs(5)).await;
}
