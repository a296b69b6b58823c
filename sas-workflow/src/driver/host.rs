//! Workflows as the platform's control plane asks for them.

use std::sync::Arc;

use async_trait::async_trait;
use sas_core::{
    Error, ErrorKind, GraphOf, Result, RunAction, RunDetail, RunPage, RunQuery, RunStart, RunView,
    SpecErrors, StuckRun, WorkflowHost, WorkflowInfo, WorkflowSpec,
};
use serde_json::Value as Json;

use super::{
    Workflows, check_id,
    records::{Phase, RunState, Started, run_path},
    shown, view, wrong,
};
use crate::{Definition, graph};

/// How many runs one search looks at.
const SEARCHED: usize = 10_000;
/// How many are read at once.
const PAGE: usize = 200;
/// How many labels a run may have, and how long each of their names and values may be.
const LABELS: (usize, usize) = (16, 63);

/// `/do/0/charge` as a path of a manifest: `spec.do[0].charge`.
fn field(pointer: &str) -> String {
    pointer.split('/').skip(1).fold("spec".to_owned(), |path, part| match part.parse::<usize>() {
        Ok(at) => format!("{path}[{at}]"),
        Err(_) => format!("{path}.{}", part.replace("~1", "/").replace("~0", "~")),
    })
}

fn read(spec: &WorkflowSpec) -> std::result::Result<Definition, SpecErrors> {
    let mut errors = SpecErrors::default();
    match Definition::from_json(spec.document.clone()) {
        Ok(definition) => {
            let own = [definition.namespace(), definition.name(), definition.version()];
            for (name, (own, said)) in ["namespace", "name", "version"]
                .into_iter()
                .zip(own.into_iter().zip([&spec.namespace, &spec.name, &spec.version]))
            {
                if own != said {
                    errors.push(format!("spec.document.{name}"), own, format!("must be {said}"));
                }
            }
            errors.into_result().map(|()| definition)
        }
        Err(mistakes) => {
            for mistake in &mistakes.0 {
                errors.push(field(&mistake.pointer), "", &mistake.problem);
            }
            Err(errors)
        }
    }
}

/// Versions in their order: numbers as numbers, and a release after what comes before it.
fn order(version: &str) -> (Vec<u64>, bool, Vec<(bool, u64, String)>) {
    let plain = version.split('+').next().unwrap_or_default();
    let (release, before) =
        plain.split_once('-').map_or((plain, None), |(release, before)| (release, Some(before)));
    let numbers = release.split('.').map(|part| part.parse().unwrap_or_default()).collect();
    let before_parts = before.unwrap_or_default().split('.').map(|part| match part.parse::<u64>() {
        Ok(number) => (false, number, String::new()),
        Err(_) => (true, 0, part.to_owned()),
    });
    (numbers, before.is_none(), before_parts.collect())
}

fn info(definition: &Definition) -> WorkflowInfo {
    let mut info = WorkflowInfo::new(
        definition.namespace(),
        definition.name(),
        definition.version(),
        definition.digest(),
    );
    info.refused = definition
        .refused()
        .iter()
        .map(|part| format!("{}: {}", field(&part.pointer), part.reason))
        .collect();
    info.schedule = definition.schedule().map(ToString::to_string);
    info
}

impl Workflows {
    /// The versions of a definition, the greatest last.
    async fn versions(&self, namespace: &str, name: &str) -> Result<Vec<String>> {
        let below = format!("{namespace}/{name}/");
        let (mut versions, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = self.0.records.definitions(&below, after.as_deref(), PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            versions.extend(page.iter().filter_map(|(path, _)| path.strip_prefix(&below).map(str::to_owned)));
        }
        versions.sort_by_cached_key(|version| order(version));
        Ok(versions)
    }

    /// The definition of this version, or of the greatest.
    async fn chosen(&self, namespace: &str, name: &str, version: Option<&str>) -> Result<Definition> {
        let version = match version {
            Some(version) => Some(version.to_owned()),
            None => self.versions(namespace, name).await?.pop(),
        };
        let found = match &version {
            Some(version) => self.definition(namespace, name, version).await?,
            None => None,
        };
        found.ok_or_else(|| {
            let version = version.map(|version| format!(" {version}")).unwrap_or_default();
            let message = format!("there is no workflow {namespace}/{name}{version}");
            Error::new(ErrorKind::NotFound, "workflow", message)
        })
    }

    async fn view_of(&self, path: &str) -> Result<RunView> {
        match self.state(path).await? {
            Some(state) => Ok(view::run(&state, shown::SHOWN)),
            None => Err(Error::new(ErrorKind::NotFound, "workflow", format!("there is no run {path:?}"))),
        }
    }
}

/// An id that nobody else makes up.
fn made_up() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(ErrorKind::Unavailable, "workflow", format!("the system gives no random numbers: {error}"))
    })?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

