//! Other hosts of the same platform: requests whose route leads there are passed on, once, marked and signed.

use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::{BuildHasher as _, Hasher as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use hmac::{Hmac, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use parking_lot::{Mutex, RwLock};
use sas_core::{
    Clock, Cx, Endpoint, Error, ErrorKind, Instance, InstanceId, InstanceTarget, Lease, LeaseOwner, Outcome,
    Payer, Protocol, Purpose, Request, Result, SystemClock, TenantKey, Timestamp,
};
use sha2::Sha256;
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::Instant,
};

use crate::shares::Passed;

/// What a host that passes a request on says about it to the next one.
pub(crate) const MARK: HeaderName = HeaderName::from_static("x-sas-hop");
/// RFC 8586: the hosts that a request passed. Nobody takes it out, so that a circle ends also where marks are not believed.
pub(crate) const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// How often a request is passed on at most, where hosts say what they know: each time by a host that knows more than the one
/// before it. When hosts are replaced one after the other, a service may move twice meanwhile.
const MOST_HOPS: u8 = 4;
/// How far the clocks of two hosts may be apart, and how old a mark may be, before it is not believed.
const FRESH: Duration = Duration::from_secs(60);
/// A key that is shorter can be guessed.
const LEAST_KEY_BYTES: usize = 32;

/// The other hosts of a platform: where each is reached, and the key by which they know each other.
///
/// A route with [`sas_core::RouteAction::Remote`] names one. The gateway passes such a request on over one hop: body,
/// trailers and upgrades stream through, and what is left of its time goes along. It carries a mark that is signed with
/// the key of all hosts (HMAC-SHA-256 over the hop, the time and the head), by which the next host knows that it comes from
/// a host and not from a client. A marked request is never passed on again: it is answered with 508. Marks that clients send
/// are taken out.
///
/// ```
/// use sas_core::Endpoint;
/// use sas_router::{GatewayConfig, Peers};
/// let peers = Peers::new("host-a", b"a key of 32 bytes or more, shared")?;
/// peers.set("host-b", Endpoint::Tcp("192.0.2.7:8080".parse()?));
/// let mut config = GatewayConfig::default();
/// config.peers = Some(peers);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Peers {
    name: String,
    key: Hmac<Sha256>,
    clock: Arc<dyn Clock>,
    known: RwLock<HashMap<String, Arc<Peer>>>,
    next: AtomicU64,
    /// What tells this start from others of the host, and how many marks it made: no mark is taken twice.
    start: u64,
    made: AtomicU64,
    /// By the host and its start.
    taken: Mutex<HashMap<(String, u64), Taken>>,
    /// Marks that a host made and this one did not take, and when that was said last.
    refused: AtomicU64,
    said: Mutex<Option<Instant>>,
    /// Up to which change this host's routes know who acts for what. 0: nobody says so.
    view: watch::Sender<u64>,
    /// For how many milliseconds a request may wait until its host is known and there.
    hold_ms: AtomicU64,
    held: Semaphore,
}

/// Marks of one start of a host that were taken.
#[derive(Debug, Default)]
struct Taken {
    highest: u64,
    /// Of the last ones, whether each was taken: a ring of bits.
    recent: Vec<u64>,
}

/// How far behind the youngest mark of a host another one may come.
const RECENT: u64 = 65_536;
/// Starts of hosts whose marks are remembered: more than there are, and not more than fit.
const TAKEN: usize = 4_096;
/// Requests that wait at once until their host is there.
const HELD: usize = 1_000;
/// How often it is said that marks were not taken.
const SAID: Duration = Duration::from_secs(10);

