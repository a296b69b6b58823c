//! The store while its server is killed, full, read-only, out of connections or slow; and over TLS.

#![cfg(unix)]
#![allow(clippy::print_stdout, reason = "what was counted is said")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use sas_core::{Commit, ErrorKind, Secret, Store, Version, Watched};
use sas_store_postgres::{PostgresOptions, PostgresStore};
use sas_testkit::{broker::until, fault::Victim, server::PostgresServer};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, NoTls};

fn options(server: &PostgresServer, user: &str, parameters: &str) -> PostgresOptions {
    let port = server.port();
    let url = format!("postgres://{user}@127.0.0.1:{port}/postgres?{parameters}");
    PostgresOptions::new(Secret::new(url)).expect("a URL")
}

async fn open(server: &PostgresServer) -> Arc<PostgresStore> {
    let options = options(server, "postgres:admin-pass", "connections=4");
    Arc::new(PostgresStore::open(options).await.expect("opened"))
}

async fn admin(server: &PostgresServer) -> Client {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(server.port()).user("postgres").password("admin-pass").dbname("postgres");
    let (client, connection) = config.connect(NoTls).await.expect("connected");
    tokio::spawn(connection);
    client
}

/// Eight writers count up, each its own key, while the server is killed and restarted: what was acknowledged is there, what
/// was refused as a conflict never happened without this writer having done it, and every watch sees each commit once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_commits_it_loses_nothing_and_does_nothing_twice() {
    const WRITERS: usize = 8;
    let Some(mut server) = PostgresServer::start().await else { return };
    let store = open(&server).await;
    let stop = Arc::new(tokio_util::sync::CancellationToken::new());
    let (unknown, acknowledged) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|at| {
            let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
            let (unknown, acknowledged) = (Arc::clone(&unknown), Arc::clone(&acknowledged));
            tokio::spawn(async move {
                let key = format!("count/{at}");
                let (mut version, mut count) = (None::<Version>, 0_u64);
                while !stop.is_cancelled() {
                    let next = count + 1;
                    match store.put(&key, version, next.to_string().into()).await {
                        Ok(done) => {
                            (version, count) = (Some(done), next);
                            acknowledged.fetch_add(1, Relaxed);
                        }
                        Err(error) => {
                            assert_eq!(
                                error.kind,
                                ErrorKind::Unavailable,
                                "nobody else writes {key}: {error}"
                            );
                            unknown.fetch_add(1, Relaxed);
                            // Done or not: it is read, as soon as it can be.
                            let found = loop {
                                match store.get(&key).await {
                                    Ok(found) => break found,
                                    Err(error) => assert_eq!(error.kind, ErrorKind::Unavailable, "{error}"),
                                }
                                sleep(Duration::from_millis(50)).await;
                            };
                            let now = found.as_ref().map_or(0, |entry| {
                                String::from_utf8_lossy(&entry.value).parse().expect("a number")
                            });
                            assert!(
                                now == count || now == next,
                                "{key}: {now} is there, {count} was acknowledged"
                            );
                            (version, count) = (found.map(|entry| entry.version), now);
                        }
                    }
                }
                (key, count)
            })
        })
        .collect();
    let watcher = {
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        tokio::spawn(async move {
            let (mut since, mut seen) = (Version(0), BTreeMap::<String, u64>::new());
            loop {
                match timeout(Duration::from_secs(2), store.watch("count/", since)).await {
                    Ok(Ok(Watched::Changes(changes))) => {
                        for change in changes {
                            assert!(change.version >= since, "{change:?} after {since:?}");
                            let text = change.value.expect("nothing is deleted");
                            let count: u64 = String::from_utf8_lossy(&text).parse().expect("a number");
                            let before = seen.insert(change.key.clone(), count).unwrap_or(0);
                            assert_eq!(count, before + 1, "{} went from {before} to {count}", change.key);
                            since = change.version;
                        }
                    }
                    Ok(Ok(Watched::ListAgain)) => panic!("the history is long enough"),
                    Ok(Err(error)) => {
                        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
                        sleep(Duration::from_millis(50)).await;
                    }
                    Err(_) if stop.is_cancelled() => return seen,
                    Err(_) => {}
                }
            }
        })
    };
    let mut kills = 0;
    for round in 0..6_u64 {
        let before = acknowledged.load(Relaxed);
        until("the writers go on", async || acknowledged.load(Relaxed) >= before + 25).await;
        sleep(Duration::from_millis(7 * round)).await;
        if round % 3 == 2 {
            server.stop();
        } else {
            server.kill();
        }
        kills += 1;
        if round == 3 {
            sleep(Duration::from_millis(700)).await;
        }
        server.restart().await;
    }
    sleep(Duration::from_millis(300)).await;
    stop.cancel();
    let mut counts = BTreeMap::new();
    for writer in writers {
        let (key, count) = writer.await.expect("a writer ends");
        counts.insert(key, count);
    }
    let seen = watcher.await.expect("the watcher ends");
    assert_eq!(seen, counts, "what was watched is what was written");
    let total: u64 = counts.values().sum();
    assert!(total >= acknowledged.load(Relaxed), "{total} are there of {acknowledged:?}");
    println!(
        "{kills} kills: {total} commits, {} acknowledged, {} answered Unavailable",
        acknowledged.load(Relaxed),
        unknown.load(Relaxed)
    );
}

