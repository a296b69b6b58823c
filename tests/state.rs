//! The state directory: whose it is, and when it is given back.

use std::{path::Path, time::Duration};

use sas::prelude::*;

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
