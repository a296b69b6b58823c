//! The state directory: whose it is, and when it is given back.

use std::{path::Path, time::Duration};

use sas::{
    core::{Event, SpecErrors, TriggerCx, TriggerSource, TriggerSpec},
    prelude::*,
};

fn hello() -> InlineRuntime {
    InlineRuntime::new()
        .with("hello", |_request: Request, _cx| async move { Response::new(Body::from("hello")) })
}

async fn platform(dir: &Path) -> Platform {
    let local = ([127, 0, 0, 1], 0).into();
    let builder = Platform::builder().state_dir(dir).runtime(hello()).listen(local).admin(local);
    builder.build().await.expect("the directory is free")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_directory_is_given_back_by_the_shutdown() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    for round in 0..10 {
        let platform = platform(&state).await;
        if round == 0 {
            let spec = RevisionSpec::new("inline", Source::Function("hello".to_owned()));
            platform.deploy("default", "hello", spec).await.expect("deployed");
        }
        // What somebody still holds keeps nothing open.
        let (control, admin) = (platform.control().clone(), platform.admin().clone());
        let called = platform.call("default", "hello", Request::new(Body::empty())).await;
        assert_eq!(called.expect("it came back").status(), 200);
        platform.shutdown(Duration::from_secs(5)).await;
        drop((control, admin));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn state_and_packages_are_their_owners_alone_also_when_they_were_not() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let mode = |name: &str| std::fs::metadata(state.join(name)).expect(name).permissions().mode() & 0o7777;
    let open = |name: &str, mode| {
        std::fs::set_permissions(state.join(name), std::fs::Permissions::from_mode(mode)).expect(name);
    };
    std::fs::create_dir_all(state.join("packages")).expect("made");
    open("", 0o755);
    open("packages", 0o777);
    for _ in 0..2 {
        platform(&state).await.shutdown(Duration::from_secs(5)).await;
        assert_eq!((mode(""), mode("packages"), mode("state.redb")), (0o700, 0o700, 0o600));
        open("", 0o755);
        open("state.redb", 0o644);
    }
}

/// Sends the greeting that its declaration names, once in each run.
#[derive(Debug)]
struct Greeting(String);

#[sas::async_trait]
impl TriggerSource for Greeting {
    fn kind(&self) -> &'static str {
        "greeting"
    }

    async fn run(&self, cx: TriggerCx) -> sas::core::Result<()> {
        let room = cx.sink.ready().await?;
        let event = Event::new(self.0.as_str(), "/greetings", "greeting").expect("a valid event");
        cx.sink.deliver(room, event).await?;
        cx.shutdown.cancelled().await;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_of_a_kind_of_ones_own_comes_back_at_the_next_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let (seen, mut came) = tokio::sync::mpsc::channel(8);
    let builder = || {
        let seen = seen.clone();
        let runtime = InlineRuntime::new().with("hello", move |request: Request, _cx| {
            let id = request.headers().get("ce-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
            let _ = seen.try_send(id);
            async { Response::new(Body::empty()) }
        });
        Platform::builder().state_dir(dir.path()).runtime(runtime)
    };
    let known = || {
        builder().trigger_kind("greeting", |spec| match spec.options.get("text") {
            Some(text) => Ok(std::sync::Arc::new(Greeting(text.clone())) as _),
            None => {
                let mut errors = SpecErrors::default();
                errors.push("options.text", "", "say what the greeting is");
                Err(errors)
            }
        })
    };
    let soon = Duration::from_secs(10);

    let platform = known().build().await.expect("built");
    let spec = RevisionSpec::new("inline", Source::Function("hello".to_owned()));
    platform.deploy("default", "hello", spec).await.expect("deployed");
    let trigger = TriggerSpec::new("default/morning", "greeting", "default/hello");
    let refused = platform.control().apply_trigger(trigger.clone()).await.expect_err("it says nothing");
    assert!(refused.message.contains("say what the greeting is"), "{refused}");
    platform.control().apply_trigger(trigger.with_option("text", "hi")).await.expect("declared");
    let first = tokio::time::timeout(soon, came.recv()).await.expect("the event comes");
    assert_eq!(first.flatten().as_deref(), Some("hi"));
    platform.shutdown(Duration::from_secs(5)).await;

    // A build that does not know the kind says so, and does not lose the trigger.
    let platform = builder().build().await.expect("built");
    let recovery = platform.recovery();
    assert_eq!((recovery.triggers, recovery.failed.len()), (0, 1), "{recovery:?}");
    let (what, why) = &recovery.failed[0];
    assert!(what == "Trigger default/morning" && why.message.contains("greeting"), "{what}: {why}");
    platform.shutdown(Duration::from_secs(5)).await;

    let platform = known().build().await.expect("built");
    assert_eq!(platform.recovery().triggers, 1, "{:?}", platform.recovery());
    let again = tokio::time::timeout(soon, came.recv()).await.expect("the event comes again");
    assert_eq!(again.flatten().as_deref(), Some("hi"));
    platform.shutdown(Duration::from_secs(5)).await;
}
