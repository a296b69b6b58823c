// What a component in plain C needs of wasi:http, as the canonical ABI flattens it. No libc, no generated bindings.
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

#define TYPES "wasi:http/types@0.2.0"
#define STREAMS "wasi:io/streams@0.2.0"

IMPORT(TYPES, "[constructor]fields") u32 fields_new(void);
IMPORT(TYPES, "[method]fields.append")
void fields_append(u32 self, const char *name, u32 name_len, const char *value, u32 value_len, void *result);
IMPORT(TYPES, "[resource-drop]incoming-request") void request_drop(u32 self);
IMPORT(TYPES, "[constructor]outgoing-response") u32 response_new(u32 fields);
IMPORT(TYPES, "[method]outgoing-response.body") void response_body(u32 self, u32 *result);
IMPORT(TYPES, "[method]outgoing-body.write") void body_write(u32 self, u32 *result);
IMPORT(TYPES, "[static]outgoing-body.finish") void body_finish(u32 self, u32 has_trailers, u32 trailers, void *result);
IMPORT(TYPES, "[static]response-outparam.set")
void outparam_set(u32 self, u32 is_error, u32 response, u32 e1, u64 e2, u32 e3, u32 e4, u32 e5, u32 e6);
IMPORT(STREAMS, "[method]output-stream.blocking-write-and-flush")
void stream_write(u32 self, const void *bytes, u32 len, void *result);
IMPORT(STREAMS, "[resource-drop]output-stream") void output_drop(u32 self);

// Room for results that come back through memory; the largest is an error-code.
static u32 result[16] __attribute__((aligned(8)));

static u32 length(const char *text) {
  u32 n = 0;
  while (text[n]) n++;
  return n;
}

// Memory for what the host hands in: from a bump allocator that is never freed, since a sandbox lives for a request.
extern u8 __heap_base;
static u32 heap;

EXPORT("cabi_realloc") void *cabi_realloc(void *old, u32 old_size, u32 align, u32 size) {
  if (!heap) heap = (u32)&__heap_base;
  heap = (heap + align - 1) & ~(align - 1);
  u32 at = heap;
  heap += size;
  u32 pages = __builtin_wasm_memory_size(0);
  if (heap > pages << 16) {
    u32 more = ((heap - (pages << 16)) + 65535) >> 16;
    if (__builtin_wasm_memory_grow(0, more) == (u32)-1) __builtin_trap();
  }
  if (old)
    for (u32 i = 0; i < (old_size < size ? old_size : size); i++) ((u8 *)at)[i] = ((u8 *)old)[i];
  return (void *)at;
}

// Starts an answer and gives its body.
static u32 answer(u32 out, const char *type) {
  u32 headers = fields_new();
  fields_append(headers, "content-type", 12, type, length(type), result);
  u32 response = response_new(headers);
  response_body(response, result);
  if ((u8)result[0]) __builtin_trap();
  u32 body = result[1];
  outparam_set(out, 0, response, 0, 0, 0, 0, 0, 0);
  return body;
}

static u32 open_stream(u32 body) {
  body_write(body, result);
  if ((u8)result[0]) __builtin_trap();
  return result[1];
}

// Writes all of it; the host takes at most 4096 bytes at once.
static int write_all(u32 stream, const char *bytes, u32 len) {
  while (len) {
    u32 part = len < 4096 ? len : 4096;
    stream_write(stream, bytes, part, result);
    if ((u8)result[0]) return 0;
    bytes += part;
    len -= part;
  }
  return 1;
}

static void finish(u32 body, u32 stream) {
  output_drop(stream);
  body_finish(body, 0, 0, result);
}
