//! The operator's command line: deploys, looks, changes and explains, over the admin API of a platform.
//!
//! ```text
//! sasctl deploy .                     a directory, an archive, a jar, a .wasm, an image, or a manifest
//! sasctl list | get NAME | delete NAME
//! sasctl logs NAME [-f] [--level warn] [--request ID] | invoke NAME [PATH] | why NAME | usage [NAME] [--hours 24] [--cost] | diagnose
//! sasctl traffic NAME REVISION=PERCENT... | rollout NAME [restart|promote|stop] | rollback NAME [REVISION] | alias NAME ALIAS [REVISION]
//! sasctl disable NAME | enable NAME | delete NAME [--revision REVISION] | apps | app APP | env APP NAME=VALUE...
//! sasctl quota [FIELD=AMOUNT...]
//! sasctl workflow list | start NAME | runs | get RUN | graph RUN | suspend | resume | cancel | retry | skip | event
//! sasctl export . --image oci:DIR:TAG|REGISTRY/NAME:TAG [--base IMAGE]    a package as an image, to take it elsewhere
//! sasctl tokens create NAME --scope deploy | tokens list | tokens revoke ID | audit | whoami
//! sasctl config | reload | backup FILE | upgrade
//! sasctl completion bash
//! ```
//!
//! It finds the platform by `--admin` or `SAS_ADMIN` (`HOST:PORT` or `unix:PATH`), or by `--state` or `SAS_STATE`, the
//! platform's state directory, where also the token is; else by `SAS_ADMIN_TOKEN` or `--token-file`. `--json` gives what
//! the API answered. It ends with 0 when it was done, 1 when it was refused, 2 when it was asked wrongly.

mod client;
mod deploy;
#[cfg(all(feature = "container", target_os = "linux"))]
mod export;
mod host;
mod quota;
mod rollout;
mod usage;
mod words;
mod workflow;

use std::{
    fmt,
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory as _, Parser, Subcommand};
use serde_json::{Value, json};

use client::Client;
use deploy::{Wanted, percent};
use words::{cell, decision, ready, table, traffic};