/// The answer to a commit is lost, and what became of it is found out: done is told as done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_read_back() {
    let Some(server) = PostgresServer::start().await else { return };
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = proxy.local_addr().expect("an address").port();
    let deaf = Arc::new(AtomicU64::new(0));
    let (upstream, drops) = (server.port(), Arc::clone(&deaf));
    tokio::spawn(async move {
        while let Ok((client, _)) = proxy.accept().await {
            let drops = Arc::clone(&drops);
            tokio::spawn(async move {
                let server =
                    tokio::net::TcpStream::connect(("127.0.0.1", upstream)).await.expect("connected");
                pass(client, server, &drops).await;
            });
        }
    });
    let url = format!("postgres://postgres:admin-pass@127.0.0.1:{port}/postgres?connections=4");
    let store =
        PostgresStore::open(PostgresOptions::new(Secret::new(url)).expect("a URL")).await.expect("opened");
    let mut version = store.put("a", None, "0".into()).await.expect("written");
    for round in 1..=5_u64 {
        deaf.store(1, Relaxed);
        let done = store.put("a", Some(version), round.to_string().into()).await;
        let done = done.expect("it was done, and that was found out");
        assert!(done > version);
        let entry = store.get("a").await.expect("read").expect("there");
        assert_eq!((entry.version, entry.value), (done, round.to_string().into()), "round {round}");
        assert_eq!(deaf.load(Relaxed), 0, "the answer was not lost: the test tests nothing");
        version = done;
    }
    let Watched::Changes(changes) = store.watch("", Version(0)).await.expect("watched") else {
        panic!("a short history")
    };
    assert_eq!(changes.len(), 6, "each once: {changes:?}");
}

