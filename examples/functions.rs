//! Four functions in four languages behind one gateway, each request in a sandbox of its own.
//!
//! `cargo run --release --example functions` deploys a module in WebAssembly's text form, one in AssemblyScript and
//! components in C and Rust, asks each over HTTP, and prints what cold starts took. No toolchain is needed: the text is
//! compiled here, the others are small binaries with their sources beside them in `runtimes/wasm/guests`. A fifth
//! one in JavaScript joins in when `runtimes/wasm/guests/javascript/build.sh` has made it.
#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::{error::Error, net::SocketAddr, path::Path, time::Duration};

use sas::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

const GUESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/runtimes/wasm/guests");

/// Name, language, file, body that is sent, answer that is expected.
const FUNCTIONS: [(&str, &str, &str, &str, &str); 5] = [
    ("text", "WebAssembly text", "hello.wat", "", "hello, world!\n"),
    ("upper", "AssemblyScript", "assemblyscript/upper.wasm", "four languages", "FOUR LANGUAGES"),
    ("greeting", "C, wasi:http", "wasi-http/hello.wasm", "", "hello, world!\n"),
    ("count", "Rust, wasi:http", "rust/count.wasm", "words in\nfour languages", "1 4 23\n"),
    (
        "script",
        "JavaScript, wasi:http 0.3",
        "javascript/hello.wasm",
        "five languages",
        "hello, five languages!\n",
    ),
];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // Only the component in JavaScript is of WASI 0.3.
    let wasi_03 = Path::new(GUESTS).join("javascript/hello.wasm").exists();
    let platform = Platform::builder()
        .runtime(WasmRuntime::new(WasmConfig { wasi_03, ..WasmConfig::default() })?)
        .listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .build()
        .await?;
    let ingress = platform.listen_addr().ok_or("it listens")?;

    println!("| function | language | deploy | first request | median of 1,000 |");
    println!("|---|---|---|---|---|");
    for (name, language, file, body, expected) in FUNCTIONS {
        let package = Path::new(GUESTS).join(file);
        if !package.exists() {
            println!("| {name} | {language} | not built | | |");
            continue;
        }
        let began = Instant::now();
        platform.deploy("default", name, RevisionSpec::new("wasm", Source::Path(package))).await?;
        let deploy = began.elapsed();

        // The function is asleep: this request starts its first instance.
        let first = ask(ingress, name, body, expected).await?;
        let mut times = Vec::new();
        for _ in 0..1_000 {
            times.push(ask(ingress, name, body, expected).await?);
        }
        times.sort();
        println!("| {name} | {language} | {deploy:.1?} | {first:.1?} | {:.1?} |", times[times.len() / 2]);
    }
    println!(
        "\nEvery request ran in a fresh sandbox; times are those of a client that connects anew each time."
    );
    platform.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

/// Asks over HTTP and gives the time to the end of the answer.
async fn ask(
    ingress: SocketAddr,
    name: &str,
    body: &str,
    expected: &str,
) -> Result<Duration, Box<dyn Error + Send + Sync>> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(ingress).await?;
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {name}.default.localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let took = began.elapsed();
    let answer = String::from_utf8(answer)?;
    let (head, found) = answer.split_once("\r\n\r\n").ok_or("an answer without a head")?;
    if !head.starts_with("HTTP/1.1 200") || !found.contains(expected) {
        return Err(format!("{name} answered {answer:?}").into());
    }
    Ok(took)
}
