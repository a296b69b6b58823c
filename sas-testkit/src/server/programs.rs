//! Servers that are a program and a file of settings.

use std::{path::Path, process::Command};

use super::{Program, Server};

/// The program, also where it stands among those of administrators.
fn program(name: &str) -> String {
    let path = format!("/usr/sbin/{name}");
    if Path::new(&path).exists() { path } else { name.to_owned() }
}

/// NATS with JetStream, and these lines in its configuration.
pub async fn nats(settings: &str) -> Option<Server> {
    let start = Program {
        name: "nats-server",
        from: "Debian has it as nats-server",
        group: false,
        prepare: Box::new(|_| Ok(None)),
        command: Box::new(|site| {
            let mut command = Command::new(program("nats-server"));
            command.arg("--config").arg(site.settings());
            command
        }),
    };
    let base = "host: 127.0.0.1\nport: $PORT\njetstream { store_dir: \"$DIR/data\" }\n";
    Server::start(start, &format!("{base}{settings}\n")).await
}

/// Redis, which has on disk what it answered, and these lines in its configuration.
pub async fn redis(settings: &str) -> Option<Server> {
    let start = Program {
        name: "redis-server",
        from: "Debian has it as redis-server",
        group: false,
        prepare: Box::new(|_| Ok(None)),
        command: Box::new(|site| {
            let mut command = Command::new("redis-server");
            command.arg(site.settings());
            command
        }),
    };
    let base = "port $PORT\nbind 127.0.0.1\nsave \"\"\nappendonly yes\nappendfsync always\ndir $DIR\n";
    Server::start(start, &format!("{base}{settings}\n")).await
}

/// Mosquitto, with these lines in its configuration, one of which says who may come in (`allow_anonymous true`). It writes
/// its sessions when it is told to end.
pub async fn mosquitto(settings: &str) -> Option<Server> {
    let start = Program {
        name: "mosquitto",
        from: "Debian has it as mosquitto",
        group: false,
        prepare: Box::new(|_| Ok(None)),
        command: Box::new(|site| {
            let mut command = Command::new(program("mosquitto"));
            command.arg("-c").arg(site.settings());
            command
        }),
    };
    let base = "user root\npersistence true\npersistence_location $DIR/\nmax_queued_messages 0\nlistener $PORT 127.0.0.1\n";
    Server::start(start, &format!("{base}{settings}\n")).await
}

/// What Python runs before Moto. A queue of Moto's writes its messages anew at each deletion, and of two at once, or of one while
/// a message comes, forgets one: the service does not.
const ONE_AT_A_TIME: &str = "
import threading
from moto.sqs.models import Queue

lock = threading.RLock()

def alone(method):
    def call(*arguments, **more):
        with lock:
            return method(*arguments, **more)
    return call

for name in ['delete_message', 'add_message']:
    setattr(Queue, name, alone(getattr(Queue, name)))
";

/// Moto, an emulator of services of AWS, such as S3 and SQS: it speaks their protocols and keeps all in memory. `arguments` of the
/// program are lines, such as those of TLS; the environment's `SAS_MOTO_SERVER` says where it is.
pub async fn moto(arguments: &str) -> Option<Server> {
    let start = Program {
        name: "moto_server",
        from: "PyPI has it as moto[server]",
        group: true,
        prepare: Box::new(|site| {
            std::fs::write(site.dir.join("sitecustomize.py"), ONE_AT_A_TIME)?;
            Ok(None)
        }),
        command: Box::new(|site| {
            let program = std::env::var("SAS_MOTO_SERVER").unwrap_or_else(|_| "moto_server".to_owned());
            let arguments = std::fs::read_to_string(site.settings()).unwrap_or_default();
            let mut command = Command::new(program);
            command.args(arguments.lines().filter(|line| !line.is_empty()));
            command.env("PYTHONPATH", &site.dir);
            command
        }),
    };
    Server::start(start, &format!("-H\n127.0.0.1\n-p\n$PORT\n{arguments}\n")).await
}
