//! Where connections come from: TCP, or a socket in the file system.

use std::{io, net::SocketAddr};
#[cfg(unix)]
use std::{
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::{net::UnixListener, net::UnixStream, time::Instant};

#[cfg(unix)]
use {
    super::{ServerConfig, Shared, accept, look},
    sas_core::{Error, ErrorKind, Handler, Result},
};

/// A listener of either kind.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

/// A connection of either kind, before anything was read of it.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Listener {
    /// The next connection, and the address of its other end where it has one.
    pub(super) async fn accept(&self) -> io::Result<(Accepted, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                listener.accept().await.map(|(stream, peer)| (Accepted::Tcp(stream), Some(peer)))
            }
            #[cfg(unix)]
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| (Accepted::Unix(stream), None)),
        }
    }

    /// Stops listening. What the kernel has taken by then comes out.
    pub(super) fn taken(self) -> Vec<(Accepted, Option<SocketAddr>)> {
        let mut taken = Vec::new();
        match self {
            Self::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return taken };
                while let Ok((stream, peer)) = listener.accept() {
                    let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                    taken.extend(stream.ok().map(|stream| (Accepted::Tcp(stream), Some(peer))));
                }
            }
            #[cfg(unix)]
            Self::Unix(listener) => {
                let Ok(listener) = listener.into_std() else { return taken };
                while let Ok((stream, _)) = listener.accept() {
                    let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
                    taken.extend(stream.ok().map(|stream| (Accepted::Unix(stream), None)));
                }
            }
        }
        taken
    }
}

/// Serves a [`Handler`] on a Unix socket of mode 0600, which only its owner and root can open, over HTTP/1.1 and HTTP/2
/// without TLS. Made for the admin API.
///
/// Dropping it ends everything at once and removes the socket; [`UnixServer::shutdown`] lets requests finish.
#[cfg(unix)]
#[derive(Debug)]
pub struct UnixServer {
    path: PathBuf,
    /// Device and inode of the socket: what has taken its place since is not ours to remove.
    file: (u64, u64),
    shared: Arc<Shared>,
}

#[cfg(unix)]
impl UnixServer {
    /// Listens at `path`, which must be free, or a socket that nobody listens at any more. It is bound in a directory
    /// that nobody else can enter and moved when it has its mode, so that it is never open to others.
    ///
    /// # Errors
    /// `Unavailable` with the path when it can't be had.
    pub fn bind(path: impl Into<PathBuf>, handler: Arc<dyn Handler>, config: ServerConfig) -> Result<Self> {
        let path = std::path::absolute(path.into()).map_err(|error| unusable(Path::new(""), error))?;
        let (listener, file) = listen(&path).map_err(|error| unusable(&path, error))?;
        let shared = Arc::new(Shared::new(handler, config));
        shared.ending.tasks.spawn(accept(Listener::Unix(listener), Arc::clone(&shared)));
        shared.ending.tasks.spawn(look(Arc::clone(&shared)));
        Ok(Self { path, file, shared })
    }

    /// The path of the socket's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the listener in order, as [`crate::Server::shutdown`] does.
    pub async fn shutdown(&self, deadline: Instant) {
        self.shared.ending.run(deadline).await;
    }
}

#[cfg(unix)]
impl Drop for UnixServer {
    fn drop(&mut self) {
        self.shared.ending.drain.cancel();
        self.shared.ending.abort.cancel();
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            // Nobody listens there any more: at worst the next start removes it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(unix)]
fn unusable(path: &Path, error: io::Error) -> Error {
    let text = format!("can't listen at the socket {}: {error}", path.display());
    Error::new(ErrorKind::Unavailable, "bind", text).with_source(error)
}

#[cfg(unix)]
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|facts| (facts.dev(), facts.ino()))
}

#[cfg(unix)]
fn listen(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    match std::fs::symlink_metadata(path) {
        Ok(facts) if !facts.file_type().is_socket() => {
            return Err(io::Error::other("there is a file that is no socket; name another path"));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::Error::other("another program listens there; name another path"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("it names no file"));
    };
    // Short, since the path of a socket may have some hundred bytes only.
    let closed = parent.join(format!(".sas{}", std::process::id()));
    clear_left(&closed, name)?;
    std::fs::DirBuilder::new().mode(0o700).create(&closed)?;
    let bound = (|| {
        let inside = closed.join(name);
        let listener = UnixListener::bind(&inside)?;
        std::fs::set_permissions(&inside, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&inside, path)?;
        Ok((listener, identity(path)?))
    })();
    if bound.is_err() {
        let _ = std::fs::remove_file(closed.join(name));
    }
    std::fs::remove_dir(&closed)?;
    bound
}

/// Removes what a process of the same number left behind when it was killed in `listen`: process 1 of a container always
/// has the same. Only a directory that is this user's own: in anybody else's the name could lead anywhere.
#[cfg(unix)]
fn clear_left(closed: &Path, name: &std::ffi::OsStr) -> io::Result<()> {
    let own = |facts: std::fs::Metadata| {
        facts.is_dir() && facts.uid() == rustix::process::geteuid().as_raw() && facts.mode() & 0o077 == 0
    };
    if !std::fs::symlink_metadata(closed).is_ok_and(own) {
        return Ok(());
    }
    match std::fs::remove_file(closed.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::remove_dir(closed)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_killed_process_of_the_same_number_left_does_not_end_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let closed = dir.path().join(format!(".sas{}", std::process::id()));
        // Killed before its socket was bound, and after.
        for bound in [false, true] {
            std::fs::DirBuilder::new().mode(0o700).create(&closed).unwrap();
            if bound {
                drop(UnixListener::bind(closed.join("admin.sock")).unwrap());
            }
            let (listener, _) = listen(&path).unwrap();
            assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
            assert!(!closed.exists());
            drop(listener);
        }
        // Another's, by what others may do with it: nothing in it is touched.
        std::fs::create_dir(&closed).unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(closed.join("admin.sock"), "a file").unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(closed.join("admin.sock").exists());
    }
}
