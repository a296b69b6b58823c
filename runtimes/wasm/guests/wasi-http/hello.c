// Answers every request with a greeting.
#include "guest.h"

EXPORT("wasi:http/incoming-handler@0.2.0#handle") void handle(u32 request, u32 out) {
  static const char text[] = "hello, world!\n";
  request_drop(request);
  u32 body = answer(out, "text/plain");
  u32 stream = open_stream(body);
  write_all(stream, text, sizeof text - 1);
  finish(body, stream);
}
