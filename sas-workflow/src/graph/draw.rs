//! Boxes, lines and words.

use std::{collections::HashMap, fmt::Write as _};

use sas_core::RunStatus;

use super::{
    Mark,
    layout::{BELOW, BESIDE, HEAD, LANE, LEAF, LINE, MARGIN, Node, PAD, jumps, size},
    legend,
};

/// Text in a picture: what of it XML takes, how much of it fits, and how wide it is.
pub(super) mod text {
    /// For a place between tags or in an attribute. What XML does not take is left out.
    pub(in super::super) fn escaped(text: &str) -> String {
        let mut escaped = String::with_capacity(text.len());
        for letter in text.chars() {
            match letter {
                '<' => escaped.push_str("&lt;"),
                '>' => escaped.push_str("&gt;"),
                '&' => escaped.push_str("&amp;"),
                '"' => escaped.push_str("&quot;"),
                '\'' => escaped.push_str("&#39;"),
                letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => {}
                letter => escaped.push(letter),
            }
        }
        escaped
    }

    /// About how wide it is.
    pub(in super::super) fn width(text: &str, size: usize) -> usize {
        text.chars().count() * size * 6 / 10
    }
}

/// Where the first box is.
const TOP: usize = 52;
const PATH: &str = "#2f855a";
const REST: &str = "#9aa5b1";
const INK: &str = "#1f2933";
const DIM: &str = "#52606d";

pub(super) struct Canvas<'m> {
    marks: HashMap<&'m str, Mark>,
    /// Whether it is a run that is drawn.
    of_run: bool,
    /// Borders of groups, outer ones first; lines are before them, and tasks before these.
    groups: String,
    lines: String,
    boxes: String,
}

impl<'m> Canvas<'m> {
    pub(super) fn new(marks: HashMap<&'m str, Mark>, of_run: bool) -> Self {
        Self { marks, of_run, groups: String::new(), lines: String::new(), boxes: String::new() }
    }

    /// Draws all; how large it is.
    pub(super) fn whole(&mut self, tasks: &[Node], status: Option<RunStatus>) -> (usize, usize) {
        let (width, height) = size(tasks);
        let middle = MARGIN + tasks.iter().map(|node| node.size().0).max().unwrap_or(LEAF.0) / 2;
        let began = self.of_run;
        self.dot(middle, TOP, began, "start");
        let top = TOP + 10 + BELOW;
        let first = tasks.first().is_some_and(|node| self.came(node));
        self.arrow(middle, TOP + 8, top, first);
        self.list(tasks, MARGIN, top);
        let bottom = top + height;
        let ended = status == Some(RunStatus::Completed);
        let last = ended && tasks.last().is_some_and(|node| self.came(node));
        self.arrow(middle, bottom, bottom + BELOW, last);
        self.dot(middle, bottom + BELOW + 8, ended, "end");
        let mut below = bottom + BELOW + 34;
        if let Some(status) = status {
            let mut x = MARGIN;
            for (fill, line, word) in legend(status) {
                let _ = write!(
                    self.boxes,
                    "<rect x=\"{x}\" y=\"{}\" width=\"14\" height=\"14\" rx=\"3\" fill=\"{fill}\" stroke=\"{line}\"/>",
                    below - 11
                );
                self.word(x + 20, below, 12, DIM, "start", word);
                x += 34 + text::width(word, 12) + 8;
            }
            below += 18;
        }
        (width + 2 * MARGIN, below)
    }

    pub(super) fn finish(self) -> String {
        self.groups + &self.lines + &self.boxes
    }

    fn mark(&self, node: &Node) -> Mark {
        self.marks.get(node.pointer.as_str()).copied().unwrap_or_default()
    }

    fn came(&self, node: &Node) -> bool {
        self.mark(node).visits > 0
    }

    fn list(&mut self, list: &[Node], x: usize, y: usize) {
        let width = list.iter().map(|node| node.size().0).max().unwrap_or(LEAF.0);
        let mut tops = Vec::with_capacity(list.len());
        let mut top = y;
        for node in list {
            let (own, height) = node.size();
            tops.push((top, height));
            self.node(node, x + (width - own) / 2, top);
            top += height + BELOW;
        }
        for at in 1..list.len() {
            let (above, height) = tops[at - 1];
            let on_path = self.came(&list[at - 1]) && self.came(&list[at]);
            // Where the task before always goes elsewhere, no line leads on.
            let leads = list[at - 1].jumps.iter().all(|(label, ..)| !label.is_empty())
                && list[at - 1].kind != "raise"
                || list[at - 1].jumps.iter().any(|(_, to, own)| *own && *to == list[at].name);
            if leads {
                self.arrow(x + width / 2, above + height, tops[at].0, on_path);
            }
        }
        for (lane, (from, to)) in jumps(list).into_iter().enumerate() {
            let edge = |at: usize| x + (width + list[at].size().0) / 2;
            let right = x + width + (lane + 1) * LANE;
            let (y1, y2) = (tops[from].0 + tops[from].1 / 2 + lane * 4, tops[to].0 + 14 + lane * 4);
            let on_path = self.came(&list[from]) && self.came(&list[to]);
            let (colour, thick) = if on_path { (PATH, "2.5") } else { (REST, "1.25") };
            let tip = edge(to);
            let _ = write!(
                self.lines,
                "<path d=\"M{} {y1} H{right} V{y2} H{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{thick}\" \
                 stroke-linejoin=\"round\"/><path d=\"M{} {} l9 -4.5 v9 z\" fill=\"{colour}\"/>",
                edge(from),
                tip + 8,
                tip,
                y2
            );
        }
    }

