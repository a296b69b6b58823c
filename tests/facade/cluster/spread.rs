//! A service that needs more than one host's share, on hosts of two instances each.

use std::{collections::BTreeMap, sync::atomic::AtomicUsize};

use parking_lot::Mutex;

use super::*;

/// Requests at once: more than three hosts have instances for, as some are on their way.
const CLIENTS: usize = 9;

/// These wait for many seconds: CI runs them, and whoever sets `SAS_LONG=1`.
#[allow(clippy::print_stdout, reason = "the test's output says what was skipped")]
fn is_left_out() -> bool {
    let left_out = ["CI", "SAS_LONG"].iter().all(|name| std::env::var_os(name).is_none());
    if left_out {
        println!("skipped: set SAS_LONG=1, it takes a quarter of a minute");
    }
    left_out
}

/// A host that runs two instances at most, of whatever.
fn small(name: &'static str, store: &Arc<MemoryStore>, seen: &Seen) -> Host {
    start_as(name, store, seen, |builder| {
        builder.configure_pool(|pool| pool.budget.instances = 2).control(|control| {
            control.spread.grow_after = Duration::from_secs(1);
            control.spread.shrink_after = Duration::from_secs(3);
            control.spread.period = Duration::from_secs(1);
        })
    })
}

/// One request at a time on each instance, and asleep soon after the last one.
fn deploy(host: &Host, name: &str, change: impl FnOnce(&mut RevisionSpec)) {
    let mut spec = RevisionSpec::new("inline", Source::Function("who".to_owned()));
    spec.concurrency = 1;
    spec.scaling.target = 1.0;
    spec.scaling.stable_window = Duration::from_secs(2);
    spec.scaling.scale_to_zero_grace = Duration::from_secs(1);
    change(&mut spec);
    let platform = Arc::clone(&host.platform);
    host.runtime.block_on(platform.deploy("shop", name, spec)).expect("deployed");
}

/// Clients that ask the hosts in turn until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    hosts: Arc<Mutex<Vec<SocketAddr>>>,
    /// Answers by the host that gave them, since they were looked at last.
    answers: Arc<Mutex<BTreeMap<String, usize>>>,
    lost: Arc<Mutex<Vec<String>>>,
    asking: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn begin(client: &Runtime, service: &str, hosts: &[&Host]) -> Self {
        let load = Self {
            stop: Arc::default(),
            hosts: Arc::new(Mutex::new(hosts.iter().map(|host| host.listen).collect())),
            answers: Arc::default(),
            lost: Arc::default(),
            asking: Vec::new(),
        };
        let turn = Arc::new(AtomicUsize::new(0));
        let asking = (0..CLIENTS).map(|_| {
            let (stop, hosts, turn) = (Arc::clone(&load.stop), Arc::clone(&load.hosts), Arc::clone(&turn));
            let (answers, lost) = (Arc::clone(&load.answers), Arc::clone(&load.lost));
            let service = format!("{service}.shop.localhost");
            client.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let to = {
                        let hosts = hosts.lock();
                        hosts[turn.fetch_add(1, Ordering::Relaxed) % hosts.len()]
                    };
                    match call(to, "GET", &service, "/work", "").await {
                        Ok(answer) if answer.status == 200 => {
                            let host = answer.body.split(' ').next().unwrap_or_default().to_owned();
                            *answers.lock().entry(host).or_default() += 1;
                        }
                        other => lost.lock().push(format!("{other:?}")),
                    }
                }
            })
        });
        let asking = asking.collect();
        Self { asking, ..load }
    }

    /// Who answered in the next so many milliseconds.
    fn answering(&self, ms: u64) -> BTreeMap<String, usize> {
        self.answers.lock().clear();
        std::thread::park_timeout(Duration::from_millis(ms));
        std::mem::take(&mut *self.answers.lock())
    }

    fn end(self, client: &Runtime) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        for asking in self.asking {
            client.block_on(asking).expect("it ends");
        }
        std::mem::take(&mut *self.lost.lock())
    }
}

