//! The runtime specification of a container.

use std::{collections::HashSet, path::PathBuf};

use oci_spec::{
    OciSpecError,
    runtime::{
        Capabilities, Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder,
        LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder,
        LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimitBuilder, PosixRlimitType, Process,
        ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder, get_default_maskedpaths,
        get_default_readonly_paths,
    },
};
use sas_runtime_os::cgroup::Limits;

/// The version that every runtime of the last years reads.
const VERSION: &str = "1.0.2";
const CPU_PERIOD_US: u64 = 100_000;

/// A capability by its name, with or without `CAP_`.
pub(crate) fn capability(name: &str) -> Option<Capability> {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("CAP_").unwrap_or(&name).parse().ok()
}

/// As whom a program runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Option<String>,
}

/// A directory or file of the instance's own mounts, shown in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) from: PathBuf,
    pub(crate) to: PathBuf,
    pub(crate) read_only: bool,
}

/// All that decides what a container is.
#[derive(Clone, Debug)]
pub(crate) struct ContainerShape {
    pub(crate) hostname: String,
    pub(crate) root: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) user: User,
    pub(crate) capabilities: Vec<Capability>,
    pub(crate) new_privileges: bool,
    pub(crate) seccomp: bool,
    /// Whether only plain kinds of sockets may be made.
    pub(crate) plain_sockets: bool,
    pub(crate) open_files: u64,
    pub(crate) binds: Vec<Bind>,
    /// Directories that are empty and in memory at each start.
    pub(crate) scratch: Vec<(String, u32)>,
    pub(crate) disk_bytes: u64,
    /// Directories of its control group, to be shown.
    pub(crate) groups: Vec<PathBuf>,
    /// The group that the runtime is to make.
    pub(crate) make_group: Option<(String, Limits)>,
    pub(crate) own_network: bool,
}

fn mount(kind: &str, source: &str, to: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .typ(kind.to_owned())
        .source(source)
        .destination(to)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
}

fn namespace(kind: LinuxNamespaceType) -> Result<LinuxNamespace, OciSpecError> {
    LinuxNamespaceBuilder::default().typ(kind).build()
}

/// The process of a plan, also of a command that is run beside it.
pub(crate) fn process(plan: &ContainerShape, args: Vec<String>) -> Result<Process, OciSpecError> {
    let capabilities: Capabilities = plan.capabilities.iter().copied().collect();
    let none: Capabilities = HashSet::new();
    // A user other than 0 gets none by itself; what it may have stays in the bounding set.
    let has = if plan.user.uid == 0 { capabilities.clone() } else { none.clone() };
    let mut user = UserBuilder::default().uid(plan.user.uid).gid(plan.user.gid);
    if !plan.user.groups.is_empty() {
        user = user.additional_gids(plan.user.groups.clone());
    }
    ProcessBuilder::default()
        .terminal(false)
        .user(user.build()?)
        .args(args)
        .env(plan.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>())
        .cwd(plan.cwd.as_str())
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(capabilities)
                .effective(has.clone())
                .permitted(has)
                .inheritable(none.clone())
                .ambient(none)
                .build()?,
        )
        .rlimits(vec![
            PosixRlimitBuilder::default()
                .typ(PosixRlimitType::RlimitNofile)
                .soft(plan.open_files)
                .hard(plan.open_files)
                .build()?,
            PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitCore).soft(0u64).hard(0u64).build()?,
        ])
        .no_new_privileges(!plan.new_privileges)
        .build()
}

/// The specification of a plan.
pub(crate) fn spec(plan: &ContainerShape) -> Result<Spec, OciSpecError> {
    let size = format!("size={}", plan.disk_bytes);
    let mut mounts = vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"])?,
        mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("tmpfs", "shm", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])?,
        mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"])?,
    ];
    if plan.own_network {
        mounts.push(mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"])?);
    } else {
        // That of the host's network shows the host's devices; a view of it without its own files.
        mounts.push(mount("bind", "/sys", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"])?);
    }
    if plan.make_group.is_some() {
        mounts.push(mount(
            "cgroup",
            "cgroup",
            "/sys/fs/cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        )?);
    } else if let [one] = plan.groups.as_slice() {
        let from = one.display().to_string();
        mounts.push(mount("bind", &from, "/sys/fs/cgroup", &["bind", "nosuid", "noexec", "nodev", "ro"])?);
    } else if !plan.groups.is_empty() {
        mounts.push(mount("tmpfs", "tmpfs", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "mode=755"])?);
        for dir in &plan.groups {
            // /sys/fs/cgroup/memory/…: the hierarchy is the first component below the mount of them all.
            let Some(hierarchy) = dir.strip_prefix("/sys/fs/cgroup").ok().and_then(|rest| rest.iter().next())
            else {
                continue;
            };
            let to = PathBuf::from("/sys/fs/cgroup").join(hierarchy).display().to_string();
            let from = dir.display().to_string();
            mounts.push(mount("bind", &from, &to, &["bind", "nosuid", "noexec", "nodev", "ro"])?);
        }
    }
    for (path, mode) in &plan.scratch {
        let mode = format!("mode={mode:o}");
        mounts.push(mount("tmpfs", "tmpfs", path, &["nosuid", "nodev", &mode, &size])?);
    }
    for bind in &plan.binds {
        let access = if bind.read_only { "ro" } else { "rw" };
        let (from, to) = (bind.from.display().to_string(), bind.to.display().to_string());
        mounts.push(mount("bind", &from, &to, &["rbind", "nosuid", "nodev", access])?);
    }
    let mut namespaces = vec![
        namespace(LinuxNamespaceType::Pid)?,
        namespace(LinuxNamespaceType::Ipc)?,
        namespace(LinuxNamespaceType::Uts)?,
        namespace(LinuxNamespaceType::Mount)?,
    ];
    if PathBuf::from("/proc/self/ns/cgroup").exists() {
        namespaces.push(namespace(LinuxNamespaceType::Cgroup)?);
    }
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .masked_paths(get_default_maskedpaths())
        .readonly_paths(get_default_readonly_paths())
        .rootfs_propagation("private");
    if plan.seccomp {
        let chroot = plan.capabilities.contains(&Capability::SysChroot);
        linux = linux.seccomp(crate::seccomp::default_profile(chroot, plan.plain_sockets)?);
    }
    if let Some((path, limits)) = &plan.make_group {
        let mut resources = LinuxResourcesBuilder::default();
        if let Some(bytes) = limits.memory_bytes {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            resources = resources.memory(LinuxMemoryBuilder::default().limit(bytes).build()?);
        }
        if let Some(millis) = limits.cpu_millis {
            let quota = i64::from(millis) * 100;
            let cpu = LinuxCpuBuilder::default().quota(quota.max(1000)).period(CPU_PERIOD_US);
            resources = resources.cpu(cpu.build()?);
        }
        if let Some(most) = limits.processes {
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            resources = resources.pids(LinuxPidsBuilder::default().limit(most).build()?);
        }
        linux = linux.cgroups_path(path.as_str()).resources(resources.build()?);
    }
    SpecBuilder::default()
        .version(VERSION)
        .root(RootBuilder::default().path(&*plan.root).readonly(plan.read_only).build()?)
        .hostname(plan.hostname.as_str())
        .mounts(mounts)
        .process(process(plan, plan.args.clone())?)
        .linux(linux.build()?)
        .build()
}