/// Why it was not done, for a human.
#[derive(Debug)]
pub(crate) struct Failed(pub(crate) String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The command line of a sas platform.
#[derive(Parser)]
#[command(name = "sasctl")]
struct Cli {
    /// Where the admin API is: HOST:PORT, or unix:PATH.
    #[arg(long, global = true, env = "SAS_ADMIN")]
    admin: Option<String>,
    /// The file that holds the token, unless it is in SAS_ADMIN_TOKEN.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The platform's state directory: address and token are there.
    #[arg(long, global = true, value_name = "DIR", env = "SAS_STATE")]
    state: Option<PathBuf>,
    /// The namespace.
    #[arg(long, short = 'n', global = true, default_value = "default")]
    namespace: String,
    /// What the API answered, instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Deploys a directory, an archive, a jar, a .wasm, an image, or a manifest.
    Deploy {
        /// What: `.` is this directory.
        what: String,
        /// The service's name, unless the file's says it.
        #[arg(long)]
        name: Option<String>,
        /// How it starts, unless that is found by itself.
        #[arg(long)]
        command: Option<String>,
        /// NAME=VALUE in its environment.
        #[arg(long, short = 'e', value_name = "NAME=VALUE")]
        env: Vec<String>,
    },
    /// Lists services.
    List {
        /// Of all namespaces.
        #[arg(long, short = 'A')]
        all: bool,
        /// With these labels: app=shop,!canary.
        #[arg(long, short = 'l')]
        labels: Option<String>,
    },
    /// Shows a service with its revisions.
    Get { name: String },
    /// Deletes a service with all its revisions, or one revision of it.
    Delete {
        name: String,
        /// Only this revision, which must get no traffic.
        #[arg(long)]
        revision: Option<String>,
    },
    /// Switches a service off: nothing of it starts, and its triggers wait.
    Disable {
        name: String,
        /// Why, for those who look at it later.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Switches a service on again.
    Enable { name: String },
    /// Gives a revision a name of one's own, or takes the name away.
    Alias {
        name: String,
        alias: String,
        /// A revision, another alias, or latest; without it the alias goes.
        revision: Option<String>,
    },
    /// Lists apps: groups of services by their label sas.dev/app.
    Apps,
    /// Shows an app: its services, and the versions of its environment.
    App {
        app: String,
        /// Deletes it with its services and the triggers that send to them.
        #[arg(long)]
        delete: bool,
    },
    /// Sets variables of an app's environment; each of its services gets a revision with them.
    Env {
        app: String,
        /// NAME=VALUE, NAME=secret:REFERENCE, or NAME- to take it away. The others stay.
        variables: Vec<String>,
        /// Goes back to this version instead.
        #[arg(long, conflicts_with = "variables")]
        revert: Option<u64>,
        /// Why, for those who look at it later.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Deletes all that the namespace has: services, triggers, brokers, environments, quota, tokens.
    DeleteTenant {
        /// The namespace once more, so that it is not another by accident.
        tenant: String,
    },
    /// Shows the last lines that a service wrote.
    Logs {
        name: String,
        /// Goes on with what comes.
        #[arg(long, short = 'f')]
        follow: bool,
        #[arg(long, default_value_t = 100)]
        tail: u32,
        #[command(flatten)]
        of: usage::Lines,
    },
    /// Calls a service as a test run, with the phases of its start.
    Invoke {
        name: String,
        #[arg(default_value = "/")]
        path: String,
        #[arg(long, short = 'X', default_value = "GET")]
        method: String,
        #[arg(long, short = 'd')]
        data: Option<String>,
        #[arg(long)]
        revision: Option<String>,
    },
    /// Shows where the traffic goes, or says it: hello-00001=20 latest=80.
    Traffic { name: String, shares: Vec<String> },
    /// Tells how far a roll-out is, and why it was stopped; or restarts, promotes or stops it.
    Rollout {
        name: String,
        #[arg(value_parser = ["restart", "promote", "stop"])]
        action: Option<String>,
    },
    /// Sends all traffic back to the revision before, or to this one.
    Rollback { name: String, revision: Option<String> },
    /// Tells the last scaling decisions in words.
    Why {
        name: String,
        #[arg(long, default_value_t = 10)]
        last: u32,
    },
    /// Tells what a service, or each tenant, used.
    Usage {
        name: Option<String>,
        /// By the hour, of the last so many hours; with --cost what they cost.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8784))]
        hours: Option<u32>,
        /// What it costs, by the platform's table of prices.
        #[arg(long)]
        cost: bool,
    },
    /// Tells what is wrong with the platform, what it was seen by, and what to do about it.
    Diagnose,
    /// Shows what the namespace may use and what it uses, or says it: instances=10 memoryBytes=2Gi coldStartsPerSecond-.
    Quota {
        /// FIELD=AMOUNT, or FIELD- for no limit. The others stay.
        changes: Vec<String>,
        /// Takes the namespace's own quota back: it may use what all may.
        #[arg(long, conflicts_with = "changes")]
        clear: bool,
    },
    /// Workflows and their runs.
    #[command(subcommand)]
    Workflow(workflow::Workflow),
    /// Writes a package out as a container image, with the start that is found for it. Asks no platform.
    #[cfg(all(feature = "container", target_os = "linux"))]
    Export(export::Export),
    /// Tokens of the admin API.
    #[command(subcommand)]
    Tokens(Tokens),
    /// Tells who changed what.
    Audit {
        #[arg(long, default_value_t = 20)]
        last: u32,
    },
    /// Tells who the token is, and what it may do.
    Whoami,
    /// Shows what the platform was configured with, and when a change of each field would hold.
    Config {
        /// With the fields of which nobody said anything.
        #[arg(long)]
        all: bool,
    },
    /// Has the platform read its configuration again, as a whole.
    Reload,
    /// Writes a copy of the whole state to a file, while the platform serves.
    Backup { file: PathBuf },
    /// Has the platform of --state hand over to a new process of its program's file; nobody is refused.
    Upgrade,
    /// Writes the completion of a shell: bash, zsh, fish, elvish, powershell.
    Completion { shell: clap_complete::Shell },
}

#[derive(Subcommand)]
enum Tokens {
    /// Makes a token, and shows it this once.
    Create {
        name: String,
        /// read, deploy, invoke or admin.
        #[arg(long, required = true)]
        scope: Vec<String>,
        /// Held to this namespace.
        #[arg(long)]
        tenant: Option<String>,
        /// How many days it lives.
        #[arg(long, default_value_t = 90)]
        days: u64,
    },
    /// Lists them.
    List,
    /// Takes one back.
    Revoke { id: String },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            let _ = writeln!(std::io::stderr(), "sasctl: {failed}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: impl fmt::Display) -> Result<(), Failed> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{}", text.to_string().trim_end_matches('\n')).and_then(|()| out.flush());
    match written {
        // Who reads through `head` has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|error| Failed(format!("stdout: {error}"))),
    }
}

async fn run(cli: Cli) -> Result<(), Failed> {
    if let Command::Completion { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "sasctl", &mut std::io::stdout());
        return Ok(());
    }
    if let Command::Upgrade = cli.command {
        let (answer, text) = host::upgrade(cli.state.as_deref()).await?;
        return if cli.json { say(answer) } else { say(text) };
    }
    #[cfg(all(feature = "container", target_os = "linux"))]
    if let Command::Export(wanted) = cli.command {
        let made = export::export(wanted).await?;
        return say(if cli.json { made.to_string() } else { export::shown(&made) });
    }
    let client = Client::find(cli.admin.clone(), cli.token_file.clone(), cli.state.as_deref())?;
    let service = |name: &str| format!("/v1/services/{}/{}", percent(&cli.namespace), percent(name));
    let (answer, text) = match cli.command {
        Command::Completion { .. } | Command::Upgrade => return Ok(()),
        Command::Config { all } => host::config(&client, all).await?,
        Command::Reload => host::reload(&client).await?,
        Command::Backup { file } => host::backup(&client, &file).await?,
        #[cfg(all(feature = "container", target_os = "linux"))]
        Command::Export(_) => return Ok(()),
        Command::Deploy { what, name, command, env } => {
            let env = env.iter().map(|pair| {
                let parts = pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
                parts.ok_or_else(|| Failed(format!("--env {pair}: write NAME=VALUE")))
            });
            let env = env.collect::<Result<_, _>>()?;
            let namespace = Some(cli.namespace.clone());
            let answer = deploy::deploy(&client, &what, Wanted { name, namespace, command, env }).await?;
            let text = deployed(&answer);
            (answer, text)
        }
        Command::List { all, labels } => list(&client, (!all).then_some(&cli.namespace), labels).await?,
        Command::Get { name } => {
            let shown = client.get(&service(&name)).await?;
            let text = shown_service(&shown);
            (shown, text)
        }
        Command::Delete { name, revision: Some(revision) } => {
            let path = format!("{}/revisions/{}", service(&name), percent(&revision));
            let left = client.send("DELETE", &path, &[], Default::default()).await?.json()?;
            (left, format!("deleted {revision}"))
        }
        Command::Disable { name, reason } => {
            let body = json!({"reason": reason});
            let answer = client.post(&format!("{}/disable", service(&name)), &body).await?;
            let text = format!("{name} is disabled since {}", cell(&answer["disabled"]["since"]));
            (answer, text)
        }
        Command::Enable { name } => {
            let answer = client.post(&format!("{}/enable", service(&name)), &json!({})).await?;
            (answer, format!("{name} is enabled"))
        }
        Command::Alias { name, alias, revision } => {
            let path = format!("{}/aliases/{}", service(&name), percent(&alias));
            let answer = match &revision {
                Some(revision) => {
                    let body = json!({"revision": revision}).to_string();
                    client.send("PUT", &path, &[], body.into()).await?.json()?
                }
                None => client.send("DELETE", &path, &[], Default::default()).await?.json()?,
            };
            let text = match revision {
                Some(_) => format!("{alias} is {}", cell(&answer["aliases"][&alias])),
                None => format!("{alias} names nothing any more"),
            };
            (answer, text)
        }
        Command::Apps => {
            let path = format!("/v1/apps?limit=5000&namespace={}", percent(&cli.namespace));
            let answer = client.get(&path).await?;
            let apps = answer["apps"].as_array().into_iter().flatten();
            let text = apps.map(|app| cell(&app["app"])).collect::<Vec<_>>().join("\n");
            (answer, text)
        }
        Command::App { app, delete } => {
            let path = format!("/v1/apps/{}/{}", percent(&cli.namespace), percent(&app));
            if delete {
                let answer = client.send("DELETE", &path, &[], Default::default()).await?.json()?;
                let gone = |what: &str| answer[what].as_array().map_or(0, Vec::len);
                let text =
                    format!("deleted {app}: {} services, {} triggers", gone("services"), gone("triggers"));
                (answer, text)
            } else {
                let answer = client.get(&path).await?;
                let text = shown_app(&answer);
                (answer, text)
            }
        }
        Command::Env { app, variables, revert, reason } => {
            let path = format!("/v1/apps/{}/{}", percent(&cli.namespace), percent(&app));
            let answer = match (revert, variables.is_empty()) {
                (Some(version), _) => {
                    let body = json!({"version": version, "reason": reason});
                    client.post(&format!("{path}/environment/revert"), &body).await?
                }
                (None, true) => client.get(&path).await?,
                (None, false) => {
                    let body =
                        json!({"variables": merged(&client, &path, &variables).await?, "reason": reason});
                    let path = format!("{path}/environment");
                    client.send("PUT", &path, &[], body.to_string().into()).await?.json()?
                }
            };
            let text = shown_app(&answer);
            (answer, text)
        }
        Command::DeleteTenant { tenant } => {
            if tenant != cli.namespace {
                let message = format!("give the tenant twice: sasctl -n {tenant} delete-tenant {tenant}");
                return Err(Failed(message));
            }
            let path = format!("/v1/tenants/{}", percent(&tenant));
            let answer = client.send("DELETE", &path, &[], Default::default()).await?.json()?;
            let gone = |what: &str| answer[what].as_array().map_or(0, Vec::len);
            let text = format!(
                "deleted {tenant}: {} services, {} triggers, {} brokers, {} tokens",
                gone("services"),
                gone("triggers"),
                gone("brokers"),
                gone("tokens")
            );
            (answer, text)
        }
        Command::Delete { name, revision: None } => {
            let gone = client.send("DELETE", &service(&name), &[], Default::default()).await?.json()?;
            let text = format!("deleted {}", cell(&gone["deleted"]));
            (gone, text)
        }
        Command::Logs { name, follow, tail, of } => {
            return logs(&client, &format!("{}/logs", service(&name)), &of.query(), tail, follow, cli.json)
                .await;
        }
        Command::Invoke { name, path, method, data, revision } => {
            let run = json!({"path": path, "method": method, "body": data, "revision": revision});
            let report = client.post(&format!("{}/invoke", service(&name)), &run).await?;
            let text = invoked(&report);
            (report, text)
        }
        Command::Traffic { name, shares } => {
            let path = format!("{}/traffic", service(&name));
            let answer = if shares.is_empty() {
                client.get(&path).await?
            } else {
                let body = json!({"traffic": shares_of(&shares)?});
                client.send("PUT", &path, &[], body.to_string().into()).await?.json()?
            };
            let text = traffic(&answer);
            (answer, text)
        }
        Command::Rollout { name, action } => {
            let path = format!("{}/rollout", service(&name));
            let answer = match action {
                Some(action) => client.post(&path, &json!({ "action": action })).await?,
                None => client.get(&path).await?,
            };
            let text = rollout::rollout(&answer["rollout"]);
            (answer, text)
        }
        Command::Rollback { name, revision } => {
            let body = revision.map_or_else(|| json!({}), |revision| json!({"revision": revision}));
            let answer = client.post(&format!("{}/rollback", service(&name)), &body).await?;
            let text = traffic(&answer);
            (answer, text)
        }
        Command::Why { name, last } => {
            let answer = client.get(&format!("{}/decisions?limit={}", service(&name), last.max(1))).await?;
            let decisions: Vec<String> =
                answer["decisions"].as_array().into_iter().flatten().map(decision).collect();
            let text = match (answer["elsewhere"].as_str(), decisions.is_empty()) {
                (Some(host), _) => {
                    let mut lines = decisions;
                    lines.push(format!(
                        "the host {host} acts for it: what it decides is told by its admin API"
                    ));
                    lines.join("\n")
                }
                (None, true) => {
                    "no decision yet: a service that sleeps needs none, and a request that wakes it does not \
                         wait for one"
                        .to_owned()
                }
                (None, false) => decisions.join("\n"),
            };
            (answer, text)
        }
        Command::Usage { name, hours: None, cost: false } => {
            usage::sums(&client, name.map(|name| service(&name))).await?
        }
        Command::Usage { name, hours, cost: true } => {
            usage::cost(&client, &cli.namespace, name.as_deref(), hours).await?
        }
        Command::Usage { name, hours: Some(hours), cost: false } => {
            usage::hours(&client, &cli.namespace, name.as_deref(), hours).await?
        }
        Command::Quota { changes, clear } => quota::quota(&client, &cli.namespace, &changes, clear).await?,
        Command::Diagnose => diagnose(&client).await?,
        Command::Workflow(command) => workflow::workflow(&client, &cli.namespace, command).await?,
        Command::Tokens(tokens_command) => tokens(&client, tokens_command).await?,
        Command::Audit { last } => {
            let answer = client.get(&format!("/v1/audit?limit={}", last.clamp(1, 1000))).await?;
            let rows: Vec<Vec<String>> = answer["records"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|record| {
                    ["at", "principal", "method", "path", "status", "reason"]
                        .map(|name| cell(&record[name]))
                        .to_vec()
                })
                .collect();
            let text = table(&["AT", "WHO", "METHOD", "PATH", "STATUS", "REASON"], &rows);
            (answer, text)
        }
        Command::Whoami => {
            let answer = client.get("/v1/whoami").await?;
            let scopes: Vec<String> = answer["scopes"].as_array().into_iter().flatten().map(cell).collect();
            let text = format!(
                "{}: {}, namespace {}",
                cell(&answer["name"]),
                scopes.join(" "),
                cell(&answer["namespace"])
            );
            (answer, text)
        }
    };
    if cli.json { say(format!("{answer:#}")) } else { say(text) }
}

fn deployed(answer: &Value) -> String {
    let mut text = String::new();
    for applied in answer["applied"].as_array().into_iter().flatten() {
        match applied["revision"].as_str() {
            Some(revision) => {
                let new = if applied["newRevision"] == true { "is new" } else { "was there already" };
                text.push_str(&format!(
                    "{}/{}: {revision} {new}\nit answers at Host: {}\n",
                    cell(&applied["namespace"]),
                    cell(&applied["name"]),
                    cell(&applied["host"])
                ));
            }
            None => text.push_str(&format!("{} {}\n", cell(&applied["kind"]), cell(&applied["name"]))),
        }
    }
    text
}

async fn list(
    client: &Client,
    namespace: Option<&String>,
    labels: Option<String>,
) -> Result<(Value, String), Failed> {
    let mut path = "/v1/services?limit=500".to_owned();
    for (name, value) in [("namespace", namespace), ("labels", labels.as_ref())] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", percent(value)));
        }
    }
    let services = client.list(&path, "services").await?;
    let rows: Vec<Vec<String>> = services
        .iter()
        .map(|service| {
            let mut row =
                ["namespace", "name", "latestReadyRevision"].map(|name| cell(&service[name])).to_vec();
            row.extend([ready(service), traffic(service), cell(&service["host"])]);
            row
        })
        .collect();
    let text = match rows.is_empty() {
        true => "no services; `sasctl deploy .` deploys this directory".to_owned(),
        false => table(&["NAMESPACE", "NAME", "REVISION", "READY", "TRAFFIC", "HOST"], &rows),
    };
    Ok((json!({"services": services}), text))
}

