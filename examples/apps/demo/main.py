"""A service of the demonstration: what it does is said by ROLE. It writes JSON lines, as a service should."""

import json
import os
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROLE = os.environ.get("ROLE", "storefront")


def say(level, message, request=None, **more):
    line = {"level": level, "message": message, **more}
    if request:
        line["requestId"] = request
    print(json.dumps(line), file=sys.stderr if level == "error" else sys.stdout, flush=True)


class Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("content-length") or 0)
        if length:
            self.rfile.read(length)
        request = self.headers.get("x-request-id")
        status, began = 200, time.monotonic()
        if ROLE == "thumbnails":
            end = time.monotonic() + random.uniform(0.15, 0.45)
            time.sleep(max(0.0, end - time.monotonic()))
        elif ROLE == "orders":
            time.sleep(random.uniform(0.005, 0.04))
            if random.random() < 0.06:
                status = 503
                say("error", "the payment provider does not answer", request, provider="example-pay")
        elif ROLE == "reports":
            time.sleep(random.uniform(0.1, 0.3))
        else:
            time.sleep(random.uniform(0.002, 0.03))
        took = round((time.monotonic() - began) * 1000)
        if status == 200 and random.random() < (0.1 if ROLE == "storefront" else 1):
            say("info", f"{self.command} {self.path}", request, tookMs=took)
        body = json.dumps({"service": ROLE, "revision": os.environ.get("K_REVISION"), "tookMs": took}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Service)
if ROLE == "reports":
    time.sleep(0.8)  # it reads much before it serves
say("info", f"{ROLE} serves", pid=os.getpid(), threads=threading.active_count())
server.serve_forever()
