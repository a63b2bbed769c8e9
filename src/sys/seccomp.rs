//! The system calls that the agent's processes may make, on top of what a container's profile
//! allows.
//!
//! Each process has a list of what it may call. Everything else fails with ENOSYS, and so does
//! every call that did not exist when the lists were written: programs and C libraries then fall
//! back, as from `clone3`, whose arguments no filter can see, to `clone`. On x86-64 that includes
//! the calls of the x32 ABI: the architecture is the same, but their numbers are in no list.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use super::{evidence, socket};

/// Which process' filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The process that speaks gRPC: threads, programs, files, sockets.
    Agent,
    /// The broker: only what an entry takes.
    Broker,
    /// The compiler of filters: only memory and what is open already.
    Compiler,
}

/// Allowed to the process that speaks gRPC, and to the programs that it executes: what the default
/// profile of container runtimes allows, without what reaches other namespaces, other processes'
/// memory and descriptors, keys, devices, mounts or the kernel's own configuration, and without
/// `io_uring`, which goes past filters.
const SERVING: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_getcpu,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_prlimit64,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_setrlimit,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_umask,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getresuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_delete,
    libc::SYS_getitimer,
    libc::SYS_setitimer,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_name_to_handle_at,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_copy_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_truncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_readahead,
    libc::SYS_fadvise64,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_flock,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getdents,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_create,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_eventfd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_inotify_init,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getpgrp,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_alarm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pause,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    // `renameat`, for which libc has no name here.
    #[cfg(target_arch = "aarch64")]
    38,
];

/// Allowed to the broker, whatever the arguments: memory, threads, time; reading; its socket and
/// those that an entry opens.
const ALLOWED: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_openat,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_fcntl,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_bind,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
];

/// Allowed to the compiler of filters: no way to open anything, or to start a thread or a program.
const COMPUTING: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_fstat,
];

impl Filter {
    /// Installs it for the calling thread and those it starts. Returns whether it could: not on
    /// every architecture, nor on every kernel.
    pub(super) fn install(self) -> bool {
        self.program().is_some_and(|program| seccompiler::apply_filter(&program).is_ok())
    }

    fn program(self) -> Option<BpfProgram> {
        let refuse = SeccompAction::Errno(u32::try_from(libc::ENOSYS).ok()?);
        let any = |calls: &[i64]| {
            calls.iter().map(|call| (*call, Vec::new())).collect::<BTreeMap<_, _>>()
        };
        let argument = |index, op, value| {
            SeccompRule::new(vec![SeccompCondition::new(index, Length::Dword, op, value).ok()?])
                .ok()
        };
        let both = |one: (u8, i32), other: (u8, i32)| {
            let equal = |(index, value): (u8, i32)| {
                SeccompCondition::new(index, Length::Dword, Op::Eq, u64::try_from(value).ok()?).ok()
            };
            SeccompRule::new(vec![equal(one)?, equal(other)?]).ok()
        };
        let flag = |flag: i32| u64::try_from(flag).ok();
        let rules = match self {
            Self::Agent => {
                let namespaces = flag(
                    libc::CLONE_NEWUSER
                        | libc::CLONE_NEWNS
                        | libc::CLONE_NEWPID
                        | libc::CLONE_NEWNET
                        | libc::CLONE_NEWIPC
                        | libc::CLONE_NEWUTS
                        | libc::CLONE_NEWCGROUP,
                )?;
                let mut rules = any(SERVING);
                rules.insert(libc::SYS_clone, vec![argument(0, Op::MaskedEq(namespaces), 0)?]);
                rules
            }
            Self::Broker => {
                let thread = flag(libc::CLONE_THREAD)?;
                let mut rules = any(ALLOWED);
                rules.insert(libc::SYS_clone, vec![argument(0, Op::MaskedEq(thread), thread)?]);
                // A pidfd gives any of the process' namespaces; these only: those of evidence all
                // at once, or the one of sockets.
                let kinds = [evidence::KINDS, socket::KINDS];
                let kinds = kinds.map(|kinds| argument(1, Op::Eq, u64::from(kinds.bits())));
                rules.insert(libc::SYS_setns, kinds.into_iter().collect::<Option<_>>()?);
                // The names of threads.
                rules.insert(libc::SYS_prctl, vec![argument(0, Op::Eq, flag(libc::PR_SET_NAME)?)?]);
                // Netlink's only protocol here is NETLINK_ROUTE; packet sockets get nothing until
                // somebody binds them.
                let sockets = [
                    argument(0, Op::Eq, flag(libc::AF_UNIX)?),
                    both((0, libc::AF_NETLINK), (2, libc::NETLINK_ROUTE)),
                    both((0, libc::AF_PACKET), (2, 0)),
                ];
                rules.insert(libc::SYS_socket, sockets.into_iter().collect::<Option<_>>()?);
                rules
            }
            Self::Compiler => any(COMPUTING),
        };
        let filter = SeccompFilter::new(
            rules,
            refuse,
            SeccompAction::Allow,
            std::env::consts::ARCH.try_into().ok()?,
        )
        .ok()?;
        filter.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::{
        io::Errno,
        net::{AddressFamily, SocketType, socket as open},
        process::{PidfdFlags, getpid, pidfd_open},
        thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces},
    };

