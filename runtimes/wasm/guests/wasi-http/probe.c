// Does what the path says: what the tests of the runtime are made of.
//   /            greets                       /echo     echoes the body as it comes
//   /count       counts the requests of this sandbox
//   /crash /loop /recurse /bomb               trap, never end, call oneself, take memory for ever
//   /never       returns without an answer    /twice    answers twice
//   /partial     sends half a body, then traps
//   /forbidden   tries to set a header that belongs to the platform
//   /environment answers with its environment /log      writes to standard error
//   /fetch?AUTHORITY  calls http://AUTHORITY/ and answers with the status, or with the number of the error
//   /secure?AUTHORITY calls https://AUTHORITY/ in the same way
#include "guest.h"

IMPORT(TYPES, "[method]incoming-request.path-with-query") void request_path(u32 self, u32 *result);
IMPORT(TYPES, "[method]incoming-request.consume") void request_consume(u32 self, u32 *result);
IMPORT(TYPES, "[method]incoming-body.stream") void incoming_stream(u32 self, u32 *result);
IMPORT(STREAMS, "[method]input-stream.blocking-read") void stream_read(u32 self, u64 len, u32 *result);
IMPORT(TYPES, "[method]outgoing-response.set-status-code") u32 response_status(u32 self, u32 status);
IMPORT(TYPES, "[constructor]outgoing-request") u32 call_new(u32 fields);
IMPORT(TYPES, "[method]outgoing-request.set-path-with-query")
u32 call_path(u32 self, u32 is_some, const char *text, u32 len);
IMPORT(TYPES, "[method]outgoing-request.set-scheme")
u32 call_scheme(u32 self, u32 is_some, u32 scheme, const char *text, u32 len);
IMPORT(TYPES, "[method]outgoing-request.set-authority")
u32 call_authority(u32 self, u32 is_some, const char *text, u32 len);
IMPORT("wasi:http/outgoing-handler@0.2.0", "handle")
void call_send(u32 request, u32 has_options, u32 options, u32 *result);
IMPORT(TYPES, "[method]future-incoming-response.subscribe") u32 call_subscribe(u32 self);
IMPORT(TYPES, "[method]future-incoming-response.get") void call_get(u32 self, u32 *result);
IMPORT(TYPES, "[method]incoming-response.status") u32 reply_status(u32 self);
IMPORT("wasi:io/poll@0.2.0", "[method]pollable.block") void pollable_block(u32 self);
IMPORT("wasi:cli/environment@0.2.0", "get-environment") void get_environment(u32 *result);
IMPORT("wasi:cli/stderr@0.2.0", "get-stderr") u32 get_stderr(void);

static u32 number(char *text, u32 value) {
  char digits[10];
  u32 n = 0, len = 0;
  do digits[n++] = '0' + value % 10; while (value /= 10);
  while (n) text[len++] = digits[--n];
  return len;
}

static void reply(u32 out, const char *text, u32 len) {
  u32 body = answer(out, "text/plain");
  u32 stream = open_stream(body);
  write_all(stream, text, len);
  finish(body, stream);
}

static void reply_number(u32 out, const char *word, u32 value) {
  char text[64];
  u32 len = 0;
  for (; word[len]; len++) text[len] = word[len];
  len += number(text + len, value);
  reply(out, text, len);
}

static void echo(u32 request, u32 out) {
  request_consume(request, result);
  incoming_stream(result[1], result);
  u32 input = result[1];
  u32 body = answer(out, "application/octet-stream");
  u32 stream = open_stream(body);
  u8 *start = (u8 *)heap;
  for (;;) {
    // What was read is written before more is read, so that its memory can be used again.
    heap = (u32)start;
    stream_read(input, 65536, result);
    if ((u8)result[0]) break;
    if (!write_all(stream, (const char *)result[1], result[2])) return;
  }
  finish(body, stream);
}

static void fetch(u32 out, u32 scheme, const char *authority, u32 len) {
  u32 call = call_new(fields_new());
  call_scheme(call, 1, scheme, 0, 0);
  call_path(call, 1, "/", 1);
  if (call_authority(call, 1, authority, len)) {
    reply(out, "not an authority", 16);
    return;
  }
  call_send(call, 0, 0, result);
  if ((u8)result[0]) {
    reply_number(out, "error ", (u8)result[2]);
    return;
  }
  u32 pending = result[2];
  pollable_block(call_subscribe(pending));
  call_get(pending, result);
  // option < result < result < response, error-code > > >, each tag padded to 8 bytes.
  if (((u8 *)result)[16]) reply_number(out, "error ", ((u8 *)result)[24]);
  else reply_number(out, "status ", reply_status(result[6]));
}

static void environment(u32 out) {
  get_environment(result);
  u32 *pairs = (u32 *)result[0], count = result[1];
  u32 body = answer(out, "text/plain");
  u32 stream = open_stream(body);
  for (u32 i = 0; i < count; i++) {
    u32 *pair = pairs + 4 * i;
    write_all(stream, (const char *)pair[0], pair[1]);
    write_all(stream, "=", 1);
    write_all(stream, (const char *)pair[2], pair[3]);
    write_all(stream, "\n", 1);
  }
  finish(body, stream);
}

static volatile u32 depth;
__attribute__((noinline)) static u32 recurse(u32 n) {
  depth = n;
  return recurse(n + 1) + depth;
}

static u32 served;

static int is(const char *path, const char *word) {
  for (u32 i = 0; i < 4; i++)
    if (path[i] != word[i]) return 0;
  return 1;
}

EXPORT("wasi:http/incoming-handler@0.2.0#handle") void handle(u32 request, u32 out) {
  served++;
  request_path(request, result);
  // Past the slash; the allocator leaves room behind it.
  const char *path = (const char *)result[1] + 1;
  u32 len = result[2] - 1;
  if (!len) reply(out, "hello, world!\n", 14);
  else if (is(path, "echo")) echo(request, out);
  else if (is(path, "coun")) reply_number(out, "", served);
  else if (is(path, "cras")) __builtin_trap();
  else if (is(path, "loop")) for (volatile u32 i = 0;; i++);
  else if (is(path, "recu")) recurse(0);
  else if (is(path, "bomb")) for (;;) __builtin_wasm_memory_grow(0, 16);
  else if (is(path, "neve")) return;
  else if (is(path, "twic")) {
    reply(out, "once", 4);
    reply(out, "more", 4);
  } else if (is(path, "part")) {
    u32 stream = open_stream(answer(out, "text/plain"));
    for (u32 i = 0; i < 100; i++) write_all(stream, "half", 4);
    __builtin_trap();
  } else if (is(path, "forb")) {
    fields_append(fields_new(), "connection", 10, "close", 5, result);
    reply_number(out, (u8)result[0] ? "refused " : "taken ", ((u8 *)result)[1]);
  } else if (is(path, "envi")) environment(out);
  else if (is(path, "log")) {
    write_all(get_stderr(), "conformance-output\n", 19);
    echo(request, out);
  } else if (is(path, "fetc") && len > 6) fetch(out, 0, path + 6, len - 6);
  else if (is(path, "secu") && len > 7) fetch(out, 1, path + 7, len - 7);
  else reply(out, "what?", 5);
}
