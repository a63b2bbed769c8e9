//! The system calls that neither rustix nor nix has a safe form of. The only file with `unsafe`.
#![allow(unsafe_code)]

use std::{
    ffi::c_int,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::libc;
use rustix::io::Errno;
use tokio::io::{Interest, unix::AsyncFd};

/// `SO_NETNS_COOKIE` of a socket: the identity of its network namespace, unique per boot. Linux
/// 5.14.
/// <https://git.kernel.org/torvalds/c/e8b9eab99232>
pub(super) fn netns_cookie(socket: impl AsFd) -> Result<u64, Errno> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the descriptor is open for the call; the pointers are to live locals, and `length`
    // says how large the first is.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(cookie) } else { Err(last_errno()) }
}

/// `NS_GET_TGID_IN_PIDNS`: the pid that process `pid` of our own pid namespace has in the pid
/// namespace `ns`. ESRCH if it has none there. Linux 6.11.
/// <https://man7.org/linux/man-pages/man2/NS_GET_PID_FROM_PIDNS.2const.html>
pub(super) fn pid_in_namespace(ns: BorrowedFd<'_>, pid: u32) -> Result<u32, Errno> {
    nix::ioctl_read_bad!(get, nix::request_code_read!(0xb7, 9, size_of::<c_int>()), c_int);
    let pid = usize::try_from(pid).map_err(|_| Errno::INVAL)?;
    // The argument is the pid itself, not a pointer: the kernel never reads or writes through it.
    let argument = std::ptr::without_provenance_mut(pid);
    // SAFETY: the descriptor is open for the call, and the kernel takes the argument by value.
    let found = unsafe { get(ns.as_raw_fd(), argument) };
    match found {
        Ok(found) => u32::try_from(found).map_err(|_| Errno::INVAL),
        Err(errno) => Err(Errno::from_raw_os_error(errno as i32)),
    }
}

/// Makes a system call with arguments that no call can use: zeros and -1 as a descriptor.
#[cfg(test)]
pub(super) fn call(number: i64) -> Result<i64, Errno> {
    // SAFETY: null pointers and descriptor -1 are refused by every call that takes them.
    let done = unsafe { libc::syscall(number, -1_i64, 0_i64, 0_i64, 0_i64, 0_i64, 0_i64) };
    if done < 0 { Err(last_errno()) } else { Ok(done) }
}

/// `name_to_handle_at` with `AT_HANDLE_FID`: the type of a file's handle, and its bytes. EINVAL
/// before Linux 6.5, EOPNOTSUPP where the file system has none.
pub(super) fn file_handle(fd: impl AsFd) -> Result<(c_int, Vec<u8>), Errno> {
    const AT_HANDLE_FID: c_int = 0x200;
    /// `struct file_handle` with the longest handle that there is, `MAX_HANDLE_SZ`.
    #[repr(C)]
    struct FileHandle {
        bytes: libc::c_uint,
        kind: c_int,
        handle: [u8; 128],
    }
    let mut found = FileHandle { bytes: 128, kind: 0, handle: [0; 128] };
    let mut mount = 0;
    // SAFETY: the descriptor is open for the call and the name is an empty C string; `bytes` says
    // how much room is behind the two fields, which stand as the kernel has them.
    let done = unsafe {
        libc::name_to_handle_at(
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            (&raw mut found).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH | AT_HANDLE_FID,
        )
    };
    if done != 0 {
        return Err(last_errno());
    }
    let length = usize::try_from(found.bytes).unwrap_or_default();
    Ok((found.kind, found.handle.get(..length).unwrap_or_default().to_vec()))
}

/// Registers a descriptor with the runtime's reactor, to wait until it is readable.
pub(super) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and it lives
    // inside the registration.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}

/// Marks every descriptor but stdin, stdout and stderr as not to be inherited, whoever opened it.
/// Linux 5.11.
pub(super) fn inherit_only_stdio() -> Result<(), Errno> {
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: the flag closes nothing; it takes no pointers.
    let done = unsafe { libc::close_range(3, libc::c_uint::MAX, flags) };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Closes every descriptor but stdin, stdout and stderr, which whoever started the process may have
/// left open. Linux 5.9.
///
/// To be called first thing in a process: what its own code has opened would be closed, too.
pub(super) fn close_beyond_stdio() -> Result<(), Errno> {
    // SAFETY: nothing in the process owns a descriptor beyond stdio yet, as the caller promises.
    let done = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_raw_os_error(nix::errno::Errno::last_raw())
}
