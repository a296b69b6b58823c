//! The suite for [`sas_core::Router`].

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method};
use sas_core::{
    Affinity, ErrorKind, HostPattern, RevisionKey, Route, RouteAction, RouteChange, RouteError, RouteQuery,
    RouteRule, RouteTarget, Router, Split, TenantKey, ValueMatch,
};

use crate::{
    Report,
    check::{self, Stop, Verdict, checks, ensure},
};

/// Makes empty routers, all of the same seed.
pub struct Subject {
    make: Box<dyn Fn() -> Arc<dyn Router>>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subject(..)")
    }
}

impl Subject {
    /// `make` gives an empty router, always from the same seed.
    pub fn new(make: impl Fn() -> Arc<dyn Router> + 'static) -> Self {
        Self { make: Box::new(make) }
    }
}

/// Runs every check on routers of its own, made by `builder`'s subject.
pub async fn suite<G>(builder: impl AsyncFn() -> (G, Subject)) -> Report {
    check::run(
        "Router",
        check::LIMIT,
        builder,
        |subject| subject,
        checks![
            "an unknown host has no route" => unknown,
            "hosts are compared without case" => any_case,
            "an exact host goes before a wildcard, and that before any" => host_order,
            "a wildcard is one label, no more and no less" => one_label,
            "the longest path prefix wins, and it ends at a segment's end" => prefixes,
            "methods, headers and queries are matched, more conditions first" => conditions,
            "of equal rules the first wins" => first_wins,
            "a split is exact over each run of 100 requests" => exact_split,
            "a rule's split does not depend on other rules" => separate_splits,
            "a split is exact when many threads route" => exact_in_threads,
            "the same seed gives the same split" => reproducible,
            "a service without traffic is disabled, which is not the same as unknown" => disabled,
            "weights that do not add up to 100 are refused with the host" => bad_weights,
            "a change is all or nothing" => all_or_nothing,
            "a redirect fills in path and query" => redirect,
            "a route may lead to another host, for whom tenant and time-out are handed on" => remote,
            "affinity is the same for the same header or cookie" => affinity,
            "tenant, time-out, waking and fallback of the rule are handed on" => handed_on,
            "a host that is set again has only its new rules" => replaced,
            "a removed host has no route, and removing it again is no error" => removed,
            "readers see a host before or after a change, never without" => never_without,
            "ten thousand hosts are each found" => many,
            "no host or path makes it panic" => odd_queries,
        ],
    )
    .await
}

const fn key(slot: u32) -> RevisionKey {
    RevisionKey::new(slot, 0)
}

fn to(slot: u32) -> RouteRule {
    RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(key(slot), 100)]))
}

fn split(weights: &[u32]) -> RouteRule {
    let splits = (0..).zip(weights).map(|(slot, weight)| Split::new(key(slot), *weight)).collect();
    RouteRule::new(TenantKey(1), RouteAction::Split(splits))
}

fn exact(host: &str) -> HostPattern {
    HostPattern::Exact(host.into())
}

fn set(router: &dyn Router, host: HostPattern, rules: Vec<RouteRule>) -> Verdict {
    router
        .apply(vec![RouteChange::Set { host, rules }])
        .map_err(|error| Stop::fail(format!("apply: {}", error.chain())))
}

struct Ask<'a> {
    method: Method,
    host: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    headers: HeaderMap,
}

impl<'a> Ask<'a> {
    fn new(host: &'a str, path: &'a str) -> Self {
        Self { method: Method::GET, host, path, query: None, headers: HeaderMap::new() }
    }

    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.append(name, HeaderValue::from_static(value));
        self
    }

    fn query(mut self, query: &'a str) -> Self {
        self.query = Some(query);
        self
    }

    fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    fn route(&self, router: &dyn Router) -> Result<Route, RouteError> {
        router.route(&RouteQuery {
            method: &self.method,
            host: self.host,
            path: self.path,
            query: self.query,
            headers: &self.headers,
        })
    }

    fn target(&self, router: &dyn Router) -> Verdict<RouteTarget> {
        match self.route(router) {
            Ok(Route::To(target)) => Ok(target),
            other => Err(Stop::fail(format!("{}{} is routed to {other:?}", self.host, self.path))),
        }
    }

    fn reaches(&self, router: &dyn Router, slot: u32) -> Verdict {
        let target = self.target(router)?;
        ensure!(
            target.revision == key(slot),
            "{} {}{}?{} reaches revision {}, not {slot}",
            self.method,
            self.host,
            self.path,
            self.query.unwrap_or_default(),
            target.revision.slot()
        );
        Ok(())
    }

    fn fails(&self, router: &dyn Router, error: RouteError) -> Verdict {
        let routed = self.route(router);
        ensure!(routed == Err(error), "{}{} is routed to {routed:?}, not {error:?}", self.host, self.path);
        Ok(())
    }
}

