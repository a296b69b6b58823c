//! Faults for real processes and ports.

use std::{io, net::SocketAddr, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

/// A process of a test's own, to be killed, stopped and continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim(Pid);

impl Victim {
    /// The process `pid`. `None` for pid 0 and numbers that can be no pid.
    pub fn new(pid: u32) -> Option<Self> {
        i32::try_from(pid).ok().and_then(Pid::from_raw).map(Self)
    }

    /// Kills it, as the kernel does when memory runs out.
    ///
    /// # Errors
    /// When there is no such process (any more), or it is another user's.
    pub fn kill(self) -> io::Result<()> {
        Ok(kill_process(self.0, Signal::KILL)?)
    }

    /// Stops it for `time`: it answers nobody and does not know. It is continued also when the future is dropped.
    ///
    /// # Errors
    /// As [`Victim::kill`].
    pub async fn pause(self, time: Duration) -> io::Result<()> {
        struct Continue(Pid);
        impl Drop for Continue {
            fn drop(&mut self) {
                // It may have ended meanwhile; then there is nothing to continue.
                let _ = kill_process(self.0, Signal::CONT);
            }
        }
        kill_process(self.0, Signal::STOP)?;
        let _continue = Continue(self.0);
        tokio::time::sleep(time).await;
        Ok(())
    }
}

/// An address at which nobody listens: connecting is refused at once.
///
/// # Errors
/// When no port can be had.
pub async fn closed_port() -> io::Result<SocketAddr> {
    // Bound and let go: the kernel hands out other ports before it comes back to this one.
    tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?.local_addr()
}
