// A service of WASI 0.3 in plain C: what the tests of the runtime are made of. It shows the asynchronous convention by
// hand: `handle` starts a task, gives the head of the answer with `task.return`, and is called back when what it
// waits for has happened. One request at a time.
//   /            greets                       /echo     passes the body on as it comes
//   /count       counts the requests of this sandbox
//   /host        answers with the authority   /large    sends 8 MiB
//   /crash /loop /bomb                        trap, never end, take memory for ever
//   /never       ends without an answer       /error    answers with an error
//   /partial     sends half a body, then traps
//   /fetch?AUTHORITY  calls http://AUTHORITY/ and answers with the status, or with the number of the error
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

#define TYPES "wasi:http/types@0.3.0"
#define HANDLER "wasi:http/handler@0.3.0"

IMPORT("$root", "[waitable-set-new]") u32 set_new(void);
IMPORT("$root", "[waitable-join]") void waitable_join(u32 waitable, u32 set);
IMPORT(TYPES, "[constructor]fields") u32 fields_new(void);
IMPORT(TYPES, "[method]fields.append")
void fields_append(u32 self, const char *name, u32 name_len, const char *value, u32 value_len, void *result);
IMPORT(TYPES, "[resource-drop]request") void request_drop(u32 self);
IMPORT(TYPES, "[method]request.get-path-with-query") void request_path(u32 self, u32 *result);
IMPORT(TYPES, "[method]request.get-authority") void request_authority(u32 self, u32 *result);
IMPORT(TYPES, "[static]request.consume-body") void request_consume(u32 self, u32 done, u32 *result);
IMPORT(TYPES, "[future-new-0][static]request.consume-body") u64 consume_done_new(void);
IMPORT(TYPES, "[static]response.new")
void response_new(u32 headers, u32 has_body, u32 body, u32 trailers, u32 *result);
IMPORT(TYPES, "[method]response.get-status-code") u32 response_status(u32 self);
IMPORT(TYPES, "[stream-new-0][static]response.new") u64 body_new(void);
IMPORT(TYPES, "[async-lower][stream-write-0][static]response.new")
u32 body_write(u32 body, const void *bytes, u32 len);
IMPORT(TYPES, "[stream-drop-writable-0][static]response.new") void body_end(u32 body);
IMPORT(TYPES, "[future-new-1][static]response.new") u64 trailers_new(void);
IMPORT(TYPES, "[async-lower][future-write-1][static]response.new") u32 trailers_write(u32 trailers, const void *none);
IMPORT(TYPES, "[future-drop-writable-1][static]response.new") void trailers_end(u32 trailers);
IMPORT(TYPES, "[static]request.new")
void call_new(u32 headers, u32 has_body, u32 body, u32 trailers, u32 has_options, u32 options, u32 *result);
IMPORT(TYPES, "[method]request.set-path-with-query") u32 call_path(u32 self, u32 is_some, const char *text, u32 len);
IMPORT(TYPES, "[method]request.set-scheme")
u32 call_scheme(u32 self, u32 is_some, u32 scheme, const char *text, u32 len);
IMPORT(TYPES, "[method]request.set-authority") u32 call_authority(u32 self, u32 is_some, const char *text, u32 len);
IMPORT("wasi:http/client@0.3.0", "send") void call_send(u32 request, u32 *result);
IMPORT("[export]" HANDLER, "[task-return]handle")
void answer(u32 is_error, u32 response, u32 e1, u64 e2, u32 e3, u32 e4, u32 e5, u32 e6);

enum { EXIT = 0, WAIT = 2, BLOCKED = ~0u, LARGE = 8 << 20 };

static u32 result[16] __attribute__((aligned(8)));
// Read by the host after the call: `ok(none)`.
static const u64 no_trailers[8];

extern u8 __heap_base;
static u32 heap;

EXPORT("cabi_realloc") void *cabi_realloc(void *old, u32 old_size, u32 align, u32 size) {
  if (!heap) heap = (u32)&__heap_base;
  heap = (heap + align - 1) & ~(align - 1);
  u32 at = heap;
  heap += size;
  u32 pages = __builtin_wasm_memory_size(0);
  if (heap > pages << 16 && __builtin_wasm_memory_grow(0, (heap - (pages << 16) + 65535) >> 16) == (u32)-1)
    __builtin_trap();
  for (u32 i = 0; old && i < (old_size < size ? old_size : size); i++) ((u8 *)at)[i] = ((u8 *)old)[i];
  return (void *)at;
}

// The answer that is being written.
static char text[65536];
static u32 chunk, sent, total, body, trailers, set, traps;

