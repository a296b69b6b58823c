//! A small HTTP/1.1 program with the standard library only: what a user would deploy. It listens on `PORT`.
//!
//! `GET /` greets; `GET /work?ms=50` takes its time first; `GET /id` says which process answers; `POST /once/7` prints
//! that it was executed, for tests that count.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

fn main() -> io::Result<()> {
    let port = env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8080_u16);
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    println!("{} listens on port {port}", env::var("K_REVISION").unwrap_or_default());
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || serve(stream));
    }
    Ok(())
}

fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut length = 0_u64;
        let mut close = false;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line == "\r\n" {
                break;
            }
            let line = line.to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            close |= line.starts_with("connection:") && line.contains("close");
        }
        io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
        let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
        if let Some(ms) = path.strip_prefix("/work?ms=").and_then(|ms| ms.parse().ok()) {
            thread::sleep(Duration::from_millis(ms));
        }
        if let Some(id) = path.strip_prefix("/once/") {
            println!("executed {id}");
            thread::sleep(Duration::from_millis(10));
        }
        let body = match path.as_str() {
            "/id" => format!("{}\n", std::process::id()),
            _ => format!("hello from {}\n", env::var("K_REVISION").unwrap_or_default()),
        };
        write!(
            writer,
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        if close {
            return Ok(());
        }
    }
}
