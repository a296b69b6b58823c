//! Stores by the place where they are.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use sas_control::{PackageDir, SharedPackages};
#[cfg(not(feature = "redb"))]
use sas_core::MemoryStore;
use sas_core::{Error, ErrorKind, Secret, Store};

/// The store that a platform opened by itself, and closes.
#[cfg(feature = "redb")]
pub(crate) type OwnStore = sas_store_redb::RedbStore;
/// Without the feature `redb` it opens none.
#[cfg(not(feature = "redb"))]
pub(crate) type OwnStore = MemoryStore;

/// The platform's state in a directory.
#[cfg(feature = "redb")]
pub(crate) async fn open_state(dir: &Path) -> Result<Arc<OwnStore>, Error> {
    OwnStore::open(dir.join("state.redb")).await.map(Arc::new)
}

#[cfg(not(feature = "redb"))]
pub(crate) async fn open_state(dir: &Path) -> Result<Arc<OwnStore>, Error> {
    let message = format!(
        "{}: this build keeps no state in directories: build with the feature `redb`, or give a `store`",
        dir.display()
    );
    Err(Error::new(ErrorKind::Unsupported, "state directory", message))
}

/// Opens the store at a URL, or at the URL that a file holds, for [`PlatformBuilder::store`](crate::PlatformBuilder::store):
/// `postgres://USER:PASSWORD@HOST:PORT/DATABASE` with the feature `store-postgres`, `etcd://USER:PASSWORD@HOST:PORT/PREFIX` with
/// the feature `store-etcd`. docs/stores.md has the parameters.
///
/// What begins with no scheme is the path of a file. That is where passwords belong: command lines can be read by everybody on
/// the host. The file is read again for each new connection.
///
/// ```no_run
/// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
/// let platform = sas::Platform::builder().store(sas::open_store("/etc/platform/store-url").await?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// `InvalidSpec` for what is no such place, `Unsupported` for a kind of store that this build has not, and those of the store,
/// such as `Unavailable` when it can't be reached.
pub async fn open_store(place: &str) -> Result<Arc<dyn Store>, Error> {
    match Place::read(place).await? {
        #[cfg(feature = "store-postgres")]
        Place { scheme: "postgres", url, file } => {
            Ok(Arc::new(sas_store_postgres::PostgresStore::open(postgres(url, file)?).await?))
        }
        #[cfg(feature = "store-etcd")]
        Place { scheme: "etcd", url, .. } => {
            let options = sas_store_etcd::EtcdOptions::new(url)?;
            Ok(Arc::new(sas_store_etcd::EtcdStore::open(options).await?))
        }
        other => Err(other.not_built("store")),
    }
}

/// Opens the shared storage of packages at a URL, or at the URL that a file holds, for
/// [`PlatformBuilder::packages`](crate::PlatformBuilder::packages): `postgres://…` as for [`open_store`], `s3://KEY:SECRET@HOST:PORT/BUCKET/PREFIX` with
/// the feature `blobs-s3`. Copies of what this host
/// runs are kept in `copies`, a directory of its own, so that each package is fetched once.
///
/// # Errors
/// As [`open_store`].
pub async fn open_packages(place: &str, copies: impl Into<PathBuf>) -> Result<SharedPackages, Error> {
    let copies = PackageDir::new(copies);
    match Place::read(place).await? {
        #[cfg(feature = "store-postgres")]
        Place { scheme: "postgres", url, file } => {
            let objects = sas_store_postgres::PostgresObjects::open(postgres(url, file)?).await?;
            Ok(SharedPackages::new(objects, copies))
        }
        #[cfg(feature = "blobs-s3")]
        Place { scheme: "s3", url, .. } => {
            Ok(SharedPackages::new(sas_store_s3::S3Objects::new(url)?, copies))
        }
        other => {
            drop(copies);
            Err(other.not_built("packages"))
        }
    }
}

/// Where a store is.
#[cfg_attr(
    not(all(feature = "store-postgres", feature = "store-etcd", feature = "blobs-s3")),
    allow(dead_code, reason = "read where there is such a store")
)]
struct Place {
    scheme: &'static str,
    url: Secret,
    /// The file that it was read from.
    file: Option<PathBuf>,
}

impl Place {
    async fn read(place: &str) -> Result<Self, Error> {
        const FORMS: &str =
            "write postgres://USER@HOST:PORT/DATABASE or etcd://HOST:PORT/PREFIX (docs/stores.md)";
        let wrong = |message: String| Error::new(ErrorKind::InvalidSpec, "store", message);
        let file = (!place.contains("://")).then(|| PathBuf::from(place));
        let url = match &file {
            None => Secret::new(place),
            Some(file) => {
                let read = tokio::fs::read_to_string(file).await.map_err(|error| {
                    let message =
                        format!("{place}: the file with the store's URL can't be read: {error}; {FORMS}");
                    wrong(message).with_source(error)
                })?;
                Secret::new(read.trim())
            }
        };
        let scheme = match url.expose().split_once("://").map(|(scheme, _)| scheme) {
            Some("postgres" | "postgresql") => "postgres",
            Some("etcd") => "etcd",
            Some("s3") => "s3",
            _ => {
                let shown = if file.is_some() { place } else { "the store's URL" };
                return Err(wrong(format!("{shown} is no place of a store: {FORMS}")));
            }
        };
        Ok(Self { scheme, url, file })
    }

    fn not_built(&self, what: &'static str) -> Error {
        let scheme = self.scheme;
        let message = match (what, scheme) {
            ("packages", "etcd") => "etcd takes values of a megabyte: keep packages elsewhere".to_owned(),
            ("store", "s3") => "a bucket keeps packages, and no state".to_owned(),
            (_, "s3") => "this build knows no s3://: build with the feature `blobs-s3`".to_owned(),
            _ => format!("this build knows no {scheme}://: build with the feature `store-{scheme}`"),
        };
        Error::new(ErrorKind::Unsupported, what, message)
    }
}

#[cfg(feature = "store-postgres")]
fn postgres(url: Secret, file: Option<PathBuf>) -> Result<sas_store_postgres::PostgresOptions, Error> {
    match file {
        Some(file) => sas_store_postgres::PostgresOptions::from_file(file),
        None => sas_store_postgres::PostgresOptions::new(url),
    }
}
