//! The default authenticator: one bearer token, given or kept in a file that only its owner can read.

use std::{
    fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use http::{header, request::Parts};
use parking_lot::RwLock;
use sas_core::{Authenticator, Denied, Error, ErrorKind, Principal, Result, SpecErrors};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Bytes that a file with a token may have.
const LONGEST: u64 = 4096;
const SHOULD: &str = "must be visible ASCII characters without spaces";

/// Lets in whoever sends `Authorization: Bearer TOKEN` with the one token of this platform.
///
/// The token is given ([`TokenAuthenticator::new`]; changed by [`TokenAuthenticator::replace`]), or stands in a file
/// ([`TokenAuthenticator::file`]), which is read at each request: write another token into it, and from then on that
/// one is right and the old one is not. Only a digest of it is kept in memory and compared, in constant time; `Debug`
/// does not show it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use sas_control::TokenAuthenticator;
/// use sas_core::Authenticator;
///
/// let tokens = TokenAuthenticator::new("a-long-random-secret")?;
/// let request = http::Request::get("/v1/services").header("authorization", "Bearer a-long-random-secret");
/// let (head, ()) = request.body(())?.into_parts();
/// assert_eq!(tokens.authenticate(&head).await?.name(), "admin");
/// # Ok(())
/// # }
/// ```
pub struct TokenAuthenticator {
    principal: Principal,
    secret: Secret,
}

enum Secret {
    Given(RwLock<Digest>),
    File(PathBuf),
}

#[derive(Clone, Copy)]
struct Digest([u8; 32]);

impl Digest {
    fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }
}

impl fmt::Debug for TokenAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("TokenAuthenticator");
        match &self.secret {
            Secret::Given(_) => shown.field("token", &"given"),
            Secret::File(path) => shown.field("file", path),
        };
        shown.finish_non_exhaustive()
    }
}

fn refused(problem: &str) -> Error {
    let mut errors = SpecErrors::default();
    errors.push("admin token", "(not shown)", problem);
    Error::new(ErrorKind::InvalidSpec, "admin token", errors.to_string()).with_source(errors)
}

fn unusable(path: &Path, problem: impl fmt::Display) -> Error {
    let message = format!("the admin token's file {}: {problem}", path.display());
    Error::new(ErrorKind::InvalidSpec, "admin token", message)
}

fn check(token: &str) -> Result<()> {
    match token {
        "" => Err(refused("is empty; give a long random one, or none, then one is made")),
        token if !token.bytes().all(|byte| byte.is_ascii_graphic()) => Err(refused(SHOULD)),
        _ => Ok(()),
    }
}

impl TokenAuthenticator {
    /// With this token.
    ///
    /// # Errors
    /// `InvalidSpec` for an empty token, or one that a header can't carry.
    pub fn new(token: &str) -> Result<Self> {
        check(token)?;
        if token.len() < 16 {
            tracing::warn!("the admin token has less than 16 characters: it can be guessed");
        }
        Ok(Self::with(Secret::Given(RwLock::new(Digest::of(token)))))
    }

    /// With the token that stands in this file, whoever writes it there. The file must be readable by its owner only.
    ///
    /// # Errors
    /// `InvalidSpec` with the path when it is no such file, or holds no token.
    pub fn file(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        read(&path)?;
        Ok(Self::with(Secret::File(path)))
    }

    /// With the token in this file, which is made with a random one and mode 0600 if it is not there.
    ///
    /// # Errors
    /// `InvalidSpec` as [`TokenAuthenticator::file`]; `Unavailable` when the file can't be written.
    pub fn kept_in(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        match make(&path) {
            Ok(()) => Ok(Self::with(Secret::File(path))),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Self::file(path),
            Err(error) => {
                let message = format!("the admin token's file {} can't be made: {error}", path.display());
                Err(Error::new(ErrorKind::Unavailable, "admin token", message).with_source(error))
            }
        }
    }

    fn with(secret: Secret) -> Self {
        Self { principal: Principal::new("admin"), secret }
    }