/// Passes bytes on until `drops` is 1 and a commit goes by: its answer is not passed on, and the connection ends.
async fn pass(mut client: tokio::net::TcpStream, mut server: tokio::net::TcpStream, drops: &AtomicU64) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut committing = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                committing |= asked[..length].windows(7).any(|word| word == b"COMMIT\0");
                if server.write_all(&asked[..length]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(length @ 1..) = read else { return };
                if committing && answered[..length].windows(7).any(|word| word == b"COMMIT\0") {
                    committing = false;
                    if drops.compare_exchange(1, 0, Relaxed, Relaxed).is_ok() {
                        return;
                    }
                }
                if client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_share_it_see_one_order_of_commits() {
    let Some(server) = PostgresServer::start().await else { return };
    let hosts = [open(&server).await, open(&server).await, open(&server).await];
    let start = hosts[0].put("shared", None, "0".into()).await.expect("written");
    let writers = hosts.iter().map(|host| {
        let host = Arc::clone(host);
        tokio::spawn(async move {
            for _ in 0..40 {
                loop {
                    let entry = host.get("shared").await.expect("read").expect("there");
                    let next: u64 =
                        String::from_utf8_lossy(&entry.value).parse::<u64>().expect("a number") + 1;
                    match host.put("shared", Some(entry.version), next.to_string().into()).await {
                        Ok(_) => break,
                        Err(error) => assert_eq!(error.kind, ErrorKind::Conflict, "{error}"),
                    }
                }
            }
        })
    });
    let watchers = hosts.iter().map(|host| {
        let host = Arc::clone(host);
        tokio::spawn(async move {
            let (mut since, mut values) = (start, Vec::new());
            while values.len() < 120 {
                let Watched::Changes(changes) = host.watch("shared", since).await.expect("watched") else {
                    panic!("a short history")
                };
                for change in changes {
                    assert!(change.version > since, "{change:?} after {since:?}");
                    since = change.version;
                    values.push(String::from_utf8_lossy(&change.value.expect("a value")).into_owned());
                }
            }
            values
        })
    });
    let (writers, watchers): (Vec<_>, Vec<_>) = (writers.collect(), watchers.collect());
    for writer in writers {
        writer.await.expect("a writer ends");
    }
    let expected: Vec<String> = (1..=120).map(|count: u64| count.to_string()).collect();
    for watcher in watchers {
        assert_eq!(watcher.await.expect("a watcher ends"), expected);
    }
    // A notice wakes the other hosts: far sooner than they would look by themselves.
    let mut took = Vec::new();
    for round in 0..21 {
        let from = hosts[1].version().await.expect("a version");
        let began = Instant::now();
        let (watched, written) = tokio::join!(hosts[1].watch("told", from), async {
            sleep(Duration::from_millis(20)).await;
            hosts[0].commit(Commit::new().put("told", round.to_string())).await
        });
        let (_, _) = (watched.expect("watched"), written.expect("written"));
        took.push(began.elapsed() - Duration::from_millis(20));
    }
    took.sort_unstable();
    println!("21 notices over hosts: median {:?}, slowest {:?}", took[10], took[20]);
    // A single one may be held up by the machine. Without notices each would take up to the time between two looks.
    assert!(took[10] < Duration::from_millis(300), "{took:?}: notices do not come");
}

/// Who held the row that orders commits is stopped; the others go on when the server ends its transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_stopped_in_a_commit_does_not_stop_the_others() {
    let Some(server) = PostgresServer::start().await else { return };
    let store = open(&server).await;
    let mut stopped = admin(&server).await;
    stopped.batch_execute("SET idle_in_transaction_session_timeout = 1500").await.expect("set");
    let transaction = stopped.transaction().await.expect("begun");
    transaction.query_one("SELECT last_version FROM sas.meta FOR UPDATE", &[]).await.expect("held");
    let began = Instant::now();
    store.put("a", None, "1".into()).await.expect("it goes on after the other's end");
    assert!(began.elapsed() > Duration::from_millis(500), "it did not wait");
    drop(transaction);

    // One that the server lets wait for longer than locks are waited for.
    let mut held = admin(&server).await;
    let transaction = held.transaction().await.expect("begun");
    transaction.query_one("SELECT last_version FROM sas.meta FOR UPDATE", &[]).await.expect("held");
    let refused = store.put("b", None, "1".into()).await.expect_err("somebody holds it");
    assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
    assert!(refused.message.contains("another host"), "{refused}");
    assert_eq!(store.get("b").await.expect("reads go on"), None);
    transaction.rollback().await.expect("given back");
    store.put("b", None, "1".into()).await.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_no_writes_or_no_more_connections_or_no_such_user_is_unavailable_and_says_why() {
    let Some(server) =
        PostgresServer::start_with(&["max_connections=12", "superuser_reserved_connections=2"]).await
    else {
        return;
    };
    let store = open(&server).await;
    store.put("a", None, "1".into()).await.expect("written");
    let admin = admin(&server).await;

    // As a replica is, or a server after a fail-over.
    admin.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").await.expect("set");
    admin.execute("SELECT pg_reload_conf()", &[]).await.expect("loaded");
    // Each session hears of it when the server comes to tell it.
    let mut refused = None;
    until("it takes no writes", async || {
        refused = store.commit(Commit::new().put("b", "1")).await.err();
        refused.is_some()
    })
    .await;
    let error = refused.expect("read-only");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message.contains("takes no writes"), "{error}");
    let error =
        PostgresStore::open(options(&server, "postgres:admin-pass", "schema=other")).await.expect_err("no");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    admin.batch_execute("SET default_transaction_read_only = off").await.expect("set for this session");
    admin.batch_execute("ALTER SYSTEM RESET default_transaction_read_only").await.expect("set");
    admin.execute("SELECT pg_reload_conf()", &[]).await.expect("loaded");
    until("it writes again", async || store.commit(Commit::new().put("b", "2")).await.is_ok()).await;

    // A role that may not do what it needs; then one that may, and no more.
    admin
        .batch_execute(
            "CREATE ROLE small LOGIN PASSWORD 'small-pass'; CREATE SCHEMA small AUTHORIZATION small",
        )
        .await
        .expect("made");
    let error =
        PostgresStore::open(options(&server, "small:small-pass", "schema=sas")).await.expect_err("no");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message.contains("USAGE"), "{error}");
    let small = PostgresStore::open(options(&server, "small:small-pass", "schema=small&connections=2")).await;
    let small = small.expect("its own schema");
    small.put("a", None, "1".into()).await.expect("written");
    let error =
        PostgresStore::open(options(&server, "small:wrong-pass", "schema=small")).await.expect_err("no");
    assert!(error.message.contains("password") && !error.message.contains("wrong-pass"), "{error}");

    // All connections taken, also those that the store lost meanwhile.
    let mut others = Vec::new();
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(server.port()).user("small").password("small-pass").dbname("postgres");
    let mut refused = None;
    until("no connection is left", async || {
        admin
            .batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sas' AND usename = 'small'")
            .await
            .expect("ended");
        // What was ended gives its place back a moment later: then it is taken in another round.
        while let Ok((client, connection)) = config.connect(NoTls).await {
            tokio::spawn(connection);
            others.push(client);
        }
        refused = small.commit(Commit::new().put("b", "1")).await.err();
        refused.as_ref().is_some_and(|error| error.message.contains("max_connections"))
    })
    .await;
    let error = refused.expect("it was refused");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    drop(others);
    let began = Instant::now();
    while small.commit(Commit::new().put("b", "2")).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not come back");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_is_missed_after_seconds_and_reads_fail_meanwhile() {
    let Some(server) = PostgresServer::start().await else { return };
    let store = open(&server).await;
    store.put("a", None, "1".into()).await.expect("written");
    // All of its processes: one for each connection.
    let admin = admin(&server).await;
    let rows = admin.query("SELECT pid FROM pg_stat_activity WHERE application_name = 'sas'", &[]).await;
    let pids: Vec<i32> = rows.expect("asked").iter().map(|row| row.get(0)).collect();
    let all = pids.iter().map(|pid| u32::try_from(*pid).expect("a pid")).chain([server.pid()]);
    let pauses: Vec<_> = all
        .map(|pid| {
            let victim = Victim::new(pid).expect("a process");
            tokio::spawn(victim.pause(Duration::from_secs(3)))
        })
        .collect();
    sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    // Whoever waits no longer than this finds nothing half done afterwards.
    let given_up = timeout(Duration::from_secs(1), store.put("b", None, "1".into())).await;
    assert!(given_up.is_err(), "a stopped server answered");
    let found = store.get("b").await.expect("it waits for what was given up");
    assert!(began.elapsed() > Duration::from_secs(2), "it read ahead of the commit");
    let again = store.get("b").await.expect("read");
    assert_eq!(found, again, "what was given up was settled when it was read");
    for pause in pauses {
        pause.await.expect("it ends").expect("continued");
    }
}

