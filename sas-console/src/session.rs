//! Who has signed in: the token stays here, the browser has a random id.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header};
use parking_lot::Mutex;
use sas_core::Secret;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::{sync::Semaphore, time::Instant};

/// How long a session lives, whatever is done in it.
pub(crate) const LIFE: Duration = Duration::from_secs(8 * 3600);
/// Sessions at once; the oldest goes when there are more.
const MOST: usize = 1024;
/// Sessions of one token; its own oldest goes when there are more.
const OF_TOKEN: usize = 32;
/// Pages that one session keeps live at once.
pub(crate) const STREAMS: usize = 32;
/// Sign-ins of one address that fail within [`FAILURES_WITHIN`] before more are refused unread.
const FAILURES: usize = 20;
/// Addresses whose failures are counted apart; those beyond are counted together.
const ADDRESSES: usize = 4096;
const FAILURES_WITHIN: Duration = Duration::from_secs(60);

/// One who has signed in.
#[derive(Debug)]
pub(crate) struct Session {
    /// Names the session within this process. No secret: what the cookie holds is not told by it.
    pub(crate) number: u64,
    pub(crate) token: Secret,
    /// Stands in every form: who sends one has seen a page of this session.
    pub(crate) form: String,
    /// What the last action has to say, until a page has said it.
    pub(crate) said: Mutex<Option<Said>>,
    pub(crate) streams: Arc<Semaphore>,
    ends: Instant,
    closed: AtomicBool,
}

/// What became of an action.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) fine: bool,
    pub(crate) text: String,
}

/// All sessions of a console.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By the digest of the id: who reads memory by its timing learns no id.
    open: HashMap<[u8; 32], Arc<Session>>,
    opened: u64,
    /// By the address; of those beyond [`ADDRESSES`] by none.
    failures: HashMap<Option<IpAddr>, Vec<Instant>>,
}

impl Inner {
    /// Under which address a failure is counted: who has one address of IPv6 has its whole network.
    fn counted(&self, peer: Option<IpAddr>) -> Option<IpAddr> {
        let peer = peer.map(|peer| match peer.to_canonical() {
            IpAddr::V6(six) => IpAddr::V6((six.to_bits() >> 64 << 64).into()),
            four => four,
        });
        peer.filter(|_| self.failures.len() < ADDRESSES || self.failures.contains_key(&peer))
    }

    fn end_oldest(&mut self, of: impl Fn(&Session) -> bool) {
        let those = self.open.iter().filter(|(_, session)| of(session));
        let oldest = those.min_by_key(|(_, session)| session.number).map(|(id, _)| *id);
        if let Some(session) = oldest.and_then(|id| self.open.remove(&id)) {
            session.end();
        }
    }
}

/// 256 random bits in letters that any place takes.
///
/// # Errors
/// When the system has no randomness.
pub(crate) fn random() -> std::io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn digest(id: &str) -> [u8; 32] {
    Sha256::digest(id.as_bytes()).into()
}

impl Session {
    /// Whether it still lives: pages that go on ask.
    pub(crate) fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Relaxed) && self.ends > Instant::now()
    }

    fn end(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether a form was made for this session.
    pub(crate) fn made(&self, form: &str) -> bool {
        self.form.as_bytes().ct_eq(form.as_bytes()).into()
    }
}

impl Sessions {
    /// Opens a session for a token that was found right; gives the id for the cookie.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(crate) fn open(&self, token: Secret) -> std::io::Result<String> {
        let (id, form, now) = (random()?, random()?, Instant::now());
        let mut inner = self.0.lock();
        inner.open.retain(|_, session| session.ends > now);
        let same = |session: &Session| session.token.expose() == token.expose();
        if inner.open.values().filter(|session| same(session)).count() >= OF_TOKEN {
            inner.end_oldest(same);
        }
        if inner.open.len() >= MOST {
            inner.end_oldest(|_| true);
        }
        inner.opened += 1;
        let session = Session {
            number: inner.opened,
            token,
            form,
            said: Mutex::new(None),
            streams: Arc::new(Semaphore::new(STREAMS)),
            ends: now + LIFE,
            closed: AtomicBool::new(false),
        };
        inner.open.insert(digest(&id), Arc::new(session));
        Ok(id)
    }

    /// The session of the cookie of a request, while it lives.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Option<Arc<Session>> {
        let id = cookie(headers)?;
        let session = self.0.lock().open.get(&digest(&id)).cloned()?;
        session.is_open().then_some(session)
    }

    /// Ends a session.
    pub(crate) fn close(&self, headers: &HeaderMap) {
        if let Some(id) = cookie(headers)
            && let Some(session) = self.0.lock().open.remove(&digest(&id))
        {
            session.end();
        }
    }

    /// Whether a sign-in of this address is looked at: many that failed are somebody who guesses, who must not keep others
    /// out.
    pub(crate) fn may_try(&self, peer: Option<IpAddr>) -> bool {
        let now = Instant::now();
        let mut inner = self.0.lock();
        inner.failures.retain(|_, failures| {
            failures.retain(|at| now < *at + FAILURES_WITHIN);
            !failures.is_empty()
        });
        let counted = inner.counted(peer);
        inner.failures.get(&counted).is_none_or(|failures| failures.len() < FAILURES)
    }

    /// Counts a sign-in that failed.
    pub(crate) fn failed(&self, peer: Option<IpAddr>) {
        let mut inner = self.0.lock();
        let counted = inner.counted(peer);
        let failures = inner.failures.entry(counted).or_default();
        if failures.len() < FAILURES {
            failures.push(Instant::now());
        }
    }
}

