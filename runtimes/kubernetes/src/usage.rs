//! What instances use, where the cluster measures it.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use sas_core::{ErrorKind, Result, Usage};
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior};

use crate::{board::Board, cluster::Cluster, config::KubernetesConfig, pod};

/// By the name of the Pod. The cluster says how many cores a Pod uses; the time that it has used is what that comes to.
#[derive(Debug, Default)]
pub(crate) struct Usages(Mutex<HashMap<String, Sample>>);

#[derive(Clone, Copy, Debug)]
struct Sample {
    usage: Usage,
    at: Instant,
}

impl Usages {
    /// `None`: the cluster has no `metrics.k8s.io`, or this platform may not ask it.
    ///
    /// # Errors
    /// When the API server can't be asked at all.
    pub(crate) async fn find(
        cluster: &Cluster,
        config: &KubernetesConfig,
        generation: &str,
    ) -> Result<Option<Self>> {
        let selector = format!("{}={generation}", pod::GENERATION);
        match cluster.usage(&selector).await {
            Ok(_) => Ok(Some(Self::default())),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => {
                tracing::warn!(%error, namespace = config.namespace, "what instances use is not known");
                Ok(None)
            }
        }
    }

    pub(crate) fn of(&self, pod: &str) -> Option<Usage> {
        self.0.lock().get(pod).map(|sample| sample.usage)
    }

    /// Takes an answer of the cluster. Pods that are not in it are forgotten.
    fn take(&self, answer: &Value, now: Instant) {
        let mut samples = self.0.lock();
        let mut taken = HashMap::new();
        for pod in answer["items"].as_array().into_iter().flatten() {
            let Some(name) = pod["metadata"]["name"].as_str() else { continue };
            let containers = pod["containers"].as_array().into_iter().flatten();
            let (mut cores, mut memory) = (0.0, 0.0);
            for container in containers {
                cores += container["usage"]["cpu"].as_str().and_then(quantity).unwrap_or_default();
                memory += container["usage"]["memory"].as_str().and_then(quantity).unwrap_or_default();
            }
            let before = samples.get(name);
            let elapsed = before.map_or(0.0, |before| now.duration_since(before.at).as_secs_f64());
            let cpu_ns = before.map_or(0, |before| before.usage.cpu_ns) + (cores * elapsed * 1e9) as u64;
            taken.insert(name.to_owned(), Sample { usage: Usage::new(cpu_ns, memory as u64), at: now });
        }
        *samples = taken;
    }
}

/// A quantity as metrics-server writes them, such as `12345678n`, `250m` or `30824Ki`.
fn quantity(text: &str) -> Option<f64> {
    let at = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

/// Asks again and again, for all instances at once.
pub(crate) async fn look(
    usages: &Usages,
    cluster: &Cluster,
    board: &Board,
    selector: &str,
    period: Duration,
) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if board.all().is_empty() {
            continue;
        }
        match cluster.usage(selector).await {
            Ok(answer) => usages.take(&answer, Instant::now()),
            Err(error) => tracing::debug!(%error, "what instances use is not known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn cores_over_time_come_to_time_used_and_it_never_runs_backwards() {
        let usages = Usages::default();
        let began = Instant::now();
        let answer = |cpu: &str| {
            serde_json::json!({"items": [{"metadata": {"name": "a"}, "containers": [
                {"name": "user-container", "usage": {"cpu": cpu, "memory": "2048Ki"}},
                {"name": "proxy", "usage": {"cpu": "0", "memory": "1Mi"}},
            ]}]})
        };
        usages.take(&answer("500m"), began);
        assert_eq!(usages.of("a"), Some(Usage::new(0, 3 << 20)));
        usages.take(&answer("500000000n"), began + Duration::from_secs(10));
        assert_eq!(usages.of("a").unwrap().cpu_ns, 5_000_000_000);
        usages.take(&answer("0"), began + Duration::from_secs(20));
        assert_eq!(usages.of("a").unwrap().cpu_ns, 5_000_000_000);
        usages.take(&serde_json::json!({"items": []}), began);
        assert_eq!(usages.of("a"), None);
    }
}
