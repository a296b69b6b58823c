//! Who has signed in: the token stays here, the browser has a random id.

use std::{
    collections::HashMap,
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
use tokio::time::Instant;

/// How long a session lives, whatever is done in it.
pub(crate) const LIFE: Duration = Duration::from_secs(8 * 3600);
/// Sessions at once; the oldest goes when there are more.
const MOST: usize = 1024;
/// Sign-ins that fail within [`FAILURES_WITHIN`] before more are refused unread.
const FAILURES: usize = 20;
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
    failures: Vec<Instant>,
}

fn random() -> std::io::Result<String> {
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
        if inner.open.len() >= MOST {
            let oldest = inner.open.iter().min_by_key(|(_, session)| session.number).map(|(id, _)| *id);
            if let Some(session) = oldest.and_then(|id| inner.open.remove(&id)) {
                session.end();
            }
        }
        inner.opened += 1;
        let session = Session {
            number: inner.opened,
            token,
            form,
            said: Mutex::new(None),
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

    /// Whether a sign-in is looked at: many that failed are somebody who guesses.
    pub(crate) fn may_try(&self) -> bool {
        let now = Instant::now();
        let mut inner = self.0.lock();
        inner.failures.retain(|at| now < *at + FAILURES_WITHIN);
        inner.failures.len() < FAILURES
    }

    /// Counts a sign-in that failed.
    pub(crate) fn failed(&self) {
        let mut inner = self.0.lock();
        if inner.failures.len() < FAILURES {
            inner.failures.push(Instant::now());
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
        let last = (0..MOST).map(|_| sessions.open(Secret::new("more")).unwrap()).last().unwrap();
        assert!(sessions.of(&with(&format!("sas_console_8081={first}"))).is_none());
        assert!(sessions.of(&with(&format!("sas_console_8081={last}"))).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_has_to_wait() {
        let sessions = Sessions::default();
        for _ in 0..FAILURES {
            assert!(sessions.may_try());
            sessions.failed();
        }
        assert!(!sessions.may_try());
        tokio::time::advance(FAILURES_WITHIN).await;
        assert!(sessions.may_try());
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
