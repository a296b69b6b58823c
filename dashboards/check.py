#!/usr/bin/env python3
"""Runs every expression of the dashboards and alert rules against a real Prometheus that scraped `platform` under load.

    dashboards/check.py PATH-OF-THE-EXAMPLE-PLATFORM

An expression must be answered with at least one row; of an alert, what stands before its comparison. Needs `prometheus` and
`promtool` (Debian's package prometheus) and Python 3, and takes about half a minute.
"""
import contextlib, glob, json, os, re, socket, subprocess, sys, tempfile, threading, time
import urllib.error, urllib.parse, urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))

APP = r'''
import http.server, os, time
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path == "/slow":
            time.sleep(5)
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    do_GET = do_POST = answer
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
'''

MANIFEST = '''
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: app, annotations: {sas.dev/package: ./app}}
spec: {template: {spec: {containerConcurrency: 4, timeoutSeconds: 2, containers: [{image: "", command: [python3, main.py]}]}}}
---
apiVersion: sources.knative.dev/v1
kind: PingSource
metadata: {name: tick}
spec:
  schedule: "* * * * * *"
  data: tick
  sink: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: app}}
'''


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(port, path, host="localhost"):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read()


def wait(what, ready, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if ready():
                return
        time.sleep(0.2)
    raise SystemExit(f"{what}: not there after {seconds} s")


def expressions():
    """Where each stands, and what to ask."""
    for path in sorted(glob.glob(os.path.join(HERE, "*.json"))):
        with open(path) as file:
            for panel in json.load(file)["panels"]:
                for target in panel["targets"]:
                    yield f"{os.path.basename(path)}: {panel['title']}", target["expr"]
    with open(os.path.join(HERE, "alerts.yaml")) as file:
        text = file.read()
    alerts = re.findall(r"- alert: (\w+)\n\s+expr: (.+)\n", text)
    if len(alerts) != text.count("- alert:"):
        raise SystemExit("alerts.yaml: write each `expr` on the line after its `alert`")
    for name, expression in alerts:
        measured, comparison = re.subn(r"\s*[<>]=?\s*[0-9.]+$", "", expression)
        if comparison != 1:
            raise SystemExit(f"{name}: {expression}: must end in a comparison with a number")
        yield f"alerts.yaml: {name}", measured


def main(platform):
    subprocess.run(["promtool", "check", "rules", os.path.join(HERE, "alerts.yaml")], check=True)
    ingress, admin, prometheus = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        os.chmod(work, 0o755)
        os.mkdir(f"{work}/app")
        with open(f"{work}/app/main.py", "w") as file:
            file.write(APP)
        with open(f"{work}/service.yaml", "w") as file:
            file.write(MANIFEST)
        with open(f"{work}/prometheus.yml", "w") as file:
            json.dump({
                "global": {"scrape_interval": "1s", "evaluation_interval": "5s"},
                "rule_files": [os.path.join(HERE, "alerts.yaml")],
                "scrape_configs": [{"job_name": "sas", "static_configs": [{"targets": [f"127.0.0.1:{admin}"]}]}],
            }, file)

        def start(*command):
            log = stack.enter_context(open(f"{work}/{os.path.basename(command[0])}.log", "w"))
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=work)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        start(platform, "--listen", f"127.0.0.1:{ingress}", "--admin", f"127.0.0.1:{admin}", "--open-metrics",
              "--jail", "none", "--drain", "1", f"{work}/service.yaml")
        start("prometheus", f"--config.file={work}/prometheus.yml", f"--storage.tsdb.path={work}/data",
              f"--web.listen-address=127.0.0.1:{prometheus}", "--log.level=warn")
        wait("platform", lambda: get(admin, "/readyz")[0] == 200)
        wait("prometheus", lambda: get(prometheus, "/-/ready")[0] == 200)
        host = "app.default.localhost"
        wait("the service", lambda: get(ingress, "/", host)[0] == 200)

        def load():
            end = time.monotonic() + 12
            while time.monotonic() < end:
                for path in ["/", "/", "/broken"]:
                    get(ingress, path, host)
                get(ingress, "/", "nobody.localhost")
                time.sleep(0.05)

        threads = [threading.Thread(target=load) for _ in range(3)]
        threads += [threading.Thread(target=lambda: [get(ingress, "/slow", host) for _ in range(3)])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(3)

        failed, asked = [], 0
        for where, expression in expressions():
            query = urllib.parse.urlencode({"query": expression})
            status, body = get(prometheus, f"/api/v1/query?{query}")
            answer = json.loads(body)
            rows = answer.get("data", {}).get("result", [])
            asked += 1
            if status != 200 or answer["status"] != "success" or not rows:
                failed.append(f"{where}: {expression}: {answer.get('error', 'no rows')}")
        # No label may hold a service, a revision, an instance or a host: there is no end of them.
        _, text = get(admin, "/metrics")
        series = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
        labels = set(re.findall(r'[{,](\w+)="', "\n".join(series)))
        unbounded = labels & {"service", "revision", "instance", "host", "path_", "request", "tenant", "namespace"}
        if unbounded:
            failed.append(f"unbounded labels in /metrics: {sorted(unbounded)}")
        if failed:
            for name in ["platform", "prometheus"]:
                with open(f"{work}/{name}.log") as file:
                    print(f"-- {name}\n{file.read()[-2000:]}")
            raise SystemExit("\n".join(failed))
        print(f"{asked} expressions have rows; {len(series)} series with the labels {', '.join(sorted(labels))}")


main(os.path.abspath(sys.argv[1]))