    /// A random token: 32 bytes of the system's randomness, in base64 for URLs.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn random() -> std::io::Result<String> {
        crate::tokens::random_token()
    }

    /// From now on this token is the right one, and the one before is not.
    ///
    /// # Errors
    /// `InvalidSpec` as [`TokenAuthenticator::new`], `Unavailable` when the token's file can't be written; then the
    /// one before stays.
    pub fn replace(&self, token: &str) -> Result<()> {
        check(token)?;
        match &self.secret {
            Secret::Given(digest) => *digest.write() = Digest::of(token),
            Secret::File(path) => {
                let next = path.with_extension("next");
                let written = private(&next, true, token).and_then(|()| fs::rename(&next, path));
                written.map_err(|error| {
                    let message =
                        format!("the admin token's file {} can't be written: {error}", path.display());
                    Error::new(ErrorKind::Unavailable, "admin token", message).with_source(error)
                })?;
            }
        }
        tracing::info!("the admin token was replaced");
        Ok(())
    }

    /// The file that holds the token, if one does.
    pub fn path(&self) -> Option<&Path> {
        match &self.secret {
            Secret::Given(_) => None,
            Secret::File(path) => Some(path),
        }
    }

    async fn digest(&self) -> Result<Digest, Denied> {
        let path = match &self.secret {
            Secret::Given(digest) => return Ok(*digest.read()),
            Secret::File(path) => path.clone(),
        };
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        match read {
            Ok(Ok(token)) => Ok(Digest::of(&token)),
            Ok(Err(error)) => {
                tracing::error!(error = %error.chain(), "nobody is let in to the admin API");
                Err(Denied::Unavailable("the admin token can't be read; the log says why".to_owned()))
            }
            Err(_) => Err(Denied::Unavailable("the admin token can't be read now".to_owned())),
        }
    }
}

#[async_trait]
impl Authenticator for TokenAuthenticator {
    async fn authenticate(&self, head: &Parts) -> Result<Principal, Denied> {
        const SEND: &str = "send `Authorization: Bearer TOKEN` with the platform's admin token";
        let mut values = head.headers.get_all(header::AUTHORIZATION).iter();
        let token = match (values.next(), values.next()) {
            (None, _) => return Err(Denied::bearer(format!("no token; {SEND}"))),
            (Some(_), Some(_)) => {
                return Err(Denied::bearer(format!("several Authorization headers; {SEND}, once")));
            }
            (Some(value), None) => bearer(value).unwrap_or_default(),
        };
        if token.is_empty() {
            return Err(Denied::bearer(format!("the Authorization header holds no token; {SEND}")));
        }
        let digest = self.digest().await?;
        if bool::from(digest.0.ct_eq(&Digest::of(token).0)) {
            Ok(self.principal.clone())
        } else {
            Err(Denied::bearer(format!("this is not the token; {SEND}")))
        }
    }
}

/// The token of `Bearer TOKEN`; the scheme's case does not matter.
pub(super) fn bearer(value: &http::HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' '))
}

/// A new file with a random token.
fn make(path: &Path) -> std::io::Result<()> {
    private(path, false, &TokenAuthenticator::random()?)
}

/// Writes a file that only its owner can read. Without `over`, it must not be there.
fn private(path: &Path, over: bool, text: &str) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true);
    if over {
        // What a write that broke off left behind.
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    options.create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

fn read(path: &Path) -> Result<String> {
    let facts = fs::symlink_metadata(path).map_err(|error| unusable(path, error))?;
    if !facts.is_file() || facts.len() > LONGEST {
        return Err(unusable(path, "must be a file that holds a token and nothing else"));
    }
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&facts.permissions()) & 0o777;
        if mode & 0o077 != 0 {
            let remedy = "others may have read it: put a new token in it and make it 0600, or delete it";
            return Err(unusable(path, format_args!("its mode is {mode:04o}; {remedy}")));
        }
    }
    let text = fs::read_to_string(path).map_err(|error| unusable(path, error))?;
    let token = text.trim();
    if token.is_empty() || check(token).is_err() {
        return Err(unusable(path, format_args!("the token in it {SHOULD}; or delete the file")));
    }
    Ok(token.to_owned())
}

/// Lets in everybody who can connect. For a listener that nobody else can reach, such as a Unix socket of mode 0600:
/// there the file system has asked already.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PeerAuthenticator;

impl PeerAuthenticator {
    /// It has no settings.
    pub fn new() -> Self {
        Self
    }
}

#[async_trait]
impl Authenticator for PeerAuthenticator {
    async fn authenticate(&self, _head: &Parts) -> Result<Principal, Denied> {
        Ok(Principal::new("socket"))
    }
}