static u32 wait_for(u32 waitable) {
  if (!set) set = set_new();
  waitable_join(waitable, set);
  return WAIT | set << 4;
}

// Goes on until something has to be waited for, or all is said.
static u32 go_on(void) {
  while (body) {
    if (sent >= total) {
      if (traps) __builtin_trap();
      waitable_join(body, 0);
      body_end(body);
      body = 0;
      break;
    }
    u32 left = total - sent;
    u32 code = body_write(body, text, left < chunk ? left : chunk);
    if (code == BLOCKED) return wait_for(body);
    sent += code >> 4;
    if (code & 15) total = sent;
  }
  if (trailers_write(trailers, no_trailers) == BLOCKED) return wait_for(trailers);
  trailers_end(trailers);
  return EXIT;
}

static u32 reply(u32 len, u32 of) {
  u32 headers = fields_new();
  fields_append(headers, "content-type", 12, "text/plain", 10, result);
  u64 stream = body_new(), future = trailers_new();
  body = (u32)(stream >> 32);
  trailers = (u32)(future >> 32);
  chunk = len;
  sent = 0;
  total = of;
  response_new(headers, 1, (u32)stream, (u32)future, result);
  answer(0, result[0], 0, 0, 0, 0, 0, 0);
  return go_on();
}

static u32 say(const char *word, u32 has_number, u32 value) {
  u32 len = 0, n = 0;
  char digits[10];
  for (; word[len]; len++) text[len] = word[len];
  if (has_number) {
    do digits[n++] = '0' + value % 10; while (value /= 10);
    while (n) text[len++] = digits[--n];
  }
  return reply(len, len);
}

static u32 echo(u32 request) {
  request_consume(request, (u32)consume_done_new(), result);
  u32 headers = fields_new(), incoming = result[0], end = result[1];
  response_new(headers, 1, incoming, end, result);
  answer(0, result[0], 0, 0, 0, 0, 0, 0);
  return EXIT;
}

static u32 fetch(const char *authority, u32 len) {
  u64 future = trailers_new();
  call_new(fields_new(), 0, 0, (u32)future, 0, 0, result);
  u32 call = result[0];
  call_scheme(call, 1, 0, 0, 0);
  call_path(call, 1, "/", 1);
  if (call_authority(call, 1, authority, len)) return say("not an authority", 0, 0);
  if (trailers_write((u32)(future >> 32), no_trailers) != BLOCKED) trailers_end((u32)(future >> 32));
  call_send(call, result);
  if ((u8)result[0]) return say("error ", 1, (u8)result[2]);
  return say("status ", 1, response_status(result[2]));
}

static u32 served;

static int is(const char *path, const char *word) {
  for (u32 i = 0; i < 4; i++)
    if (path[i] != word[i]) return 0;
  return 1;
}

EXPORT("[async-lift]" HANDLER "#handle") u32 handle(u32 request) {
  served++;
  traps = 0;
  request_path(request, result);
  // Past the slash; the allocator leaves room behind it.
  const char *path = (const char *)result[1] + 1;
  u32 len = result[2] - 1;
  if (len && is(path, "echo")) return echo(request);
  if (len && is(path, "host")) {
    request_authority(request, result);
    const char *host = (const char *)result[1];
    u32 count = (u8)result[0] ? result[2] : 0;
    for (u32 i = 0; i < count; i++) text[i] = host[i];
    return reply(count, count);
  }
  request_drop(request);
  if (!len) return say("hello, world!\n", 0, 0);
  if (is(path, "coun")) return say("", 1, served);
  if (is(path, "larg")) return reply(sizeof text, LARGE);
  if (is(path, "cras")) __builtin_trap();
  if (is(path, "loop")) for (volatile u32 i = 0;; i++);
  if (is(path, "bomb")) for (;;) __builtin_wasm_memory_grow(0, 16);
  if (is(path, "neve")) return EXIT;
  if (is(path, "part")) {
    traps = 1;
    return reply(400, 400);
  }
  if (is(path, "erro")) {
    answer(1, 35, 0, 0, 0, 0, 0, 0);
    return EXIT;
  }
  if (is(path, "fetc") && len > 6) return fetch(path + 6, len - 6);
  return say("what?", 0, 0);
}

EXPORT("[callback][async-lift]" HANDLER "#handle") u32 handled(u32 event, u32 waitable, u32 code) {
  (void)event;
  if (body && waitable == body) {
    sent += code >> 4;
    if (code & 15) total = sent;
    return go_on();
  }
  trailers_end(trailers);
  return EXIT;
}