fn shown_service(service: &Value) -> String {
    let mut text = format!(
        "{}/{} at {}\nready: {}\ntraffic: {}\n\n",
        cell(&service["namespace"]),
        cell(&service["name"]),
        cell(&service["host"]),
        ready(service),
        traffic(service)
    );
    let rows: Vec<Vec<String>> = service["revisions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|revision| {
            let mut row =
                vec![cell(&revision["name"]), ready(revision), format!("{} %", cell(&revision["percent"]))];
            row.extend(["ready", "desired", "inFlight"].map(|name| cell(&revision["instances"][name])));
            row.extend([cell(&revision["createdAt"]), cell(&revision["author"])]);
            row
        })
        .collect();
    text.push_str(&table(
        &["REVISION", "READY", "TRAFFIC", "INSTANCES", "DESIRED", "REQUESTS", "CREATED", "BY"],
        &rows,
    ));
    text.push_str(&shown_hosts(service));
    for condition in service["conditions"].as_array().into_iter().flatten() {
        if let Some(message) = condition["message"].as_str().filter(|message| !message.is_empty()) {
            text.push_str(&format!("\n{}: {message}", cell(&condition["type"])));
        }
    }
    text
}

/// Who runs which part of a service that several hosts run.
fn shown_hosts(service: &Value) -> String {
    let hosts = service["hosts"].as_array().filter(|hosts| !hosts.is_empty());
    let Some(hosts) = hosts else { return String::new() };
    let mut rows = Vec::new();
    for host in hosts {
        let name = match host["owner"].as_bool() {
            Some(true) => format!("{} (acts for it)", cell(&host["host"])),
            _ => cell(&host["host"]),
        };
        for revision in host["revisions"].as_array().into_iter().flatten() {
            let mut row = vec![name.clone(), cell(&host["state"]), cell(&revision["name"])];
            row.extend(["min", "max", "instances", "asked"].map(|field| cell(&revision[field])));
            rows.push(row);
        }
    }
    let heads = ["HOST", "STATE", "REVISION", "MIN", "MAX", "INSTANCES", "ASKED"];
    format!("\n{}", table(&heads, &rows))
}

