//! A small HTTP server that does as it is asked, built static with plain `rustc` by the tests, so that an image needs
//! nothing else.
//!
//! Arguments: `deaf` never listens; `exit` ends at once; `stubborn` ignores SIGTERM; `once` does one thing and ends:
//! `once write PATH TEXT`, `once connect PORT`; `port=N` listens on N; `always=PATH` answers every path as that one; `side` listens nowhere and
//! waits. Paths are listed in `answer`.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
    fn mount(source: *const u8, target: *const u8, kind: *const u8, flags: u64, data: *const u8) -> i32;
    fn mknod(path: *const u8, mode: u32, device: u64) -> i32;
    fn unshare(flags: i32) -> i32;
    fn setuid(uid: u32) -> i32;
    fn fork() -> i32;
    fn pause() -> i32;
    fn getuid() -> u32;
    fn getgid() -> u32;
    fn socket(family: i32, kind: i32, protocol: i32) -> i32;
    fn connect(socket: i32, to: *const u8, length: u32) -> i32;
    fn sendto(socket: i32, bytes: *const u8, count: usize, flags: i32, to: *const u8, length: u32) -> isize;
}

static TERMINATED: AtomicBool = AtomicBool::new(false);
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

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
    if args.first().is_some_and(|arg| arg == "once") {
        if args[1] == "fail" {
            eprintln!("the schema is too old");
            std::process::exit(4);
        }
        if args[1] == "connect" {
            TcpStream::connect(("127.0.0.1", args[2].parse::<u16>().unwrap())).expect("connects");
            return;
        }
        fs::write(&args[2], &args[3]).expect("writes");
        return;
    }
    // SIGTERM: 15; ignored: 1.
    unsafe { signal(15, if has("stubborn") { 1 } else { on_term as *const () as usize }) };
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_millis(5));
            if TERMINATED.load(Ordering::SeqCst) && ACTIVE.load(Ordering::SeqCst) == 0 {
                println!("stopped politely");
                std::process::exit(0);
            }
        }
    });
    if has("deaf") || has("side") {
        println!("waiting");
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    let port = args
        .iter()
        .find_map(|arg| arg.strip_prefix("port="))
        .map(str::to_owned)
        .unwrap_or_else(|| std::env::var("PORT").expect("PORT is set"));
    if let Some(ms) = args.iter().find_map(|arg| arg.strip_prefix("late=")) {
        std::thread::sleep(Duration::from_millis(ms.parse().unwrap()));
    }
    let listener = TcpListener::bind(("0.0.0.0", port.parse::<u16>().unwrap())).expect("bind");
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

fn c(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// `sockaddr_in` of a port of 127.0.0.1.
fn loopback(port: u16) -> [u8; 16] {
    let (mut address, port) = ([0; 16], port.to_be_bytes());
    address[..2].copy_from_slice(&2u16.to_ne_bytes());
    address[2..4].copy_from_slice(&port);
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    address
}

fn told(result: i32) -> String {
    if result == 0 { "done".to_owned() } else { format!("refused: {}", std::io::Error::last_os_error()) }
}

fn outcome<T: std::fmt::Display>(result: std::io::Result<T>) -> String {
    match result {
        Ok(value) => format!("done: {value}"),
        Err(error) => format!("refused: {error}"),
    }
}

fn answer(path: &str, reader: &mut BufReader<TcpStream>, writer: &mut TcpStream) -> Option<()> {
    let (mut length, mut chunked) = (0usize, false);
    let mut head = String::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        head.push_str(&line);
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
    let mut status = "200 OK";
    let (what, rest) = match path[1..].split_once('/') {
        Some((what, rest)) => (what, format!("/{rest}")),
        None => (&path[1..], String::new()),
    };
    match what {
        "crash" => std::process::abort(),
        "exit" => std::process::exit(rest[1..].parse().ok()?),
        "fail" => status = "503 Service Unavailable",
        "slow" => {
            std::thread::sleep(Duration::from_millis(500));
            body = b"slow".to_vec();
        }
        "endless" => {
            writer.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").ok()?;
            loop {
                writer.write_all(b"4\r\nmore\r\n").ok()?;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        "head" => body = head.into_bytes(),
        "env" => {
            let mut lines: Vec<String> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
            lines.sort();
            body = lines.join("\n").into_bytes();
        }
        "args" => body = std::env::args().collect::<Vec<_>>().join("\n").into_bytes(),
        "cwd" => body = std::env::current_dir().ok()?.display().to_string().into_bytes(),
        "id" => {
            let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
            let kept: Vec<&str> = status
                .lines()
                .filter(|line| ["Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:"].iter().any(|name| line.starts_with(name)))
                .collect();
            body = format!("uid={} gid={}\n{}", unsafe { getuid() }, unsafe { getgid() }, kept.join("\n")).into_bytes();
        }
        "say" => {
            println!("conformance-output");
            eprintln!("conformance-output on stderr");
        }
        "read" => body = match fs::read(&rest) {
            Ok(bytes) => bytes,
            Err(error) => format!("refused: {error}").into_bytes(),
        },
        "list" => {
            let mut names: Vec<String> = fs::read_dir(&rest)
                .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
                .unwrap_or_else(|error| vec![format!("refused: {error}")]);
            names.sort();
            body = names.join("\n").into_bytes();
        }
        "stat" => {
            use std::os::unix::fs::MetadataExt as _;
            body = match fs::symlink_metadata(&rest) {
                Ok(m) => format!("{:o} {} {} {}", m.mode(), m.uid(), m.gid(), m.len()).into_bytes(),
                Err(error) => format!("refused: {error}").into_bytes(),
            };
        }
        "write" => body = outcome(fs::write(&rest, "written").map(|()| "written")).into_bytes(),
        "remove" => body = outcome(fs::remove_file(&rest).map(|()| "removed")).into_bytes(),
        "stdin" => {
            let mut text = String::new();
            body = outcome(std::io::stdin().read_to_string(&mut text)).into_bytes();
        }
        "connect" => {
            let to = rest[1..].parse().ok()?;
            let made = TcpStream::connect_timeout(&to, Duration::from_millis(500));
            body = outcome(made.map(|_| "connected")).into_bytes();
        }
        "listen" => {
            let made = TcpListener::bind(("127.0.0.3", rest[1..].parse::<u16>().ok()?));
            body = outcome(made.map(|_| "listening")).into_bytes();
        }
        "mptcp" => {
            // AF_INET, SOCK_STREAM, IPPROTO_MPTCP
            let made = unsafe { socket(2, 1, 262) };
            let to = loopback(rest[1..].parse().ok()?);
            let made = if made < 0 { made } else { unsafe { connect(made, to.as_ptr(), 16) } };
            body = told(made).into_bytes();
        }
        "fastopen" => {
            let to = loopback(rest[1..].parse().ok()?);
            let made = unsafe { socket(2, 1, 0) };
            // MSG_FASTOPEN
            let sent = unsafe { sendto(made, b"GET".as_ptr(), 3, 0x2000_0000, to.as_ptr(), 16) };
            body = told(if sent < 0 { -1 } else { 0 }).into_bytes();
        }
        "udp" => {
            let made = std::net::UdpSocket::bind("127.0.0.1:0");
            let made = made.and_then(|socket| socket.send_to(b"x", socket.local_addr()?));
            body = outcome(made.map(|_| "sent")).into_bytes();
        }
        // AF_PACKET, SOCK_RAW, all protocols; then AF_INET, SOCK_RAW, TCP
        "packets" => {
            let made = unsafe { socket(17, 3, 0x0300).max(socket(2, 3, 6)) };
            body = told(made.min(0)).into_bytes();
        }
        "mount" => {
            let made = unsafe { mount(c("none").as_ptr(), c("/tmp").as_ptr(), c("tmpfs").as_ptr(), 0, std::ptr::null()) };
            body = told(made).into_bytes();
        }
        "mknod" => {
            let path = c(&format!("{rest}"));
            // A block device 8:0, as the first disk of many machines.
            body = told(unsafe { mknod(path.as_ptr(), 0o060_666, 8 << 8) }).into_bytes();
        }
        "unshare" => body = told(unsafe { unshare(0x1000_0000) }).into_bytes(),
        "setuid" => body = told(unsafe { setuid(rest[1..].parse().ok()?) }).into_bytes(),
        "fork" => {
            let (mut made, most) = (0, rest[1..].parse::<u32>().ok()?);
            while made < most {
                match unsafe { fork() } {
                    0 => loop {
                        unsafe { pause() };
                    },
                    -1 => break,
                    _ => made += 1,
                }
            }
            body = made.to_string().into_bytes();
        }
        "fill" => {
            let block = vec![1u8; 1 << 20];
            let mut file = fs::File::create("/tmp/filled").ok()?;
            let mut written = 0;
            while written < 4096 {
                match file.write_all(&block) {
                    Ok(()) => written += 1,
                    Err(_) => break,
                }
            }
            let _ = fs::remove_file("/tmp/filled");
            body = written.to_string().into_bytes();
        }
        "grow" => {
            let block = vec![1u8; rest[1..].parse::<usize>().ok()? << 20];
            std::hint::black_box(&block);
            body = b"grown".to_vec();
        }
        "pid" => body = std::process::id().to_string().into_bytes(),
        _ => {}
    }
    println!("conformance-output of {path}");
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
    writer.write_all(head.as_bytes()).ok()?;
    writer.write_all(&body).ok()
}
