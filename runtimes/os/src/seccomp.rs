//! The filter of system calls: what a served program never needs, and what a way out of a jail begins with.
//!
//! A list of what is refused, as Docker, systemd (`@privileged`, `@mount`, `@module`, ...) and nsjail draw it, since a
//! list of what is allowed would refuse what tomorrow's runtimes call. Refused calls answer `EPERM`, `clone3` answers
//! `ENOSYS`, upon which every libc takes `clone`, whose flags a filter can see.

use std::collections::BTreeMap;

use nix::libc;
use sas_core::{Error, ErrorKind, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

const REFUSED: &[libc::c_long] = &[
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // The kernel itself.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // Where most of the kernel's holes of late were.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

/// `CLONE_NEW*`: user, mount, process, network, IPC, host name, control group and time namespaces.
const NEW_NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// The compiled filters of a host.
#[derive(Clone)]
pub(crate) struct Filters([BpfProgram; 2]);

impl std::fmt::Debug for Filters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filters({} instructions)", self.0[0].len() + self.0[1].len())
    }
}

impl Filters {
    /// Compiles them.
    ///
    /// # Errors
    /// `Unsupported` on an architecture that the compiler does not know.
    pub(crate) fn new() -> Result<Self> {
        let failed = |error: seccompiler::BackendError| {
            Error::new(ErrorKind::Unsupported, "seccomp", format!("the filter of system calls: {error}"))
                .with_source(error)
        };
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(failed)?;
        let one = |argument, op, value| -> std::result::Result<SeccompRule, seccompiler::BackendError> {
            SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)?])
        };
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            REFUSED.iter().map(|call| (*call, Vec::new())).collect();
        let clones = NEW_NAMESPACES
            .iter()
            .map(|flag| one(0, SeccompCmpOp::MaskedEq(*flag as u64), *flag as u64))
            .collect::<std::result::Result<_, _>>()
            .map_err(failed)?;
        rules.insert(libc::SYS_clone, clones);
        let families = [libc::AF_ALG, libc::AF_VSOCK, libc::AF_PACKET]
            .iter()
            .map(|family| one(0, SeccompCmpOp::Eq, *family as u64))
            .collect::<std::result::Result<_, _>>()
            .map_err(failed)?;
        rules.insert(libc::SYS_socket, families);
        // Typing into a terminal that somebody else reads.
        rules.insert(libc::SYS_ioctl, vec![one(1, SeccompCmpOp::Eq, libc::TIOCSTI).map_err(failed)?]);
        let compile = |rules, errno: i32| -> Result<BpfProgram> {
            SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)
                .and_then(TryInto::try_into)
                .map_err(failed)
        };
        let mut refused = compile(rules, libc::EPERM)?;
        if cfg!(target_arch = "x86_64") {
            // The calls of the x32 ABI have this bit, and are the same calls by other numbers.
            let number = sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
            let below = sock_filter { code: 0x35, jt: 0, jf: 1, k: 0x4000_0000 };
            let no_such_call = sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x0005_0000 | libc::ENOSYS as u32 };
            refused.splice(0..0, [number, below, no_such_call]);
        }
        let clone3 = compile([(libc::SYS_clone3, Vec::new())].into(), libc::ENOSYS)?;
        Ok(Self([refused, clone3]))
    }

    /// Puts the calling thread, and what it spawns, under the filters, for good.
    pub(crate) fn apply(&self) -> std::result::Result<(), seccompiler::Error> {
        self.0.iter().try_for_each(|filter| seccompiler::apply_filter(filter))
    }
}
