//! Somebody's HTTP service under an open load, paused for half a second and then killed: what its clients saw.
//!
//! The service is this program once more, in a process of its own, and knows nothing of the test kit. Put your own in
//! its place: all that the tools want of it is an address and a process id.

#![allow(clippy::print_stdout, reason = "what it is for")]

use std::{
    error::Error,
    net::SocketAddr,
    process::{Child, Command, ExitCode},
    time::Duration,
};

use sas_testkit::{
    fault::{Victim, closed_port},
    load::{Arrivals, LoadReport, run},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, sleep_until, timeout},
};

/// Requests a second, and for how long.
const RATE: f64 = 200.0;
const LENGTH: Duration = Duration::from_secs(4);
/// How long a client waits for its answer.
const PATIENCE: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    if let Some(address) = std::env::args().nth(1) {
        serve(address.parse()?).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let address = closed_port().await?;
    let mut service = Service::start(address).await?;
    let arrivals = Arrivals::poisson(RATE, LENGTH, 7);

    // A closed connection is an answer too; what must not be is none, or two.
    let load = run(&arrivals, 2_000, |request| async move {
        match timeout(PATIENCE, ask(address, request)).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => format!("{:?}", error.kind()),
            Err(_) => "timeout".to_owned(),
        }
    });
    let began = Instant::now();
    let faults = async {
        sleep_until(began + Duration::from_secs(1)).await;
        println!("1.0 s  the service stands still for half a second");
        service.victim()?.pause(Duration::from_millis(500)).await?;
        sleep_until(began + Duration::from_secs(3)).await;
        println!("3.0 s  the service is killed");
        service.victim()?.kill()?;
        service.child.wait()?;
        sleep(Duration::from_millis(200)).await;
        service = Service::start(address).await?;
        println!("{:.1} s  it serves again", began.elapsed().as_secs_f64());
        Ok::<(), Box<dyn Error>>(())
    };
    let (report, faulted) = tokio::join!(load, faults);
    faulted?;
    drop(service);
    Ok(tell(&report, arrivals.len()))
}

fn tell(report: &LoadReport, sent: usize) -> ExitCode {
    let ms = |quantile| report.latency.value_at_quantile(quantile) as f64 / 1000.0;
    println!("from the intended arrival to the answer, as the client counts:");
    println!("  p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms", ms(0.5), ms(0.99), ms(0.999));
    let answers = report.ledger.answers();
    for (answer, times) in &answers {
        println!("  {times:>5} x {answer}");
    }
    let (answered, unpaired) = (answers.values().sum::<u64>(), report.ledger.unpaired());
    println!("sent {sent}, answered {answered}, without exactly one answer {}", unpaired.len());
    let sound = unpaired.is_empty() && answered == sent as u64 && answers.contains_key("200");
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The service's process; it ends with this.
struct Service {
    child: Child,
}

impl Service {
    /// Starts it and waits until it listens.
    async fn start(address: SocketAddr) -> Result<Self, Box<dyn Error>> {
        let child = Command::new(std::env::current_exe()?).arg(address.to_string()).spawn()?;
        let service = Self { child };
        for _ in 0..1_000 {
            if TcpStream::connect(address).await.is_ok() {
                return Ok(service);
            }
            sleep(Duration::from_millis(5)).await;
        }
        Err(format!("nobody listens at {address}").into())
    }

    fn victim(&self) -> Result<Victim, &'static str> {
        Victim::new(self.child.id()).ok_or("a child has a process id")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request on a connection of its own; the status of its answer.
async fn ask(address: SocketAddr, request: u64) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let head = format!("GET /{request} HTTP/1.1\r\nhost: service.test\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let whole = answer.ends_with("done");
    match answer.split(' ').nth(1) {
        Some(status) if whole => Ok(status.to_owned()),
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The service: an answer after five milliseconds.
async fn serve(address: SocketAddr) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut head).await? == 0 {
                    return Ok(());
                }
            }
            sleep(Duration::from_millis(5)).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\ndone";
            stream.write_all(answer).await?;
            stream.shutdown().await
        });
    }
}