impl Taken {
    /// Whether a mark comes for the first time.
    fn is_first(&mut self, number: u64) -> bool {
        if self.recent.is_empty() {
            self.recent = vec![0; (RECENT / 64) as usize];
        }
        let place = |number: u64| ((number % RECENT / 64) as usize, 1_u64 << (number % 64));
        if number > self.highest {
            // What is forgotten is what was a whole round before.
            for skipped in (self.highest + 1..=number).take(RECENT as usize) {
                let (word, bit) = place(skipped);
                self.recent[word] &= !bit;
            }
            self.highest = number;
        } else if self.highest - number >= RECENT {
            return false;
        }
        let (word, bit) = place(number);
        let first = self.recent[word] & bit == 0;
        self.recent[word] |= bit;
        first
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers")
            .field("name", &self.name)
            .field("known", &self.names())
            .finish_non_exhaustive()
    }
}

/// Another host, as the upstream client sees it.
#[derive(Debug)]
pub(crate) struct Peer {
    id: InstanceId,
    name: String,
    endpoint: Endpoint,
    /// How it is spoken to. Upgrades go over HTTP/1.1 whatever this says.
    pub(crate) protocol: Protocol,
}

#[async_trait]
impl Instance for Peer {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Endpoint(&self.endpoint)
    }

    async fn stop(&self, _grace: Duration) -> Result<()> {
        Err(Error::unsupported("stopping another host"))
    }
}

/// A lease of another host holds nothing here.
struct Nobody;

impl LeaseOwner for Nobody {
    fn release(&self, _token: u64, _outcome: Outcome) {}
}

/// Ids of peers, which no instance has: pools give out none with the top bit.
const PEER: u64 = 1 << 63;

impl Peers {
    /// Knows nobody yet. `name` is this host's own, as the others' routes say it; `key` is the same on all hosts.
    ///
    /// # Errors
    /// `InvalidSpec` for a name that no header can carry, or a key of less than 32 bytes.
    pub fn new(name: impl Into<String>, key: &[u8]) -> Result<Arc<Self>> {
        Self::with_clock(name, key, Arc::new(SystemClock))
    }

    /// The same on a clock of the caller's.
    ///
    /// # Errors
    /// As [`Peers::new`].
    pub fn with_clock(name: impl Into<String>, key: &[u8], clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let name = name.into();
        let invalid = |message: String| Error::new(ErrorKind::InvalidSpec, "peers", message);
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if name.is_empty() || name.len() > 253 || !name.bytes().all(sound) {
            let message =
                format!("name: {name:?}: must be 1 to 253 letters, digits, dashes, dots or underscores");
            return Err(invalid(message));
        }
        if key.len() < LEAST_KEY_BYTES {
            let message =
                format!("key: {} bytes: must be at least {LEAST_KEY_BYTES} random bytes", key.len());
            return Err(invalid(message));
        }
        let key = Hmac::new_from_slice(key).map_err(|error| invalid(format!("key: {error}")))?;
        Ok(Arc::new(Self {
            name,
            key,
            // The standard library seeds it with random bits of the system: clocks may be set back.
            start: RandomState::new().build_hasher().finish(),
            clock,
            known: RwLock::default(),
            next: AtomicU64::new(PEER),
            made: AtomicU64::new(0),
            taken: Mutex::default(),
            refused: AtomicU64::new(0),
            said: Mutex::default(),
            view: watch::Sender::new(0),
            hold_ms: AtomicU64::new(0),
            held: Semaphore::new(HELD),
        }))
    }

