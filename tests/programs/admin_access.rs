//! Attacks on the admin API of a running `platform`, each of which deployed, read or stopped something without a token.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    time::Duration,
};

use crate::shared::{
    ADMIN_TOKEN, Answer, PlatformProcess, call, call_admin, call_with, eventually, hello_manifest,
    platform_command,
};

async fn ask(platform: &PlatformProcess, method: &str, headers: &[&str], path: &str, body: &str) -> Answer {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    call_with(platform.admin, method, "localhost", &headers, path, body).await.expect("an answer")
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

async fn services(platform: &PlatformProcess) -> usize {
    let listed = call_admin(platform.admin, "GET", "/v1/services", "").await.expect("an answer");
    assert_eq!(listed.status, 200, "{listed:?}");
    listed.json()["services"].as_array().expect("a list").len()
}

#[tokio::test]
async fn a_web_page_a_rebound_name_and_a_stranger_deploy_nothing_and_read_nothing() {
    let platform = PlatformProcess::start(&[]);
    let manifest = hello_manifest("planted", "", 1);
    let token = bearer(ADMIN_TOKEN);
    let evil = "Origin: https://evil.example";
    let page = "Origin: http://planted.default.localhost";
    for (headers, status, what) in [
        (&[evil, "Content-Type: text/plain"][..], 403, "a simple POST across sites"),
        (
            &[evil, "Content-Type: application/x-www-form-urlencoded", "Sec-Fetch-Site: cross-site"],
            403,
            "a form",
        ),
        (&[evil, &token], 403, "a foreign origin, even with the token"),
        (&["Sec-Fetch-Site: cross-site", &token], 403, "a fetch across sites"),
        (&["Sec-Fetch-Site: same-site", "Content-Type: text/plain"], 403, "a page of a service"),
        (&[page, &token], 403, "a service's own page"),
        (&["Origin: null", &token], 403, "a page in a sandbox"),
        (&["Content-Type: text/plain"], 401, "an instance, which has no token"),
        (&["Authorization: Bearer"], 401, "no token after the scheme"),
        (&["Authorization: Bearer "], 401, "an empty token"),
        (&["Authorization:"], 401, "an empty header"),
        (&["Authorization: Bearer wrong"], 401, "a wrong token"),
        (&[&format!("{token}x")], 401, "a token and more"),
        (&[&token[..token.len() - 1]], 401, "a token and less"),
        (&[&bearer(&ADMIN_TOKEN.to_uppercase())], 401, "a token in capitals"),
        (&[&token, &token], 401, "the right token twice"),
        (&["Authorization: Bearer wrong", &token], 401, "a wrong one and the right one"),
        (&[&format!("Authorization: Basic {ADMIN_TOKEN}")], 401, "another scheme"),
        (&[&format!("Cookie: token={ADMIN_TOKEN}")], 401, "the token as a cookie"),
        (&[&format!("X-Token: {ADMIN_TOKEN}")], 401, "the token in another header"),
    ] {
        let answer = ask(&platform, "POST", headers, "/v1/services", &manifest).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        assert!(!answer.body.contains(ADMIN_TOKEN), "{what}");
        if status == 401 {
            assert!(answer.head.contains("www-authenticate: bearer"), "{what}: {}", answer.head);
        }
    }
    let urls = [
        "/v1/services?access_token=TOKEN",
        "/v1/services?token=TOKEN",
        "/v1/services?authorization=Bearer%20TOKEN",
    ];
    for url in urls {
        let answer = ask(&platform, "GET", &[], &url.replace("TOKEN", ADMIN_TOKEN), "").await;
        assert_eq!(answer.status, 401, "a token in a URL: {url}");
    }
    for path in
        ["/v1/services", "/v1/usage", "/v1/triggers", "/v1/runtimes", "/v1/quotas", "/metrics", "/", "/v1/x"]
    {
        assert_eq!(ask(&platform, "GET", &[], path, "").await.status, 401, "{path}");
    }
    for host in
        ["evil.example", "localhost.evil.example", "rebound.example:8081", "planted.default.localhost", ""]
    {
        for (method, path) in [("GET", "/v1/services"), ("POST", "/v1/services"), ("GET", "/metrics")] {
            let headers = format!("{token}\r\n");
            let answer =
                call_with(platform.admin, method, host, &headers, path, &manifest).await.expect("an answer");
            assert_eq!(answer.status, 403, "{method} {path} for {host:?}: {answer:?}");
            assert!(!answer.body.contains("planted\""), "{answer:?}");
        }
    }
    assert_eq!(services(&platform).await, 0, "nothing was deployed");
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            call(platform.admin, "GET", "10.0.0.7:8081", path, "").await.expect("an answer").status,
            200
        );
    }

    let fine = ask(&platform, "POST", &[&token, "Content-Type: text/plain"], "/v1/services", &manifest).await;
    assert_eq!(fine.status, 201, "who has the token need not name the media type: {fine:?}");
    let own = format!("Origin: http://localhost\r\n{token}");
    assert_eq!(ask(&platform, "GET", &[&own], "/v1/services", "").await.status, 200, "its own pages");
    assert!(platform.terminate().success());
}