#[tokio::test]
async fn over_tls_the_certificate_must_be_the_hosts_and_a_changed_password_counts_from_the_next_connection() {
    let Some(server) = PostgresServer::start().await else { return };
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let data = server.dir().join("data");
    std::fs::write(data.join("server.crt"), made.cert.pem()).expect("written");
    std::fs::write(data.join("server.key"), made.signing_key.serialize_pem()).expect("written");
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let key = data.join("server.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("private");
    let owner = std::fs::metadata(&data).expect("there");
    std::os::unix::fs::chown(&key, Some(owner.uid()), Some(owner.gid())).expect("the server's");
    let admin = admin(&server).await;
    admin.batch_execute("ALTER SYSTEM SET ssl = on").await.expect("set");
    admin.execute("SELECT pg_reload_conf()", &[]).await.expect("loaded");
    until("it speaks TLS", async || {
        admin.query_one("SHOW ssl", &[]).await.expect("asked").get::<_, &str>(0) == "on"
    })
    .await;

    let roots = server.dir().join("roots.pem");
    std::fs::write(&roots, made.cert.pem()).expect("written");
    let file = server.dir().join("url");
    let write = |host: &str, password: &str, rest: &str| {
        let port = server.port();
        let url = format!(
            "postgres://postgres:{password}@{host}:{port}/postgres?sslmode=verify-full&connections=2{rest}\n"
        );
        std::fs::write(&file, url).expect("written");
        PostgresOptions::from_file(&file).expect("a URL")
    };
    let trusted = format!("&sslrootcert={}", roots.display());
    let store = PostgresStore::open(write("localhost", "admin-pass", &trusted)).await.expect("opened");
    store.put("a", None, "1".into()).await.expect("written");
    let row = admin
        .query_one("SELECT count(*), count(*) FILTER (WHERE s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity USING (pid) WHERE application_name = 'sas'", &[])
        .await
        .expect("asked");
    assert!(
        row.get::<_, i64>(0) >= 1 && row.get::<_, i64>(0) == row.get::<_, i64>(1),
        "all are encrypted: {row:?}"
    );

    for (host, rest, what) in [
        ("localhost", "", "an authority that is not trusted"),
        ("127.0.0.1", trusted.as_str(), "another name"),
    ] {
        let error = PostgresStore::open(write(host, "admin-pass", rest)).await.expect_err(what);
        assert_eq!(error.kind, ErrorKind::Unavailable, "{what}: {error}");
        assert!(error.chain().contains("certificate"), "{what}: {}", error.chain());
    }

    // The file has the new password before the old connections end.
    write("localhost", "second-pass", &trusted);
    admin.batch_execute("ALTER ROLE postgres PASSWORD 'second-pass'").await.expect("changed");
    admin
        .batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sas'",
        )
        .await
        .expect("ended");
    store.put("b", None, "1".into()).await.expect("a new connection with the new password");
}

