//! The system calls that the agent's processes may make, on top of what a container's profile allows.
//!
//! What is not allowed fails with ENOSYS: the C library then falls back from `clone3`, whose arguments no filter can see, to `clone`.

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
    /// The process that speaks gRPC: everything but what only an intruder would want.
    Agent,
    /// The broker: only what an entry takes.
    Broker,
    /// The compiler of filters: only memory and what is open already.
    Compiler,
}

/// Refused to the process that speaks gRPC: other namespaces, other processes' memory and descriptors, the kernel's own
/// configuration, and `io_uring`, which goes past filters.
const REFUSED: &[i64] = &[
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_clone3,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_sethostname,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Allowed to the broker, whatever the arguments: memory, threads, time; reading; its socket and those that an entry opens.
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
    /// Installs it for the calling thread and those it starts. Returns whether it could: not on every architecture, nor on
    /// every kernel.
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
        let (rules, others, listed) = match self {
            Self::Agent => {
                let user = flag(libc::CLONE_NEWUSER)?;
                let mut rules = any(REFUSED);
                rules.insert(libc::SYS_clone, vec![argument(0, Op::MaskedEq(user), user)?]);
                (rules, SeccompAction::Allow, refuse)
            }
            Self::Broker => {
                let thread = flag(libc::CLONE_THREAD)?;
                let mut rules = any(ALLOWED);
                rules.insert(libc::SYS_clone, vec![argument(0, Op::MaskedEq(thread), thread)?]);
                // A pidfd gives any of the process' namespaces; these only: those of evidence all at once, or the one of sockets.
                let kinds = [evidence::KINDS, socket::KINDS];
                let kinds = kinds.map(|kinds| argument(1, Op::Eq, u64::from(kinds.bits())));
                rules.insert(libc::SYS_setns, kinds.into_iter().collect::<Option<_>>()?);
                // The names of threads.
                rules.insert(libc::SYS_prctl, vec![argument(0, Op::Eq, flag(libc::PR_SET_NAME)?)?]);
                // Netlink's only protocol here is NETLINK_ROUTE; packet sockets get nothing until somebody binds them.
                let sockets = [
                    argument(0, Op::Eq, flag(libc::AF_UNIX)?),
                    both((0, libc::AF_NETLINK), (2, libc::NETLINK_ROUTE)),
                    both((0, libc::AF_PACKET), (2, 0)),
                ];
                rules.insert(libc::SYS_socket, sockets.into_iter().collect::<Option<_>>()?);
                (rules, refuse, SeccompAction::Allow)
            }
            Self::Compiler => (any(COMPUTING), refuse, SeccompAction::Allow),
        };
        let filter =
            SeccompFilter::new(rules, others, listed, std::env::consts::ARCH.try_into().ok()?)
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
            // Packets of every protocol at once, before there is a filter; and netfilter's messages.
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