async fn unknown(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    Ask::new("a.test", "/").fails(&*router, RouteError::NoRoute)?;
    set(&*router, exact("a.test"), vec![to(1).under("/api")])?;
    Ask::new("b.test", "/api").fails(&*router, RouteError::NoRoute)?;
    Ask::new("a.test.b", "/api").fails(&*router, RouteError::NoRoute)?;
    Ask::new("a.test", "/").fails(&*router, RouteError::NoRoute)
}

async fn any_case(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    set(&*router, exact("shop.example.test"), vec![to(1)])?;
    set(&*router, HostPattern::Wildcard("apps.test".into()), vec![to(2)])?;
    for host in ["shop.example.test", "SHOP.example.TEST", "Shop.Example.Test"] {
        Ask::new(host, "/").reaches(&*router, 1)?;
    }
    Ask::new("One.APPS.test", "/").reaches(&*router, 2)
}

async fn host_order(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    set(&*router, HostPattern::Any, vec![to(3)])?;
    set(&*router, HostPattern::Wildcard("example.test".into()), vec![to(2)])?;
    set(&*router, exact("a.example.test"), vec![to(1)])?;
    Ask::new("a.example.test", "/").reaches(&*router, 1)?;
    Ask::new("b.example.test", "/").reaches(&*router, 2)?;
    Ask::new("elsewhere.test", "/").reaches(&*router, 3)
}

async fn one_label(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    set(&*router, HostPattern::Wildcard("example.test".into()), vec![to(1)])?;
    Ask::new("a.example.test", "/").reaches(&*router, 1)?;
    for host in ["example.test", "a.b.example.test", "aexample.test", ".example.test"] {
        Ask::new(host, "/").fails(&*router, RouteError::NoRoute)?;
    }
    Ok(())
}

async fn prefixes(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    let rules = vec![to(1), to(2).under("/api"), to(3).under("/api/v2"), to(4).under("/files/")];
    set(&*router, exact("a.test"), rules)?;
    for (path, slot) in [
        ("/", 1),
        ("/apis", 1),
        ("/api", 2),
        ("/api/", 2),
        ("/api/v1", 2),
        ("/api/v20", 2),
        ("/api/v2", 3),
        ("/api/v2/x", 3),
        ("/files/x", 4),
        ("/filesystem", 1),
    ] {
        Ask::new("a.test", path).reaches(&*router, slot)?;
    }
    Ok(())
}

async fn conditions(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    let mut posts = to(2);
    posts.matches.methods = vec!["POST".into()];
    let mut canary = to(3);
    canary.matches.headers = vec![("x-canary".into(), ValueMatch::Present)];
    let mut both = to(4);
    both.matches.headers = vec![
        ("x-canary".into(), ValueMatch::Exact("yes".into())),
        ("x-who".into(), ValueMatch::Prefix("staff-".into())),
    ];
    let mut query = to(5);
    query.matches.query = vec![("beta".into(), ValueMatch::Exact("1".into()))];
    set(&*router, exact("a.test"), vec![to(1), posts, canary, both, query])?;
    Ask::new("a.test", "/").reaches(&*router, 1)?;
    Ask::new("a.test", "/").method(Method::POST).reaches(&*router, 2)?;
    Ask::new("a.test", "/").header("x-canary", "no").reaches(&*router, 3)?;
    Ask::new("a.test", "/").header("x-canary", "yes").header("x-who", "staff-7").reaches(&*router, 4)?;
    Ask::new("a.test", "/").header("x-canary", "yes").header("x-who", "guest").reaches(&*router, 3)?;
    Ask::new("a.test", "/").query("a=2&beta=1").reaches(&*router, 5)?;
    Ask::new("a.test", "/").query("beta=10&alphabeta=1").reaches(&*router, 1)
}