/// Records of services that several hosts run.
pub(super) fn spreads(client: &Runtime, store: &MemoryStore) -> usize {
    client.block_on(store.list("spread/", None, 100)).expect("listed").len()
}

/// Instances of the service's only revision on a host: ready, and wanted or on their way.
fn instances(host: &Host, name: &str) -> u32 {
    let control = host.platform.control();
    let Ok(record) = control.record("shop", name) else { return 0 };
    let revision = record.revisions.last().expect("a revision").name.clone();
    let key = control.revision_key("shop", name, &revision);
    let status = key.and_then(|key| host.platform.pool().status(key));
    status.map_or(0, |status| status.ready)
}

#[test]
fn a_service_that_one_host_can_not_hold_runs_on_several_and_comes_back() {
    let (store, seen, client) = (Arc::new(MemoryStore::default()), Seen::default(), client());
    let (a, b) = (small("a", &store, &seen), small("b", &store, &seen));
    let hosts = [&a, &b];
    until_shared(&hosts);
    deploy(&a, "big", |_| {});
    for host in hosts {
        until("it is known", Duration::from_secs(10), || ask(&client, host, "big", "/").0 == 200);
    }
    let owner = owner(&hosts, "shop/big").expect("somebody acts for it").name;
    let load = Load::begin(&client, "big", &hosts);
    until("both run it", Duration::from_secs(60), || hosts.iter().all(|host| instances(host, "big") == 2));
    let answers = load.answering(2_000);
    assert!(answers.len() == 2 && answers.values().all(|n| *n > 5), "{answers:?}");
    for host in hosts {
        let record = host.platform.control().record("shop", "big").expect("it is there");
        let view = host.platform.control().view(&record);
        let told: Vec<_> = view.hosts.iter().map(|part| (part.host.as_str(), part.owner)).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[0], (owner, true), "the host that acts for it is the first");
    }
    assert_eq!(load.end(&client), Vec::<String>::new(), "nothing was lost");
    // Down to nothing on both, and to one host.
    until("it sleeps", Duration::from_secs(60), || hosts.iter().all(|host| instances(host, "big") == 0));
    until("one host has it again", Duration::from_secs(60), || {
        hosts.iter().all(|host| {
            let record = host.platform.control().record("shop", "big").expect("it is there");
            host.platform.control().view(&record).hosts.is_empty()
        })
    });
    for host in hosts {
        assert_eq!(ask(&client, host, "big", "/"), (200, format!("{owner} 0")), "from zero, at one host");
    }
    until("nothing of it is left", Duration::from_secs(10), || spreads(&client, &store) == 0);
    a.kill();
    b.kill();
}

#[test]
fn a_host_that_dies_takes_its_own_requests_along_and_no_others_whichever_it_is() {
    if is_left_out() {
        return;
    }
    let (store, seen, client) = (Arc::new(MemoryStore::default()), Seen::default(), client());
    let mut hosts = vec![small("a", &store, &seen), small("b", &store, &seen), small("c", &store, &seen)];
    until_shared(&hosts.iter().collect::<Vec<_>>());
    deploy(&hosts[0], "big", |spec| spec.scaling.max = 6);
    for host in &hosts {
        until("it is known", Duration::from_secs(10), || ask(&client, host, "big", "/").0 == 200);
    }
    let load = Load::begin(&client, "big", &hosts.iter().collect::<Vec<_>>());
    until("all run it", Duration::from_secs(60), || {
        let each: Vec<u32> = hosts.iter().map(|host| instances(host, "big")).collect();
        assert!(each.iter().sum::<u32>() <= 6, "{each:?}");
        each.iter().all(|has| *has == 2)
    });
    assert_eq!(load.lost.lock().len(), 0, "{:?}", load.lost.lock());
    // First one that has a part, then the one that acts for it.
    for acts in [false, true] {
        let at = hosts.iter().position(|host| host.acts_for("shop/big") == acts).expect("there is one");
        let gone = hosts.remove(at);
        load.hosts.lock().retain(|address| *address != gone.listen);
        gone.kill();
        // Those that were on it are over by then.
        std::thread::park_timeout(TERM);
        let lost = std::mem::take(&mut *load.lost.lock());
        // A client whose request was cut asks another host at once, which may pass it on to the one that is still dying.
        assert!(lost.len() <= 2 * CLIENTS, "{lost:?}");
        let answers = load.answering(3_500);
        let (all, lost) = (answers.values().sum::<usize>(), load.lost.lock().clone());
        assert!(all > 20 && lost.is_empty(), "acts: {acts}: {answers:?}, lost: {lost:?}");
    }
    let left = &hosts[0];
    until("who is left acts for it", TERM * 6, || left.acts_for("shop/big"));
    let before = load.lost.lock().len();
    let answers = load.answering(1_000);
    assert_eq!(answers.keys().collect::<Vec<_>>(), [left.name]);
    assert_eq!(load.end(&client).len(), before);
    hosts.remove(0).kill();
}

