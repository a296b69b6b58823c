//! The specification's conformance test kit, run from its feature files; and sdk-go's own cases.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    thread,
};

use crate::driver::Run;
use base64::Engine as _;
use gherkin::{Feature, GherkinEnv, Scenario};
use sas_workflow::{Body, Definition, Outcome, Request, Status};
use serde_json::Value as Json;

fn directory() -> PathBuf {
    match std::env::var_os("SAS_VECTORS_DIR") {
        Some(dir) => PathBuf::from(dir).join("workflow"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/workflow"),
    }
}

/// The head and the body of a message of HTTP/1.1 with a length.
fn message(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).expect("a head");
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let body = bytes[end + 4..].to_vec();
            if body.len() >= length.unwrap_or(0) {
                return (head, body);
            }
        }
        match stream.read(&mut buffer).expect("reads") {
            0 => return (String::from_utf8_lossy(&bytes).into_owned(), Vec::new()),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

/// A server that answers as the routes say, for all their hosts.
fn server() -> SocketAddr {
    let routes: Json =
        serde_json::from_str(&fs::read_to_string(directory().join("ctk/stub-routes.json")).expect("routes"))
            .expect("JSON");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let (head, _) = message(&mut stream);
            let (status, body) = answer(&routes, &head);
            let text = body.to_string();
            let _ = write!(
                stream,
                "HTTP/1.1 {status} X\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
        }
    });
    address
}

fn answer(routes: &Json, head: &str) -> (u64, Json) {
    let mut first = head.lines().next().unwrap_or_default().split(' ');
    let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let header = |name: &str| {
        head.lines()
            .find_map(|line| line.split_once(": ").filter(|(own, _)| own.eq_ignore_ascii_case(name)))
            .map(|(_, value)| value)
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let route = routes["routes"].as_array().expect("routes").iter().find(|route| {
        let wanted = route["query"].as_object().into_iter().flatten();
        route["method"] == method
            && route["path"] == path
            && route["host"] == header("host").unwrap_or_default()
            && wanted.into_iter().all(|(name, value)| {
                query.split('&').any(|pair| pair == format!("{name}={}", value.as_str().unwrap_or_default()))
            })
    });
    let Some(route) = route else { return (404, Json::Null) };
    if let Some([user, password]) = route["require_basic"].as_array().map(Vec::as_slice) {
        let pair = format!("{}:{}", user.as_str().expect("a user"), password.as_str().expect("a password"));
        let wanted = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
        if header("authorization") != Some(&wanted) {
            return (route["unauthorised_status"].as_u64().unwrap_or(401), Json::Null);
        }
    }
    (route["status"].as_u64().expect("a status"), route["json"].clone())
}

/// Sends a request to the server, whatever its host.
fn send(server: SocketAddr, request: &Request) -> Outcome {
    let rest = request.uri.split_once("://").expect("absolute").1;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(server).expect("connects");
    let mut text = format!(
        "{} /{path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n",
        request.method,
        request.body.len()
    );
    for (name, value) in &request.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    write!(stream, "{text}\r\n{}", request.body).expect("sends");
    let (head, body) = message(&mut stream);
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    Outcome::Answer { status, headers, body: Body::of(&body) }
}

fn yaml(text: &str) -> Json {
    serde_saphyr::from_str(text).expect("YAML")
}

/// The names in quotation marks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('\'').skip(1).step_by(2).collect()
}

fn property<'j>(json: &'j Json, path: &str) -> Option<&'j Json> {
    path.split('.').try_fold(json, |json, name| json.get(name))
}