impl Workflows {
    /// Starts a run; whether it is new. As `WorkflowHost::start`.
    ///
    /// # Errors
    /// As there.
    pub async fn start_run(&self, start: RunStart) -> Result<(RunView, bool)> {
        WorkflowHost::start(self, start).await
    }

    /// Tells [`Actions::schedule`](crate::Actions::schedule) how the greatest version of a definition starts by itself.
    async fn reschedule(&self, namespace: &str, name: &str) -> Result<()> {
        if !self.0.drives(namespace) {
            // Whoever does hears of it by the store.
            return Ok(());
        }
        let schedule = match self.versions(namespace, name).await?.pop() {
            Some(version) => self.definition(namespace, name, &version).await?,
            None => None,
        };
        let schedule = schedule.as_ref().and_then(Definition::schedule);
        if schedule.is_some() {
            self.0.scheduled.lock().insert((namespace.to_owned(), name.to_owned()));
        }
        self.0.actions.schedule(namespace, name, schedule).await
    }

    /// A definition has changed, by whomever.
    pub(super) async fn reschedule_changed(&self, path: &str) {
        let mut parts = path.split('/');
        let (Some(namespace), Some(name)) = (parts.next(), parts.next()) else { return };
        self.0.definitions.lock().remove(path);
        if let Err(error) = self.reschedule(namespace, name).await {
            tracing::error!(namespace, name, %error, "a schedule is not kept");
        }
    }

