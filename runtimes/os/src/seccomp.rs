//! The filter of system calls: what a served program never needs, and what a way out of a jail begins with.
//!
//! A list of what is refused, as Docker, systemd (`@privileged`, `@mount`, `@module`, ...) and nsjail draw it, since a
//! list of what is allowed would refuse what tomorrow's runtimes call. Refused calls answer `EPERM`, `clone3` answers
//! `ENOSYS`, upon which every libc takes `clone`, whose flags a filter can see.

use nix::libc;
use sas_core::{Error, ErrorKind, Result};
use seccompiler::{BpfProgram, sock_filter};

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

/// `CLONE_NEW*`: user, mount, process, network, IPC, host name and control group namespaces.
const NEW_NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Sockets over shared memory, which fall back to TCP: `AF_SMC` of linux/socket.h.
const AF_SMC: i32 = 43;

/// One program: the kernel translates each that is put on, and tries it with every call, which is most of what it costs a
/// start. For the same reason whole calls are searched by ranges, not from the beginning of a list.
fn program(arch: u32) -> BpfProgram {
    let statement = |code, k| sock_filter { code, jt: 0, jf: 0, k };
    let jump = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    let (load, result, allow) = (0x20, 0x06, 0x7fff_0000);
    let (equal, greater, at_least, any_bit) = (0x15, 0x25, 0x35, 0x45);
    let refuse = |errno: i32| statement(result, 0x0005_0000 | errno as u32);
    // Where `struct seccomp_data` has the number, the architecture, and the low half of an argument.
    let (number, architecture) = (0, 4);
    let argument = |at: u32| 16 + 8 * at + if cfg!(target_endian = "big") { 4 } else { 0 };
    let mut program = vec![
        statement(load, architecture),
        jump(equal, arch, 1, 0),
        // The calls of another architecture have other numbers: SECCOMP_RET_KILL_PROCESS.
        statement(result, 0x8000_0000),
        statement(load, number),
    ];
    if cfg!(target_arch = "x86_64") {
        // The calls of the x32 ABI have this bit, and are the same calls by other numbers.
        program.extend([jump(at_least, 0x4000_0000, 0, 1), refuse(libc::ENOSYS)]);
    }
    let spaces = NEW_NAMESPACES.iter().fold(0, |all, one| all | *one) as u32;
    // Landlock's ports are those of TCP by itself: what reaches TCP by another name would pass by them. Programs take the
    // errors for a kernel without these, and go on without.
    let families = [libc::AF_ALG, libc::AF_VSOCK, libc::AF_PACKET, AF_SMC];
    let protocols = [libc::IPPROTO_MPTCP, libc::IPPROTO_SCTP, libc::IPPROTO_DCCP];
    let fast_open = [(any_bit, libc::MSG_FASTOPEN as u32, libc::EOPNOTSUPP)];
    let no_family = families.map(|family| (equal, family as u32, libc::EPERM));
    let no_protocol = protocols.map(|protocol| (equal, protocol as u32, libc::EPROTONOSUPPORT));
    let no_space = [(any_bit, spaces, libc::EPERM)];
    // Typing into a terminal that somebody else reads.
    let no_typing = [(equal, libc::TIOCSTI as u32, libc::EPERM)];
    type Tests<'a> = (u32, &'a [(u16, u32, i32)]);
    let looks: [(i64, &[Tests<'_>]); 6] = [
        (libc::SYS_clone, &[(0, &no_space)]),
        (libc::SYS_socket, &[(0, &no_family), (2, &no_protocol)]),
        (libc::SYS_sendto, &[(3, &fast_open)]),
        (libc::SYS_sendmsg, &[(2, &fast_open)]),
        (libc::SYS_sendmmsg, &[(3, &fast_open)]),
        (libc::SYS_ioctl, &[(1, &no_typing)]),
    ];
    for (call, arguments) in looks {
        // Each argument is loaded and tested in turn; a test that holds is followed by its answer.
        let mut body = Vec::new();
        for (at, tests) in arguments {
            body.push(statement(load, argument(*at)));
            for (test, value, errno) in *tests {
                body.extend([jump(*test, *value, 0, 1), refuse(*errno)]);
            }
        }
        body.push(statement(result, allow));
        program.push(jump(equal, call as u32, 0, body.len() as u8));
        program.extend(body);
    }
    let mut numbers: Vec<u32> = REFUSED.iter().chain(&[libc::SYS_clone3]).map(|call| *call as u32).collect();
    numbers.sort_unstable();
    for range in numbers.chunks(8) {
        let last = range.last().copied().unwrap_or_default();
        // Above all of the range: past it and its answers.
        program.push(jump(greater, last, range.len() as u8 + 3, 0));
        for (at, number) in range.iter().enumerate() {
            let to_refusal = (range.len() - at) as u8;
            let to = if *number == libc::SYS_clone3 as u32 { to_refusal + 1 } else { to_refusal };
            program.push(jump(equal, *number, to, 0));
        }
        program.extend([statement(result, allow), refuse(libc::EPERM), refuse(libc::ENOSYS)]);
    }
    program.push(statement(result, allow));
    program
}

/// The filter of a host.
#[derive(Clone)]
pub(crate) struct Filter(BpfProgram);

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filter({} instructions)", self.0.len())
    }
}

impl Filter {
    /// Makes it.
    ///
    /// # Errors
    /// `Unsupported` on an architecture whose calls it does not know.
    pub(crate) fn new() -> Result<Self> {
        // AUDIT_ARCH_* of linux/audit.h.
        let arch = match std::env::consts::ARCH {
            "x86_64" => 0xc000_003e,
            "aarch64" => 0xc000_00b7,
            "riscv64" => 0xc000_00f3,
            other => {
                let what = format!("the filter of system calls: none for {other}");
                return Err(Error::new(ErrorKind::Unsupported, "seccomp", what));
            }
        };
        Ok(Self(program(arch)))
    }

    /// Puts the calling thread, and what it spawns, under the filter, for good.
    pub(crate) fn apply(&self) -> std::result::Result<(), seccompiler::Error> {
        seccompiler::apply_filter(&self.0)
    }
}