    use super::*;
    use crate::sys::ffi;

    /// Runs `check` on a thread under the filter, which stays the thread's own.
    fn under(filter: Filter, check: impl FnOnce() + Send) {
        let checked = thread::scope(|scope| {
            let run = || {
                assert!(filter.install());
                check();
            };
            scope.spawn(run).join()
        });
        assert!(checked.is_ok(), "{filter:?}");
    }

    /// What the filter itself says of it; what the kernel would say is not asked here.
    fn refused<T>(result: Result<T, Errno>) -> bool {
        result.err() == Some(Errno::NOSYS)
    }

    fn setns(kinds: ThreadNameSpaceType) -> Result<(), Errno> {
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(&pidfd), kinds)
    }

    #[test]
    fn the_agent_reaches_no_namespace_and_no_other_process() {
        under(Filter::Agent, || {
            for kinds in [evidence::KINDS, ThreadNameSpaceType::NETWORK, ThreadNameSpaceType::MOUNT]
            {
                assert!(refused(setns(kinds)), "{kinds:?}");
            }
            #[allow(deprecated)]
            let unshared = rustix::thread::unshare(UnshareFlags::FILES);
            assert!(refused(unshared));
            assert!(refused(rustix::process::pidfd_getfd(
                pidfd_open(getpid(), PidfdFlags::empty()).unwrap(),
                0,
                rustix::process::PidfdGetfdFlags::empty()
            )));
            let read = nix::sys::uio::process_vm_readv(nix::unistd::getpid(), &mut [], &[]);
            assert_eq!(read, Err(nix::errno::Errno::ENOSYS));
            // Mounts, devices, keys, programs in the kernel, and ways past filters.
            for (name, number) in [
                ("fsopen", libc::SYS_fsopen),
                ("fsconfig", libc::SYS_fsconfig),
                ("fsmount", libc::SYS_fsmount),
                ("fspick", libc::SYS_fspick),
                ("mount", libc::SYS_mount),
                ("mount_setattr", libc::SYS_mount_setattr),
                ("move_mount", libc::SYS_move_mount),
                ("open_tree", libc::SYS_open_tree),
                ("mknodat", libc::SYS_mknodat),
                ("bpf", libc::SYS_bpf),
                ("io_uring_setup", libc::SYS_io_uring_setup),
                ("io_uring_enter", libc::SYS_io_uring_enter),
                ("io_uring_register", libc::SYS_io_uring_register),
                ("keyctl", libc::SYS_keyctl),
                ("add_key", libc::SYS_add_key),
                ("ptrace", libc::SYS_ptrace),
                ("kcmp", libc::SYS_kcmp),
                ("perf_event_open", libc::SYS_perf_event_open),
                ("userfaultfd", libc::SYS_userfaultfd),
                ("open_by_handle_at", libc::SYS_open_by_handle_at),
                ("chroot", libc::SYS_chroot),
                ("quotactl", libc::SYS_quotactl),
                ("process_madvise", libc::SYS_process_madvise),
                ("init_module", libc::SYS_init_module),
                ("clone3", libc::SYS_clone3),
                #[cfg(target_arch = "x86_64")]
                ("mknod", libc::SYS_mknod),
                // A call of x32 and one that does not exist yet.
                #[cfg(target_arch = "x86_64")]
                ("getpid of x32", 0x4000_0000 + libc::SYS_getpid),
                ("the future's", 5000),
            ] {
                assert_eq!(ffi::call(number), Err(Errno::NOSYS), "{name}");
            }
            // And does all else: threads, programs, sockets.
            assert!(thread::spawn(|| ()).join().is_ok());
            assert!(std::process::Command::new("true").status().unwrap().success());
            assert!(open(AddressFamily::INET, SocketType::STREAM, None).is_ok());
        });
    }

    #[test]
    fn the_compiler_opens_nothing() {
        under(Filter::Compiler, || {
            let open = |path| {
                rustix::fs::open(path, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
            };
            assert!(refused(open("/etc/hosts")));
            for family in [AddressFamily::UNIX, AddressFamily::INET, AddressFamily::NETLINK] {
                assert!(refused(super::tests::open(family, SocketType::DGRAM, None)), "{family:?}");
            }
            assert!(std::process::Command::new("true").status().is_err());
            assert!(thread::Builder::new().spawn(|| ()).is_err());
        });
    }

    #[test]
    fn the_broker_enters_for_its_purposes_and_nothing_else() {
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        under(Filter::Broker, move || {
            let setns =
                |kinds| move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(&pidfd), kinds);
            assert!(!refused(setns(evidence::KINDS)));
            assert!(!refused(setns(socket::KINDS)));
            use ThreadNameSpaceType as Kind;
            for kinds in [
                Kind::MOUNT,
                Kind::USER,
                Kind::NETWORK | Kind::MOUNT,
                Kind::INTER_PROCESS_COMMUNICATION,
            ] {
                assert!(refused(setns(kinds)), "{kinds:?}");
            }
            assert!(refused(setns(ThreadNameSpaceType::from_bits_retain(0))));
            for family in [AddressFamily::INET, AddressFamily::INET6, AddressFamily::VSOCK] {
                assert!(refused(open(family, SocketType::DGRAM, None)), "{family:?}");
            }
            // Packets of every protocol at once, before there is a filter; and netfilter's
            // messages.
            let protocol = |raw| {
                Some(rustix::net::Protocol::from_raw(std::num::NonZeroU32::new(raw).unwrap()))
            };
            assert!(refused(open(AddressFamily::PACKET, SocketType::RAW, protocol(0x300))));
            assert!(refused(open(AddressFamily::NETLINK, SocketType::RAW, protocol(12))));
            assert!(!refused(open(AddressFamily::PACKET, SocketType::RAW, None)));
            assert!(!refused(open(AddressFamily::UNIX, SocketType::DGRAM, None)));
            assert!(!refused(open(AddressFamily::NETLINK, SocketType::RAW, None)));
            assert!(refused(rustix::process::kill_process(
                getpid(),
                rustix::process::Signal::CONT
            )));
            assert!(refused(pidfd_open(getpid(), PidfdFlags::empty())));
            assert!(std::process::Command::new("true").status().is_err());
            assert!(evidence::look().net.is_some());
            assert!(thread::spawn(|| ()).join().is_ok());
        });
    }
}