async fn logs(
    client: &Client,
    path: &str,
    filter: &str,
    tail: u32,
    follow: bool,
    as_json: bool,
) -> Result<(), Failed> {
    let mut seen = 0;
    let mut most = tail.clamp(1, 10_000);
    loop {
        let page = client.get(&format!("{path}?tail={most}&after={seen}{filter}")).await?;
        for line in page["lines"].as_array().into_iter().flatten() {
            seen = seen.max(line["sequence"].as_u64().unwrap_or(0));
            match as_json {
                true => say(line)?,
                false => {
                    say(format!("{} {} {}", cell(&line["at"]), cell(&line["instance"]), cell(&line["line"])))?
                }
            }
        }
        if !follow {
            return Ok(());
        }
        most = 10_000;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn invoked(report: &Value) -> String {
    let mut text = cell(match &report["body"] {
        Value::Null => &report["bodyBase64"],
        body => body,
    });
    let order = ["prepared", "queued", "gated", "spawned", "listening", "ready", "firstByte", "total"];
    let phases: Vec<String> = order
        .iter()
        .filter_map(|name| Some(format!("{name} {:.1} ms", report["phases"][format!("{name}Ms")].as_f64()?)))
        .collect();
    let how = if report["cold"] == true { "cold" } else { "warm" };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!(
        "\n{} from {} ({how}): {}",
        cell(&report["status"]),
        cell(&report["revision"]),
        phases.join(", ")
    ));
    text
}

/// `hello-00001=20 latest=80`, as the API has it.
fn shares_of(shares: &[String]) -> Result<Vec<Value>, Failed> {
    let one = |share: &String| {
        let wrong = || Failed(format!("{share}: write REVISION=PERCENT, or latest=PERCENT"));
        let (revision, percent) = share.split_once('=').ok_or_else(wrong)?;
        let percent: u32 = percent.trim_end_matches('%').parse().map_err(|_| wrong())?;
        Ok(match revision {
            "latest" => json!({"latestRevision": true, "percent": percent}),
            revision => json!({"revisionName": revision, "percent": percent}),
        })
    };
    shares.iter().map(one).collect()
}

/// What is wrong with the platform, each with what it was seen by and what to do about it.
async fn diagnose(client: &Client) -> Result<(Value, String), Failed> {
    let answer = client.get("/v1/diagnosis").await?;
    let found = answer["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
    let lines: Vec<String> = found
        .iter()
        .map(|found| {
            let evidence = found["evidence"].as_object().into_iter().flatten();
            let evidence: Vec<String> =
                evidence.map(|(name, value)| format!("{name} {}", cell(value))).collect();
            format!(
                "{} {}: {}\n  seen by: {}\n  to do: {}",
                cell(&found["severity"]),
                cell(&found["subject"]),
                cell(&found["finding"]),
                evidence.join(", "),
                cell(&found["remedy"])
            )
        })
        .collect();
    let text = if lines.is_empty() {
        format!("nothing is wrong, by {} checks", answer["checks"].as_array().map_or(0, Vec::len))
    } else {
        lines.join("\n")
    };
    Ok((answer, text))
}

async fn tokens(client: &Client, command: Tokens) -> Result<(Value, String), Failed> {
    match command {
        Tokens::Create { name, scope, tenant, days } => {
            let seconds = days.saturating_mul(24 * 3600);
            let body =
                json!({"name": name, "scopes": scope, "namespace": tenant, "expiresInSeconds": seconds});
            let made = client.post("/v1/tokens", &body).await?;
            if std::io::stdout().is_terminal() {
                let _ = writeln!(std::io::stderr(), "it is shown this once:");
            }
            let text = cell(&made["token"]);
            Ok((made, text))
        }
        Tokens::List => {
            let tokens = client.list("/v1/tokens?limit=500", "tokens").await?;
            let rows: Vec<Vec<String>> = tokens
                .iter()
                .map(|token| {
                    let scopes: Vec<String> =
                        token["scopes"].as_array().into_iter().flatten().map(cell).collect();
                    let mut row = vec![cell(&token["id"]), cell(&token["name"]), scopes.join(" ")];
                    row.extend(["namespace", "expiresAt", "createdBy"].map(|name| cell(&token[name])));
                    row
                })
                .collect();
            let text = table(&["ID", "NAME", "SCOPES", "NAMESPACE", "EXPIRES", "BY"], &rows);
            Ok((json!({"tokens": tokens}), text))
        }
        Tokens::Revoke { id } => {
            let gone = client
                .send("DELETE", &format!("/v1/tokens/{}", percent(&id)), &[], Default::default())
                .await?;
            let gone = gone.json()?;
            let text = format!("{} opens nothing any more", cell(&gone["name"]));
            Ok((gone, text))
        }
    }
}

/// The variables that an app has, with these changes.
async fn merged(client: &Client, path: &str, changes: &[String]) -> Result<Value, Failed> {
    // An app to which nothing belongs yet begins with these.
    let app = match client.send("GET", path, &[], Default::default()).await {
        Ok(answer) => answer.json()?,
        Err(failed) if failed.0.starts_with("404 ") => Value::Null,
        Err(failed) => return Err(failed),
    };
    let mut variables = app["environments"][0]["variables"].as_object().cloned().unwrap_or_default();
    for change in changes {
        match (change.split_once('='), change.strip_suffix('-')) {
            (Some((name, value)), _) => {
                let value = match value.strip_prefix("secret:") {
                    Some(secret) => json!({ "secret": secret }),
                    None => json!(value),
                };
                variables.insert(name.to_owned(), value);
            }
            (None, Some(name)) => {
                variables.remove(name);
            }
            (None, None) => {
                let message = format!("{change}: write NAME=VALUE, NAME=secret:REFERENCE or NAME-");
                return Err(Failed(message));
            }
        }
    }
    Ok(variables.into())
}

fn shown_app(app: &Value) -> String {
    let rows = |list: &str, columns: &[&str]| -> Vec<Vec<String>> {
        let all = app[list].as_array().into_iter().flatten();
        all.map(|row| columns.iter().map(|column| cell(&row[*column])).collect()).collect()
    };
    let services = rows("services", &["name", "revision", "environmentVersion"]);
    let versions = rows("environments", &["version", "createdAt", "author", "reason"]);
    let variables: Vec<Vec<String>> = app["environments"][0]["variables"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| {
            let secret = value["secret"].as_str().map(|secret| format!("secret:{secret}"));
            vec![name.clone(), secret.unwrap_or_else(|| cell(value))]
        })
        .collect();
    [
        table(&["SERVICE", "REVISION", "ENVIRONMENT"], &services),
        table(&["VERSION", "MADE", "BY", "WHY"], &versions),
        table(&["VARIABLE", "VALUE"], &variables),
    ]
    .join("\n")
}