async fn first_wins(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    set(&*router, exact("a.test"), vec![to(1).under("/x"), to(2).under("/x"), to(3)])?;
    Ask::new("a.test", "/x").reaches(&*router, 1)
}

fn count(router: &dyn Router, host: &str, requests: usize) -> Verdict<BTreeMap<u32, usize>> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        *counts.entry(Ask::new(host, "/").target(router)?.revision.slot()).or_insert(0) += 1;
    }
    Ok(counts)
}

async fn exact_split(subject: &Subject) -> Verdict {
    for weights in [&[50, 50][..], &[1, 99], &[33, 33, 34], &[100], &[0, 100], &[10, 20, 30, 40]] {
        let router = (subject.make)();
        set(&*router, exact("a.test"), vec![split(weights)])?;
        for run in 0..5 {
            let counts = count(&*router, "a.test", 100)?;
            for (slot, weight) in (0..).zip(weights) {
                let got = counts.get(&slot).copied().unwrap_or(0);
                ensure!(
                    got == *weight as usize,
                    "run {run} of {weights:?}: revision {slot} got {got} of 100"
                );
            }
        }
    }
    Ok(())
}

async fn separate_splits(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    set(&*router, exact("a.test"), vec![split(&[30, 70]), split(&[50, 50]).under("/x")])?;
    set(&*router, exact("b.test"), vec![split(&[20, 80])])?;
    let rules = [("a.test", "/"), ("a.test", "/x"), ("b.test", "/")];
    let mut counts = [0_usize; 3];
    // A hundred each, in blocks of such lengths that one counter for all would show.
    for (at, requests) in [(0, 50), (1, 30), (0, 50), (2, 10), (1, 70), (2, 90)] {
        let (host, path) = rules[at];
        for _ in 0..requests {
            counts[at] += usize::from(Ask::new(host, path).target(&*router)?.revision == key(0));
        }
    }
    ensure!(counts == [30, 50, 20], "of 100 each the first revisions got {counts:?}, not [30, 50, 20]");
    Ok(())
}

async fn exact_in_threads(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    set(&*router, exact("a.test"), vec![split(&[25, 75])])?;
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let router = Arc::clone(&router);
            std::thread::spawn(move || count(&*router, "a.test", 500).map(|counts| counts.get(&0).copied()))
        })
        .collect();
    let mut first = 0;
    for thread in threads {
        let counted = thread.join().map_err(|_| Stop::fail("route panicked in a thread"))?;
        first += counted?.unwrap_or(0);
    }
    ensure!(first == 500, "of 2,000 requests 25 % are 500, the revision got {first}");
    Ok(())
}

async fn reproducible(subject: &Subject) -> Verdict {
    let routers = [(subject.make)(), (subject.make)()];
    for router in &routers {
        set(&**router, exact("a.test"), vec![split(&[40, 60])])?;
    }
    for at in 0..200 {
        let one = Ask::new("a.test", "/").target(&*routers[0])?.revision;
        let other = Ask::new("a.test", "/").target(&*routers[1])?.revision;
        ensure!(one == other, "request {at} goes to {one:?} in one router, to {other:?} in its twin");
    }
    Ok(())
}

async fn disabled(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    set(&*router, exact("a.test"), vec![RouteRule::new(TenantKey(1), RouteAction::Split(Vec::new()))])?;
    Ask::new("a.test", "/").fails(&*router, RouteError::Disabled)
}

fn refused(router: &dyn Router, changes: Vec<RouteChange>, mentions: &str) -> Verdict {
    match router.apply(changes) {
        Ok(()) => Err(Stop::fail(format!("accepted a change that is wrong for {mentions}"))),
        Err(error) => {
            ensure!(error.kind == ErrorKind::InvalidSpec, "the kind is {:?}, not InvalidSpec", error.kind);
            ensure!(error.chain().contains(mentions), "{:?} does not mention {mentions}", error.chain());
            Ok(())
        }
    }
}

async fn bad_weights(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    for weights in [&[50, 49][..], &[100, 1], &[0], &[u32::MAX, 101]] {
        let change = RouteChange::Set { host: exact("bad.test"), rules: vec![split(weights)] };
        refused(&*router, vec![change], "bad.test")?;
        Ask::new("bad.test", "/").fails(&*router, RouteError::NoRoute)?;
    }
    Ok(())
}

