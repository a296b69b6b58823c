// Answers with the request's body in capitals, by the CGI convention. AssemblyScript: TypeScript's syntax, compiled
// ahead of time.

// @ts-ignore: decorators of the compiler
@external("wasi_snapshot_preview1", "fd_read")
declare function fd_read(fd: i32, vectors: usize, count: i32, read: usize): i32;
// @ts-ignore
@external("wasi_snapshot_preview1", "fd_write")
declare function fd_write(fd: i32, vectors: usize, count: i32, written: usize): i32;

const PIECE: i32 = 4096;
const buffer = memory.data(4096);
const vector = memory.data(8);
const count = memory.data(4);
const head = memory.data<u8>([
  67, 111, 110, 116, 101, 110, 116, 45, 84, 121, 112, 101, 58, 32, 116, 101, 120, 116, 47, 112, 108, 97, 105, 110, 10, 10,
]); // "Content-Type: text/plain\n\n"

function write(at: usize, length: i32): void {
  while (length > 0) {
    store<usize>(vector, at);
    store<i32>(vector, length, 4);
    if (fd_write(1, vector, 1, count)) unreachable();
    at += load<i32>(count);
    length -= load<i32>(count);
  }
}

export function _start(): void {
  write(head, 26);
  while (true) {
    store<usize>(vector, buffer);
    store<i32>(vector, PIECE, 4);
    if (fd_read(0, vector, 1, count)) unreachable();
    const read = load<i32>(count);
    if (!read) return;
    for (let i = 0; i < read; i++) {
      const letter = load<u8>(buffer + i);
      if (letter >= 97 && letter <= 122) store<u8>(buffer + i, letter - 32);
    }
    write(buffer, read);
  }
}