/// An instance that asks whatever port it is told for, with everything that it was given and could be a token, and says
/// what came of each try: a status, or the number of the error.
const SPY: &str = r#"
import errno, http.server, os, socket, urllib.error, urllib.request
class Spy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/self":
            return self.say("200")
        port = self.path[1:] if self.path != "/own" else os.environ["PORT"]
        if self.path.startswith("/unix/"):
            port = self.path[5:]
        tokens = [""] + [value for name, value in os.environ.items() if "TOKEN" in name or "SAS" in name]
        self.say(" ".join(self.ask(port, token) for token in tokens))
    def ask(self, port, token):
        if port.startswith("/"):
            return self.ask_socket(port, token)
        path = "/self" if port == os.environ["PORT"] else "/v1/services"
        ask = urllib.request.Request("http://127.0.0.1:" + port + path)
        if token:
            ask.add_header("Authorization", "Bearer " + token)
        try:
            return str(urllib.request.urlopen(ask, timeout=5).status)
        except urllib.error.HTTPError as error:
            return str(error.code)
        except OSError as error:
            return errno.errorcode.get(getattr(error.reason, "errno", None), repr(error))
    def ask_socket(self, path, token):
        try:
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(path)
                bearer = "Authorization: Bearer " + token + "\r\n" if token else ""
                stream.sendall(("GET /v1/services HTTP/1.1\r\nHost: localhost\r\n" + bearer + "\r\n").encode())
                return stream.recv(12).decode().split(" ")[1]
        except OSError as error:
            return errno.errorcode.get(error.errno, repr(error))
    def say(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Spy).serve_forever()
"#;

/// A service of [`SPY`] in a directory of its own; `None`, with a word why, where there is no Python.
fn spy() -> Option<(tempfile::TempDir, std::path::PathBuf)> {
    let python = std::process::Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|output| output.status.success()) {
        sas_testkit::skip("python3 is not installed");
        return None;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("main.py"), SPY).expect("written");
    let manifest = dir.path().join("spy.yaml");
    fs::write(&manifest, spy_manifest("spy", dir.path(), "")).expect("written");
    Some((dir, manifest))
}

fn spy_manifest(name: &str, package: &std::path::Path, annotations: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations: {{sas.dev/package: {}, sas.dev/command: python3 main.py{annotations}}}\nspec: {{template: {{spec: {{containers: [{{}}]}}}}}}\n",
        package.display()
    )
}

/// Whether this machine can keep an instance that shares the host's network from a TCP port.
fn ports_are_kept() -> bool {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = sas::process::ProcessRuntime::new(sas::process::ProcessConfig::in_store(dir.path()));
    let report = runtime.expect("a runtime").jail_report().clone();
    let kept = !report.missing().any(|means| means.name.contains("TCP"));
    assert!(kept || std::env::var_os("CI").is_none(), "{report}");
    kept
}

