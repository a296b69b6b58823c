//! What every page has: its head, the way around, and the parts of it that change while somebody looks.

use maud::{DOCTYPE, Markup, html};

use crate::{
    api::{Problem, Who},
    assets::{SCRIPT, STYLE},
    pages::Place,
    session::{Said, Session},
};

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

/// What a page is shown with.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) who: &'a Who,
    pub(crate) session: &'a Session,
    pub(crate) place: &'a Place,
    /// The path and query of the page.
    pub(crate) target: &'a str,
}

fn head(title: &str, refresh: bool) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " · sas" }
            link rel="stylesheet" href=(STYLE.url());
            link rel="icon" href=(crate::assets::ICON.url()) type="image/svg+xml";
            script src=(SCRIPT.url()) type="module" {}
            @if refresh { noscript { meta http-equiv="refresh" content="10"; } }
        }
    }
}

fn around(frame: &Frame<'_>) -> Markup {
    let link = |href: &str, text: &str, here: bool| {
        html! { li { a href=(href) aria-current=[here.then_some("page")] { (text) } } }
    };
    let place = frame.place;
    let whole = frame.who.namespace.is_none();
    html! {
        nav aria-label="Console" {
            ul {
                (link("/console/", "Services", place.is_of_services()))
                (link("/console/events", "Events", matches!(place, Place::Events | Place::Trigger { .. })))
                @if whole {
                    (link("/console/pool", "Pool", matches!(place, Place::Pool)))
                    (link("/console/platform", "Platform", matches!(place, Place::Platform)))
                }
                @if frame.who.may_admin() {
                    (link("/console/audit", "Changes", matches!(place, Place::Audit)))
                }
                @if frame.who.may_deploy() {
                    (link("/console/deploy", "Deploy", matches!(place, Place::Deploy)))
                }
            }
        }
    }
}

fn said(said: &Said) -> Markup {
    let (class, role) = if said.fine { ("said fine", "status") } else { ("said wrong", "alert") };
    html! { p class=(class) role=(role) { (said.text) } }
}

/// A whole page.
pub(crate) fn whole(frame: &Frame<'_>, page: &Page) -> Markup {
    let what = frame.session.said.lock().take();
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(&page.title, page.live))
            body {
                a.skip href="#content" { "To the content" }
                header.top {
                    a.brand href="/console/" { "sas" }
                    (around(frame))
                    div.who {
                        span #live.pulse role="status" data-live=[page.live.then_some(frame.target)]
                            data-follows=[page.follows] { "live with scripts" }
                        span.name title=(format!("may {}", frame.who.scopes.join(", "))) {
                            (frame.who.name)
                            @if let Some(namespace) = &frame.who.namespace { " · " (namespace) }
                        }
                        form method="post" action="/console/sign-out" {
                            (form_token(frame.session))
                            button.quiet type="submit" { "Sign out" }
                        }
                    }
                }
                main #content tabindex="-1" {
                    @if let Some(what) = &what { (said(what)) }
                    div.heading {
                        h1 { bdi { (page.title) } }
                        (page.above)
                    }
                    @for region in &page.regions {
                        section id=(region.id) data-region { (region.content) }
                    }
                }
            }
        }
    }
}

/// Shows who sends a form that it comes from a page of this session.
pub(crate) fn form_token(session: &Session) -> Markup {
    html! { input type="hidden" name="form" value=(session.form); }
}

/// The page of those who have not signed in.
pub(crate) fn sign_in(next: &str, problem: Option<&str>) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            (head("Sign in", false))
            body.alone {
                main #content {
                    h1 { span.brand { "sas" } " console" }
                    form method="post" action="/console/sign-in" {
                        input type="hidden" name="next" value=(next);
                        label for="token" { "Token of the admin API" }
                        input #token type="password" name="token" required autocomplete="current-password" autofocus
                            aria-describedby=[problem.map(|_| "problem")] aria-invalid=[problem.map(|_| "true")];
                        @if let Some(problem) = problem { p #problem.said.wrong role="alert" { (problem) } }
                        button type="submit" { "Sign in" }
                    }
                    p.muted {
                        "What you see and may do here is what the token may. The platform's first line of output names the file \
                         of the first one; " code { "sasctl token create" } " makes others."
                    }
                }
            }
        }
    }
}

/// A page that can't be shown, and why.
pub(crate) fn refused(problem: &Problem) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(&problem.title, false))
            body.alone {
                main #content {
                    h1 { (problem.status) " " (problem.title) }
                    p { (problem.sentence()) }
                    p { a href="/console/" { "To the services" } }
                }
            }
        }
    }
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
