//! A way between two parts that can be cut: what is under way then arrives when it is whole again, as over a network.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open,
    /// Open until these bytes are to pass on the way there: they are the first that do not.
    UntilSeen(&'static [u8]),
    Cut,
}

/// A listener that leads to another one.
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    way: watch::Sender<Way>,
    ways: Mutex<JoinSet<()>>,
}

impl Gate {
    /// One that leads to `target` once that is set.
    pub(crate) async fn to(target: Arc<OnceLock<SocketAddr>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let way = watch::Sender::new(Way::Open);
        let mut ways = JoinSet::new();
        let gate = way.clone();
        ways.spawn(async move {
            let mut through = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                if let Some(&target) = target.get() {
                    through.spawn(pass(stream, target, gate.clone()));
                }
                while through.try_join_next().is_some() {}
            }
        });
        Self { address, way, ways: Mutex::new(ways) }
    }

    pub(crate) fn cut(&self) {
        self.way.send_replace(Way::Cut);
    }

    /// Cuts it at the first bytes on the way there that have these in them.
    pub(crate) fn cut_before(&self, seen: &'static [u8]) {
        self.way.send_replace(Way::UntilSeen(seen));
    }

    /// As the end of who is behind it: whoever comes is refused, and who came is told.
    pub(crate) fn close(&self) {
        self.ways.lock().abort_all();
    }

    pub(crate) fn is_cut(&self) -> bool {
        *self.way.borrow() == Way::Cut
    }

    pub(crate) fn mend(&self) {
        self.way.send_replace(Way::Open);
    }
}

async fn pass(stream: TcpStream, target: SocketAddr, way: watch::Sender<Way>) {
    open(&way).await;
    let Ok(other) = TcpStream::connect(target).await else { return };
    let (_, _) = (stream.set_nodelay(true), other.set_nodelay(true));
    let ((from, back), (answers, there)) = (stream.into_split(), other.into_split());
    // One that ends takes the other along: both ends are told.
    tokio::select! {
        biased;
        () = one_way(from, there, &way, true) => {}
        () = one_way(answers, back, &way, false) => {}
    }
}

async fn open(way: &watch::Sender<Way>) {
    // The sender is here.
    let _ = way.subscribe().wait_for(|way| *way != Way::Cut).await;
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: &watch::Sender<Way>, there: bool) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut bytes).await;
        let now = *way.borrow();
        if let (Way::UntilSeen(seen), true, Ok(length)) = (now, there, &read)
            && bytes[..*length].windows(seen.len()).any(|window| window == seen)
        {
            way.send_replace(Way::Cut);
        }
        open(way).await;
        match read {
            Ok(length) if length > 0 && to.write_all(&bytes[..length]).await.is_ok() => {}
            _ => return,
        }
    }
}
