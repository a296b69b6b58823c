//! Where a definition copies secrets into what a run keeps.
//!
//! What is sent in a call is kept nowhere: it is made again of the definition and the secrets. What an expression makes of a secret
//! elsewhere becomes data of the run, which a checkpoint would store.

use crate::{
    data::{Data, Span},
    definition::{
        Answer, Catch, Consumption, EventFilter, Filter, Inner, Kind, Listen, Retry, Task, Timeout, Until,
    },
};

/// The JSON pointer of the first place that makes data of a secret. Conditions do not: they say yes or no.
pub(crate) fn first(inner: &Inner) -> Option<String> {
    if inner.uses.secrets.is_empty() {
        return None;
    }
    let uses = &inner.uses;
    let shared = uses.timeouts.values().any(Span::mentions_secrets)
        || uses.retries.values().any(retry)
        || uses.errors.values().any(|error| error.0.mentions_secrets());
    if shared {
        return Some("/use".to_owned());
    }
    if changes(&inner.input) {
        return Some("/input".to_owned());
    }
    if inner.timeout.as_ref().is_some_and(timeout) {
        return Some("/timeout".to_owned());
    }
    let around = uses.extensions.iter().flat_map(|extension| [&extension.before, &extension.after]);
    let own = around.chain([&inner.tasks]).find_map(|list| tasks(list));
    own.or_else(|| uses.functions.values().find_map(task))
}

fn tasks(list: &[Task]) -> Option<String> {
    list.iter().find_map(task)
}

fn task(task: &Task) -> Option<String> {
    let own = [&task.input, &task.output, &task.export].into_iter().any(changes)
        || task.timeout.as_ref().is_some_and(timeout)
        || match &task.kind {
            Kind::Set(data) | Kind::Emit(data) | Kind::Call { with: data, .. } => data.mentions_secrets(),
            Kind::For { items, .. } => items.mentions_secrets(),
            Kind::Wait(span) => span.mentions_secrets(),
            Kind::Raise(Ok(error)) => error.0.mentions_secrets(),
            Kind::Workflow { input: Some(data), .. } => data.mentions_secrets(),
            Kind::Try { catch, .. } => catches(catch),
            Kind::Listen(listen) => listens(listen),
            // The output has the request in it, without what authorizes it.
            Kind::Http(call) if call.answer == Answer::Response => {
                [Some(&call.method), Some(&call.endpoint.uri), call.headers.as_ref(), call.query.as_ref()]
                    .into_iter()
                    .flatten()
                    .any(Data::mentions_secrets)
            }
            Kind::OpenApi(call) if call.answer == Answer::Response => {
                let data = [Some(&call.document.uri), Some(&call.operation), call.parameters.as_ref()];
                data.into_iter().flatten().any(Data::mentions_secrets)
            }
            _ => false,
        };
    if own {
        return Some(task.pointer.clone());
    }
    match &task.kind {
        Kind::Do(list) | Kind::Fork { branches: list, .. } | Kind::For { tasks: list, .. } => tasks(list),
        Kind::Try { tasks: list, catch } => tasks(list).or_else(|| catch.tasks.as_deref().and_then(tasks)),
        Kind::Listen(Listen { each: Some(each), .. }) => tasks(&each.tasks),
        _ => None,
    }
}

fn changes(filter: &Filter) -> bool {
    filter.change.as_ref().is_some_and(Data::mentions_secrets)
}

fn timeout(timeout: &Timeout) -> bool {
    matches!(timeout, Timeout::After(span) if span.mentions_secrets())
}

fn catches(catch: &Catch) -> bool {
    matches!(&catch.retry, Some(Ok(own)) if retry(own))
}

fn retry(retry: &Retry) -> bool {
    let spans = [&retry.delay, &retry.attempt_duration, &retry.duration];
    spans.into_iter().flatten().any(Span::mentions_secrets)
        || retry.jitter.as_ref().is_some_and(|(from, to)| from.mentions_secrets() || to.mentions_secrets())
}

fn listens(listen: &Listen) -> bool {
    let each = listen.each.as_ref().is_some_and(|each| changes(&each.output) || changes(&each.export));
    each || consumes(&listen.to)
}

fn consumes(to: &Consumption) -> bool {
    match to {
        Consumption::One(filter) => correlates(filter),
        Consumption::All(filters) => filters.iter().any(correlates),
        Consumption::Any(filters, until) => {
            filters.iter().any(correlates) || matches!(until, Some(Until::Events(end)) if consumes(end))
        }
    }
}

/// What is found in an event is kept, to hold the next ones to it.
fn correlates(filter: &EventFilter) -> bool {
    filter.correlate.iter().any(|(_, from, _)| from.mentions_secrets())
}