#[test]
fn hosts_that_are_shut_down_give_back_what_they_have_of_it_and_lose_nothing() {
    if is_left_out() {
        return;
    }
    let (store, seen, client) = (Arc::new(MemoryStore::default()), Seen::default(), client());
    let mut hosts = vec![small("a", &store, &seen), small("b", &store, &seen), small("c", &store, &seen)];
    until_shared(&hosts.iter().collect::<Vec<_>>());
    deploy(&hosts[0], "big", |_| {});
    for host in &hosts {
        until("it is known", Duration::from_secs(10), || ask(&client, host, "big", "/").0 == 200);
    }
    let load = Load::begin(&client, "big", &hosts.iter().collect::<Vec<_>>());
    until("all run it", Duration::from_secs(60), || hosts.iter().all(|host| instances(host, "big") == 2));
    for acts in [false, true] {
        let at = hosts.iter().position(|host| host.acts_for("shop/big") == acts).expect("there is one");
        let goes = hosts.remove(at);
        load.hosts.lock().retain(|address| *address != goes.listen);
        let report = goes.runtime.block_on(goes.platform.shutdown(Duration::from_secs(20)));
        assert!(report.drained, "{report:?}");
        assert_eq!(*load.lost.lock(), Vec::<String>::new(), "acts: {acts}");
        goes.kill();
    }
    let answers = load.answering(1_000);
    assert_eq!(answers.keys().collect::<Vec<_>>(), [hosts[0].name]);
    assert_eq!(load.end(&client), Vec::<String>::new(), "nothing was lost");
    hosts.remove(0).kill();
}

#[test]
fn a_host_that_comes_and_acts_drops_nothing_of_what_runs_and_the_minimum_is_there_once() {
    if is_left_out() {
        return;
    }
    let (store, seen, client) = (Arc::new(MemoryStore::default()), Seen::default(), client());
    let (a, b, c) = (small("a", &store, &seen), small("b", &store, &seen), small("c", &store, &seen));
    until_shared(&[&a, &b, &c]);
    let mut names = (0..).map(|n| format!("big{n}"));
    let name = names.find(|name| c.acts_for(&format!("shop/{name}"))).expect("it acts for some");
    let report = c.runtime.block_on(c.platform.shutdown(Duration::from_secs(20)));
    assert!(report.drained, "{report:?}");
    c.kill();
    until_shared(&[&a, &b]);
    deploy(&a, &name, |spec| spec.scaling.min = 2);
    for host in [&a, &b] {
        until("it is known", Duration::from_secs(10), || ask(&client, host, &name, "/").0 == 200);
    }
    let load = Load::begin(&client, &name, &[&a, &b]);
    let run = |hosts: &[&Host]| hosts.iter().map(|host| instances(host, &name)).sum::<u32>();
    until("both run it", Duration::from_secs(60), || run(&[&a, &b]) == 4);
    let c = small("c", &store, &seen);
    until("c acts and runs it, too", Duration::from_secs(60), || {
        // One may go on its way from one host to another.
        assert!(run(&[&a, &b]) >= 3, "{} and {}", run(&[&a]), run(&[&b]));
        c.acts_for(&format!("shop/{name}")) && run(&[&c]) == 2
    });
    assert_eq!(load.end(&client), Vec::<String>::new(), "nothing was lost");
    let parts = || {
        let record = c.platform.control().record("shop", &name).expect("it is there");
        c.platform.control().view(&record).hosts
    };
    until("two keep the minimum", Duration::from_secs(60), || {
        let parts = parts();
        let minima: u32 = parts.iter().flat_map(|part| &part.revisions).map(|one| one.min).sum();
        parts.len() == 2 && parts[0].host == "c" && minima == 2 && run(&[&a, &b, &c]) == 2
    });
    for _ in 0..20 {
        std::thread::park_timeout(Duration::from_millis(100));
        assert_eq!((parts().len(), run(&[&a, &b, &c])), (2, 2), "it stays so");
    }
    for host in [a, b, c] {
        host.kill();
    }
}

