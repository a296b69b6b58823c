//! A page: what it is called, and the parts of it that change while somebody looks.

use maud::{Markup, html};

/// A part of a page that is sent again when it changes.
#[derive(Debug)]
pub(crate) struct Region {
    /// The id of its element.
    pub(crate) id: &'static str,
    pub(crate) content: Markup,
}

impl Region {
    pub(crate) fn new(id: &'static str, content: Markup) -> Self {
        Self { id, content }
    }
}

/// A page, but for its head and the way around.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) title: String,
    /// Beside the heading: where one is, what else there is of it.
    pub(crate) above: Markup,
    pub(crate) regions: Vec<Region>,
    /// Follows lines of a log: the last one that is on it.
    pub(crate) follows: Option<u64>,
    /// Whether what it shows changes by itself.
    pub(crate) live: bool,
}

impl Page {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), above: Markup::default(), regions: Vec::new(), follows: None, live: true }
    }

    #[must_use]
    pub(crate) fn above(mut self, above: Markup) -> Self {
        self.above = above;
        self
    }

    #[must_use]
    pub(crate) fn with(mut self, id: &'static str, content: Markup) -> Self {
        self.regions.push(Region::new(id, content));
        self
    }
}

/// Shows who sends a form that it comes from a page of the session with this mark.
pub(crate) fn form_token(mark: &str) -> Markup {
    html! { input type="hidden" name="form" value=(mark); }
}

/// A table that may be wider than the screen: it scrolls by itself, also by keyboard.
pub(crate) fn wide(label: &str, table: Markup) -> Markup {
    html! { div.wide tabindex="0" role="region" aria-label=(label) { (table) } }
}

/// A tile with a number.
pub(crate) fn tile(label: &str, value: Markup, class: &str) -> Markup {
    html! { div class=(format!("tile {class}")) { dt { (label) } dd { (value) } } }
}

/// Nothing to be shown, and why.
pub(crate) fn nothing(text: &str) -> Markup {
    html! { p.muted { (text) } }
}