    /// The same for all definitions of the namespaces that this host drives; those of others are let go.
    pub(super) async fn reschedule_all(&self) -> Result<()> {
        let known = self.0.scheduled.lock().clone();
        for (namespace, name) in known.into_iter().filter(|(namespace, _)| !self.0.drives(namespace)) {
            self.0.actions.release_schedule(&namespace, &name).await;
            self.0.scheduled.lock().remove(&(namespace, name));
        }
        let (mut after, mut told) = (None::<String>, std::collections::BTreeSet::new());
        loop {
            let page = self.0.records.definitions("", after.as_deref(), PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (path, definition) in page {
                let mut parts = path.split('/');
                let (Some(namespace), Some(name)) = (parts.next(), parts.next()) else { continue };
                let scheduled = definition.is_ok_and(|definition| definition.schedule().is_some());
                if scheduled && told.insert((namespace.to_owned(), name.to_owned())) {
                    // One that cannot be kept holds up no other, and no run.
                    if let Err(error) = self.reschedule(namespace, name).await {
                        tracing::error!(namespace, name, %error, "a schedule is not kept");
                    }
                }
            }
        }
    }

    /// What a run of this definition is to be started with for this event, by its `schedule.on`; `None`: none is.
    ///
    /// # Errors
    /// The store's.
    pub async fn scheduled_by(&self, namespace: &str, name: &str, event: &Json) -> Result<Option<Json>> {
        let Some(version) = self.versions(namespace, name).await?.pop() else { return Ok(None) };
        let definition = self.definition(namespace, name, &version).await?;
        let schedule = definition.as_ref().and_then(Definition::schedule);
        Ok(schedule.filter(|schedule| schedule.wants(event)).map(|schedule| schedule.input(event)))
    }

    /// Tells an event, in the JSON format of CloudEvents, to all runs of a namespace that listen for its type. How many have it.
    /// They have it for good when it returns; after an error it is to be told again, and those that have it keep it once.
    ///
    /// # Errors
    /// `InvalidSpec` for what is no event; the store's.
    pub async fn deliver(&self, namespace: &str, event: Json) -> Result<usize> {
        super::steer::check_event(&event)?;
        let kind = event.get("type").and_then(Json::as_str).unwrap_or_default();
        let (mut after, mut told) = (None::<String>, 0);
        loop {
            let page = self.0.records.listeners(namespace, after.as_deref(), PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(told) };
            after = Some(last.clone());
            for (id, types) in &page {
                if !types.is_empty() && !types.iter().any(|own| own == kind) {
                    continue;
                }
                match self.event(&run_path(namespace, id), event.clone()).await {
                    Ok(()) => told += 1,
                    // It has ended meanwhile, or is gone, or cannot be read: nobody waits there.
                    Err(error)
                        if matches!(
                            error.kind,
                            ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::Unexpected
                        ) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

fn check_labels(start: &RunStart) -> Result<()> {
    let (most, long) = LABELS;
    if start.labels.len() > most {
        return Err(wrong(format!("labels: {} are given; at most {most}", start.labels.len())));
    }
    for (name, value) in &start.labels {
        if name.is_empty() || name.len() > long || value.len() > long {
            return Err(wrong(format!(
                "labels: {name:?} must have 1 to {long} bytes, and its value at most {long}"
            )));
        }
    }
    Ok(())
}

fn fits(query: &RunQuery, state: &RunState) -> bool {
    let same = |asked: &Option<String>, own: &str| asked.as_deref().is_none_or(|asked| asked == own);
    same(&query.workflow, &state.name)
        && same(&query.version, &state.version)
        && query.status.is_none_or(|status| status == view::status(state))
        && query.label.as_ref().is_none_or(|(name, value)| state.labels.get(name) == Some(value))
        && query.started_after.is_none_or(|at| state.started >= at)
        && query.started_before.is_none_or(|at| state.started < at)
        && query.error.as_ref().is_none_or(|text| {
            state.error.as_ref().is_some_and(|error| error.to_string().contains(text.as_str()))
        })
}

/// A picture, which takes time of its own.
async fn drawn(definition: Definition, run: Option<RunDetail>) -> Result<String> {
    tokio::task::spawn_blocking(move || graph::svg(&definition, run.as_ref()))
        .await
        .map_err(|error| Error::new(ErrorKind::Unexpected, "workflow", format!("it is not drawn: {error}")))
}

#[async_trait]
impl WorkflowHost for Workflows {
    fn check(&self, spec: &WorkflowSpec) -> std::result::Result<(), SpecErrors> {
        let definition = read(spec)?;
        let mut errors = SpecErrors::default();
        for (pointer, namespace) in &definition.0.starts {
            if *namespace != spec.namespace {
                let problem = format!(
                    "must be {}: a run has the secrets of its namespace, and that one pays for it",
                    spec.namespace
                );
                errors.push(field(pointer), namespace, problem);
            }
        }
        if let Some(schedule) = definition.schedule() {
            if let Err(problem) = schedule.runnable() {
                errors.push("spec.schedule", schedule, problem);
            }
            if let Err(problem) = self.0.actions.check_schedule(&spec.namespace, &spec.name, schedule) {
                errors.push("spec.schedule", schedule, problem);
            }
        }
        errors.into_result()
    }

    async fn apply(&self, spec: &WorkflowSpec) -> Result<bool> {
        self.check(spec).map_err(Error::from)?;
        let definition = read(spec).map_err(Error::from)?;
        let new = self.0.records.define(&definition).await?;
        self.reschedule(&spec.namespace, &spec.name).await?;
        Ok(new)
    }

    async fn remove(&self, namespace: &str, name: &str, version: &str) -> Result<()> {
        Self::remove(self, namespace, name, version).await?;
        self.reschedule(namespace, name).await
    }

    async fn purge(&self, namespace: &str) -> Result<Vec<String>> {
        let below = format!("{namespace}/");
        let (mut purged, mut after) = (Vec::new(), None::<String>);
        for (path, _) in self.0.records.definitions(&below, None, usize::MAX).await? {
            self.0.records.retire(&path).await?;
            purged.push(path);
        }
        loop {
            let states = self.0.records.states(&below, after.as_deref(), PAGE).await?;
            let Some(last) = states.last() else { break };
            after = Some(last.path());
            for state in states {
                let path = state.path();
                if state.phase == Phase::Running {
                    // By its state: a run that cannot be read now is deleted, too.
                    match Arc::clone(&self.0).cancel_unread(&path).await {
                        Err(error) if error.kind != ErrorKind::Conflict => return Err(error),
                        _ => {}
                    }
                }
                if let Some((_, version)) = self.0.records.state(&path).await? {
                    self.0.records.forget(&path, version).await?;
                }
            }
        }
        for path in &purged {
            if let Some((_, version)) = self.0.records.definition(path).await? {
                self.0.records.undefine(path, version).await?;
            }
            self.0.definitions.lock().remove(path);
            if let Some(name) = path.split('/').nth(1) {
                self.reschedule(namespace, name).await?;
            }
        }
        Ok(purged)
    }

    async fn definitions(
        &self,
        namespace: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<WorkflowInfo>, Option<String>)> {
        let below = namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
        let page = self.0.records.definitions(&below, after, limit).await?;
        let next = page.last().filter(|_| page.len() == limit).map(|(path, _)| path.clone());
        let infos = page.into_iter().map(|(path, read)| match read {
            Ok(definition) => info(&definition),
            // It is listed, so that it can be deleted.
            Err(error) => {
                let mut parts = path.splitn(3, '/');
                let mut part = || parts.next().unwrap_or_default();
                let mut info = WorkflowInfo::new(part(), part(), part(), "");
                info.refused.push(error.message);
                info
            }
        });
        Ok((infos.collect(), next))
    }

    fn stuck(&self) -> Vec<StuckRun> {
        self.0.stuck()
    }

    async fn document(&self, namespace: &str, name: &str, version: Option<&str>) -> Result<Json> {
        Ok(self.chosen(namespace, name, version).await?.document().clone())
    }

    async fn start(&self, start: RunStart) -> Result<(RunView, bool)> {
        check_labels(&start)?;
        let id = match &start.id {
            Some(id) => id.clone(),
            None => made_up()?,
        };
        check_id(&id)?;
        let definition = self.chosen(&start.namespace, &start.workflow, start.version.as_deref()).await;
        // A start that is repeated after a newer version came is the one that it was.
        if let (Some(_), None) = (&start.id, &start.version)
            && let Some(state) = self.state(&run_path(&start.namespace, &id)).await?
            && state.name == start.workflow
        {
            return Ok((view::run(&state, shown::SHOWN), false));
        }
        let version = definition?.version().to_owned();
        let started = Started { input: start.input, labels: start.labels, parent: None };
        let at = [start.namespace.as_str(), start.workflow.as_str(), version.as_str()];
        let (state, new) = Arc::clone(&self.0).start(at, &id, started).await?;
        Ok((view::run(&state, shown::SHOWN), new))
    }

    async fn runs(&self, query: &RunQuery) -> Result<RunPage> {
        let below = format!("{}/", query.namespace);
        let mut after = query.after.as_ref().map(|id| run_path(&query.namespace, id));
        let (mut page, mut looked) = (RunPage::default(), 0);
        loop {
            let states = self.0.records.states(&below, after.as_deref(), PAGE).await?;
            let whole = states.len() == PAGE;
            for state in states {
                if page.runs.len() >= query.limit {
                    page.next = page.runs.last().map(|run| run.id.clone());
                    return Ok(page);
                }
                looked += 1;
                after = Some(state.path());
                if fits(query, &state) {
                    page.runs.push(view::run(&state, shown::LISTED));
                }
                if looked >= SEARCHED {
                    page.next = Some(state.id);
                    return Ok(page);
                }
            }
            if !whole {
                return Ok(page);
            }
        }
    }

    async fn detail(&self, namespace: &str, id: &str) -> Result<RunDetail> {
        let path = run_path(namespace, id);
        match self.0.load(&path).await {
            Ok(Some(loaded)) => Ok(view::detail(&loaded)),
            Ok(None) => Err(Error::new(ErrorKind::NotFound, "workflow", format!("there is no run {path:?}"))),
            Err(error) if error.kind == ErrorKind::Unavailable => Err(error),
            // What there is of it is shown.
            Err(error) => {
                let mut detail = RunDetail::new(self.view_of(&path).await?);
                detail.unreadable = Some(error.message);
                Ok(detail)
            }
        }
    }

    async fn ended(&self, namespace: &str, id: &str) -> Result<RunView> {
        let state = Self::ended(self, &run_path(namespace, id)).await?;
        Ok(view::run(&state, shown::SHOWN))
    }

    async fn steer(&self, namespace: &str, id: &str, action: RunAction) -> Result<RunView> {
        let path = run_path(namespace, id);
        Arc::clone(&self.0).steer(&path, action).await?;
        self.view_of(&path).await
    }

    async fn graph(&self, namespace: &str, of: GraphOf<'_>) -> Result<String> {
        match of {
            GraphOf::Definition { name, version } => {
                drawn(self.chosen(namespace, name, version).await?, None).await
            }
            GraphOf::Run(id) => {
                let path = run_path(namespace, id);
                let Some(loaded) = self.0.load(&path).await? else {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        "workflow",
                        format!("there is no run {path:?}"),
                    ));
                };
                let state = &loaded.state;
                let version = Some(state.version.as_str());
                let definition = self.chosen(namespace, &state.name, version).await?;
                drawn(definition, Some(view::detail(&loaded))).await
            }
            _ => Err(Error::unsupported("drawing this")),
        }
    }
}
