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

/// Refuses whole calls. The kernel tries a filter with every call when it is put on, which for a list that is searched
/// from its beginning takes a millisecond of each start; so this one is searched by ranges.
fn by_number() -> BpfProgram {
    let statement = |code, k| sock_filter { code, jt: 0, jf: 0, k };
    let (load, result, allow) = (0x20, 0x06, 0x7fff_0000);
    let (equal, greater, at_least) = (0x15, 0x25, 0x35);
    let refuse = |errno: i32| statement(result, 0x0005_0000 | errno as u32);
    let mut numbers: Vec<u32> = REFUSED.iter().chain(&[libc::SYS_clone3]).map(|call| *call as u32).collect();
    numbers.sort_unstable();
    let mut program = vec![statement(load, 0)];
    if cfg!(target_arch = "x86_64") {
        // The calls of the x32 ABI have this bit, and are the same calls by other numbers.
        program.push(sock_filter { code: at_least, jt: 0, jf: 1, k: 0x4000_0000 });
        program.push(refuse(libc::ENOSYS));
    }
    for range in numbers.chunks(8) {
        let last = range.last().copied().unwrap_or_default();
        // Above all of the range: past it and its answers.
        program.push(sock_filter { code: greater, jt: range.len() as u8 + 3, jf: 0, k: last });
        for (at, number) in range.iter().enumerate() {
            let to_refusal = (range.len() - at) as u8;
            let jump = if *number == libc::SYS_clone3 as u32 { to_refusal + 1 } else { to_refusal };
            program.push(sock_filter { code: equal, jt: jump, jf: 0, k: *number });
        }
        program.extend([statement(result, allow), refuse(libc::EPERM), refuse(libc::ENOSYS)]);
    }
    program.push(statement(result, allow));
    program
}

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
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
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
        let by_argument =
            SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), arch)
                .and_then(TryInto::try_into)
                .map_err(failed)?;
        Ok(Self([by_number(), by_argument]))
    }

    /// How many there are.
    pub(crate) const fn count(&self) -> u32 {
        self.0.len() as u32
    }

    /// Puts the calling thread, and what it spawns, under the filters, for good.
    pub(crate) fn apply(&self) -> std::result::Result<(), seccompiler::Error> {
        self.0.iter().try_for_each(|filter| seccompiler::apply_filter(filter))
    }
}