    /// Lets requests wait for so long, up to 1,000 at once, while their route leads to this host itself (it is about to act
    /// for the service) or to one that can't be reached, as long as nothing was sent. Zero, the default: they are answered
    /// with 503 at once.
    pub fn set_hold(&self, hold: Duration) {
        self.hold_ms.store(u64::try_from(hold.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn hold(&self) -> Duration {
        Duration::from_millis(self.hold_ms.load(Ordering::Relaxed))
    }

    /// A place to wait in; `None` when as many wait as may.
    pub(crate) fn place_to_wait(&self) -> Option<SemaphorePermit<'_>> {
        self.held.try_acquire().ok()
    }

    /// Says that this host's routes know all changes of who acts for what, up to this one: any number that all hosts count in
    /// the same way, and that never goes back, such as a version of their store. A request that was passed on waits until
    /// this host knows at least as much as the one that passed it on, and one hop more is allowed: from a host that gave the
    /// service away.
    pub fn set_view(&self, view: u64) {
        self.view.send_if_modified(|now| view > std::mem::replace(now, view.max(*now)));
    }

    /// Waits until this host knows as much as the one that passed a request on, but no longer than may be waited.
    pub(crate) async fn catch_up(&self, view: u64) {
        let mut views = self.view.subscribe();
        if *views.borrow() >= view {
            return;
        }
        let _ = tokio::time::timeout(self.hold(), views.wait_for(|now| *now >= view)).await;
    }

    /// How often a request may be passed on.
    pub(crate) fn most_hops(&self) -> u8 {
        if *self.view.borrow() == 0 { 1 } else { MOST_HOPS }
    }

    /// This host's own name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// From now on the peer is reached there, over HTTP/1.1.
    pub fn set(&self, name: impl Into<String>, endpoint: Endpoint) {
        self.set_over(name, endpoint, Protocol::Http1);
    }

    /// From now on the peer is reached there, over this protocol; upgrades go over HTTP/1.1 all the same.
    pub fn set_over(&self, name: impl Into<String>, endpoint: Endpoint, protocol: Protocol) {
        let name = name.into();
        // A new id with every place, so that no connection to the old one is used.
        let id = InstanceId(self.next.fetch_add(1, Ordering::Relaxed));
        let peer = Arc::new(Peer { id, name: name.clone(), endpoint, protocol });
        self.known.write().insert(name, peer);
    }

    /// The same, unless it is reached there already: its connections stay.
    pub fn set_over_if_new(&self, name: &str, endpoint: Endpoint, protocol: Protocol) {
        let known = self.get(name);
        if known.is_none_or(|known| known.endpoint != endpoint || known.protocol != protocol) {
            self.set_over(name, endpoint, protocol);
        }
    }

    /// Forgets a peer: requests to it are answered with 503.
    pub fn remove(&self, name: &str) {
        self.known.write().remove(name);
    }

    /// The peers that are known, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.known.read().keys().cloned().collect();
        names.sort_unstable();
        names
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Peer>> {
        self.known.read().get(name).cloned()
    }

    /// Whether the request passed this host before, by what every host says of itself and nobody takes out.
    pub(crate) fn has_passed(&self, headers: &HeaderMap) -> bool {
        has_passed(&self.name, headers)
    }

    /// Whether a request could be passed on to a host: another one, that is there, and that it has not passed.
    pub(crate) fn could_have(&self, name: &str, headers: &HeaderMap) -> bool {
        name != self.name && self.known.read().contains_key(name) && !has_passed(name, headers)
    }

    /// Signs a request for `peer`, and says that it was here.
    pub(crate) fn sign(&self, request: &mut Request, peer: &Peer, cx: &Cx, hops: u8) {
        let left = cx.deadline.saturating_duration_since(Instant::now());
        let hop = Hop {
            from: &self.name,
            to: &peer.name,
            at: self.clock.now(),
            left,
            payer: match cx.payer {
                Payer::Tenant(tenant) => Some(tenant),
                _ => None,
            },
            purpose: cx.purpose,
            start: self.start,
            number: self.made.fetch_add(1, Ordering::Relaxed) + 1,
            view: *self.view.borrow(),
            hops,
        };
        let said = hop.to_string();
        let signature = self.signature(&said, request).finalize().into_bytes();
        let mut text = said;
        text.push_str(" s=");
        for byte in signature {
            text.push_str(&format!("{byte:02x}"));
        }
        let mark = HeaderValue::try_from(text).expect("names, digits and spaces");
        let passed = HeaderValue::try_from(format!("sas-{}", self.name)).expect("a name that was checked");
        let headers = request.headers_mut();
        headers.insert(MARK, mark);
        headers.append(CDN_LOOP, passed);
    }

    /// Takes the mark off a request. `Some` when it is a peer's, for this host, fresh and signed with the key of all.
    pub(crate) fn take(&self, request: &mut Request) -> Option<Marked> {
        let marks = request.headers().get_all(MARK).iter().count();
        let mark = request.headers_mut().remove(MARK).filter(|_| marks == 1)?;
        let (said, signature) = mark.to_str().ok()?.rsplit_once(" s=")?;
        let mut given = [0_u8; 32];
        if signature.len() != 2 * given.len() || !signature.is_ascii() {
            return None;
        }
        for (at, byte) in given.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&signature[2 * at..2 * at + 2], 16).ok()?;
        }
        // In constant time.
        self.signature(said, request).verify_slice(&given).ok()?;
        let hop = Hop::parse(said)?;
        let now = self.clock.now();
        let apart = now.since(hop.at).max(hop.at.since(now));
        let refused = if hop.to != self.name {
            Some(format!("it was meant for {}, and this host is {}", hop.to, self.name))
        } else if apart > FRESH {
            Some(format!("its time is {apart:?} off this host's: set the clocks of both by one source"))
        } else if !self.is_first(&hop) {
            Some("it was taken before, or comes too late to know".to_owned())
        } else {
            None
        };
        if let Some(reason) = refused {
            self.note_refused(hop.from, &reason);
            return None;
        }
        Some(Marked {
            from: hop.from.to_owned(),
            left: hop.left,
            payer: hop.payer.map_or(Payer::Owner, Payer::Tenant),
            purpose: hop.purpose,
            view: hop.view,
            hops: hop.hops,
        })
    }

