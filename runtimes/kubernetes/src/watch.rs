//! The one watch of the namespace: it keeps the board.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event, watcher};

use crate::{engine::Engine, logs, status};

/// The longest pause before a watch that broke off is taken up again.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Watches until it is dropped. What the API server has forgotten of its history (410 Gone) is listed anew.
pub(crate) async fn run(engine: &Arc<Engine>) {
    let config = watcher::Config::default().labels(&engine.selector());
    let events = watcher(engine.cluster.pods(), config);
    let mut events = std::pin::pin!(events);
    let mut listed = HashSet::new();
    let mut pause = Duration::ZERO;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                pause = Duration::ZERO;
                take(engine, event, &mut listed);
            }
            Err(error) => {
                engine.metrics.watch_failures.increment(1);
                tracing::warn!(%error, namespace = engine.cluster.namespace, "the watch of Pods broke off");
                pause = (pause * 2).clamp(Duration::from_millis(50), LONGEST_PAUSE);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

fn take(engine: &Arc<Engine>, event: Event<Pod>, listed: &mut HashSet<String>) {
    let now = engine.config.clock.now();
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(pod) => {
            listed.extend(pod.metadata.name.clone());
            apply(engine, &pod);
        }
        Event::InitDone => engine.board.only(&std::mem::take(listed), now),
        Event::Apply(pod) => apply(engine, &pod),
        Event::Delete(pod) => {
            let Some(name) = &pod.metadata.name else { return };
            // Its last status may say how it ended.
            if engine.board.get(name).is_some() {
                apply(engine, &pod);
                engine.board.forget(name, now);
            }
        }
    }
}

fn apply(engine: &Arc<Engine>, pod: &Pod) {
    let Some(name) = &pod.metadata.name else { return };
    let seen = status::read(pod, engine.config.clock.now());
    let (has_ended, has_run, is_doomed) = (seen.ended.is_some(), seen.has_run, seen.doomed.is_some());
    let (is_leaving, is_lost) = (seen.leaving.is_some(), seen.is_lost);
    match engine.board.seen(name, seen) {
        Some(slot) => {
            if has_run {
                logs::follow(engine, &slot);
            }
            if is_lost {
                engine.give_up(&slot);
            } else if has_ended && is_leaving {
                engine.removed_by_others(&slot);
            } else if has_ended {
                engine.remove(&slot, 0);
            } else if is_doomed {
                engine.remove(&slot, 1);
            }
        }
        None if !is_leaving => engine.remove_stray(name.clone()),
        None => {}
    }
}
