//! What a warm request allocates, and what an idle connection holds: counted on a worker's thread, not measured.

mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use sas_core::{Endpoint, Handler, InstanceId, Request, Response};
use sas_router::{Gateway, GatewayConfig, RouteTable, Server, ServerConfig};
use support::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; the counters touch no allocated memory.
#[allow(unsafe_code, reason = "an allocator that counts has no safe form")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        BYTES.with(|bytes| bytes.set(bytes.get() + layout.size() as i64));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.with(|bytes| bytes.set(bytes.get() - layout.size() as i64));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Notes, as each request comes, what its thread had allocated and held by then.
#[derive(Debug)]
struct Noting {
    gateway: Arc<Gateway>,
    notes: Mutex<Vec<(u64, i64)>>,
}

#[async_trait]
impl Handler for Noting {
    async fn handle(&self, request: Request) -> Response {
        self.notes.lock().unwrap().push((COUNT.with(Cell::get), BYTES.with(Cell::get)));
        self.gateway.handle(request).await
    }
}

async fn ask(client: &mut TcpStream) {
    let request = format!("GET /1k HTTP/1.1\r\nhost: {HOST}\r\nuser-agent: test\r\naccept: */*\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .is_none_or(|end| answer.len() < end + 4 + 1024)
    {
        assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_warm_request_and_an_idle_connection_cost_what_they_should() {
    const TURNS: usize = 200;
    const IDLE: usize = 100;
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n{}", "x".repeat(1024));
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while let Ok(1..) = stream.read(&mut head).await {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    let table = Arc::new(RouteTable::new(1));
    let pool = FixedPool::new();
    let revision = pool.revision("hello", spec());
    route(&table, HOST, revision);
    pool.add(revision, Arc::new(Remote { id: InstanceId(1), endpoint }));
    let gateway = Gateway::new(table, pool, GatewayConfig::default());
    let noting = Arc::new(Noting { gateway, notes: Mutex::new(Vec::with_capacity(4 * TURNS)) });
    let mut config = ServerConfig::default();
    config.workers = 1;
    let server = Server::bind(loopback(), Arc::clone(&noting) as _, config).await.unwrap();

    let mut client = TcpStream::connect(server.local_addr()).await.unwrap();
    for _ in 0..TURNS {
        ask(&mut client).await;
    }
    let (first, last) = {
        let notes = noting.notes.lock().unwrap();
        (notes[TURNS / 2], notes[TURNS - 1])
    };
    let each = (last.0 - first.0) as f64 / (TURNS - 1 - TURNS / 2) as f64;
    println!("{each} allocations per warm request");
    assert!(each <= 18.0, "{each} allocations per warm request");
    assert!(last.1 - first.1 < 4096, "requests leave {} bytes behind", last.1 - first.1);

    let mut idle = Vec::new();
    for _ in 0..IDLE {
        let mut client = TcpStream::connect(server.local_addr()).await.unwrap();
        ask(&mut client).await;
        idle.push(client);
    }
    ask(&mut client).await;
    let now = noting.notes.lock().unwrap().last().copied().unwrap();
    let each = (now.1 - last.1) / IDLE as i64;
    println!("{each} bytes per idle connection");
    assert!(each <= 6 * 1024, "{each} bytes of the heap per idle connection");
    server.shutdown(deadline()).await;
}