/// What is wrong with a scenario; `None`: all its steps hold.
fn wrong(scenario: &Scenario, server: SocketAddr) -> Option<String> {
    let mut definition = None;
    let mut input = Json::Null;
    let mut run: Option<Run> = None;
    for step in &scenario.steps {
        let text = step.docstring.as_deref().unwrap_or_default();
        let text = text.trim_start_matches('\n');
        let text = text.strip_prefix("yaml\n").unwrap_or(text);
        let value = step.value.trim();
        let holds = match value {
            "a workflow with definition:" => match Definition::parse(text) {
                Ok(read) => {
                    definition = Some(read);
                    true
                }
                Err(mistakes) => return Some(mistakes.to_string()),
            },
            "given the workflow input is:" => {
                input = yaml(text);
                true
            }
            "the workflow is executed" => {
                let mut begun = Run::begin(definition.as_ref().expect("a definition"), input.clone(), &[]);
                begun.go_on(&mut |request| send(server, request));
                run = Some(begun);
                true
            }
            _ => {
                let run = run.as_ref().expect("it was executed");
                let status = run.machine.status();
                let output = match status {
                    Status::Completed(output) => output.clone(),
                    _ => Json::Null,
                };
                let path = run.path();
                if value == "the workflow should complete" {
                    matches!(status, Status::Completed(_))
                } else if value == "the workflow should complete with output:" {
                    *status == Status::Completed(yaml(text))
                } else if value == "the workflow should fault" {
                    matches!(status, Status::Faulted(_))
                } else if value == "the workflow should fault with error:" {
                    *status == Status::Faulted(yaml(text))
                } else if value.starts_with("the workflow output should have properties ") {
                    quoted(value).iter().all(|name| property(&output, name).is_some())
                } else if value.ends_with("property with value:") {
                    property(&output, quoted(value)[0]) == Some(&yaml(text))
                } else if let Some((_, count)) = value.split_once(" property containing ") {
                    let count: usize = count.split(' ').next().expect("a count").parse().expect("a number");
                    property(&output, quoted(value)[0])
                        .and_then(Json::as_array)
                        .is_some_and(|items| items.len() == count)
                } else if let Some(task) = value.strip_suffix(" should run first") {
                    path.first() == Some(&task)
                } else if let Some(task) = value.strip_suffix(" should run last") {
                    path.last() == Some(&task)
                } else if let Some((task, before)) = value.split_once(" should run after ") {
                    let at = |task| path.iter().position(|visited| *visited == task);
                    at(task).zip(at(before)).is_some_and(|(task, before)| task > before)
                } else {
                    return Some(format!("the step {value:?} is unknown"));
                }
            }
        };
        if !holds {
            let status = run.as_ref().map(|run| (run.machine.status().clone(), run.path().join(", ")));
            return Some(format!("{value}: {status:?}"));
        }
    }
    None
}

#[test]
fn the_conformance_test_kit() {
    let server = server();
    let mut files: Vec<PathBuf> = fs::read_dir(directory().join("ctk/features"))
        .expect("features")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    let mut failed = Vec::new();
    let mut total = 0;
    for path in files {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let feature = Feature::parse_path(&path, GherkinEnv::default()).expect("a feature");
        let wrong: Vec<String> = feature
            .scenarios
            .iter()
            .filter_map(|scenario| Some(format!("{name}: {}: {}", scenario.name, wrong(scenario, server)?)))
            .collect();
        println!(
            "{name}: {} scenarios, {} passed",
            feature.scenarios.len(),
            feature.scenarios.len() - wrong.len()
        );
        total += feature.scenarios.len();
        failed.extend(wrong);
    }
    assert!(failed.is_empty(), "{} of {total}:\n{}", failed.len(), failed.join("\n"));
    assert!(total >= 21);
}

#[test]
fn the_cases_of_another_sdk() {
    let cases: Vec<Json> =
        serde_json::from_str(&fs::read_to_string(directory().join("sdk-go/cases.json")).expect("cases"))
            .expect("JSON");
    for case in &cases {
        let name = case["workflow"].as_str().expect("a name");
        let text = fs::read_to_string(directory().join("sdk-go").join(name)).expect("a file");
        let definition = Definition::parse(&text).unwrap_or_else(|mistakes| panic!("{name}: {mistakes}"));
        let mut run = Run::begin(&definition, case["input"].clone(), &[]);
        run.go_on(&mut |_| panic!("{name} calls nobody"));
        assert_eq!(run.output(), case["expected"], "{name}");
    }
    println!("sdk-go/cases.json: {} cases, {} passed", cases.len(), cases.len());
}
