//! What of the configuration changes while the platform serves.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas::{
    control::{
        AdmissionHook, AdmissionRequest, AllowedSources, ChangeTime, ConfigField, PackageRoots, PriceTable,
        ProgramConfig, Refusal,
    },
    core::SpecErrors,
    prelude::*,
};
use tracing_subscriber::EnvFilter;

use crate::{
    config::Config,
    file::{self, changes, over, said},
};

/// What a reload puts in force: all of it is read and checked before anything of it is.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) filter: EnvFilter,
    pub(crate) quota: TenantQuota,
    pub(crate) prices: Option<PriceTable>,
    pub(crate) sources: Option<AllowedSources>,
    /// `None`: what holds when nothing is said.
    pub(crate) roots: Option<PackageRoots>,
}

impl Live {
    /// Reads the files that `config` names. All that is wrong with them.
    pub(crate) fn of(config: &Config) -> Result<Self, SpecErrors> {
        let mut errors = SpecErrors::default();
        let filter = log_filter(config.log.as_deref()).unwrap_or_else(|problem| {
            errors.push("log", config.log.as_deref().unwrap_or_default(), problem);
            EnvFilter::default()
        });
        let mut text_of = |field: &str, path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|error| errors.push(field, path.display(), format!("can't be read: {error}")))
                .ok()
        };
        let quota = config.default_quota.as_deref().map(|path| (path, text_of("defaultQuota", path)));
        let prices = config.prices.as_deref().map(|path| (path, text_of("prices", path)));
        let quota = quota.and_then(|(path, text)| Some((path, text?))).map(|(path, text)| {
            let read = serde_json::from_str::<TenantQuota>(&text).map_err(|error| error.to_string());
            let valid =
                read.and_then(|quota| quota.validate().map(|()| quota).map_err(|error| error.to_string()));
            valid.unwrap_or_else(|problem| {
                errors.push("defaultQuota", path.display(), format!("no quota (docs/tenancy.md): {problem}"));
                TenantQuota::default()
            })
        });
        let prices = prices.and_then(|(path, text)| Some((path, text?))).and_then(|(path, text)| {
            PriceTable::parse(&text)
                .map_err(|error| errors.push("prices", path.display(), format!("no price table: {error}")))
                .ok()
        });
        let sources = (!config.allowed_registries.is_empty()).then(|| {
            // Directories have a list of their own, `packageRoots`.
            let registries = config.allowed_registries.iter().cloned();
            registries.fold(AllowedSources::none().with_root("/"), AllowedSources::with_registry)
        });
        let roots = (!config.package_roots.is_empty()).then(|| {
            // The manifests of the command line name packages of their own directories.
            let manifests = config.manifests.iter().filter_map(|path| path.parent());
            let dirs = config.package_roots.iter().map(PathBuf::as_path).chain(manifests);
            dirs.fold(PackageRoots::none(), PackageRoots::with)
        });
        errors.into_result()?;
        Ok(Self { filter, quota: quota.unwrap_or_default(), prices, sources, roots })
    }
}

/// What is logged: as `log` says, else as the variable `RUST_LOG` does, else what is of interest.
pub(crate) fn log_filter(log: Option<&str>) -> Result<EnvFilter, String> {
    match log {
        Some(log) => EnvFilter::try_new(log)
            .map_err(|error| format!("{error}; write one like info or info,sas_pool=debug")),
        None => Ok(EnvFilter::builder()
            .with_default_directive(tracing_subscriber::filter::LevelFilter::INFO.into())
            .from_env_lossy()),
    }
}

/// The sources of code that are allowed now.
#[derive(Clone, Debug, Default)]
struct Sources(Arc<Mutex<Option<Arc<AllowedSources>>>>);

impl Sources {
    fn allow(&self, sources: Option<AllowedSources>) {
        *self.0.lock() = sources.map(Arc::new);
    }
}

#[async_trait]
impl AdmissionHook for Sources {
    fn name(&self) -> &str {
        "sources"
    }

    async fn review(&self, request: &AdmissionRequest<'_>) -> Result<(), Refusal> {
        let allowed = self.0.lock().clone();
        match allowed {
            Some(allowed) => allowed.review(request).await,
            None => Ok(()),
        }
    }
}

type SetFilter = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