#[tokio::test]
async fn an_instance_is_kept_from_the_admin_port_by_its_jail_and_without_one_finds_no_token() {
    let kept = if ports_are_kept() { "EACCES" } else { "401" };
    // At `strict` nothing of the host's is in its network, if the host is root and it can be had at all.
    let root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let levels: &[(&str, &str)] = if root && kept == "EACCES" {
        &[("none", "401"), ("basic", kept), ("strict", "ECONNREFUSED")]
    } else {
        &[("none", "401"), ("basic", kept)]
    };
    for (level, expected) in levels {
        let Some((dir, manifest)) = spy() else { return };
        let platform = PlatformProcess::start(&["--jail", level, manifest.to_str().expect("UTF-8")]);
        let port = platform.admin.port();
        let path = format!("/{port}");
        let tried = call(platform.listen, "GET", "spy.default.localhost", &path, "");
        // The port answers everybody else in that very moment.
        let (tried, open) = tokio::join!(tried, ask(&platform, "GET", &[], "/healthz", ""));
        let tried = tried.expect("an answer");
        assert_eq!((open.status, tried.status), (200, 200), "{level}: {tried:?}");
        assert!(
            !tried.body.is_empty() && tried.body.split(' ').all(|one| one == *expected),
            "{level}: {tried:?}"
        );
        // And the instance does connect: to where it may.
        let own = call(platform.listen, "GET", "spy.default.localhost", "/own", "").await.expect("an answer");
        assert_eq!(own.body, "200", "{level}: {own:?}");
        assert_eq!(services(&platform).await, 1, "{level}: with the token it is open");
        // Nor does a service get it by asking, though the kernel chose it: it is the host's own.
        let asks = spy_manifest("asks", dir.path(), &format!(", sas.dev/egress: \"443,{port}\""));
        let refused = call_admin(platform.admin, "POST", "/v1/services", &asks).await.expect("an answer");
        let said = format!("port {port} is the host's own");
        assert_eq!((refused.status, refused.body.contains(&said)), (422, true), "{level}: {refused:?}");
        assert!(platform.terminate().success());
    }
}

#[tokio::test]
async fn a_token_is_made_once_kept_with_0600_and_changed_without_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let state = dir.path().join("state");
    let state = state.to_str().expect("UTF-8");
    let platform = PlatformProcess::start_without_token(&["--state", state]);
    let file = platform.token_file.clone().expect("the ready line names it");
    assert_eq!(file.parent(), Some(std::path::Path::new(state)));
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    let first = fs::read_to_string(&file).expect("readable").trim().to_owned();
    assert!(first.len() >= 32, "{}", first.len());
    let status = async |platform: &PlatformProcess, token: &str| {
        ask(platform, "GET", &[&bearer(token)], "/v1/services", "").await.status
    };
    assert_eq!(status(&platform, &first).await, 200);
    assert_eq!(status(&platform, "another").await, 401);
    fs::write(&file, "another\n").expect("written");
    assert_eq!((status(&platform, "another").await, status(&platform, &first).await), (200, 401), "at once");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("changed");
    assert_eq!(status(&platform, "another").await, 503, "others may have read it");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("changed");
    fs::write(&file, "\n").expect("written");
    assert_eq!(status(&platform, "").await, 401, "an empty header is no token");
    assert_eq!(status(&platform, "another").await, 503, "an empty file is no token");
    fs::write(&file, "another\n").expect("written");
    assert!(platform.terminate().success());

    let platform = PlatformProcess::start_without_token(&["--state", state]);
    assert_eq!(status(&platform, "another").await, 200, "it is made once");
    assert!(platform.terminate().success());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("changed");
    let output = platform_command(&["--state", state, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .env_remove("SAS_ADMIN_TOKEN")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("0640") && said.contains("0600"), "{said}");
}

#[tokio::test]
async fn without_a_state_directory_the_token_is_in_a_file_that_goes_with_the_platform() {
    let platform = PlatformProcess::start_without_token(&[]);
    let file = platform.token_file.clone().expect("the ready line names it");
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    let token = fs::read_to_string(&file).expect("readable").trim().to_owned();
    assert!(!platform.ready.to_string().contains(&token), "the token is not printed");
    assert_eq!(ask(&platform, "GET", &[&bearer(&token)], "/v1/services", "").await.status, 200);
    assert!(platform.terminate().success());
    eventually("the file is gone", Duration::from_secs(5), async || !file.exists()).await;
}

