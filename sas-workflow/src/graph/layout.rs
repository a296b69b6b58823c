//! How large everything is, and where it goes.

use std::collections::{HashMap, HashSet};

/// Around the whole.
pub(super) const MARGIN: usize = 20;
/// Of a task that holds none.
pub(super) const LEAF: (usize, usize) = (230, 44);
/// Between tasks, one below the other.
pub(super) const BELOW: usize = 26;
/// Between what is side by side.
pub(super) const BESIDE: usize = 24;
/// Within the border of a group.
pub(super) const PAD: usize = 14;
/// The head of a group.
pub(super) const HEAD: usize = 30;
/// Between two lines that go back or ahead.
pub(super) const LANE: usize = 14;
/// A line of a task that says where it goes on.
pub(super) const LINE: usize = 17;

/// A task as it is drawn.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) detail: String,
    pub(super) pointer: String,
    /// Where it goes on: a label, the name, and whether that is a task of the same list.
    pub(super) jumps: Vec<(String, String, bool)>,
    /// Tasks within it, one after the other.
    pub(super) list: Vec<Node>,
    /// Lists beside that one, each with a label.
    pub(super) beside: Vec<(String, Vec<Node>)>,
    /// Width and height, when it has been measured.
    size: (usize, usize),
}

impl Node {
    pub(super) fn leaf(kind: &'static str, name: impl Into<String>, pointer: &str) -> Self {
        Self {
            kind,
            name: name.into(),
            detail: String::new(),
            pointer: pointer.to_owned(),
            jumps: Vec::new(),
            list: Vec::new(),
            beside: Vec::new(),
            size: LEAF,
        }
    }

    pub(super) fn group(
        kind: &'static str,
        name: &str,
        detail: &str,
        pointer: &str,
        list: Vec<Node>,
    ) -> Self {
        Self { list, detail: detail.to_owned(), ..Self::leaf(kind, super::short(name), pointer) }
    }

    pub(super) fn is_leaf(&self) -> bool {
        self.list.is_empty() && self.beside.is_empty()
    }

    /// Lines below the name.
    pub(super) fn lines(&self) -> usize {
        self.jumps.len().min(8)
    }

    pub(super) fn head(&self) -> usize {
        if self.is_leaf() { LEAF.1 + self.lines() * LINE } else { HEAD + self.lines() * LINE }
    }

    /// Width and height, as [`measure`] found them.
    pub(super) fn size(&self) -> (usize, usize) {
        self.size
    }

    fn measured(&self) -> (usize, usize) {
        if self.is_leaf() {
            return (LEAF.0, self.head());
        }
        let lists = self.lists();
        let sizes: Vec<(usize, usize)> = lists.iter().map(|(_, list)| size(list)).collect();
        let width: usize = sizes.iter().map(|(width, _)| width).sum::<usize>() + BESIDE * (sizes.len() - 1);
        let label = if lists.iter().any(|(label, _)| !label.is_empty()) { LINE } else { 0 };
        let height = sizes.iter().map(|(_, height)| *height).max().unwrap_or_default();
        (width.max(LEAF.0) + 2 * PAD, self.head() + label + height + PAD)
    }

    /// What is side by side in it.
    pub(super) fn lists(&self) -> Vec<(&str, &[Node])> {
        let own = (!self.list.is_empty()).then_some(("", self.list.as_slice()));
        own.into_iter()
            .chain(self.beside.iter().map(|(label, list)| (label.as_str(), list.as_slice())))
            .collect()
    }
}

/// Finds out how large everything is, what is within before what is around it: each is looked at once.
pub(super) fn measure(list: &mut [Node]) {
    for node in list {
        measure(&mut node.list);
        node.beside.iter_mut().for_each(|(_, list)| measure(list));
        node.size = node.measured();
    }
}

/// The jumps within a list: from, to, by their places.
pub(super) fn jumps(list: &[Node]) -> Vec<(usize, usize)> {
    let mut jumps = Vec::new();
    let (mut places, mut seen) = (HashMap::new(), HashSet::new());
    for (at, node) in list.iter().enumerate() {
        places.entry(node.name.as_str()).or_insert(at);
    }
    for (from, node) in list.iter().enumerate() {
        for (_, target, own) in node.jumps.iter().take(8) {
            let to = own.then(|| places.get(super::short(target).as_str()).copied()).flatten();
            if let Some(to) = to.filter(|to| *to != from + 1 && seen.insert((from, *to))) {
                jumps.push((from, to));
            }
        }
    }
    jumps
}

/// Width and height of a list.
pub(super) fn size(list: &[Node]) -> (usize, usize) {
    let width = list.iter().map(|node| node.size().0).max().unwrap_or(LEAF.0);
    let height: usize = list.iter().map(|node| node.size().1).sum();
    let lanes = jumps(list).len();
    let lanes = if lanes == 0 { 0 } else { (lanes + 1) * LANE };
    (width + lanes, height + BELOW * list.len().saturating_sub(1))
}
