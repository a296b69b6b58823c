//! A zygote in Rust, built with plain `rustc` by tests and benches: it forks an instance for each message on
//! descriptor 0. Instances answer every request with their number and `K_REVISION`.
//!
//! For comparison the same server can be started by itself: `serve` listens on `PORT`, `fd0` on descriptor 0.

use std::{
    ffi::{c_int, c_long, c_void},
    io::{Read, Write},
    net::TcpListener,
    os::fd::FromRawFd,
};

#[repr(C)]
struct Iovec {
    base: *mut c_void,
    length: usize,
}

#[repr(C)]
struct Message {
    name: *mut c_void,
    name_length: u32,
    iov: *mut Iovec,
    iov_length: usize,
    control: *mut c_void,
    control_length: usize,
    flags: c_int,
}

unsafe extern "C" {
    fn recvmsg(fd: c_int, message: *mut Message, flags: c_int) -> isize;
    fn syscall(number: c_long, ...) -> c_long;
    fn setpgid(pid: c_int, group: c_int) -> c_int;
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn write(fd: c_int, bytes: *const c_void, length: usize) -> isize;
    fn getpid() -> c_int;
}

#[cfg(target_arch = "x86_64")]
const CLONE: c_long = 56;
#[cfg(target_arch = "aarch64")]
const CLONE: c_long = 220;
/// `CLONE_PARENT | SIGCHLD`: the instance is the host's child.
const FLAGS: c_long = 0x8000 | 17;

fn main() {
    if std::env::args().any(|arg| arg == "broken") {
        eprintln!("no database");
        std::process::exit(4);
    }
    let revision = || format!("K_REVISION={}\0", std::env::var("K_REVISION").unwrap_or_default());
    if std::env::args().any(|arg| arg == "fd0") {
        instance(unsafe { TcpListener::from_raw_fd(0) }, revision().as_bytes());
    }
    if std::env::args().any(|arg| arg == "serve") {
        let port: u16 = std::env::var("PORT").unwrap().parse().unwrap();
        instance(TcpListener::bind(("127.0.0.1", port)).unwrap(), revision().as_bytes());
    }
    unsafe { write(0, b"R".as_ptr().cast(), 1) };
    let mut buffer = vec![0u8; 128 * 1024];
    loop {
        let mut control = [0u64; 8];
        let mut iov = Iovec { base: buffer.as_mut_ptr().cast(), length: buffer.len() };
        let mut message = Message {
            name: std::ptr::null_mut(),
            name_length: 0,
            iov: &mut iov,
            iov_length: 1,
            control: control.as_mut_ptr().cast(),
            control_length: std::mem::size_of_val(&control),
            flags: 0,
        };
        let n = unsafe { recvmsg(0, &mut message, 0) };
        if n <= 0 {
            return;
        }
        // One header of 16 bytes, then the descriptors.
        let fds: [c_int; 3] = unsafe { std::ptr::read(control.as_ptr().cast::<u8>().add(16).cast()) };
        let pid = unsafe { syscall(CLONE, FLAGS, 0 as c_long, 0 as c_long, 0 as c_long, 0 as c_long) };
        if pid == 0 {
            unsafe {
                setpgid(0, 0);
                for (to, fd) in fds.into_iter().enumerate() {
                    dup2(fd, to as c_int);
                }
            }
            for fd in fds {
                unsafe { close(fd) };
            }
            instance(unsafe { TcpListener::from_raw_fd(0) }, &buffer[..n as usize]);
        }
        for fd in fds {
            unsafe { close(fd) };
        }
        let answer = (if pid > 0 { pid as c_int } else { 0 }).to_ne_bytes();
        unsafe { write(0, answer.as_ptr().cast(), 4) };
    }
}

fn instance(listener: TcpListener, environment: &[u8]) -> ! {
    let revision = environment
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(b"K_REVISION="))
        .unwrap_or_default();
    let body = format!("{} {}", unsafe { getpid() }, String::from_utf8_lossy(revision));
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut buffer = [0u8; 4096];
    for mut stream in listener.incoming().flatten() {
        let mut length = 0;
        while let Ok(n @ 1..) = stream.read(&mut buffer[length..]) {
            length += n;
            // A request may come in several pieces: it is answered when its head has ended.
            if !buffer[..length].ends_with(b"\r\n\r\n") {
                continue;
            }
            if buffer.starts_with(b"GET /exit") {
                println!("leaving");
                std::process::exit(5);
            }
            length = 0;
            if stream.write_all(answer.as_bytes()).is_err() {
                break;
            }
        }
    }
    std::process::exit(0)
}
