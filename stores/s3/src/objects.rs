//! Objects in a bucket.

use std::{fmt, io, net::IpAddr, path::Path};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use object_store::{
    ObjectStore as _, PutPayload, WriteMultipart,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path as ObjectPath,
};
use percent_encoding::percent_decode_str;
use sas_core::{Error, ErrorKind, ObjectStore, Result, Secret};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
};

const OBJECT: &str = "object";
/// Bytes of a part: no more than 10,000 parts make the largest package.
const PART: usize = 8 << 20;
/// Parts that are sent at once.
const AT_ONCE: usize = 2;

/// Objects in a bucket of S3, or of what speaks its protocol.
///
/// The URL is `s3://KEY:SECRET@HOST:PORT/BUCKET/PREFIX`. Parameters are `region` (`us-east-1` unless it says otherwise) and `sslmode`:
/// `disable`, or `verify-full`, which is meant where it is left out and HOST is not this machine.
///
/// ```
/// use sas_core::Secret;
/// use sas_store_s3::S3Objects;
///
/// S3Objects::new(Secret::new("s3://key:secret@127.0.0.1:9000/bucket"))?;
/// let error = S3Objects::new(Secret::new("s3://key:secret@127.0.0.1:9000")).unwrap_err();
/// assert!(error.message.contains("BUCKET") && !error.message.contains("secret@"));
/// # Ok::<_, sas_core::Error>(())
/// ```
pub struct S3Objects {
    bucket: AmazonS3,
    /// Empty, or with a `/` at its end.
    prefix: String,
}

impl fmt::Debug for S3Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Objects").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "packages", message)
}

fn unavailable(message: String) -> Error {
    Error::new(ErrorKind::Unavailable, OBJECT, message)
}

fn failed(error: object_store::Error) -> Error {
    unavailable(format!("S3: {error}")).with_source(error)
}

fn local(path: &Path, error: io::Error) -> Error {
    unavailable(format!("{}: {error}", path.display())).with_source(error)
}

impl S3Objects {
    /// Objects at this URL. Nothing is asked for yet.
    ///
    /// # Errors
    /// `InvalidSpec` for what is no such URL. What it says never has a part of the URL in it that could be a key.
    pub fn new(url: Secret) -> Result<Self> {
        const FORM: &str =
            "write s3://KEY:SECRET@HOST:PORT/BUCKET/PREFIX, with special characters of key and secret as %XX";
        let wrong = |problem: &str| invalid(format!("the packages' URL {problem}: {FORM}"));
        let rest = url.expose().strip_prefix("s3://").ok_or_else(|| wrong("does not begin with s3://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (login, rest) = rest.rsplit_once('@').ok_or_else(|| wrong("has no KEY:SECRET"))?;
        let (key, secret) = login.split_once(':').ok_or_else(|| wrong("has no KEY:SECRET"))?;
        let (host, place) = rest.split_once('/').ok_or_else(|| wrong("names no BUCKET"))?;
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if host.is_empty() || bucket.is_empty() {
            return Err(wrong("names no HOST or no BUCKET"));
        }
        let (mut region, mut mode) = ("us-east-1".to_owned(), None);
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
            match name {
                "region" => region = value,
                "sslmode" => mode = Some(value),
                _ => return Err(wrong("has a parameter that is neither region nor sslmode")),
            }
        }
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let is_here = name == "localhost"
            || name.trim_matches(['[', ']']).parse().is_ok_and(|address: IpAddr| address.is_loopback());
        let plain = match mode.as_deref() {
            None => is_here,
            Some("disable") => true,
            Some("require" | "verify-full") => false,
            Some(_) => return Err(wrong("has an sslmode that is neither verify-full nor disable")),
        };
        let scheme = if plain { "http" } else { "https" };
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let bucket = AmazonS3Builder::new()
            .with_endpoint(format!("{scheme}://{host}"))
            .with_allow_http(plain)
            .with_region(region)
            .with_bucket_name(bucket)
            .with_access_key_id(decoded(key))
            .with_secret_access_key(decoded(secret))
            .build()
            .map_err(|_| wrong("can't be used"))?;
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { bucket, prefix })
    }

    fn path(&self, name: &str) -> ObjectPath {
        ObjectPath::from(format!("{}{name}", self.prefix))
    }
}

/// As much as fits, or all that is left.
async fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]).await? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

#[async_trait]
impl ObjectStore for S3Objects {
    async fn put(&self, name: &str, path: &Path) -> Result<()> {
        let mut file = File::open(path).await.map_err(|error| local(path, error))?;
        let mut buffer = vec![0; PART];
        let first = fill(&mut file, &mut buffer).await.map_err(|error| local(path, error))?;
        if first < PART {
            buffer.truncate(first);
            self.bucket.put(&self.path(name), PutPayload::from(buffer)).await.map_err(failed)?;
            return Ok(());
        }
        let upload = self.bucket.put_multipart(&self.path(name)).await.map_err(failed)?;
        let mut parts = WriteMultipart::new_with_chunk_size(upload, PART);
        let mut filled = first;
        let sent = loop {
            parts.write(&buffer[..filled]);
            if let Err(error) = parts.wait_for_capacity(AT_ONCE).await {
                break Err(failed(error));
            }
            match fill(&mut file, &mut buffer).await {
                Ok(0) => break Ok(()),
                Ok(more) => filled = more,
                Err(error) => break Err(local(path, error)),
            }
        };
        match sent {
            Ok(()) => parts.finish().await.map(drop).map_err(failed),
            Err(error) => {
                // The first error says more; parts that stay are the bucket's to expire.
                let _ = parts.abort().await;
                Err(error)
            }
        }
    }

    async fn get(&self, name: &str, path: &Path) -> Result<bool> {
        let found = match self.bucket.get(&self.path(name)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        let mut file = File::create(path).await.map_err(|error| local(path, error))?;
        let mut parts = found.into_stream();
        while let Some(part) = parts.try_next().await.map_err(failed)? {
            file.write_all(&part).await.map_err(|error| local(path, error))?;
        }
        file.flush().await.map_err(|error| local(path, error))?;
        Ok(true)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        match self.bucket.delete(&self.path(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        // What the bucket lists by are whole directories.
        let directory = prefix.rsplit_once('/').map_or("", |(directory, _)| directory);
        let place = ObjectPath::from(format!("{}{directory}", self.prefix));
        let found: Vec<_> = self.bucket.list(Some(&place)).try_collect().await.map_err(failed)?;
        let names =
            found.iter().filter_map(|object| object.location.as_ref().strip_prefix(self.prefix.as_str()));
        Ok(names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect())
    }
}