async fn all_or_nothing(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    set(&*router, exact("a.test"), vec![to(1)])?;
    let changes = vec![
        RouteChange::Set { host: exact("a.test"), rules: vec![to(2)] },
        RouteChange::Set { host: exact("new.test"), rules: vec![to(2)] },
        RouteChange::Set { host: exact("bad.test"), rules: vec![split(&[1])] },
    ];
    refused(&*router, changes, "bad.test")?;
    Ask::new("a.test", "/").reaches(&*router, 1)?;
    Ask::new("new.test", "/").fails(&*router, RouteError::NoRoute)
}

async fn redirect(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    let action =
        RouteAction::Redirect { status: 308, location: "https://new.test{path}?{query}&from=old".into() };
    set(&*router, exact("old.test"), vec![RouteRule::new(TenantKey(1), action)])?;
    match Ask::new("old.test", "/a/b").query("x=1").route(&*router) {
        Ok(Route::Redirect { status, location }) => {
            ensure!(status == 308, "the status is {status}");
            ensure!(location == "https://new.test/a/b?x=1&from=old", "the location is {location}");
            Ok(())
        }
        other => Err(Stop::fail(format!("a redirect is routed to {other:?}"))),
    }
}

async fn affinity(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    let mut by_header = to(1);
    by_header.affinity = Affinity::Header("x-session".into());
    let mut by_cookie = to(1);
    by_cookie.affinity = Affinity::Cookie("sid".into());
    set(&*router, exact("h.test"), vec![by_header])?;
    set(&*router, exact("c.test"), vec![by_cookie])?;
    let of = |ask: Ask<'_>| ask.target(&*router).map(|target| target.affinity);
    let alice = of(Ask::new("h.test", "/").header("x-session", "alice"))?;
    ensure!(alice.is_some(), "a session header gives no affinity");
    ensure!(alice == of(Ask::new("h.test", "/").header("x-session", "alice"))?, "it is not the same twice");
    ensure!(alice != of(Ask::new("h.test", "/").header("x-session", "bob"))?, "two sessions share one");
    ensure!(of(Ask::new("h.test", "/"))?.is_none(), "no header gives an affinity");
    let cookie = of(Ask::new("c.test", "/").header("cookie", "a=b; sid=alice; z=1"))?;
    ensure!(cookie.is_some(), "a session cookie gives no affinity");
    ensure!(
        cookie == of(Ask::new("c.test", "/").header("cookie", "sid=alice"))?,
        "it hangs on other cookies"
    );
    ensure!(of(Ask::new("c.test", "/").header("cookie", "xsid=alice"))?.is_none(), "another cookie counts");
    Ok(())
}

async fn handed_on(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    let mut rule = to(1);
    rule.tenant = TenantKey(77);
    rule.timeout = Duration::from_millis(1234);
    rule.wakes = false;
    rule.fallback = Some(key(9));
    set(&*router, exact("a.test"), vec![rule])?;
    let target = Ask::new("a.test", "/").target(&*router)?;
    ensure!(target.tenant == TenantKey(77), "the tenant is {:?}", target.tenant);
    ensure!(target.timeout == Duration::from_millis(1234), "the time-out is {:?}", target.timeout);
    ensure!(!target.wakes, "it may wake");
    ensure!(target.fallback == Some(key(9)), "the fallback is {:?}", target.fallback);
    Ok(())
}

async fn replaced(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    set(&*router, exact("a.test"), vec![to(1), to(2).under("/x")])?;
    set(&*router, exact("a.test"), vec![to(3).under("/y")])?;
    Ask::new("a.test", "/y").reaches(&*router, 3)?;
    Ask::new("a.test", "/x").fails(&*router, RouteError::NoRoute)
}

