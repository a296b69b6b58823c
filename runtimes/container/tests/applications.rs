//! Images of real interpreters, as other tools build them: a Python, a Node and a Java application on files of this
//! machine's packages, and nothing else (so: without a shell), built by `umoci`. They answer, log and stop. Needs root, crun
//! or runc, umoci, python3, node and a JDK.

#![allow(clippy::print_stdout, reason = "says what it skips")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use sas_core::Runtime as _;
use support::{Workplace, get, get_with, start, until};

/// The first of these that is here; in CI one has to be.
fn program(names: &[&str]) -> Option<PathBuf> {
    let found = names.iter().map(PathBuf::from).find(|path| path.is_file());
    if found.is_none() {
        sas_testkit::skip(&format!("none of {names:?} is here"));
    }
    found
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Copies a file to its own place below `root`, what links to it included.
fn take(root: &Path, file: &Path) {
    let real = fs::canonicalize(file).unwrap();
    for path in [file, &real] {
        let to = root.join(path.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        if !to.exists() {
            fs::copy(&real, &to).unwrap();
        }
    }
}

/// The libraries that programs of this machine are linked with, the loader included.
fn libraries(programs: &[&Path]) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for program in programs {
        let said = run(Command::new("ldd").arg(program));
        let words = said.lines().flat_map(str::split_whitespace);
        found.extend(words.filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    found
}

struct Image<'a> {
    layout: &'a Path,
    name: &'a str,
}

impl Image<'_> {
    fn umoci(&self, command: &[&str]) -> Command {
        let mut umoci = Command::new("umoci");
        umoci.args(command).arg("--image").arg(format!("{}:{}", self.layout.display(), self.name));
        umoci
    }

    /// Builds it of a root file system, with these settings.
    fn build(&self, root: &Path, settings: &[&str]) {
        if !self.layout.exists() {
            run(Command::new("umoci").arg("init").arg("--layout").arg(self.layout));
        }
        run(&mut self.umoci(&["new"]));
        for dir in ["etc", "tmp"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:\nweb:x:1000:1000::/srv:\n").unwrap();
        let layer = root.with_extension("tar");
        run(Command::new("tar")
            .args(["--owner=0", "--group=0", "-cf"])
            .arg(&layer)
            .arg("-C")
            .arg(root)
            .arg("."));
        run(self.umoci(&["raw", "add-layer"]).arg(&layer));
        run(self.umoci(&["config"]).args(settings));
        fs::remove_file(layer).unwrap();
    }
}

/// It answers, says so, and stops when it is asked to.
async fn serves(place: &Workplace, layout: &Path, name: &str) -> String {
    let mut config = place.config();
    config.local_images.push(layout.to_path_buf());
    config.store = place.dir.path().join(format!("store-{name}"));
    let runtime = std::sync::Arc::new(sas_runtime_container::ContainerRuntime::new(config).unwrap());
    let mut spec = sas_core::RevisionSpec::new(
        "container",
        sas_core::Source::Image(format!("oci:{}:{name}", layout.display())),
    );
    spec.timeouts.start = Duration::from_secs(60);
    let started = start(&runtime, spec).await.unwrap();
    let answer = get(&*started.instance, "/hello").await;
    let (status, _) = get_with(&*started.instance, "/nothing", &[]).await.unwrap();
    assert_eq!(status, 404, "{name}");
    let text = || {
        let lines = started.logs.lines();
        lines.iter().map(|line| format!("{}\n", String::from_utf8_lossy(&line.line))).collect::<String>()
    };
    until("what it logs is collected", || text().contains("asked for /hello")).await;
    started.instance.stop(Duration::from_secs(20)).await.unwrap();
    until("its end is told", || !started.events.exits().is_empty()).await;
    let report = &started.events.exits()[0].1;
    assert_eq!((report.code, report.signal), (Some(0), None), "{name}: {report}; {}", text());
    until("its last line is collected", || text().contains("stopping")).await;
    runtime.quiesce().await;
    let store = fs::canonicalize(place.dir.path().join(format!("store-{name}"))).unwrap();
    assert_eq!(support::census(&store), Vec::<String>::new(), "{name}");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_application_of_another_user_answers_logs_and_stops() {
    support::needs_containers!();
    let (Some(python), Some(_)) = (program(&["/usr/bin/python3"]), program(&["/usr/bin/umoci"])) else {
        return;
    };
    let place = Workplace::new();
    let dir = fs::canonicalize(place.dir.path()).unwrap();
    let (root, layout) = (dir.join("python"), dir.join("built"));
    take(&root, &python);
    for library in libraries(&[&python]) {
        take(&root, &library);
    }
    let library = run(Command::new(&python).args(["-c", "import os; print(os.__file__.rsplit('/', 1)[0])"]));
    let library = Path::new(library.trim());
    let to = root.join(library.strip_prefix("/").unwrap());
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    run(Command::new("cp").arg("-r").arg(library).arg(&to));
    // What no server needs, and what is of other packages.
    for part in
        ["test", "idlelib", "tkinter", "lib2to3", "ensurepip", "pydoc_data", "dist-packages", "turtledemo"]
    {
        let _ = fs::remove_dir_all(to.join(part));
    }
    fs::create_dir_all(root.join("srv")).unwrap();
    let text = r#"
import http.server, os, signal, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("asked for", self.path, flush=True)
        found = self.path == "/hello"
        body = ("python %d as %d in %s" % (sys.version_info[0], os.getuid(), os.getcwd())).encode()
        self.send_response(200 if found else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

def stop(*_):
    print("stopping", flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"#;
    fs::write(root.join("srv/app.py"), text).unwrap();
    let settings =
        ["--config.entrypoint", "/usr/bin/python3", "--config.cmd", "app.py", "--config.workingdir", "/srv"];
    let user = ["--config.user", "web"];
    Image { layout: &layout, name: "python" }.build(&root, &[&settings[..], &user].concat());
    assert_eq!(serves(&place, &layout, "python").await, "python 3 as 1000 in /srv");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_application_writes_to_the_volume_of_its_image() {
    support::needs_containers!();
    let (Some(node), Some(_)) = (program(&["/usr/bin/node"]), program(&["/usr/bin/umoci"])) else { return };
    let place = Workplace::new();
    let dir = fs::canonicalize(place.dir.path()).unwrap();
    let (root, layout) = (dir.join("node"), dir.join("built"));
    take(&root, &node);
    for library in libraries(&[&node]) {
        take(&root, &library);
    }
    fs::create_dir_all(root.join("app")).unwrap();
    let text = r#"
const fs = require('fs');
const server = require('http').createServer((request, response) => {
  console.log('asked for ' + request.url);
  if (request.url !== '/hello') { response.statusCode = 404; return response.end(); }
  fs.appendFileSync('/state/seen', 'once');
  response.end('node keeps ' + fs.readFileSync('/state/seen', 'utf8'));
});
process.on('SIGTERM', () => { console.log('stopping'); server.closeAllConnections?.(); server.close(() => process.exit(0)); });
server.listen(process.env.PORT);
"#;
    fs::write(root.join("app/server.js"), text).unwrap();
    let settings = [
        "--config.entrypoint",
        "/usr/bin/node",
        "--config.cmd",
        "/app/server.js",
        "--config.volume",
        "/state",
    ];
    Image { layout: &layout, name: "node" }.build(&root, &settings);
    assert_eq!(serves(&place, &layout, "node").await, "node keeps once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_java_application_on_a_runtime_of_its_own_answers_logs_and_stops() {
    support::needs_containers!();
    let (Some(_), Some(jlink), Some(_)) =
        (program(&["/usr/bin/javac"]), program(&["/usr/bin/jlink"]), program(&["/usr/bin/umoci"]))
    else {
        return;
    };
    let place = Workplace::new();
    let dir = fs::canonicalize(place.dir.path()).unwrap();
    let (root, layout) = (dir.join("java"), dir.join("built"));
    fs::create_dir_all(root.join("app")).unwrap();
    let home = root.join("java");
    run(Command::new(&jlink)
        .args([
            "--add-modules",
            "java.base,jdk.httpserver",
            "--strip-debug",
            "--no-man-pages",
            "--no-header-files",
        ])
        .arg("--output")
        .arg(&home));
    let own: Vec<PathBuf> =
        ["bin/java", "lib/libjava.so", "lib/libnio.so", "lib/libnet.so", "lib/server/libjvm.so"]
            .iter()
            .map(|part| home.join(part))
            .collect();
    for library in libraries(&own.iter().map(PathBuf::as_path).collect::<Vec<_>>()) {
        if !library.starts_with(&home) {
            take(&root, &library);
        }
    }
    let text = r#"
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

public class App {
    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress(port), 0);
        server.createContext("/", exchange -> {
            String path = exchange.getRequestURI().getPath();
            System.out.println("asked for " + path);
            byte[] body = ("java " + args[0]).getBytes();
            exchange.sendResponseHeaders(path.equals("/hello") ? 200 : 404, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            System.out.println("stopping");
            System.out.flush();
            Runtime.getRuntime().halt(0);
        }));
        server.start();
    }
}
"#;
    fs::write(dir.join("App.java"), text).unwrap();
    run(Command::new("javac").arg("-d").arg(root.join("app")).arg(dir.join("App.java")));
    let settings = [
        "--config.entrypoint",
        "/java/bin/java",
        "--config.entrypoint",
        "-cp",
        "--config.entrypoint",
        "/app",
        "--config.entrypoint",
        "App",
        "--config.cmd",
        "$(is taken as it stands) $$",
    ];
    Image { layout: &layout, name: "java" }.build(&root, &settings);
    assert_eq!(serves(&place, &layout, "java").await, "java $(is taken as it stands) $$");
}