/// The configuration of this program: what the command line and the file say, and what is in force.
pub(crate) struct Program {
    flags: Config,
    path: Option<PathBuf>,
    set_filter: Box<SetFilter>,
    sources: Sources,
    platform: Mutex<Weak<Platform>>,
    /// The file as it is in force.
    file: Mutex<Config>,
    /// One reload at a time.
    turn: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Program {
    pub(crate) fn new(
        flags: Config,
        path: Option<PathBuf>,
        set_filter: impl Fn(EnvFilter) -> Result<(), String> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, SpecErrors> {
        let file = path.as_deref().map(file::read).transpose()?.unwrap_or_default();
        Ok(Arc::new(Self {
            flags,
            path,
            set_filter: Box::new(set_filter),
            sources: Sources::default(),
            platform: Mutex::new(Weak::new()),
            file: Mutex::new(file),
            turn: tokio::sync::Mutex::default(),
        }))
    }

    /// All that was said.
    pub(crate) fn config(&self) -> Config {
        over(&self.flags, &self.file.lock())
    }

    /// Logs as much as `live` says.
    pub(crate) fn log(&self, live: &Live) -> Result<(), String> {
        (self.set_filter)(live.filter.clone())
    }

    /// Gives the platform what may change.
    pub(crate) fn build(self: &Arc<Self>, builder: PlatformBuilder, live: Live) -> PlatformBuilder {
        self.sources.allow(live.sources);
        let mut builder = builder
            .program_config(Arc::clone(self) as _)
            .default_tenant_quota(live.quota)
            .admission(self.sources.clone());
        if let Some(prices) = live.prices {
            builder = builder.prices(prices);
        }
        match live.roots {
            Some(roots) => builder.package_roots(roots),
            None => builder,
        }
    }

    /// From now on a reload changes this platform.
    pub(crate) fn serves(&self, platform: &Arc<Platform>) {
        *self.platform.lock() = Arc::downgrade(platform);
    }

    fn put_in_force(&self, platform: &Platform, live: Live, old: &Config, new: &Config) -> Result<(), Error> {
        // What may refuse comes first.
        platform.control().set_default_tenant_quota(live.quota)?;
        (self.set_filter)(live.filter)
            .map_err(|problem| Error::new(ErrorKind::Unexpected, "reload", problem))?;
        platform.control().set_prices(live.prices);
        platform.set_package_roots(live.roots);
        self.sources.allow(live.sources);
        platform.admin().change(|settings| {
            settings.hosts.retain(|host| !old.admin_hosts.contains(host));
            settings.hosts.extend(new.admin_hosts.iter().cloned());
            settings.open_metrics = new.open_metrics.unwrap_or_default();
            settings.require_conditions = new.require_if_match.unwrap_or_default();
            (settings.rate, settings.burst) = new.admin_rate();
        });
        Ok(())
    }
}

#[async_trait]
impl ProgramConfig for Program {
    fn fields(&self) -> Vec<ConfigField> {
        file::fields(&self.flags, &self.file.lock())
    }

    async fn reload(&self) -> Result<Vec<String>, Error> {
        let _turn = self.turn.lock().await;
        let invalid = |errors: SpecErrors| {
            let message = format!("the configuration in force stays: {errors}");
            Error::new(ErrorKind::InvalidSpec, "reload", message).with_source(errors)
        };
        let platform = self.platform.lock().upgrade();
        let platform = platform.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "reload", "the platform starts or shuts down; try again")
        })?;
        let (flags, path) = (self.flags.clone(), self.path.clone());
        let before = self.config();
        let read = move || {
            let file = path.as_deref().map(file::read).transpose()?.unwrap_or_default();
            let config = over(&flags, &file);
            let mut errors = config.check().err().unwrap_or_default();
            let (old, new) = (said(&before), said(&config));
            let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            let changed: Vec<String> =
                names.into_iter().filter(|name| old.get(*name) != new.get(*name)).cloned().collect();
            for name in changed.iter().filter(|name| changes(name) == ChangeTime::Restart) {
                let value = new.get(name).map(file::shown).unwrap_or_default();
                let problem = "a restart changes this, a reload does not: restart the platform, or take the change back";
                errors.push(name, value, problem);
            }
            let live = Live::of(&config);
            if let Err(more) = &live {
                errors.0.extend(more.0.iter().cloned());
            }
            errors.into_result()?;
            Ok((file, before, config, live?, changed))
        };
        let read = tokio::task::spawn_blocking(read).await;
        let read = read.map_err(|error| Error::new(ErrorKind::Unexpected, "reload", error.to_string()))?;
        let (file, before, config, live, changed) = read.map_err(invalid)?;
        #[cfg(feature = "tls")]
        if config.tls_cert_dir.is_some() {
            platform.reload_certificates().await?;
        }
        self.put_in_force(&platform, live, &before, &config)?;
        *self.file.lock() = file;
        tracing::info!(changed = changed.join(","), "the configuration was reloaded");
        Ok(changed)
    }
}
