//! Threads of a server's own, each with a runtime of one thread: a connection stays on the core that took it.

use std::{io, sync::Arc};

use tokio::{net::TcpListener, runtime::Builder};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Listener, Shared, accept};

/// The workers of a server. Dropping them ends what they still run.
#[derive(Debug, Default)]
pub(super) struct Workers {
    threads: TaskTracker,
    over: CancellationToken,
}

impl Workers {
    /// Starts `count` workers that take connections from one listening socket. Whoever is idle takes the next one; sockets
    /// of their own (`SO_REUSEPORT`) would deal connections out by a hash, to a worker that is busy as well, and would let
    /// another program share the port unnoticed.
    pub(super) fn start(
        count: usize,
        listener: &std::net::TcpListener,
        shared: &Arc<Shared>,
    ) -> io::Result<Self> {
        let workers = Self::default();
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let listener = listener.try_clone()?;
            let (shared, over) = (Arc::clone(shared), workers.over.clone());
            let running = workers.threads.token();
            // Counted before it runs, so that a shutdown that comes at once waits for it.
            let accepting = shared.ending.tasks.token();
            std::thread::Builder::new().name(format!("sas-worker-{number}")).spawn(move || {
                let _running = running;
                runtime.block_on(async {
                    match TcpListener::from_std(listener) {
                        Ok(listener) => accept(Listener::Tcp(listener), shared).await,
                        Err(error) => tracing::error!(%error, "a worker can't wait for connections"),
                    }
                    drop(accepting);
                    // Its connections go on until they end or are told to.
                    over.cancelled().await;
                });
            })?;
        }
        Ok(workers)
    }

    /// Ends the threads, when all connections have ended.
    pub(super) async fn end(&self) {
        self.over.cancel();
        self.threads.close();
        self.threads.wait().await;
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.over.cancel();
    }
}