    /// Whether a mark, which is a host's own, was not taken before.
    fn is_first(&self, hop: &Hop<'_>) -> bool {
        let mut taken = self.taken.lock();
        let from = (hop.from.to_owned(), hop.start);
        if taken.len() >= TAKEN && !taken.contains_key(&from) {
            // Hosts that came and went; those that are still there come again.
            taken.clear();
        }
        taken.entry(from).or_default().is_first(hop.number)
    }

    /// Says from time to time why requests of a host, which has the key, are taken as those of a client.
    fn note_refused(&self, from: &str, reason: &str) {
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        let now = Instant::now();
        let mut said = self.said.lock();
        if said.is_none_or(|said| now.duration_since(said) >= SAID) {
            *said = Some(now);
            tracing::warn!(
                from,
                reason,
                refused,
                "a host's mark is not believed: its request counts as a client's"
            );
        }
    }

    /// Of the hop and of the head that decides where the request goes and who asks.
    fn signature(&self, hop: &str, request: &Request) -> Hmac<Sha256> {
        let mut mac = self.key.clone();
        let header = |name: &HeaderName| request.headers().get(name).map_or(&b""[..], HeaderValue::as_bytes);
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let method = request.method().as_str();
        // Over HTTP/2 the host stands in the target.
        let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        let host = authority.unwrap_or_else(|| header(&header::HOST));
        let id = header(&crate::REQUEST_ID);
        for part in [hop.as_bytes(), method.as_bytes(), host, path.as_bytes(), id] {
            // With lengths, so that nothing moves from one part to the next.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

/// Whether a request passed the host of this name.
fn has_passed(name: &str, headers: &HeaderMap) -> bool {
    let lists = headers.get_all(CDN_LOOP).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|hop| {
        let hop = hop.split(';').next().unwrap_or_default().trim();
        hop.strip_prefix("sas-").is_some_and(|passed| passed == name)
    })
}

/// A lease for a call of another host, which `passed` counts until it is over.
pub(crate) fn lease(peer: &Arc<Peer>, passed: Option<&Arc<Passed>>) -> Lease {
    let owner = match passed {
        Some(passed) => {
            passed.begin();
            Arc::clone(passed) as Arc<dyn LeaseOwner>
        }
        None => Arc::new(Nobody),
    };
    Lease::new(Arc::clone(peer) as Arc<dyn Instance>, owner, 0)
}

/// What a request says that another host passed on.
#[derive(Clone, Debug)]
pub(crate) struct Marked {
    pub(crate) from: String,
    /// What was left of its time when it was passed on.
    pub(crate) left: Duration,
    pub(crate) payer: Payer,
    pub(crate) purpose: Purpose,
    /// What the host that passed it on knew of who acts for what.
    pub(crate) view: u64,
    /// How often it was passed on.
    pub(crate) hops: u8,
}

/// One hop, as it is written in a mark.
#[derive(Debug)]
struct Hop<'a> {
    from: &'a str,
    to: &'a str,
    at: Timestamp,
    left: Duration,
    payer: Option<TenantKey>,
    purpose: Purpose,
    start: u64,
    number: u64,
    view: u64,
    hops: u8,
}

const PURPOSES: [(Purpose, &str); 5] = [
    (Purpose::Traffic, "traffic"),
    (Purpose::Event, "event"),
    (Purpose::Workflow, "workflow"),
    (Purpose::Test, "test"),
    (Purpose::Probe, "probe"),
];

impl fmt::Display for Hop<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let purpose =
            PURPOSES.iter().find(|(purpose, _)| *purpose == self.purpose).map_or("traffic", |p| p.1);
        let payer = self.payer.map_or_else(|| "owner".to_owned(), |payer| payer.0.to_string());
        let (from, to, at) = (self.from, self.to, self.at.0);
        let (start, number, view, hops) = (self.start, self.number, self.view, self.hops);
        write!(f, "v2 {from} {to} {at} {} {payer} {purpose} ", self.left.as_millis())?;
        write!(f, "{start} {number} {view} {hops}")
    }
}

