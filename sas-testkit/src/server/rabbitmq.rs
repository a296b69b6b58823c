//! RabbitMQ.

use std::process::{Child, Command};

use super::{Program, Server, Site, quiet};

const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// Erlang's register of names, which would stay behind if the server started it.
fn names(site: &Site) -> std::io::Result<Child> {
    let mut epmd = Command::new("epmd");
    quiet(epmd.args(["-address", "127.0.0.1", "-port", &site.inner[1].to_string()])).spawn()
}

fn command(site: &Site) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .env("HOME", &site.dir)
        .env("RABBITMQ_NODENAME", format!("sas{}@localhost", site.port))
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODE_PORT", site.port.to_string())
        .env("RABBITMQ_DIST_PORT", site.inner[0].to_string())
        .env("ERL_EPMD_PORT", site.inner[1].to_string())
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_CONFIG_FILE", site.settings())
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", site.dir.join("plugins"))
        .env("RABBITMQ_MNESIA_BASE", site.dir.join("data"))
        .env("RABBITMQ_LOG_BASE", site.dir.join("log"))
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
        );
    command
}

/// RabbitMQ with the user `guest` and its password `guest`, and these lines in its configuration.
pub async fn rabbitmq(settings: &str) -> Option<Server> {
    let program = Program {
        name: "rabbitmq-server",
        from: "Debian has it as rabbitmq-server",
        group: true,
        prepare: Box::new(|site| {
            std::fs::write(site.dir.join("plugins"), "[].")?;
            if !std::path::Path::new(PROGRAM).exists() {
                return Err(std::io::ErrorKind::NotFound.into());
            }
            names(site).map(Some)
        }),
        command: Box::new(command),
    };
    Server::start(program, &format!("disk_free_limit.absolute = 1MB\n{settings}\n")).await
}
