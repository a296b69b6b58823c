//! Who may use the admin API: what the builder was told, and what holds where it was told nothing.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use sas_control::{Admin, PackageRoots, PeerAuthenticator, TokenAuthenticator};
use sas_core::{Authenticator, Denied, Error, ErrorKind, Principal, Result, SpecErrors};

/// The token's file in the state directory.
const FILE: &str = "admin-token";

/// What the builder was told.
#[derive(Default)]
pub(crate) struct Access {
    pub(crate) authenticator: Option<Arc<dyn Authenticator>>,
    pub(crate) token: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) hosts: Vec<String>,
    pub(crate) origins: Vec<String>,
    pub(crate) open_metrics: bool,
    pub(crate) require_conditions: bool,
    /// Whether it may listen in the clear beyond loopback.
    pub(crate) without_tls: bool,
    /// Requests per second of a principal, and at once.
    pub(crate) rate: Option<(f64, u32)>,
    /// Where the admin API listens on a Unix socket.
    pub(crate) socket: Option<PathBuf>,
}

/// A file that goes with the platform.
#[derive(Debug)]
pub(crate) struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // It may have been taken away already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) authenticator: Arc<dyn Authenticator>,
    /// The default authenticator, for a change of the token.
    pub(crate) tokens: Option<Arc<TokenAuthenticator>>,
    pub(crate) _temporary: Option<Temporary>,
}

impl From<TokenAuthenticator> for Keys {
    fn from(tokens: TokenAuthenticator) -> Self {
        let tokens = Arc::new(tokens);
        Self { authenticator: Arc::clone(&tokens) as _, tokens: Some(tokens), _temporary: None }
    }
}

/// Lets nobody in, and says how that is changed.
#[derive(Debug)]
struct Closed;

#[async_trait]
impl Authenticator for Closed {
    async fn authenticate(&self, _head: &http::request::Parts) -> Result<Principal, Denied> {
        let message = "this platform was built without an admin token; its program gives one with \
                       PlatformBuilder::admin_token, or an authenticator of its own";
        Err(Denied::Forbidden(message.to_owned()))
    }
}

impl Access {
    /// Finds out who is to be let in: by what was told, else by the file system where there is a Unix
    /// socket only and `apart`, else by a token in the state directory, else by one in a temporary file where there is a
    /// listener or a socket; else nobody.
    ///
    /// `apart` says that instances are other users than the platform. Where they are not, whoever can open the socket may
    /// be an instance.
    ///
    /// # Errors
    /// `InvalidSpec` where it was told in two ways, since one of them would count for nothing; and what the file of the
    /// token says.
    pub(crate) fn keys(&mut self, state: Option<&Path>, listens: bool, apart: bool) -> Result<Keys> {
        self.check_said_once()?;
        if let Some(authenticator) = self.authenticator.take() {
            return Ok(Keys { authenticator, tokens: None, _temporary: None });
        }
        if let Some(token) = self.token.take() {
            return TokenAuthenticator::new(&token).map(Keys::from);
        }
        if let Some(path) = self.token_file.take() {
            return TokenAuthenticator::kept_in(path).map(Keys::from);
        }
        if !listens && apart && self.socket.is_some() {
            let authenticator = Arc::new(PeerAuthenticator::new());
            return Ok(Keys { authenticator, tokens: None, _temporary: None });
        }
        match state {
            Some(dir) => TokenAuthenticator::kept_in(dir.join(FILE)).map(Keys::from),
            None if listens || self.socket.is_some() => {
                let name = TokenAuthenticator::random().map_err(|error| {
                    Error::new(ErrorKind::Unavailable, "admin token", "the system gives no randomness")
                        .with_source(error)
                })?;
                let path = std::env::temp_dir().join(format!("sas-admin-{}.token", &name[..16]));
                let keys = Keys::from(TokenAuthenticator::kept_in(&path)?);
                Ok(Keys { _temporary: Some(Temporary(path)), ..keys })
            }
            None => Ok(Keys { authenticator: Arc::new(Closed), tokens: None, _temporary: None }),
        }
    }

    fn check_said_once(&self) -> Result<()> {
        let mut errors = SpecErrors::default();
        if let (Some(path), Some(_)) = (&self.token_file, &self.token) {
            let problem = "a token was given beside it (`PlatformBuilder::admin_token`, SAS_ADMIN_TOKEN), which would stay \
                           valid whatever is written into the file: give one of the two";
            errors.push("admin_token_file", path.display(), problem);
        }
        if self.authenticator.is_some() && (self.token.is_some() || self.token_file.is_some()) {
            let problem =
                "an authenticator was given beside it, which would never ask for it: give one of the two";
            let file = self.token_file.as_ref().map(|path| path.display().to_string());
            errors.push("admin_token", file.unwrap_or_else(|| "(given)".to_owned()), problem);
        }
        errors.into_result().map_err(|errors| {
            Error::new(ErrorKind::InvalidSpec, "admin token", errors.to_string()).with_source(errors)
        })
    }

