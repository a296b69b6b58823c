//! Workflows: definitions come by `deploy`; runs are started, looked at and steered here.

use clap::Subcommand;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};

use super::{
    Failed,
    client::Client,
    deploy::percent,
    words::{cell, table},
};

#[derive(Subcommand)]
pub(crate) enum Workflow {
    /// Lists definitions.
    List,
    /// Shows the document of a definition.
    Show {
        name: String,
        /// The greatest one without it.
        #[arg(long)]
        version: Option<String>,
    },
    /// Deletes a version of a definition, of which no run goes on.
    Delete { name: String, version: String },
    /// Starts a run.
    Start {
        name: String,
        /// What it gets, in JSON.
        #[arg(long, short = 'd')]
        input: Option<String>,
        /// Its id: a second start with it starts nothing.
        #[arg(long)]
        id: Option<String>,
        #[arg(long)]
        version: Option<String>,
        /// NAME=VALUE to find it by.
        #[arg(long, short = 'l')]
        label: Vec<String>,
        /// Waits so many seconds for its end.
        #[arg(long, default_value_t = 0)]
        wait: u64,
    },
    /// Lists runs, or searches them.
    Runs {
        /// Of this definition.
        name: Option<String>,
        /// running, suspended, completed, faulted or cancelled.
        #[arg(long)]
        status: Option<String>,
        /// NAME=VALUE
        #[arg(long, short = 'l')]
        label: Option<String>,
        /// With this text in their error.
        #[arg(long)]
        error: Option<String>,
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Shows a run with its path.
    Get { run: String },
    /// Draws a run, or with --definition a definition, as SVG.
    Graph {
        name: String,
        /// It is the name of a definition.
        #[arg(long)]
        definition: bool,
    },
    /// Lets a run begin no step.
    Suspend { run: String },
    /// Lets it go on.
    Resume { run: String },
    /// Ends a run where it is.
    Cancel { run: String },
    /// Lets a run that faulted go on from the step that was answered last.
    Retry { run: String },
    /// Lets a step count as done.
    Skip {
        run: String,
        /// Its id, as the run shows it.
        step: String,
        /// What it gave, in JSON.
        #[arg(default_value = "null")]
        output: String,
    },
    /// Tells a run of an event.
    Event {
        run: String,
        /// The type of the event.
        kind: String,
        /// Its data, in JSON.
        #[arg(long, short = 'd')]
        data: Option<String>,
        /// Its id: an event of the same id and source is told once.
        #[arg(long)]
        id: Option<String>,
    },
}

fn parsed(what: &str, text: &str) -> Result<Value, Failed> {
    serde_json::from_str(text)
        .map_err(|error| Failed(format!("{what} {text}: {error}; write JSON, texts in quotes")))
}

pub(crate) async fn workflow(
    client: &Client,
    namespace: &str,
    command: Workflow,
) -> Result<(Value, String), Failed> {
    let namespace = percent(namespace);
    let definition = |name: &str| format!("/v1/workflows/{namespace}/{}", percent(name));
    let run = |id: &str| format!("/v1/runs/{namespace}/{}", percent(id));
    let version_of = |version: Option<String>| match version {
        Some(version) => format!("?version={}", percent(&version)),
        None => String::new(),
    };
    match command {
        Workflow::List => {
            let answer = client.get(&format!("/v1/workflows?limit=1000&namespace={namespace}")).await?;
            let rows = rows(&answer["workflows"], &["namespace", "name", "version", "schedule"]);
            let text = match rows.is_empty() {
                true => {
                    "no workflows; `sasctl deploy FILE` deploys a manifest of the kind Workflow".to_owned()
                }
                false => table(&["NAMESPACE", "NAME", "VERSION", "STARTS"], &rows),
            };
            Ok((answer, text))
        }
        Workflow::Show { name, version } => {
            let answer = client.get(&(definition(&name) + &version_of(version))).await?;
            let text = format!("{answer:#}");
            Ok((answer, text))
        }
        Workflow::Delete { name, version } => {
            let path = format!("{}/versions/{}", definition(&name), percent(&version));
            let gone = client.send("DELETE", &path, &[], Default::default()).await?.json()?;
            let text = format!("deleted {}", cell(&gone["deleted"]));
            Ok((gone, text))
        }
        Workflow::Start { name, input, id, version, label, wait } => {
            let mut labels = serde_json::Map::new();
            for label in &label {
                let (name, value) = label
                    .split_once('=')
                    .ok_or_else(|| Failed(format!("--label {label}: write NAME=VALUE")))?;
                labels.insert(name.to_owned(), value.into());
            }
            let input = input.map(|input| parsed("--input", &input)).transpose()?;
            let body =
                json!({"id": id, "version": version, "input": input, "labels": labels, "waitSeconds": wait});
            let answer = client.post(&format!("{}/runs", definition(&name)), &body).await?;
            let text = shown(&answer);
            Ok((answer, text))
        }
        Workflow::Runs { name, status, label, error, limit } => {
            let filters = [("workflow", name), ("status", status), ("label", label), ("error", error)];
            let (mut runs, mut next) = (Vec::new(), None::<String>);
            while runs.len() < limit {
                let mut path = format!("/v1/runs/{namespace}?limit={}", (limit - runs.len()).clamp(1, 1_000));
                let continued = [("continue", next.clone())];
                for (name, value) in filters.iter().chain(&continued) {
                    if let Some(value) = value {
                        path.push_str(&format!("&{name}={}", percent(value)));
                    }
                }
                let page = client.get(&path).await?;
                runs.extend(page["runs"].as_array().into_iter().flatten().cloned());
                next = page["continue"].as_str().map(str::to_owned);
                if next.is_none() {
                    break;
                }
            }
            let answer = json!({"runs": runs});
            let columns = ["id", "workflow", "version", "status", "startedAt", "nextTimer"];
            let mut rows = rows(&answer["runs"], &columns);
            for (row, run) in rows.iter_mut().zip(&runs) {
                row.push(problem(run));
            }
            let text = match rows.is_empty() {
                true => "no such runs".to_owned(),
                false => {
                    table(&["RUN", "WORKFLOW", "VERSION", "STATUS", "STARTED", "NEXT TIMER", "ERROR"], &rows)
                }
            };
            Ok((answer, text))
        }
        Workflow::Get { run: id } => {
            let answer = client.get(&run(&id)).await?;
            let mut text = shown(&answer);
            let columns = ["step", "state", "waitsFor", "at", "doneAt", "retries", "outcome"];
            let rows: Vec<Vec<String>> = rows(&answer["steps"], &columns)
                .into_iter()
                .map(|row| row.into_iter().map(|cell| cut(&cell)).collect())
                .collect();
            if !rows.is_empty() {
                text.push('\n');
                text.push_str(&table(
                    &["STEP", "STATE", "WAITS FOR", "CAME", "DONE", "RETRIES", "ANSWER"],
                    &rows,
                ));
            }
            if let Some(reason) = answer["unreadable"].as_str() {
                text.push_str(&format!("\nits path cannot be told: {reason}"));
            }
            Ok((answer, text))
        }
        Workflow::Graph { name, definition: true } => {
            picture(client, &format!("{}/graph", definition(&name))).await
        }
        Workflow::Graph { name, definition: false } => {
            picture(client, &format!("{}/graph", run(&name))).await
        }
        Workflow::Suspend { run: id } => steer(client, &run(&id), "suspend", &json!({})).await,
        Workflow::Resume { run: id } => steer(client, &run(&id), "resume", &json!({})).await,
        Workflow::Cancel { run: id } => steer(client, &run(&id), "cancel", &json!({})).await,
        Workflow::Retry { run: id } => steer(client, &run(&id), "retry", &json!({})).await,
        Workflow::Skip { run: id, step, output } => {
            let body = json!({"step": step, "output": parsed("the output", &output)?});
            steer(client, &run(&id), "skip", &body).await
        }
        Workflow::Event { run: id, kind, data, id: event } => {
            let data = data.map(|data| parsed("--data", &data)).transpose()?;
            let mut bytes = [0; 16];
            SystemRandom::new().fill(&mut bytes).map_err(|_| {
                Failed("the system gives no random numbers; give the event an --id".to_owned())
            })?;
            let made = format!("sasctl-{:032x}", u128::from_be_bytes(bytes));
            let body = json!({
                "specversion": "1.0", "id": event.unwrap_or(made), "source": "sasctl", "type": kind, "data": data,
            });
            steer(client, &run(&id), "events", &body).await
        }
    }
}

async fn steer(client: &Client, run: &str, what: &str, body: &Value) -> Result<(Value, String), Failed> {
    let answer = client.post(&format!("{run}/{what}"), body).await?;
    let text = format!("{} is {}", cell(&answer["id"]), cell(&answer["status"]));
    Ok((answer, text))
}

async fn picture(client: &Client, path: &str) -> Result<(Value, String), Failed> {
    let answer = client.send("GET", path, &[], Default::default()).await?;
    let svg = String::from_utf8_lossy(&answer.body).into_owned();
    Ok((json!({ "svg": svg }), svg))
}

fn rows(list: &Value, columns: &[&str]) -> Vec<Vec<String>> {
    let all = list.as_array().into_iter().flatten();
    all.map(|row| columns.iter().map(|column| cell(&row[*column])).collect()).collect()
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn problem(run: &Value) -> String {
    let error = &run["error"];
    let said = ["detail", "title"].into_iter().find_map(|name| error[name].as_str());
    said.map(cut).unwrap_or_default()
}

fn shown(run: &Value) -> String {
    let mut text = format!(
        "{}: {} of {} {}, started {}",
        cell(&run["id"]),
        cell(&run["status"]),
        cell(&run["workflow"]),
        cell(&run["version"]),
        cell(&run["startedAt"])
    );
    for (name, value) in
        [("next timer", &run["nextTimer"]), ("output", &run["output"]), ("error", &run["error"])]
    {
        if !value.is_null() {
            text.push_str(&format!("\n{name}: {}", cell(value)));
        }
    }
    text.push('\n');
    text
}
