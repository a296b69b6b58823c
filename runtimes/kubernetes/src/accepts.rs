//! What of a spec can become a Pod here.

use sas_core::{
    Companion, ContainerSpec, Mount, RevisionSpec, SecurityContext, Source, SpecErrors, Volume, VolumeSource,
};

use crate::config::KubernetesConfig;

/// The remedy for what is refused unless [`KubernetesConfig::references`] says otherwise.
const NO_REFERENCES: &str = "services may not name secrets, configuration maps and claims of the cluster on this platform; use \
                             secrets of the platform in `env`, or ask its operator";

/// Everything that stands against the spec, each at its field.
pub(crate) fn check(config: &KubernetesConfig, runtime: &str, spec: &RevisionSpec) -> Result<(), SpecErrors> {
    let mut errors = SpecErrors::default();
    match &spec.source {
        Source::Image(name) if name.trim().is_empty() || name.contains(char::is_whitespace) => {
            errors.push(
                "source.image",
                name,
                "the name of an image, such as registry.example.com/team/app:1",
            );
        }
        Source::Image(_) => {}
        other => errors.push("source", other, format!("the {runtime} runtime takes images")),
    }
    if let Some(dir) = &spec.working_dir {
        errors.push("working_dir", dir, "in an image it is an absolute path: container.working_dir");
    }
    for (name, value) in spec.options.iter().filter(|(name, _)| name.starts_with("sas.dev/")) {
        let problem = format!("the {runtime} runtime has no such option; leave it out");
        errors.push(format!("options[{name}]"), value, problem);
    }
    let none = ContainerSpec::default();
    let asked = spec.container.as_deref().unwrap_or(&none);
    for (at, volume) in asked.volumes.iter().enumerate() {
        check_volume(config, &format!("container.volumes[{at}]"), &volume.source, &mut errors);
    }
    let main = Asked { at: "container.".to_owned(), mounts: &asked.mounts, security: &asked.security };
    main.check(config, &asked.volumes, &mut errors);
    if let Some(dir) = asked.working_dir.as_ref().filter(|dir| !dir.starts_with('/')) {
        errors.push("container.working_dir", dir, "an absolute path in the image");
    }
    for (list, companions) in [("init", &asked.init), ("sidecars", &asked.sidecars)] {
        for (at, companion) in companions.iter().enumerate() {
            check_companion(
                config,
                &format!("container.{list}[{at}]."),
                companion,
                &asked.volumes,
                &mut errors,
            );
        }
    }
    if !config.references {
        for (at, from) in asked.env_from.iter().enumerate() {
            errors.push(format!("container.env_from[{at}]"), &from.reference, NO_REFERENCES);
        }
        for (at, name) in asked.pull_secrets.iter().enumerate() {
            errors.push(format!("container.pull_secrets[{at}]"), name, NO_REFERENCES);
        }
    }
    for (path, value) in &asked.other {
        let field = path.rsplit('.').next().unwrap_or(path);
        if !config.fields.iter().any(|allowed| allowed == field) {
            let problem = "no service of this platform may set it: leave it out, or ask its operator";
            errors.push(format!("container.other[{path}]"), value, problem);
        } else if path.starts_with("containers[") && !asked.sidecars.is_empty() {
            // The container that takes the requests comes first here, wherever it stands in the manifest.
            let problem = "can't be set where there are sidecars; leave it out";
            errors.push(format!("container.other[{path}]"), value, problem);
        } else if serde_json::from_str::<serde_json::Value>(value).is_err() {
            errors.push(format!("container.other[{path}]"), value, "the JSON of the field's value");
        }
    }
    errors.into_result()
}

/// What is asked of one container.
struct Asked<'a> {
    /// The prefix of its fields.
    at: String,
    mounts: &'a [Mount],
    security: &'a SecurityContext,
}

impl Asked<'_> {
    fn check(&self, config: &KubernetesConfig, volumes: &[Volume], errors: &mut SpecErrors) {
        let at = |field: &str| format!("{}{field}", self.at);
        for (number, mount) in self.mounts.iter().enumerate() {
            if !volumes.iter().any(|volume| volume.name == mount.volume) {
                let field = at(&format!("mounts[{number}]"));
                errors.push(field, &mount.volume, "no volume of that name is declared");
            }
        }
        let security = self.security;
        if security.run_as_user == Some(0) && !config.allow_root {
            errors.push(at("security.run_as_user"), 0, "another user: 0 is forbidden here");
        }
        if security.allow_privilege_escalation == Some(true) {
            let problem = "no program gains rights here; leave it out";
            errors.push(at("security.allow_privilege_escalation"), true, problem);
        }
        for (number, name) in security.add_capabilities.iter().enumerate() {
            if !config.capabilities.iter().any(|known| known == name) {
                let problem = format!("this platform gives {}; leave it out", config.capabilities.join(", "));
                errors.push(at(&format!("security.add_capabilities[{number}]")), name, problem);
            }
        }
        if let Some(profile) =
            security.seccomp_profile.as_deref().filter(|profile| *profile != "RuntimeDefault")
        {
            let problem = "RuntimeDefault, which every container has; leave it out";
            errors.push(at("security.seccomp_profile"), profile, problem);
        }
    }
}