#[tokio::test]
async fn tables_of_a_later_version_are_refused_unless_they_say_that_this_one_may_use_them() {
    let Some(server) = PostgresServer::start().await else { return };
    let first = open(&server).await;
    first.put("a", None, "1".into()).await.expect("written");
    let admin = admin(&server).await;
    admin.batch_execute("UPDATE sas.meta SET format = 2").await.expect("a later version added a column");
    open(&server).await.put("b", None, "1".into()).await.expect("it goes on");
    admin.batch_execute("UPDATE sas.meta SET usable_from = 2").await.expect("changed what rows mean");
    let refused =
        PostgresStore::open(options(&server, "postgres:admin-pass", "")).await.expect_err("too new");
    assert_eq!(refused.kind, ErrorKind::InvalidSpec, "{refused}");
    assert!(refused.message.contains("format 2") && refused.message.contains("schema"), "{refused}");
    // A host that runs meanwhile writes nothing either.
    first.put("c", None, "1".into()).await.expect_err("too new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_is_bounded_and_who_comes_too_late_lists_again() {
    let Some(server) = PostgresServer::start().await else { return };
    let store = open(&server).await;
    let from = store.put("a", None, "1".into()).await.expect("written");
    for round in 0..14 {
        let commit =
            (0..1000).fold(Commit::new(), |commit, at| commit.put(format!("k/{at}"), round.to_string()));
        store.commit(commit).await.expect("written");
    }
    assert_eq!(store.watch("k/", from).await.expect("watched"), Watched::ListAgain);
    let last = store.version().await.expect("a version");
    let Watched::Changes(changes) = store.watch("k/", Version(last.0 - 4)).await.expect("watched") else {
        panic!("the last commits are forgotten")
    };
    assert!(changes.len() >= 1000 && changes.len().is_multiple_of(1000), "whole commits: {}", changes.len());
    assert_eq!(changes[0].version, Version(last.0 - 3));
    let kept =
        admin(&server).await.query_one("SELECT count(*) FROM sas.changes", &[]).await.expect("counted");
    assert!(kept.get::<_, i64>(0) <= 10_000, "{} changes are kept", kept.get::<_, i64>(0));
}