#[test]
fn all_hosts_together_let_no_more_in_than_the_services_quota_while_it_spreads_and_after() {
    const RATE: usize = 20;
    const BURST: usize = 4;
    let (store, seen, client) = (Arc::new(MemoryStore::default()), Seen::default(), client());
    let (a, b) = (small("a", &store, &seen), small("b", &store, &seen));
    let hosts = [&a, &b];
    until_shared(&hosts);
    // Its instances have places for more than it may let in.
    let manifest = format!(
        "apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: big
  namespace: shop
  annotations: {{sas.dev/function: who, sas.dev/quota-rate: \"{RATE}\", sas.dev/quota-burst: \"{BURST}\"}}
spec:
  template:
    metadata: {{annotations: {{autoscaling.knative.dev/target: \"1\", autoscaling.knative.dev/window: 6s}}}}
    spec: {{containerConcurrency: 10}}
"
    );
    a.runtime.block_on(a.platform.apply(&manifest, None)).expect("deployed");
    for host in hosts {
        until("it is known", Duration::from_secs(10), || ask(&client, host, "big", "/").0 == 200);
    }
    // When each was asked and when it had its answer: between those, somebody let it in.
    let let_in: Arc<Mutex<Vec<(Instant, Instant, String)>>> = Arc::default();
    let (stop, odd) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let asking: Vec<_> = (0..12_usize)
        .map(|n| {
            let (let_in, stop, odd) = (Arc::clone(&let_in), Arc::clone(&stop), Arc::clone(&odd));
            let to = hosts[n % hosts.len()].listen;
            client.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let asked = now();
                    match call(to, "GET", "big.shop.localhost", "/slow", "").await {
                        Ok(answer) if answer.status == 200 => {
                            let host = answer.body.split(' ').next().unwrap_or_default().to_owned();
                            let_in.lock().push((asked, now(), host));
                        }
                        Ok(answer) if answer.status == 429 => {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                        other => odd.lock().push(format!("{other:?}")),
                    }
                }
            })
        })
        .collect();
    until("both run it", Duration::from_secs(60), || hosts.iter().all(|host| instances(host, "big") > 0));
    let since = now();
    until("both answer for a while", Duration::from_secs(60), || {
        let let_in = let_in.lock();
        let by = |name: &str| let_in.iter().filter(|(at, _, host)| *at > since && host == name).count();
        by("a") >= RATE && by("b") >= RATE
    });
    stop.store(true, Ordering::Relaxed);
    for asking in asking {
        client.block_on(asking).expect("it ends");
    }
    assert_eq!(*odd.lock(), Vec::<String>::new());
    let mut all = std::mem::take(&mut *let_in.lock());
    all.sort();
    for seconds in [1, 3] {
        for (begin, ..) in &all {
            let end = *begin + Duration::from_secs(seconds);
            let within = all.iter().filter(|(asked, answered, _)| asked >= begin && *answered <= end);
            let (within, most) = (within.count(), RATE * seconds as usize + BURST);
            assert!(within <= most, "{within} in {seconds} s, and not {most}");
        }
    }
    a.kill();
    b.kill();
}