fn check_companion(
    config: &KubernetesConfig,
    at: &str,
    companion: &Companion,
    volumes: &[Volume],
    errors: &mut SpecErrors,
) {
    if companion.image.trim().is_empty() {
        errors.push(format!("{at}image"), &companion.image, "the name of an image");
    }
    if !config.references {
        for (number, from) in companion.env_from.iter().enumerate() {
            errors.push(format!("{at}env_from[{number}]"), &from.reference, NO_REFERENCES);
        }
    }
    for (name, value) in &companion.env {
        if matches!(value, sas_core::EnvValue::Secret(_)) {
            let problem = "secrets of the platform reach the container that takes the requests only";
            errors.push(format!("{at}env.{name}"), "…", problem);
        }
    }
    Asked { at: at.to_owned(), mounts: &companion.mounts, security: &companion.security }
        .check(config, volumes, errors);
}

fn check_volume(config: &KubernetesConfig, at: &str, source: &VolumeSource, errors: &mut SpecErrors) {
    match source {
        VolumeSource::EmptyDir { .. } => {}
        VolumeSource::ConfigMap { name, .. }
        | VolumeSource::Secret { name, .. }
        | VolumeSource::Claim { name, .. } => {
            if !config.references {
                errors.push(at, name, NO_REFERENCES);
            }
        }
        VolumeSource::Projected(sources) => {
            for source in sources {
                match source {
                    VolumeSource::ConfigMap { .. } | VolumeSource::Secret { .. } => {
                        check_volume(config, at, source, errors);
                    }
                    _ => errors.push(at, "projected", "secrets and configuration maps, and nothing else"),
                }
            }
        }
        VolumeSource::Other(kind) => {
            let problem = "an emptyDir, a secret, a configMap, a persistentVolumeClaim or a projection; no other kind \
                           is given to services";
            errors.push(at, kind, problem);
        }
        other => errors.push(at, format!("{other:?}"), "this runtime has no volumes of this kind"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sas_core::{EnvFrom, VolumeSource};

    fn refused(config: &KubernetesConfig, change: impl FnOnce(&mut ContainerSpec)) -> Vec<String> {
        let mut spec = RevisionSpec::new("kubernetes", Source::Image("app:1".into()));
        let mut container = ContainerSpec::default();
        change(&mut container);
        spec.container = Some(Box::new(container));
        let errors = check(config, "kubernetes", &spec).err().unwrap_or_default();
        errors.0.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn what_names_objects_of_the_cluster_is_refused_unless_the_operator_allows_it() {
        let mut config = KubernetesConfig::new("functions");
        let asks = |container: &mut ContainerSpec| {
            container.env_from.push(EnvFrom::new("secret/db"));
            container.pull_secrets.push("registry".into());
            let claim = VolumeSource::Claim { name: "disk".into(), read_only: false };
            container.volumes.push(Volume::new("disk", claim));
        };
        let fields = ["container.volumes[0]", "container.env_from[0]", "container.pull_secrets[0]"];
        assert_eq!(refused(&config, asks), fields);
        config.references = true;
        assert_eq!(refused(&config, asks), [""; 0]);
    }

    #[test]
    fn fields_of_a_pod_are_taken_as_far_as_the_operator_lists_them() {
        let config = KubernetesConfig::new("functions");
        let fields = refused(&config, |container| {
            container.other.insert("nodeSelector".into(), r#"{"disk":"ssd"}"#.into());
            container.other.insert("containers[0].lifecycle".into(), "{}".into());
            container.other.insert("affinity".into(), "no json".into());
            container.other.insert("hostNetwork".into(), "true".into());
            container.other.insert("runtimeClassName".into(), "\"kata\"".into());
        });
        assert_eq!(
            fields,
            [
                "container.other[affinity]",
                "container.other[hostNetwork]",
                "container.other[runtimeClassName]"
            ]
        );
    }

    #[test]
    fn rights_are_those_that_the_platform_gives() {
        let mut config = KubernetesConfig::new("functions");
        config.allow_root = false;
        let fields = refused(&config, |container| {
            container.security.run_as_user = Some(0);
            container.security.allow_privilege_escalation = Some(true);
            container.security.add_capabilities = vec!["NET_BIND_SERVICE".into(), "SYS_ADMIN".into()];
            container.security.seccomp_profile = Some("Unconfined".into());
        });
        assert_eq!(
            fields,
            [
                "container.security.run_as_user",
                "container.security.allow_privilege_escalation",
                "container.security.add_capabilities[1]",
                "container.security.seccomp_profile",
            ]
        );
    }
}