impl<'a> Hop<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(' ');
        if parts.next()? != "v2" {
            return None;
        }
        let (from, to) = (parts.next()?, parts.next()?);
        let at = Timestamp(parts.next()?.parse().ok()?);
        let left = Duration::from_millis(parts.next()?.parse().ok()?);
        let payer = match parts.next()? {
            "owner" => None,
            number => Some(TenantKey(number.parse().ok()?)),
        };
        let word = parts.next()?;
        let purpose = PURPOSES.iter().find(|(_, name)| *name == word)?.0;
        let start = parts.next()?.parse().ok()?;
        let number = parts.next()?.parse().ok()?;
        let view = parts.next()?.parse().ok()?;
        let hops = parts.next()?.parse().ok()?;
        let hop = Self { from, to, at, left, payer, purpose, start, number, view, hops };
        parts.next().is_none().then_some(hop)
    }
}

#[cfg(test)]
mod tests {
    use sas_core::{Body, RequestId};
    use sas_testkit::fake::FakeClock;

    use super::*;

    const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn marked(clock: &FakeClock) -> (Arc<Peers>, Request) {
        let peers = |name: &str| Peers::with_clock(name, KEY, Arc::new(clock.clone())).unwrap();
        let (a, b) = (peers("a"), peers("b"));
        a.set("b", Endpoint::Tcp("192.0.2.1:80".parse().unwrap()));
        let mut request = http::Request::get("/x?y=1").header("host", "s.test").body(Body::empty()).unwrap();
        let mut cx =
            Cx::new(Payer::Tenant(TenantKey(7)), RequestId(1), Instant::now() + Duration::from_secs(9));
        cx.purpose = Purpose::Event;
        a.sign(&mut request, &a.get("b").unwrap(), &cx, 1);
        (b, request)
    }

