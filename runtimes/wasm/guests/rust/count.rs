//! Counts the lines, words and bytes of a request's body while it comes in: the answer is `LINES WORDS BYTES`.
//!
//! Without bindings and without `std`: what is imported and exported is named as the canonical ABI flattens it, so that
//! any Rust with the target wasm32-unknown-unknown builds it and nothing is in it but this file.
#![no_std]

use core::{arch::wasm32, panic::PanicInfo, ptr::addr_of_mut};

#[link(wasm_import_module = "wasi:http/types@0.2.0")]
extern "C" {
    #[link_name = "[method]incoming-request.consume"]
    fn request_consume(request: u32, result: *mut u32);
    #[link_name = "[method]incoming-body.stream"]
    fn body_stream(body: u32, result: *mut u32);
    #[link_name = "[constructor]fields"]
    fn fields_new() -> u32;
    #[link_name = "[method]fields.append"]
    fn fields_append(fields: u32, name: *const u8, name_len: usize, value: *const u8, value_len: usize, result: *mut u32);
    #[link_name = "[constructor]outgoing-response"]
    fn response_new(fields: u32) -> u32;
    #[link_name = "[method]outgoing-response.body"]
    fn response_body(response: u32, result: *mut u32);
    #[link_name = "[method]outgoing-body.write"]
    fn body_write(body: u32, result: *mut u32);
    #[link_name = "[static]outgoing-body.finish"]
    fn body_finish(body: u32, has_trailers: u32, trailers: u32, result: *mut u32);
    #[link_name = "[static]response-outparam.set"]
    fn outparam_set(out: u32, is_error: u32, response: u32, e1: u32, e2: u64, e3: u32, e4: u32, e5: u32, e6: u32);
}

#[link(wasm_import_module = "wasi:io/streams@0.2.0")]
extern "C" {
    #[link_name = "[method]input-stream.blocking-read"]
    fn stream_read(stream: u32, most: u64, result: *mut u32);
    #[link_name = "[method]output-stream.blocking-write-and-flush"]
    fn stream_write(stream: u32, bytes: *const u8, len: usize, result: *mut u32);
    #[link_name = "[resource-drop]output-stream"]
    fn output_drop(stream: u32);
}

/// Bytes that are read at once.
const PIECE: usize = 16 * 1024;
const PAGE: usize = 64 * 1024;

/// Room for results that come back through memory; the largest is an error-code.
#[repr(align(8))]
struct Room([u32; 16]);
static mut ROOM: Room = Room([0; 16]);

/// The next free byte: memory is never given back, since a sandbox lives for a request.
static mut HEAP: usize = 0;

/// Memory for what the host hands in.
#[export_name = "cabi_realloc"]
unsafe extern "C" fn realloc(old: *mut u8, old_size: usize, align: usize, size: usize) -> *mut u8 {
    if HEAP == 0 {
        HEAP = wasm32::memory_size(0) * PAGE;
    }
    let at = (HEAP + align - 1) & !(align - 1);
    HEAP = at + size;
    let have = wasm32::memory_size(0) * PAGE;
    if HEAP > have && wasm32::memory_grow(0, (HEAP - have + PAGE - 1) / PAGE) == usize::MAX {
        wasm32::unreachable();
    }
    if !old.is_null() {
        core::ptr::copy_nonoverlapping(old, at as *mut u8, old_size.min(size));
    }
    at as *mut u8
}

/// The value of a `result` whose first byte says whether it is an error.
unsafe fn ok(call: impl FnOnce(*mut u32)) -> Option<[u32; 2]> {
    let room = addr_of_mut!(ROOM.0) as *mut u32;
    call(room);
    if room.cast::<u8>().read() == 0 {
        Some([room.add(1).read(), room.add(2).read()])
    } else {
        None
    }
}

unsafe fn must(call: impl FnOnce(*mut u32)) -> u32 {
    match ok(call) {
        Some([handle, _]) => handle,
        None => wasm32::unreachable(),
    }
}

#[derive(Default)]
struct Counts {
    lines: u64,
    words: u64,
    bytes: u64,
    in_word: bool,
}

impl Counts {
    fn take(&mut self, piece: &[u8]) {
        for byte in piece {
            let is_space = byte.is_ascii_whitespace();
            self.words += u64::from(self.in_word && is_space);
            self.in_word = !is_space;
            self.lines += u64::from(*byte == b'\n');
        }
        self.bytes += piece.len() as u64;
    }

    fn finish(mut self) -> [u64; 3] {
        self.words += u64::from(self.in_word);
        [self.lines, self.words, self.bytes]
    }
}

/// Numbers with spaces in between and a line's end, written from the back. Gives where the text starts.
fn text(numbers: [u64; 3], to: &mut [u8; 64]) -> usize {
    let mut at = to.len();
    let mut end = b'\n';
    for mut number in numbers.into_iter().rev() {
        at -= 1;
        to[at] = end;
        end = b' ';
        loop {
            at -= 1;
            to[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
    }
    at
}

#[export_name = "wasi:http/incoming-handler@0.2.0#handle"]
unsafe extern "C" fn handle(request: u32, out: u32) {
    let body = must(|room| request_consume(request, room));
    let input = must(|room| body_stream(body, room));
    let mut counts = Counts::default();
    // The end of the body is an error, too: `closed`.
    while let Some([at, len]) = ok(|room| stream_read(input, PIECE as u64, room)) {
        counts.take(core::slice::from_raw_parts(at as *const u8, len as usize));
        // The next piece takes its place.
        HEAP = at as usize;
    }

    let headers = fields_new();
    let (name, value) = ("content-type", "text/plain");
    must(|room| fields_append(headers, name.as_ptr(), name.len(), value.as_ptr(), value.len(), room));
    let response = response_new(headers);
    let body = must(|room| response_body(response, room));
    outparam_set(out, 0, response, 0, 0, 0, 0, 0, 0);
    let stream = must(|room| body_write(body, room));
    let mut buffer = [0; 64];
    let start = text(counts.finish(), &mut buffer);
    let answer = &buffer[start..];
    must(|room| stream_write(stream, answer.as_ptr(), answer.len(), room));
    output_drop(stream);
    must(|room| body_finish(body, 0, 0, room));
}

#[panic_handler]
fn panicked(_: &PanicInfo) -> ! {
    wasm32::unreachable()
}