/// Cookies do not tell ports apart: two platforms on one host must not sign each other's operators out.
fn name(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let port = host.rsplit_once(':').map_or("", |(_, port)| port);
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    format!("sas_console_{}", if digits { port } else { "0" })
}

fn cookie(headers: &HeaderMap) -> Option<String> {
    let name = name(headers);
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, id)| id.to_owned())
}

/// The cookie of a session: sent by pages of this console alone, never read by a script. Empty: it is to be forgotten.
pub(crate) fn set_cookie(headers: &HeaderMap, id: &str, secure: bool) -> String {
    let life = if id.is_empty() { 0 } else { LIFE.as_secs() };
    let secure = if secure { "; Secure" } else { "" };
    let name = name(headers);
    format!("{name}={id}; Path=/console; Max-Age={life}; HttpOnly; SameSite=Strict{secure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(cookie: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "localhost:8081".parse().unwrap());
        headers.insert(header::COOKIE, cookie.parse().unwrap());
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_found_by_its_cookie_until_it_ends() {
        let sessions = Sessions::default();
        let id = sessions.open(Secret::new("token")).unwrap();
        let headers = with(&format!("other=1; sas_console_8081={id}"));
        assert_eq!(sessions.of(&headers).unwrap().token.expose(), "token");
        assert!(sessions.of(&with("sas_console_8081=guessed")).is_none());
        assert!(sessions.of(&with(&format!("sas_console_9090={id}"))).is_none(), "of another port");
        tokio::time::advance(LIFE).await;
        assert!(sessions.of(&headers).is_none(), "it has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_are_bounded_and_the_oldest_goes() {
        let sessions = Sessions::default();
        let first = sessions.open(Secret::new("first")).unwrap();
        let more = |at: usize| sessions.open(Secret::new(format!("more-{at}"))).unwrap();
        let last = (0..MOST).map(more).last().unwrap();
        assert!(sessions.of(&with(&format!("sas_console_8081={first}"))).is_none());
        assert!(sessions.of(&with(&format!("sas_console_8081={last}"))).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_signs_in_again_and_again_ends_its_own_sessions_alone() {
        let sessions = Sessions::default();
        let operator = sessions.open(Secret::new("operator")).unwrap();
        let first = sessions.open(Secret::new("script")).unwrap();
        for _ in 0..MOST {
            sessions.open(Secret::new("script")).unwrap();
        }
        assert!(sessions.of(&with(&format!("sas_console_8081={operator}"))).is_some());
        assert!(sessions.of(&with(&format!("sas_console_8081={first}"))).is_none());
        assert_eq!(sessions.0.lock().open.len(), OF_TOKEN + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_has_to_wait_and_nobody_else() {
        let sessions = Sessions::default();
        let address = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let guesser = address("2001:db8::1");
        for _ in 0..FAILURES {
            assert!(sessions.may_try(guesser));
            sessions.failed(guesser);
        }
        assert!(!sessions.may_try(guesser) && !sessions.may_try(address("2001:db8::2")), "one network");
        assert!(sessions.may_try(address("192.0.2.1")) && sessions.may_try(None));
        tokio::time::advance(FAILURES_WITHIN).await;
        assert!(sessions.may_try(guesser));
        for at in 0..2 * ADDRESSES as u32 {
            sessions.failed(Some(IpAddr::V4(at.into())));
        }
        assert!(sessions.0.lock().failures.len() <= ADDRESSES + 1, "what is counted has a bound");
    }

    #[test]
    fn the_cookie_is_for_this_console_alone() {
        let set = set_cookie(&with("a=b"), "id", true);
        for part in ["sas_console_8081=id", "Path=/console", "HttpOnly", "SameSite=Strict", "Secure"] {
            assert!(set.contains(part), "{set}");
        }
        assert!(set_cookie(&with("a=b"), "", false).contains("Max-Age=0"));
    }
}
