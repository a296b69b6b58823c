//! Who may pull from where.

use std::{collections::BTreeMap, fmt, path::PathBuf, process::Stdio, time::Duration};

use async_trait::async_trait;
use base64::Engine as _;
use oci_client::secrets::RegistryAuth;
use sas_core::{Error, ErrorKind, Result, Secret, TenantKey};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

/// How a registry is told who asks. `Debug` never shows a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// A user and a password, or what a registry takes for one.
    Basic {
        /// The user's name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A bearer token of the registry's own.
    Token(Secret),
}

impl Credentials {
    /// A user and a password.
    pub fn basic(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Basic { user: user.into(), password: Secret::new(password.into()) }
    }

    /// As the client of registries takes them.
    pub(crate) fn to_auth(&self) -> RegistryAuth {
        match self {
            Self::Basic { user, password } => RegistryAuth::Basic(user.clone(), password.expose().to_owned()),
            Self::Token(token) => RegistryAuth::Bearer(token.expose().to_owned()),
        }
    }

    /// A bearer token.
    pub fn token(token: impl Into<String>) -> Self {
        Self::Token(Secret::new(token.into()))
    }
}

/// Knows the credentials for registries. Asked for every resolution of a tag and for every pull, so that both are done
/// as the same user, and never for one tenant on behalf of another.
#[async_trait]
pub trait CredentialProvider: fmt::Debug + Send + Sync + 'static {
    /// The credentials of `tenant` for `registry`, such as `registry.example.com:5000`; `None`: it is asked without.
    ///
    /// # Errors
    /// `Unavailable` when who knows can't be asked. The error never holds a secret.
    async fn credentials(&self, registry: &str, tenant: TenantKey) -> Result<Option<Credentials>>;
}

/// Credentials that never change: by registry, of one tenant or of all.
///
/// ```
/// use sas_core::TenantKey;
/// use sas_runtime_container::{Credentials, StaticCredentials};
///
/// let credentials = StaticCredentials::default()
///     .for_all("registry.example.com", Credentials::basic("reader", "password"))
///     .for_tenant(TenantKey(7), "registry.example.com", Credentials::token("its own"));
/// # let _ = credentials;
/// ```
#[derive(Clone, Debug, Default)]
pub struct StaticCredentials {
    of_all: BTreeMap<String, Credentials>,
    of_one: BTreeMap<(u32, String), Credentials>,
}

impl StaticCredentials {
    /// What every tenant pulls with that has none of its own.
    #[must_use]
    pub fn for_all(mut self, registry: impl Into<String>, credentials: Credentials) -> Self {
        self.of_all.insert(registry.into(), credentials);
        self
    }

    /// What one tenant pulls with.
    #[must_use]
    pub fn for_tenant(
        mut self,
        tenant: TenantKey,
        registry: impl Into<String>,
        credentials: Credentials,
    ) -> Self {
        self.of_one.insert((tenant.0, registry.into()), credentials);
        self
    }
}

#[async_trait]
impl CredentialProvider for StaticCredentials {
    async fn credentials(&self, registry: &str, tenant: TenantKey) -> Result<Option<Credentials>> {
        let own = self.of_one.get(&(tenant.0, registry.to_owned()));
        Ok(own.or_else(|| self.of_all.get(registry)).cloned())
    }
}

/// The credentials of Docker's `config.json`, its helpers included. They are the host's, and so serve every tenant.
#[derive(Clone, Default)]
pub struct DockerConfig {
    auths: BTreeMap<String, Auth>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

/// Registries only: what else stands in the file is secret or none of our business.
impl fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registries: Vec<&String> = self.auths.keys().chain(self.helpers.keys()).collect();
        f.debug_struct("DockerConfig")
            .field("registries", &registries)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    registrytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// How long a helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
const MOST_ANSWER: u64 = 64 << 10;

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "credentials", what)
}