async fn remote(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    let mut there =
        RouteRule::new(TenantKey(9), RouteAction::Remote { peer: "host-b".to_owned() }).under("/there");
    there.timeout = Duration::from_secs(7);
    set(&*router, exact("a.test"), vec![to(1), there])?;
    Ask::new("a.test", "/").reaches(&*router, 1)?;
    match Ask::new("a.test", "/there/x").route(&*router) {
        Ok(Route::Remote(remote)) => {
            ensure!(&*remote.peer == "host-b", "the rule names host-b, the route {}", remote.peer);
            ensure!(remote.tenant == TenantKey(9), "the rule's tenant is 9, the route's {:?}", remote.tenant);
            let timeout = Duration::from_secs(7);
            ensure!(remote.timeout == timeout, "the rule says {timeout:?}, the route {:?}", remote.timeout);
        }
        other => return Err(Stop::fail(format!("the rule leads to host-b, the route is {other:?}"))),
    }
    let nowhere = RouteRule::new(TenantKey(9), RouteAction::Remote { peer: String::new() });
    let refused = router.apply(vec![RouteChange::Set { host: exact("a.test"), rules: vec![nowhere] }]);
    let kind = refused.err().map(|error| error.kind);
    ensure!(kind == Some(ErrorKind::InvalidSpec), "a host without a name is no InvalidSpec, but {kind:?}");
    Ask::new("a.test", "/").reaches(&*router, 1)
}

async fn removed(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    for host in [exact("a.test"), HostPattern::Wildcard("w.test".into()), HostPattern::Any] {
        set(&*router, host.clone(), vec![to(1)])?;
        for _ in 0..2 {
            router
                .apply(vec![RouteChange::Remove { host: host.clone() }])
                .map_err(|error| Stop::fail(format!("remove of {host}: {}", error.chain())))?;
        }
    }
    for host in ["a.test", "x.w.test", "other.test"] {
        Ask::new(host, "/").fails(&*router, RouteError::NoRoute)?;
    }
    Ok(())
}

async fn never_without(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    set(&*router, exact("a.test"), vec![to(0)])?;
    Ask::new("a.test", "/").reaches(&*router, 0)?;
    let over = Arc::new(AtomicBool::new(false));
    let reader = {
        let (router, over) = (Arc::clone(&router), Arc::clone(&over));
        std::thread::spawn(move || {
            let mut last = 0;
            while last < 500 && !over.load(SeqCst) {
                let seen = Ask::new("a.test", "/").target(&*router)?.revision.slot();
                ensure!(seen >= last, "revision {last} was seen, and {seen} after it");
                last = seen;
            }
            Ok::<(), Stop>(())
        })
    };
    let changed = (1..=500).try_for_each(|round| {
        set(&*router, exact("a.test"), vec![to(round)])?;
        // What was applied is seen by whoever asks afterwards, and another change changes nothing about it.
        Ask::new("a.test", "/").reaches(&*router, round)?;
        set(&*router, exact(&format!("other-{round}.test")), vec![to(round)])?;
        Ask::new("a.test", "/").reaches(&*router, round)
    });
    // Whatever came of it, the reader ends.
    over.store(true, SeqCst);
    reader.join().map_err(|_| Stop::fail("route panicked in a thread"))??;
    changed
}

async fn many(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    let hosts: Vec<String> = (0..10_000).map(|at| format!("svc-{at}.tenant-{}.test", at % 97)).collect();
    for (at, chunk) in hosts.chunks(1000).enumerate() {
        let changes = (0_u32..)
            .zip(chunk)
            .map(|(within, host)| RouteChange::Set {
                host: exact(host),
                rules: vec![to(u32::try_from(at).unwrap_or(0) * 1000 + within)],
            })
            .collect();
        router.apply(changes).map_err(|error| Stop::fail(format!("apply: {}", error.chain())))?;
    }
    for (slot, host) in (0..).zip(&hosts) {
        Ask::new(host, "/").reaches(&*router, slot)?;
    }
    Ok(())
}

async fn odd_queries(subject: &Subject) -> Verdict {
    let router = (subject.make)();
    set(&*router, HostPattern::Wildcard("a.test".into()), vec![to(1).under("/x")])?;
    let long = "x".repeat(70_000);
    let dots = ".".repeat(300);
    for host in ["", ".", "..", "a.test.", "ä.test", "\u{0}", "[::1]", "İ.a.test", &long, &dots] {
        for path in ["", "/", "*", "x", "//", "/x//", "/%00", "/\u{10FFFF}", &long] {
            for query in [None, Some(""), Some("&&=="), Some("%zz=%"), Some(long.as_str())] {
                let mut ask = Ask::new(host, path);
                ask.query = query;
                let _ = ask.route(&*router);
            }
        }
    }
    Ok(())
}
