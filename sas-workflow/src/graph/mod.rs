//! Workflows as pictures: a definition, and the path that a run took in it. Pure: the same input gives the same bytes.

mod draw;
mod layout;

use std::{collections::HashMap, fmt::Write as _};

use sas_core::{RunDetail, RunStatus};

use self::{
    draw::{Canvas, text},
    layout::{MARGIN, Node},
};
use crate::{
    Definition,
    definition::{Case, Kind, Task, Then},
};

/// How many tasks are drawn; the others are counted.
const MOST: usize = 500;
/// How many letters of a name are shown.
const LETTERS: usize = 26;

/// What a run did with a task.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mark {
    /// How often it came to it; 0: never.
    pub(crate) visits: u32,
    pub(crate) active: bool,
    pub(crate) failed: bool,
}

/// The picture in SVG, at most some 500 KB. Texts of the definition are escaped, and no part of it is a link or a script.
pub(crate) fn svg(definition: &Definition, run: Option<&RunDetail>) -> String {
    let mut marks: HashMap<&str, Mark> = HashMap::new();
    for step in run.iter().flat_map(|run| &run.steps) {
        let mark = marks.entry(&step.pointer).or_default();
        mark.visits += 1;
        mark.active |= step.state == "active";
        mark.failed = step.state == "failed";
    }
    let mut left = MOST;
    let mut tasks = nodes(&definition.0.tasks, &mut left);
    layout::measure(&mut tasks);
    let name = format!("{}/{} {}", definition.namespace(), definition.name(), definition.version());
    let title = match run {
        Some(run) => format!("{name}: {} {}", run.run.id, run.run.status),
        None => name,
    };
    let mut canvas = Canvas::new(marks, run.is_some());
    let (width, height) = canvas.whole(&tasks, run.map(|run| run.run.status));
    let width = width.max(text::width(&title, 16) + 2 * MARGIN).max(if run.is_some() { 470 } else { 0 });
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" font-family=\"ui-sans-serif,system-ui,sans-serif\"><title>{}</title>\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\
         <text x=\"{MARGIN}\" y=\"30\" font-size=\"16\" font-weight=\"600\" fill=\"#1f2933\">{}</text>",
        text::escaped(&title),
        text::escaped(&title),
    );
    svg.push_str(&canvas.finish());
    svg.push_str("</svg>\n");
    svg
}

/// The tasks of a list, as far as there is room.
fn nodes(tasks: &[Task], left: &mut usize) -> Vec<Node> {
    let mut nodes = Vec::new();
    for (at, task) in tasks.iter().enumerate() {
        if *left == 0 {
            nodes.push(Node::leaf("", format!("… and {} more", tasks.len() - at), ""));
            break;
        }
        *left -= 1;
        nodes.push(node(task, left));
    }
    nodes
}

fn node(task: &Task, left: &mut usize) -> Node {
    let (kind, detail, list, beside, label) = match &task.kind {
        Kind::Set(_) => ("set", String::new(), Vec::new(), Vec::new(), ""),
        Kind::Do(tasks) => ("do", String::new(), nodes(tasks, left), Vec::new(), ""),
        Kind::Fork { branches, compete } => {
            let how = if *compete { "the first one counts" } else { "" };
            let mut node = Node::group("fork", &task.name, how, &task.pointer, Vec::new());
            node.beside =
                nodes(branches, left).into_iter().map(|branch| (String::new(), vec![branch])).collect();
            return jumps(node, task);
        }
        Kind::For { each, tasks, .. } => {
            ("for", format!("each {}", short(each)), nodes(tasks, left), Vec::new(), "")
        }
        Kind::Try { tasks, catch } => {
            let again = if catch.retry.is_some() { "with retries" } else { "" };
            let handler = nodes(catch.tasks.as_deref().unwrap_or_default(), left);
            ("try", again.to_owned(), nodes(tasks, left), handler, "catch")
        }
        Kind::Switch(_) => ("switch", String::new(), Vec::new(), Vec::new(), ""),
        Kind::Raise(_) => ("raise", String::new(), Vec::new(), Vec::new(), ""),
        Kind::Wait(_) => ("wait", String::new(), Vec::new(), Vec::new(), ""),
        Kind::Emit(_) => ("emit", String::new(), Vec::new(), Vec::new(), ""),
        Kind::Listen(listen) => match &listen.each {
            Some(each) => {
                ("listen", format!("each {}", short(&each.item)), nodes(&each.tasks, left), Vec::new(), "")
            }
            None => ("listen", String::new(), Vec::new(), Vec::new(), ""),
        },
        Kind::Http(_) => ("call", "http".to_owned(), Vec::new(), Vec::new(), ""),
        Kind::OpenApi(_) => ("call", "openapi".to_owned(), Vec::new(), Vec::new(), ""),
        Kind::Call { name, .. } => ("call", short(name), Vec::new(), Vec::new(), ""),
        Kind::Workflow { name, .. } => ("run", short(name), Vec::new(), Vec::new(), ""),
        Kind::Refused(_) => ("run", "cannot be run here".to_owned(), Vec::new(), Vec::new(), ""),
    };
    let mut node = if list.is_empty() {
        Node::leaf(kind, short(&task.name), &task.pointer)
    } else {
        Node::group(kind, &task.name, &detail, &task.pointer, list)
    };
    node.detail = detail;
    if !beside.is_empty() {
        node.beside.push((label.to_owned(), beside));
    }
    jumps(node, task)
}

/// Where it goes on, where that is not the next task.
fn jumps(mut node: Node, task: &Task) -> Node {
    let mut to = |label: &str, then: &Then| {
        let target = match then {
            Then::Continue => return,
            Then::Exit => "leave",
            Then::End => "end",
            Then::Task(name) => name.as_str(),
        };
        node.jumps.push((short(label), target.to_owned(), matches!(then, Then::Task(_))));
    };
    if let Kind::Switch(cases) = &task.kind {
        for Case { pointer, then, .. } in cases {
            to(pointer.rsplit('/').next().unwrap_or_default(), then);
        }
    }
    to("", &task.then);
    node
}

fn short(name: &str) -> String {
    match name.char_indices().nth(LETTERS) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name.to_owned(),
    }
}

/// What colours mean, beneath a run.
pub(crate) fn legend(status: RunStatus) -> [(&'static str, &'static str, &'static str); 4] {
    let _ = status;
    [
        ("#e3f4e8", "#2f855a", "came to it"),
        ("#dbeafe", "#1d4ed8", "waits here"),
        ("#fde2e1", "#c53030", "failed"),
        ("#ffffff", "#9aa5b1", "not come to"),
    ]
}