    fn node(&mut self, node: &Node, x: usize, y: usize) {
        let (width, height) = node.size();
        let mark = self.mark(node);
        let [came, active, failed, rest] = legend(RunStatus::Running);
        let (fill, line, _) = match mark {
            Mark { active: true, .. } => active,
            Mark { failed: true, .. } => failed,
            Mark { visits: 1.., .. } => came,
            _ => rest,
        };
        let dash = if node.is_leaf() { "" } else { " stroke-dasharray=\"5 3\"" };
        let inside = if node.is_leaf() { fill } else { "#ffffff" };
        let thick = if mark.visits > 0 { "2" } else { "1.25" };
        let layer = if node.is_leaf() { &mut self.boxes } else { &mut self.groups };
        let _ = write!(
            layer,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{inside}\" stroke=\"{line}\" \
             stroke-width=\"{thick}\"{dash}/>"
        );
        if !node.is_leaf() && mark.visits > 0 {
            let _ = write!(
                layer,
                "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"7\" fill=\"{fill}\"/>",
                x + 1,
                y + 1,
                width - 2,
                HEAD - 4
            );
        }
        let base = y + if node.is_leaf() { 27 } else { 19 };
        let kind = match node.detail.is_empty() {
            true => node.kind.to_owned(),
            false => format!("{} · {}", node.kind, node.detail),
        };
        if node.is_leaf() {
            self.word(x + 12, y + 18, 11, DIM, "start", &kind);
            self.name(x + 12, y + 35, &node.name);
        } else {
            self.name(x + 12, base, &node.name);
            let after = x + 12 + text::width(&node.name, 14) + 12;
            self.word(after, base, 11, DIM, "start", &kind);
        }
        if mark.visits > 1 {
            self.word(x + width - 12, y + 18, 12, line, "end", &format!("×{}", mark.visits));
        }
        let mut line = y + node.head() - node.lines() * LINE + 8;
        for (label, target, _) in node.jumps.iter().take(node.lines()) {
            let words =
                if label.is_empty() { format!("then {target}") } else { format!("{label} → {target}") };
            self.word(x + 12, line, 11, DIM, "start", &words);
            line += LINE;
        }
        let lists = node.lists();
        let labelled = lists.iter().any(|(label, _)| !label.is_empty());
        let sum: usize = lists.iter().map(|(_, list)| size(list).0).sum::<usize>()
            + BESIDE * lists.len().saturating_sub(1);
        let mut left = x + PAD + (width - 2 * PAD).saturating_sub(sum) / 2;
        for (label, list) in lists {
            let mut top = y + node.head();
            if labelled {
                self.word(
                    left + 2,
                    top + 10,
                    11,
                    DIM,
                    "start",
                    if label.is_empty() { node.kind } else { label },
                );
                top += LINE;
            }
            self.list(list, left, top);
            left += size(list).0 + BESIDE;
        }
    }

    fn arrow(&mut self, x: usize, from: usize, to: usize, on_path: bool) {
        let (colour, thick) = if on_path { (PATH, "2.5") } else { (REST, "1.25") };
        let _ = write!(
            self.lines,
            "<path d=\"M{x} {from} V{}\" stroke=\"{colour}\" stroke-width=\"{thick}\"/>\
             <path d=\"M{x} {to} l-4.5 -9 h9 z\" fill=\"{colour}\"/>",
            to - 8
        );
    }

    fn dot(&mut self, x: usize, y: usize, on_path: bool, word: &str) {
        let colour = if on_path { PATH } else { REST };
        let _ = write!(self.boxes, "<circle cx=\"{x}\" cy=\"{y}\" r=\"8\" fill=\"{colour}\"/>");
        self.word(x + 14, y + 4, 11, DIM, "start", word);
    }

    fn name(&mut self, x: usize, y: usize, name: &str) {
        let _ = write!(
            self.boxes,
            "<text x=\"{x}\" y=\"{y}\" font-size=\"14\" font-weight=\"600\" fill=\"{INK}\">{}</text>",
            text::escaped(name)
        );
    }

    fn word(&mut self, x: usize, y: usize, size: usize, colour: &str, anchor: &str, word: &str) {
        let _ = write!(
            self.boxes,
            "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" fill=\"{colour}\" text-anchor=\"{anchor}\">{}</text>",
            text::escaped(word)
        );
    }
}
