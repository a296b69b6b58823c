//! A small HTTP server with faults on demand, built with plain `rustc` by the tests.
//!
//! Arguments: `fd0` serves the listening socket inherited as descriptor 0; `deaf` never listens; `exit` ends at once;
//! `stubborn` ignores SIGTERM; `port=N` listens on N whatever PORT says; `v6` listens on ::1 only; `flood` writes without end;
//! `burn` keeps two threads busy; `early-child` forks a child before anything else; `always=PATH` answers every path as
//! that one. Paths: `/crash`, `/half`, `/slow`, `/endless`, `/env`, `/say`, `/child`, `/early`, `/daemon`, `/grow/<MiB>`,
//! `/pid`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::FromRawFd,
    sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    time::Duration,
};

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
}

static TERMINATED: AtomicBool = AtomicBool::new(false);
static ACTIVE: AtomicUsize = AtomicUsize::new(0);
static EARLY: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_term(_: i32) {
    TERMINATED.store(true, Ordering::SeqCst);
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    if has("exit") {
        println!("first line");
        eprintln!("cannot find my configuration");
        std::process::exit(3);
    }
    // SIGTERM: 15; ignored: 1.
    unsafe { signal(15, if has("stubborn") { 1 } else { on_term as *const () as usize }) };
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_millis(5));
            if TERMINATED.load(Ordering::SeqCst) && ACTIVE.load(Ordering::SeqCst) == 0 {
                std::process::exit(0);
            }
        }
    });
    if has("deaf") {
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    if has("early-child") {
        let child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        EARLY.store(child.id(), Ordering::SeqCst);
    }
    if has("burn") {
        for _ in 0..2 {
            std::thread::spawn(|| {
                let mut n = 0u64;
                loop {
                    n = std::hint::black_box(n.wrapping_mul(31).wrapping_add(7));
                }
            });
        }
    }
    if has("flood") {
        std::thread::spawn(|| {
            let line = [b'x'; 8000];
            let mut out = std::io::stdout();
            loop {
                if out.write_all(&line).is_err() || out.write_all(b"\n").is_err() {
                    return;
                }
            }
        });
    }
    let port = args
        .iter()
        .find_map(|arg| arg.strip_prefix("port="))
        .map(str::to_owned)
        .unwrap_or_else(|| std::env::var("PORT").expect("PORT is set"));
    let listener = if has("fd0") {
        unsafe { TcpListener::from_raw_fd(0) }
    } else if has("v6") {
        TcpListener::bind(("::1", port.parse::<u16>().unwrap())).expect("bind")
    } else {
        TcpListener::bind(("127.0.0.1", port.parse::<u16>().unwrap())).expect("bind")
    };
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve(stream));
    }
}

fn serve(stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let always = std::env::args().find_map(|arg| arg.strip_prefix("always=").map(str::to_owned));
        let asked = line.split_whitespace().nth(1)?.to_owned();
        let path = if asked == "/crash" { asked } else { always.unwrap_or(asked) };
        ACTIVE.fetch_add(1, Ordering::SeqCst);
        let done = answer(&path, &mut reader, &mut writer);
        ACTIVE.fetch_sub(1, Ordering::SeqCst);
        done?;
    }
}

fn answer(path: &str, reader: &mut BufReader<TcpStream>, writer: &mut TcpStream) -> Option<()> {
    let (mut length, mut chunked) = (0usize, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        chunked |= line.starts_with("transfer-encoding:") && line.contains("chunked");
        if line == "expect: 100-continue" {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        }
    }
    let mut body = vec![0u8; length];
    reader.read_exact(&mut body).ok()?;
    while chunked {
        let mut size = String::new();
        reader.read_line(&mut size).ok()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        let at = body.len();
        body.resize(at + size, 0);
        reader.read_exact(&mut body[at..]).ok()?;
        let mut end = String::new();
        reader.read_line(&mut end).ok()?;
        chunked = size > 0;
    }
    if path.starts_with("/crash") {
        std::process::abort();
    } else if path.starts_with("/half") {
        writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").ok()?;
        return None;
    } else if path.starts_with("/slow") {
        std::thread::sleep(Duration::from_millis(500));
        body = b"slow".to_vec();
    } else if path.starts_with("/endless") {
        writer.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").ok()?;
        loop {
            writer.write_all(b"4\r\nmore\r\n").ok()?;
            std::thread::sleep(Duration::from_millis(20));
        }
    } else if path.starts_with("/env") {
        let mut lines: Vec<String> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
        lines.sort();
        body = lines.join("\n").into_bytes();
    } else if path.starts_with("/say") {
        println!("conformance-output");
        eprintln!("conformance-output on stderr");
    } else if path.starts_with("/child") {
        // A process of its own that outlives its parent unless somebody cares.
        let child = std::process::Command::new("sleep").arg("1000").spawn().ok()?;
        body = child.id().to_string().into_bytes();
    } else if path.starts_with("/early") {
        body = EARLY.load(Ordering::SeqCst).to_string().into_bytes();
    } else if path.starts_with("/daemon") {
        // A session of its own, and no standard input by which it could be found.
        let script = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!";
        body = std::process::Command::new("sh").args(["-c", script]).output().ok()?.stdout;
    } else if let Some(mib) = path.strip_prefix("/grow/") {
        let block = vec![1u8; mib.parse::<usize>().ok()? << 20];
        std::hint::black_box(&block);
        body = b"grown".to_vec();
    } else if let Some(mib) = path.strip_prefix("/keep/") {
        vec![1u8; mib.parse::<usize>().ok()? << 20].leak();
        body = b"kept".to_vec();
    } else if path.starts_with("/pid") {
        body = std::process::id().to_string().into_bytes();
    } else if path.starts_with("/cwd") {
        body = std::env::current_dir().ok()?.display().to_string().into_bytes();
    }
    println!("conformance-output of {path}");
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    writer.write_all(head.as_bytes()).ok()?;
    writer.write_all(&body).ok()
}
