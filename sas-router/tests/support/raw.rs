//! HTTP/1 in bytes.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of it")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Platform, loopback};

/// Sends bytes and reads until the server closes, or says nothing more for a second.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> (String, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may have closed before it read everything.
    let _refused = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match tokio::time::timeout(Duration::from_secs(1), stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return (String::from_utf8_lossy(&answer).into_owned(), true),
            Ok(Ok(count)) => answer.extend_from_slice(&buffer[..count]),
            Err(_) => return (String::from_utf8_lossy(&answer).into_owned(), false),
        }
    }
}

/// A platform whose instance notes the raw bytes that reach it, and answers every head with 200.
pub async fn noting() -> (Platform, Arc<Mutex<Vec<u8>>>) {
    let platform = Platform::start().await;
    let listener = tokio::net::TcpListener::bind(loopback()).await.unwrap();
    platform.pool.add_at(platform.revision, listener.local_addr().unwrap());
    let noted = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&noted);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let notes = Arc::clone(&notes);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    notes.lock().unwrap().extend_from_slice(&buffer[..count]);
                    let whole =
                        buffer[..count].ends_with(b"\r\n\r\n") || !buffer[..count].starts_with(b"POST");
                    if whole
                        && stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    (platform, noted)
}
