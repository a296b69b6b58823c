//! The seccomp filter that every container gets unless it asks for none.
//!
//! The names are those that Docker's default profile lets through without a capability (moby/moby,
//! `profiles/seccomp/default.json`, Apache-2.0: the choice is theirs, the table is ours). `io_uring` is left out, as in
//! their later versions. What takes a capability that no container can be given here is not in it at all.

use oci_spec::{
    OciSpecError,
    runtime::{
        Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
        LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
    },
};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// `CLONE_NEWNS` to `CLONE_NEWNET`: a namespace of its own is not to be had by `clone`.
const NEW_NAMESPACES: u64 = 0x7E02_0000;

const ALLOWED: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm arch_prctl arm_fadvise64_64 arm_sync_file_range bind \
    breakpoint brk cacheflush cachestat capget capset chdir chmod chown chown32 clock_adjtime clock_adjtime64 \
    clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close \
    close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old \
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat \
    faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 \
    fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 \
    fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake \
    futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 \
    getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom \
    getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid \
    gettimeofday getuid getuid32 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel \
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc \
    kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat \
    listen listxattr llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier \
    memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt \
    mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap \
    name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 \
    pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 \
    process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 \
    read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages \
    removexattr rename renameat renameat2 restart_syscall riscv_flush_icache rmdir rseq rt_sigaction rt_sigpending \
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 \
    send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address set_tls \
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority \
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt \
    setuid setuid32 setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn \
    socketcall socketpair splice stat stat64 statfs statfs64 statx swapcontext symlink symlinkat sync \
    sync_file_range sync_file_range2 syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun \
    timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
    timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat utime \
    utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// The personalities that programs may take: the default, and those of 32 bits and of no randomisation.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `AF_VSOCK` leads to the hypervisor; every other family is let through.
const AF_VSOCK: u64 = 40;

fn syscall(names: &[&str], action: LinuxSeccompAction) -> LinuxSyscallBuilder {
    LinuxSyscallBuilder::default()
        .names(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        .action(action)
}

fn when(
    name: &str,
    index: usize,
    op: LinuxSeccompOperator,
    value: u64,
    two: Option<u64>,
) -> Result<LinuxSyscall, OciSpecError> {
    let mut arg = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    if let Some(two) = two {
        arg = arg.value_two(two);
    }
    syscall(&[name], LinuxSeccompAction::ScmpActAllow).args(vec![arg.build()?]).build()
}

/// `AF_UNIX` and `AF_NETLINK`.
const LOCAL_FAMILIES: [u64; 2] = [1, 16];
/// `AF_INET` and `AF_INET6`.
const INTERNET_FAMILIES: [u64; 2] = [2, 10];
/// The family's own, ICMP, TCP, UDP and ICMP of version 6: none that is TCP by another name, as MPTCP is.
const PLAIN_PROTOCOLS: [u64; 5] = [0, 1, 6, 17, 58];
/// Connects as it sends: `MSG_FASTOPEN`, by the place of the flags among a call's arguments.
const FAST_OPEN: u64 = 0x2000_0000;
const SENDS: [(&str, usize); 3] = [("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)];

/// Sockets of the usual kinds only, so that whoever bounds TCP bounds all of it. `socketcall`, whose arguments lie in memory,
/// is left out with them.
fn plain_sockets(syscalls: &mut Vec<LinuxSyscall>) -> Result<(), OciSpecError> {
    use LinuxSeccompOperator::{ScmpCmpEq, ScmpCmpMaskedEq};
    for family in LOCAL_FAMILIES {
        syscalls.push(when("socket", 0, ScmpCmpEq, family, None)?);
    }
    for family in INTERNET_FAMILIES {
        for protocol in PLAIN_PROTOCOLS {
            let arg = |index, value| {
                LinuxSeccompArgBuilder::default().index(index).op(ScmpCmpEq).value(value).build()
            };
            let both = vec![arg(0usize, family)?, arg(2, protocol)?];
            syscalls.push(syscall(&["socket"], LinuxSeccompAction::ScmpActAllow).args(both).build()?);
        }
    }
    for (name, flags) in SENDS {
        syscalls.push(when(name, flags, ScmpCmpMaskedEq, FAST_OPEN, Some(0))?);
    }
    Ok(())
}

/// The filter. `chroot` says whether the container has the capability for it; `plain`, whether it may make sockets of
/// the usual kinds only.
pub(crate) fn default_profile(chroot: bool, plain: bool) -> Result<LinuxSeccomp, OciSpecError> {
    let mut names: Vec<&str> = ALLOWED.split_whitespace().collect();
    if plain {
        names.retain(|name| *name != "socketcall" && SENDS.iter().all(|(send, _)| name != send));
    }
    let mut syscalls = vec![syscall(&names, LinuxSeccompAction::ScmpActAllow).build()?];
    for value in PERSONALITIES {
        syscalls.push(when("personality", 0, LinuxSeccompOperator::ScmpCmpEq, value, None)?);
    }
    match plain {
        true => plain_sockets(&mut syscalls)?,
        false => syscalls.push(when("socket", 0, LinuxSeccompOperator::ScmpCmpNe, AF_VSOCK, None)?),
    }
    // value is the mask, value_two what must be left: no flag of a namespace.
    syscalls.push(when("clone", 0, LinuxSeccompOperator::ScmpCmpMaskedEq, NEW_NAMESPACES, Some(0))?);
    // Its flags lie in memory, where no filter sees them; libraries fall back to `clone`.
    syscalls.push(syscall(&["clone3"], LinuxSeccompAction::ScmpActErrno).errno_ret(ENOSYS).build()?);
    if chroot {
        syscalls.push(syscall(&["chroot"], LinuxSeccompAction::ScmpActAllow).build()?);
    }
    let architectures = match std::env::consts::ARCH {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => vec![Arch::ScmpArchNative],
    };
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(architectures)
        .syscalls(syscalls)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_single_and_what_reaches_the_host_is_not_among_them() {
        let names: Vec<&str> = ALLOWED.split_whitespace().collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(names, sorted);
        for refused in [
            "mount",
            "umount2",
            "unshare",
            "setns",
            "bpf",
            "kexec_load",
            "init_module",
            "reboot",
            "clone3",
            "chroot",
            "open_by_handle_at",
            "io_uring_setup",
            "perf_event_open",
            "keyctl",
            "add_key",
            "userfaultfd",
            "swapon",
            "pivot_root",
            "open_tree",
            "move_mount",
            "fsopen",
            "syslog",
            "socket",
            "clone",
            "personality",
        ] {
            assert!(!names.contains(&refused), "{refused}");
        }
    }
}