#[tokio::test]
async fn a_token_that_is_none_is_refused_and_metrics_open_where_asked() {
    for token in ["", "two words", "tab\there"] {
        let output = platform_command(&["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .env("SAS_ADMIN_TOKEN", token)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("admin token"), "{token:?}: {said}");
        assert!(token.is_empty() || !said.contains(token), "it is not shown: {said}");
    }
    let platform = PlatformProcess::start(&["--open-metrics", "--admin-host", "admin.example.org"]);
    assert_eq!(ask(&platform, "GET", &[], "/metrics", "").await.status, 200);
    assert_eq!(ask(&platform, "GET", &[], "/v1/services", "").await.status, 401);
    let token = format!("{}\r\n", bearer(ADMIN_TOKEN));
    let named = call_with(platform.admin, "GET", "admin.example.org:80", &token, "/v1/services", "").await;
    assert_eq!(named.expect("an answer").status, 200);
    let rebound = call(platform.admin, "GET", "evil.example", "/metrics", "").await;
    assert_eq!(rebound.expect("an answer").status, 403, "open, but not to other names");
    assert!(platform.terminate().success());
}

/// One request over a Unix socket.
async fn ask_socket(path: &std::path::Path, request: &str) -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::UnixStream::connect(path).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

#[tokio::test]
async fn a_unix_socket_is_for_its_owner_and_asks_a_media_type_instead_of_a_token() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("admin.sock");
    let at = format!("unix:{}", socket.display());
    // One that a killed platform left behind is in nobody's way; what is no socket is.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("bound"));
    let platform = PlatformProcess::start_at(&at, &[]);
    assert_eq!(platform.ready["admin"], at.as_str());
    assert_eq!(platform.token_file, None);
    assert_eq!(fs::metadata(&socket).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1, "nothing else is left there");
    let manifest = hello_manifest("hello", "", 1);
    let request = |method: &str, headers: &str, body: &str| {
        let length = body.len();
        format!(
            "{method} /v1/services HTTP/1.1\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    assert_eq!(ask_socket(&socket, &request("GET", "host: localhost\r\n", "")).await, 200);
    for (headers, status) in [
        ("host: localhost\r\n", 415),
        ("host: localhost\r\ncontent-type: text/plain\r\n", 415),
        ("host: localhost\r\ncontent-type: application/x-www-form-urlencoded\r\n", 415),
        ("host: localhost\r\norigin: https://evil.example\r\ncontent-type: application/json\r\n", 403),
        ("host: evil.example\r\ncontent-type: application/json\r\n", 403),
        ("host: localhost\r\ncontent-type: application/yaml\r\n", 201),
    ] {
        assert_eq!(ask_socket(&socket, &request("POST", headers, &manifest)).await, status, "{headers}");
    }
    let second = platform_command(&["--listen", "127.0.0.1:0", "--admin", &at]).output().expect("it runs");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another program listens"), "{said}");
    assert!(platform.terminate().success());
    assert!(!socket.exists(), "it goes with the platform");
    fs::write(&socket, "mine").expect("written");
    let output = platform_command(&["--listen", "127.0.0.1:0", "--admin", &at]).output().expect("it runs");
    assert!(!output.status.success());
    assert_eq!(fs::read_to_string(&socket).expect("still there"), "mine");
}

/// A user that is nobody's account, and another.
const NOBODY: u32 = 65_534;
const OTHER: u32 = 65_533;

/// Runs a program as an ordinary user.
fn as_user(user: u32) -> std::process::Command {
    let mut command = std::process::Command::new("setpriv");
    let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
    command.args([&uid, &gid, "--clear-groups", "--"]);
    command
}

#[tokio::test]
async fn an_ordinary_users_socket_asks_for_a_token_and_lets_no_other_user_in() {
    use std::os::unix::fs::chown;
    let root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !root || !as_user(NOBODY).arg("true").status().is_ok_and(|status| status.success()) {
        return sas_testkit::skip("to be another user needs root and setpriv");
    }
    let Some((package, _)) = spy() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    for path in [package.path(), dir.path()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("changed");
    }
    // The program lies where only its builder may be.
    let program = dir.path().join("platform");
    fs::copy(crate::shared::example("platform"), &program).expect("copied");
    let own = dir.path().join("own");
    fs::create_dir(&own).expect("made");
    chown(&own, Some(NOBODY), Some(NOBODY)).expect("given");
    let (socket, state) = (own.join("admin.sock"), own.join("state"));
    let mut command = as_user(NOBODY);
    command.arg(&program).args(["--listen", "127.0.0.1:0", "--admin", &format!("unix:{}", socket.display())]);
    command.arg("--state").arg(&state).env("TMPDIR", &own).env("HOME", &own).env_remove("SAS_ADMIN_TOKEN");
    let platform = PlatformProcess::run(command, &[]);

    let metadata = fs::metadata(&socket).expect("there");
    assert_eq!((metadata.uid(), metadata.permissions().mode() & 0o777), (NOBODY, 0o600));
    let file = platform.token_file.clone().expect("its instances are the same user, so there is a token");
    let metadata = fs::metadata(&file).expect("there");
    assert_eq!((metadata.uid(), metadata.permissions().mode() & 0o777), (NOBODY, 0o600));
    let token = fs::read_to_string(&file).expect("readable").trim().to_owned();

    let request = |headers: &str, method: &str, body: &str| {
        let length = body.len();
        format!(
            "{method} /v1/services HTTP/1.1\r\nhost: localhost\r\n{headers}connection: close\r\ncontent-type: application/yaml\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    let right = format!("authorization: Bearer {token}\r\n");
    assert_eq!(ask_socket(&socket, &request("", "GET", "")).await, 401, "also who can open it");
    assert_eq!(ask_socket(&socket, &request("authorization: Bearer wrong\r\n", "GET", "")).await, 401);
    assert_eq!(ask_socket(&socket, &request(&right, "GET", "")).await, 200);
    let manifest = spy_manifest("spy", package.path(), "");
    assert_eq!(ask_socket(&socket, &request("", "POST", &manifest)).await, 401);
    assert_eq!(ask_socket(&socket, &request(&right, "POST", &manifest)).await, 201);

    // Another user does not get as far as asking.
    let connects = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.sendall(sys.argv[2].encode())\nprint(s.recv(12).decode())";
    let python = |user: u32| {
        let mut command = as_user(user);
        command.args(["/usr/bin/python3", "-c", connects]).arg(&socket).arg(request(&right, "GET", ""));
        let output = command.output().expect("it runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let refused = python(OTHER);
    assert!(refused.contains("PermissionError"), "{refused}");
    assert_eq!(python(NOBODY).trim(), "HTTP/1.1 200", "the same user with the token, in that very moment");

    // And its own instance, which is the same user and may open the socket, has no token to show.
    let path = format!("/unix{}", socket.display());
    let tried = call(platform.listen, "GET", "spy.default.localhost", &path, "").await.expect("an answer");
    let kept_out = tried.body.split(' ').all(|one| ["401", "EACCES", "ENOENT"].contains(&one));
    assert!(tried.status == 200 && !tried.body.is_empty() && kept_out, "{tried:?}");
    assert!(platform.terminate().success());
    assert!(!socket.exists(), "it goes with the platform");
}

#[test]
fn the_page_of_attacks_names_tests_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/security-tests.md")).expect("readable");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        cells
            .get(3)
            .filter(|file| file.ends_with(".rs"))
            .map(|file| (cells[2].to_owned(), (*file).to_owned()))
    });
    let rows: Vec<(String, String)> = rows.collect();
    assert!(rows.len() > 40, "{} rows", rows.len());
    for (test, file) in rows {
        let text = fs::read_to_string(root.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(text.contains(&format!("fn {test}(")), "{file} has no test {test}");
    }
}
