//! `sasctl` against a running `platform`, as a new user meets it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::shared::{PlatformProcess, call, example, hello};

struct Sasctl<'a> {
    state: &'a Path,
    token: Option<String>,
}

impl Sasctl<'_> {
    fn run(&self, dir: &Path, args: &[&str]) -> Output {
        let mut command = Command::new(example("sasctl"));
        command.current_dir(dir).args(args).env_remove("SAS_ADMIN_TOKEN").env_remove("SAS_ADMIN");
        command.env("SAS_STATE", self.state);
        if let Some(token) = &self.token {
            command.env("SAS_ADMIN_TOKEN", token);
        }
        command.output().expect("sasctl runs")
    }

    /// What it says when it succeeds.
    fn says(&self, dir: &Path, args: &[&str]) -> String {
        let output = self.run(dir, args);
        let (said, wrong) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{args:?}: {said}{wrong}");
        said.into_owned()
    }

    fn json(&self, dir: &Path, args: &[&str]) -> serde_json::Value {
        let said = self.says(dir, &[args, &["--json"]].concat());
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"))
    }

    /// What it says when it is refused.
    fn refused(&self, dir: &Path, args: &[&str]) -> String {
        let output = self.run(dir, args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

#[tokio::test]
async fn from_a_directory_to_its_answer_and_through_its_life() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (state, app) = (dir.path().join("state"), dir.path().join("My App"));
    fs::create_dir(&app).expect("made");
    fs::copy(hello(), app.join("serve")).expect("copied");
    fs::write(app.join("Procfile"), "web: ./serve\n").expect("written");
    fs::write(app.join(".sasignore"), "secret.txt\n").expect("written");
    fs::write(app.join("secret.txt"), "not for the platform").expect("written");
    let platform = PlatformProcess::start_without_token(&["--state", state.to_str().expect("UTF-8")]);
    let sasctl = Sasctl { state: &state, token: None };

    assert!(sasctl.says(&app, &["list"]).contains("sasctl deploy ."));
    let said = sasctl.says(&app, &["deploy", "."]);
    assert!(said.contains("default/my-app: my-app-00001 is new"), "{said}");
    assert!(said.contains("Host: my-app.default.localhost"), "{said}");
    let answer = call(platform.listen, "GET", "my-app.default.localhost", "/", "").await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let again = sasctl.says(&app, &["deploy", "."]);
    assert!(again.contains("was there already"), "the same directory is the same revision: {again}");

    let listed = sasctl.says(&app, &["list"]);
    assert!(listed.starts_with("NAMESPACE") && listed.contains("my-app-00001 100 %"), "{listed}");
    assert_eq!(sasctl.json(&app, &["list"])["services"][0]["name"], "my-app");
    let shown = sasctl.says(&app, &["get", "my-app"]);
    assert!(shown.contains("ready: True") && shown.contains("my-app-00001"), "{shown}");
    let run = sasctl.says(&app, &["invoke", "my-app", "/"]);
    assert!(run.contains("200 from my-app-00001") && run.contains("total"), "{run}");
    assert_eq!(sasctl.json(&app, &["invoke", "my-app"])["status"], 200);
    sasctl.says(&app, &["logs", "my-app"]);
    sasctl.says(&app, &["logs", "my-app", "--level", "warn", "--minutes", "10", "--text", "no such text"]);
    assert!(sasctl.refused(&app, &["logs", "my-app", "--request", "x"]).contains("32 hexadecimal digits"));
    sasctl.says(&app, &["why", "my-app"]);
    assert!(sasctl.says(&app, &["usage", "my-app"]).contains("my-app-00001"));
    assert!(sasctl.says(&app, &["usage"]).contains("default"));
    let hours = sasctl.says(&app, &["usage", "my-app", "--hours", "2"]);
    assert!(hours.starts_with("HOUR") && hours.contains("my-app-00001"), "{hours}");
    assert_eq!(sasctl.json(&app, &["usage", "--hours", "1"])["hours"][0]["service"], "my-app");
    let unpriced = sasctl.refused(&app, &["usage", "--cost"]);
    assert!(unpriced.contains("price"), "{unpriced}");
    // Its host may have findings of its own, such as a full disk: none is about the service.
    let diagnosis = sasctl.json(&app, &["diagnose"]);
    assert!(
        diagnosis["checks"].as_array().is_some_and(|checks| checks.iter().any(|check| check == "crash_loop"))
    );
    assert!(!diagnosis["findings"].to_string().contains("my-app"), "{diagnosis}");
    sasctl.says(&app, &["diagnose"]);

    // A manifest that names a package beside it.
    let text = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: my-app\n  annotations:\n    \
                sas.dev/package: \"My App\"\nspec:\n  template:\n    spec:\n      containers:\n        - env: [{name: A, value: b}]\n";
    fs::write(dir.path().join("app.yaml"), text).expect("written");
    let second = sasctl.says(dir.path(), &["deploy", "app.yaml"]);
    assert!(second.contains("my-app-00002 is new"), "{second}");
    let split = sasctl.says(&app, &["traffic", "my-app", "my-app-00001=20", "latest=80"]);
    assert!(split.contains("my-app-00001 20 %") && split.contains("my-app-00002 80 %"), "{split}");
    let wrong = sasctl.refused(&app, &["traffic", "my-app", "my-app-00001=20"]);
    assert!(wrong.contains("422") && wrong.contains("100"), "{wrong}");
    let back = sasctl.says(&app, &["rollback", "my-app"]);
    assert_eq!(back.trim(), "my-app-00001 100 %");

    let reader = sasctl.says(&app, &["tokens", "create", "reader", "--scope", "read"]).trim().to_owned();
    assert!(reader.starts_with("sas_"), "{reader}");
    let reading = Sasctl { state: &state, token: Some(reader) };
    assert_eq!(reading.says(&app, &["whoami"]).trim(), "reader: read, namespace -");
    assert!(reading.says(&app, &["list"]).contains("my-app"));
    let denied = reading.refused(&app, &["delete", "my-app"]);
    assert!(denied.contains("403") && denied.contains("deploy"), "{denied}");
    let id = sasctl.json(&app, &["tokens", "list"])["tokens"][0]["id"].as_str().expect("an id").to_owned();
    sasctl.says(&app, &["tokens", "revoke", &id]);
    assert!(reading.refused(&app, &["list"]).contains("401"));
    assert!(sasctl.says(&app, &["delete", "my-app"]).contains("deleted default/my-app"));
    let audit = sasctl.says(&app, &["audit"]);
    assert!(audit.contains("DELETE") && audit.contains("403") && audit.contains("forbidden"), "{audit}");

    for (args, said) in [
        (&["get", "nothing"][..], "404"),
        (&["deploy", "./nothing"], "no such file"),
        (&["deploy", "example.org/app:1"], "image"),
        (&["deploy", ".", "--env", "A"], "NAME=VALUE"),
    ] {
        let wrong = sasctl.refused(&app, args);
        assert!(wrong.contains(said), "{args:?}: {wrong}");
    }
    assert!(platform.terminate().success());
    let gone = sasctl.refused(&app, &["list"]);
    assert!(gone.contains("--admin") || gone.contains("--state"), "{gone}");
}

#[test]
fn completion_is_written_for_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let output =
            Command::new(example("sasctl")).args(["completion", shell]).output().expect("sasctl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("rollback"), "{shell}: {text}");
    }
}