/// `https://index.docker.io/v1/` and `registry.example.com/v2/` name a registry as well.
fn host(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    match key.split('/').next().unwrap_or(key) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

impl DockerConfig {
    /// Reads the text of a `config.json`, or of a secret of the kind `kubernetes.io/dockerconfigjson`.
    ///
    /// # Errors
    /// `InvalidSpec` when it is none, without its content.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let File { auths, cred_helpers, creds_store } = serde_json::from_slice(text).map_err(|error| {
            wrong(format!("not the config.json of Docker: line {}, column {}", error.line(), error.column()))
        })?;
        for helper in cred_helpers.values().chain(&creds_store) {
            if helper.is_empty() || !helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            {
                return Err(wrong(format!("credential helper {helper:?}: a name without a path")));
            }
        }
        let by_host = |map: BTreeMap<String, Auth>| {
            map.into_iter().map(|(key, auth)| (host(&key).to_owned(), auth)).collect()
        };
        Ok(Self {
            auths: by_host(auths),
            helpers: cred_helpers.into_iter().map(|(key, name)| (host(&key).to_owned(), name)).collect(),
            store: creds_store,
        })
    }

    /// Reads a file; without a path that of the user whom this process belongs to.
    ///
    /// # Errors
    /// `NotFound` when there is none; `InvalidSpec` when it is none of Docker's.
    pub async fn read(path: Option<PathBuf>) -> Result<Self> {
        let path = path
            .or_else(|| std::env::var_os("DOCKER_CONFIG").map(|dir| PathBuf::from(dir).join("config.json")))
            .or_else(|| std::env::home_dir().map(|home| home.join(".docker/config.json")))
            .ok_or_else(|| wrong("this user has no home: name the file"))?;
        let text = tokio::fs::read(&path).await.map_err(|error| {
            let what = format!("{}: {error}", path.display());
            Error::new(ErrorKind::NotFound, "credentials", what).with_source(error)
        })?;
        Self::parse(&text)
    }

    /// The credentials for a registry that stand in the file itself.
    pub(crate) fn written(&self, registry: &str) -> Result<Option<Credentials>> {
        let Some(auth) = self.auths.get(host(registry)) else { return Ok(None) };
        if let Some(token) = auth.registrytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Credentials::token(token.clone())));
        }
        if let (Some(user), Some(password)) = (&auth.username, &auth.password) {
            return Ok(Some(Credentials::basic(user.clone(), password.clone())));
        }
        let Some(packed) = auth.auth.as_ref().filter(|packed| !packed.is_empty()) else { return Ok(None) };
        let pair = base64::engine::general_purpose::STANDARD
            .decode(packed.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.split_once(':').map(|(user, word)| (user.to_owned(), word.to_owned())));
        let Some((user, password)) = pair else {
            return Err(wrong(format!("auths[{registry:?}].auth: the base64 form of user:password")));
        };
        Ok(Some(Credentials::basic(user, password.trim_end_matches('\0'))))
    }

    async fn ask(helper: &str, registry: &str) -> Result<Option<Credentials>> {
        let program = format!("docker-credential-{helper}");
        let failed =
            |what: String| Error::new(ErrorKind::Unavailable, "credentials", format!("{program}: {what}"));
        let asked = async {
            let mut child = tokio::process::Command::new(&program)
                .arg("get")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(registry.as_bytes()).await?;
            }
            let mut answer = Vec::new();
            if let Some(stdout) = child.stdout.take() {
                use tokio::io::AsyncReadExt as _;
                stdout.take(MOST_ANSWER).read_to_end(&mut answer).await?;
            }
            Ok::<_, std::io::Error>((child.wait().await?, answer))
        };
        let (status, answer) = tokio::time::timeout(HELPER_TIMEOUT, asked)
            .await
            .map_err(|_| failed(format!("no answer within {HELPER_TIMEOUT:?}")))?
            .map_err(|error| failed(error.to_string()))?;
        if !status.success() {
            // That is how helpers say that they know nothing of it.
            if String::from_utf8_lossy(&answer).contains("credentials not found") {
                return Ok(None);
            }
            return Err(failed(format!("ended with {status}")));
        }
        let Helped { username, secret } =
            serde_json::from_slice(&answer).map_err(|_| failed("its answer is not JSON".into()))?;
        if username == "<token>" {
            return Err(failed(
                "gives an identity token, which only Docker's own client takes; log in with a password"
                    .into(),
            ));
        }
        Ok(Some(Credentials::basic(username, secret)))
    }
}

#[async_trait]
impl CredentialProvider for DockerConfig {
    async fn credentials(&self, registry: &str, _: TenantKey) -> Result<Option<Credentials>> {
        if let Some(helper) = self.helpers.get(host(registry)) {
            return Self::ask(helper, registry).await;
        }
        if let Some(written) = self.written(registry)? {
            return Ok(Some(written));
        }
        match &self.store {
            Some(helper) => Self::ask(helper, registry).await,
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_forms_of_dockers_file_are_read() {
        let text = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dXNlcjpwOncK"},
            "one.example:5000": {"username": "a", "password": "b"},
            "two.example": {"registrytoken": "t"},
            "three.example": {}}, "HttpHeaders": {}}"#;
        let config = DockerConfig::parse(text).unwrap();
        let of = async |registry| config.credentials(registry, TenantKey(1)).await.unwrap();
        assert_eq!(of("docker.io").await, Some(Credentials::basic("user", "p:w\n")));
        assert_eq!(of("one.example:5000").await, Some(Credentials::basic("a", "b")));
        assert_eq!(of("two.example").await, Some(Credentials::token("t")));
        assert_eq!((of("three.example").await, of("four.example").await), (None, None));
        let shown = format!("{config:?}");
        assert!(!shown.contains("dXNl") && shown.contains("one.example"), "{shown}");
    }

    #[test]
    fn what_is_wrong_is_told_without_a_secret() {
        for text in [&b"{"[..], br#"{"credsStore": "../x"}"#, br#"{"credHelpers": {"a": ""}}"#] {
            assert_eq!(DockerConfig::parse(text).unwrap_err().kind, ErrorKind::InvalidSpec);
        }
        let config = DockerConfig::parse(br#"{"auths": {"a": {"auth": "c2VjcmV0"}}}"#).unwrap();
        let error = config.written("a").unwrap_err().to_string();
        assert!(error.contains("user:password") && !error.contains("secret"), "{error}");
    }
}
