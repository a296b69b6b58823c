//! Requests all the time, each with an id of its own that is done at most once, and what became of each.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{task::JoinSet, time::Instant};

use crate::{shared::call, world::Report};

/// A request and its answer, or that it had none.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) id: String,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) answer: Result<(u16, String), String>,
}

impl Asked {
    pub(crate) fn is_good(&self) -> bool {
        matches!(&self.answer, Ok((200, body)) if *body == self.id)
    }
}

pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    hosts: Arc<Mutex<Vec<SocketAddr>>>,
    clients: JoinSet<Vec<Asked>>,
}

pub(crate) const CLIENTS: usize = 6;

impl Load {
    /// Asks for these services at these hosts in turn.
    pub(crate) fn begin(round: &str, hosts: &[SocketAddr], services: &[String]) -> Self {
        Self::begin_with(round, hosts, services, |number| if number % 7 == 0 { 150 } else { 5 })
    }

    /// The same where the request of a number takes so many milliseconds.
    pub(crate) fn begin_with(
        round: &str,
        hosts: &[SocketAddr],
        services: &[String],
        takes: fn(usize) -> u64,
    ) -> Self {
        let (stop, hosts) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(hosts.to_vec())));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (stop, hosts, services) = (Arc::clone(&stop), Arc::clone(&hosts), services.to_vec());
            let round = round.to_owned();
            clients.spawn(async move {
                let mut asked = Vec::new();
                for number in 0.. {
                    if stop.load(Relaxed) {
                        break;
                    }
                    let to = {
                        let hosts = hosts.lock();
                        hosts[(client + number) % hosts.len()]
                    };
                    let service = &services[(client * 5 + number) % services.len()];
                    let id = format!("{round}-{client}-{number}");
                    let path = format!("/do/{id}?ms={}", takes(number));
                    let began = Instant::now();
                    let host = format!("{service}.default.localhost");
                    let answer = call(to, "POST", &host, &path, "a body").await;
                    let answer = answer
                        .map(|answer| (answer.status, answer.body))
                        .map_err(|error| format!("{error} at {to}"));
                    asked.push(Asked { id, began, ended: Instant::now(), answer });
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                asked
            });
        }
        Self { stop, hosts, clients }
    }

    /// From now on no request begins at the host.
    pub(crate) fn leave(&self, host: SocketAddr) {
        self.hosts.lock().retain(|one| *one != host);
    }

    pub(crate) fn join(&self, host: SocketAddr) {
        self.hosts.lock().push(host);
    }

    /// Ends it. Nothing was done twice, and what was answered by 200 was done; the rest is for the test to judge.
    pub(crate) async fn end(mut self, report: &Report) -> (usize, Vec<Asked>) {
        self.stop.store(true, Relaxed);
        let (mut all, mut others) = (0, Vec::new());
        while let Some(asked) = self.clients.join_next().await {
            for asked in asked.expect("a client ends") {
                all += 1;
                let done = report.done(&asked.id);
                assert!(done <= 1, "done {done} times: {asked:?}");
                match asked.is_good() {
                    true => assert_eq!(done, 1, "answered and not done: {asked:?}"),
                    false => others.push(asked),
                }
            }
        }
        (all, others)
    }
}