    /// Refuses a listener that other machines reach in the clear, unless it was asked for in so many words.
    pub(crate) fn check_listener(
        &self,
        address: Option<SocketAddr>,
        encrypted: bool,
    ) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if let Some(address) = address
            && !address.ip().to_canonical().is_loopback()
            && !encrypted
            && !self.without_tls
        {
            let problem = "other machines reach this address, and tokens would go there in the clear: give the listeners \
                           TLS (`PlatformBuilder::server`), listen on loopback, or say that it is meant \
                           (`PlatformBuilder::admin_without_tls`, --admin-without-tls)";
            errors.push("admin", address, problem);
        }
        errors.into_result()
    }

    /// From where packages may come that manifests at the admin API name by a path. Where nothing was said: from
    /// anywhere for the operator, who is whoever has the admin token, or is the peer of the Unix socket, of an API that
    /// only this machine reaches; for everybody else from nowhere.
    pub(crate) fn package_roots(
        &self,
        told: Option<PackageRoots>,
        address: Option<SocketAddr>,
    ) -> PackageRoots {
        let here = address.map_or(self.socket.is_some(), |address| address.ip().is_loopback());
        told.unwrap_or(if here && self.authenticator.is_none() {
            PackageRoots::any()
        } else {
            PackageRoots::none()
        })
    }

    /// The hosts and origins that are known beside loopback: those that were told, and the address that it listens at.
    pub(crate) fn open(self, mut admin: Admin, address: Option<SocketAddr>) -> Admin {
        let listens = address.map(|address| address.ip()).filter(|ip| !ip.is_unspecified());
        for host in self.hosts.into_iter().chain(listens.map(|ip| ip.to_string())) {
            admin = admin.with_host(host);
        }
        for origin in self.origins {
            admin = admin.with_origin(origin);
        }
        if let Some((rate, burst)) = self.rate {
            admin = admin.with_rate_limit(rate, burst);
        }
        if self.require_conditions {
            admin = admin.with_required_conditions();
        }
        if self.open_metrics { admin.with_open_metrics() } else { admin }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(
        set: impl FnOnce(&mut Access),
        told: Option<PackageRoots>,
        address: Option<&str>,
    ) -> PackageRoots {
        let mut access = Access::default();
        set(&mut access);
        access.package_roots(told, address.map(|address| address.parse().unwrap()))
    }

    #[test]
    fn a_listener_that_other_machines_reach_wants_tls_or_a_word_that_it_is_meant() {
        let asked = |address: &str, encrypted, without_tls| {
            let access = Access { without_tls, ..Access::default() };
            access.check_listener(Some(address.parse().unwrap()), encrypted).is_ok()
        };
        for here in ["127.0.0.1:8081", "[::1]:8081", "[::ffff:127.0.0.1]:8081"] {
            assert!(asked(here, false, false), "{here}");
        }
        for elsewhere in ["0.0.0.0:8081", "[::]:8081", "192.0.2.7:8081"] {
            assert!(!asked(elsewhere, false, false), "{elsewhere}");
            assert!(asked(elsewhere, true, false) && asked(elsewhere, false, true), "{elsewhere}");
        }
        assert!(Access::default().check_listener(None, false).is_ok());
    }

    #[test]
    fn who_may_use_it_is_said_in_one_way() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let refused = |token: bool, with_file: bool, authenticator: bool| {
            let mut access = Access {
                token: token.then(|| "a-token-that-is-secret".to_owned()),
                token_file: with_file.then(|| file.clone()),
                authenticator: authenticator.then(|| Arc::new(Closed) as _),
                ..Access::default()
            };
            access.keys(None, true, true).err().map(|error| error.to_string())
        };
        for (token, with_file, authenticator) in
            [(true, false, false), (false, true, false), (false, false, true)]
        {
            assert_eq!(refused(token, with_file, authenticator), None);
        }
        let both = refused(true, true, false).unwrap();
        assert!(both.contains("admin_token_file") && both.contains(&file.display().to_string()), "{both}");
        assert!(both.contains("SAS_ADMIN_TOKEN") && !both.contains("secret"), "{both}");
        for (token, with_file) in [(true, false), (false, true)] {
            let error = refused(token, with_file, true).unwrap();
            assert!(error.contains("admin_token") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_socket_of_a_platform_whose_instances_are_the_same_user_asks_for_a_token() {
        let dir = tempfile::tempdir().unwrap();
        let keys = |apart, listens, state: bool| {
            let mut access = Access { socket: Some("/run/admin".into()), ..Access::default() };
            access.keys(state.then(|| dir.path()), listens, apart).unwrap()
        };
        assert!(keys(true, false, true).tokens.is_none(), "the file system says who may");
        assert!(keys(false, false, true).tokens.is_some());
        assert!(keys(false, false, false).tokens.is_some(), "by a temporary file");
        assert!(keys(true, true, true).tokens.is_some(), "beside a listener");
    }

    #[test]
    fn packages_of_the_host_are_for_the_operator_of_an_api_that_only_this_machine_reaches() {
        let nothing = |_: &mut Access| {};
        let socket = |access: &mut Access| access.socket = Some("/run/admin".into());
        let own = |access: &mut Access| access.authenticator = Some(Arc::new(Closed));
        for here in ["127.0.0.1:8081", "[::1]:8081"] {
            assert_eq!(chosen(nothing, None, Some(here)), PackageRoots::any(), "{here}");
            assert_eq!(chosen(own, None, Some(here)), PackageRoots::none(), "whom it lets in is not known");
        }
        assert_eq!(chosen(socket, None, None), PackageRoots::any());
        for elsewhere in ["0.0.0.0:8081", "[::]:8081", "192.0.2.7:8081"] {
            assert_eq!(chosen(nothing, None, Some(elsewhere)), PackageRoots::none(), "{elsewhere}");
            assert_eq!(
                chosen(socket, None, Some(elsewhere)),
                PackageRoots::none(),
                "{elsewhere}, and a socket"
            );
        }
        assert_eq!(chosen(nothing, None, None), PackageRoots::none(), "mounted in somebody's server");
    }

    #[test]
    fn what_was_told_holds_everywhere() {
        let told = PackageRoots::none().with("/srv/packages");
        for address in [None, Some("127.0.0.1:8081"), Some("0.0.0.0:8081")] {
            assert_eq!(chosen(|_| {}, Some(told.clone()), address), told);
            assert_eq!(chosen(|_| {}, Some(PackageRoots::none()), address), PackageRoots::none());
        }
    }
}
