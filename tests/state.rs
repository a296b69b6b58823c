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
