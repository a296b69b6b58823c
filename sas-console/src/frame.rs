//! What surrounds a page: its head, the way around, who looks. And the pages of those who see none.

use maud::{DOCTYPE, Markup, html};

use crate::{
    api::{Problem, Who},
    assets::{SCRIPT, STYLE},
    page::{Page, form_token},
    pages::Place,
    session::{Said, Session},
};

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
                (link("/console/workflows", "Workflows", place.is_of_workflows()))
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
                            (form_token(&frame.session.form))
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
