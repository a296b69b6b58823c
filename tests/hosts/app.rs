//! What the tests deploy: it tells `REPORT` (a port of loopback) of each start and each request before it answers.
//!
//! `POST /do/ID?ms=50` takes its time, and answers with `ID`; a request with `ce-id` is an event.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process, thread,
    time::Duration,
};

fn tell(line: &str) -> io::Result<()> {
    let port: u16 = env::var("REPORT").ok().and_then(|port| port.parse().ok()).expect("REPORT is a port");
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let service = env::var("K_SERVICE").unwrap_or_default();
    writeln!(stream, "{line} {service} {}", process::id())?;
    // It is written down when it is taken.
    stream.read_exact(&mut [0; 1])
}

fn main() -> io::Result<()> {
    let port = env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8080_u16);
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    tell("started -")?;
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
        let (mut length, mut event) = (0_u64, None);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line == "\r\n" {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "ce-id" => event = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
        let path = request.split(' ').nth(1).unwrap_or("/");
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        if let Some(ms) = query.strip_prefix("ms=").and_then(|ms| ms.parse().ok()) {
            thread::sleep(Duration::from_millis(ms));
        }
        let id = path.strip_prefix("/do/").unwrap_or_default();
        match event {
            Some(event) => tell(&format!("event {event}"))?,
            None if !id.is_empty() => tell(&format!("done {id}"))?,
            None => {}
        }
        write!(writer, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{id}", id.len())?;
    }
}