    #[tokio::test(start_paused = true)]
    async fn a_mark_says_what_goes_along_and_is_taken_off() {
        let (b, mut request) = marked(&FakeClock::starting_at(Timestamp(1_000_000)));
        let mark = b.take(&mut request).expect("it is sound");
        assert_eq!((mark.from.as_str(), mark.left), ("a", Duration::from_secs(9)));
        assert_eq!((mark.payer, mark.purpose), (Payer::Tenant(TenantKey(7)), Purpose::Event));
        assert!(!request.headers().contains_key(MARK));
        assert!(b.take(&mut request).is_none(), "once");
        assert!(!b.has_passed(request.headers()), "it was at a only");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_of_a_marked_request_can_be_changed_and_no_mark_used_elsewhere_or_later() {
        type Change = fn(&mut Request);
        let changes: [(&str, Change); 7] = [
            ("path", |r| *r.uri_mut() = "/other".parse().unwrap()),
            ("method", |r| *r.method_mut() = http::Method::DELETE),
            ("host", |r| drop(r.headers_mut().insert("host", HeaderValue::from_static("t.test")))),
            ("id", |r| drop(r.headers_mut().insert("x-request-id", HeaderValue::from_static("1")))),
            ("twice", |r| {
                let mark = r.headers()[MARK].clone();
                r.headers_mut().append(MARK, mark);
            }),
            ("payer", |r| {
                let mark = r.headers()[MARK].to_str().unwrap().replace(" 7 ", " 8 ");
                r.headers_mut().insert(MARK, mark.parse().unwrap());
            }),
            ("none", |r| {
                drop(r.headers_mut().insert(MARK, HeaderValue::from_static("v1 a b 1 1 owner traffic")))
            }),
        ];
        for (what, change) in changes {
            let (b, mut request) = marked(&FakeClock::starting_at(Timestamp(1_000_000)));
            change(&mut request);
            assert!(b.take(&mut request).is_none(), "{what}");
            assert!(!request.headers().contains_key(MARK), "{what}: taken off all the same");
        }
        let clock = FakeClock::starting_at(Timestamp(1_000_000));
        let (_, mut request) = marked(&clock);
        let c = Peers::with_clock("c", KEY, Arc::new(clock.clone())).unwrap();
        assert!(c.take(&mut request).is_none(), "it was for b");
        let (_, mut request) = marked(&clock);
        let other = Peers::with_clock("b", &[1; 32], Arc::new(clock.clone())).unwrap();
        assert!(other.take(&mut request).is_none(), "another key");
        let (b, mut request) = marked(&clock);
        clock.jump_forward(FRESH + Duration::from_secs(1));
        assert!(b.take(&mut request).is_none(), "too old");
    }

    #[test]
    fn a_mark_is_taken_once_in_whatever_order() {
        let mut taken = Taken::default();
        for number in [1, 3, 2, 70_000, 69_999, 4_465] {
            assert!(taken.is_first(number), "{number}");
            assert!(!taken.is_first(number), "{number} again");
        }
        assert!(!taken.is_first(3), "too far behind to be known");
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_starts_again_after_its_clock_went_back_is_believed() {
        let clock = FakeClock::starting_at(Timestamp(1_000_000));
        let earlier = FakeClock::starting_at(Timestamp(999_990));
        let b = Peers::with_clock("b", KEY, Arc::new(clock.clone())).unwrap();
        let cx = Cx::new(Payer::Owner, RequestId(1), Instant::now() + Duration::from_secs(9));
        for clock in [clock, earlier] {
            let a = Peers::with_clock("a", KEY, Arc::new(clock)).unwrap();
            a.set("b", Endpoint::Tcp("192.0.2.1:80".parse().unwrap()));
            let mut request = http::Request::get("/").header("host", "s.test").body(Body::empty()).unwrap();
            a.sign(&mut request, &a.get("b").unwrap(), &cx, 1);
            assert!(b.take(&mut request).is_some());
        }
    }

    #[test]
    fn keys_that_can_be_guessed_and_names_that_can_not_be_sent_are_refused() {
        assert!(Peers::new("a", b"short").unwrap_err().message.contains("at least 32"));
        assert!(Peers::new("a b", KEY).is_err());
        assert!(!format!("{:?}", Peers::new("a", KEY).unwrap()).contains("0123"), "the key is not shown");
    }
}
