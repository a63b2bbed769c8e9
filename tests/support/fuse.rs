//! FUSE file systems whose server is the test, in the mount namespace of a container or of the
//! test's own thread. They never answer, or answer as a hostile server would.
//! <https://www.kernel.org/doc/html/latest/filesystems/fuse.html>

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::AsRawFd,
    path::Path,
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::pivot_root,
};

/// A mounted file system. It is gone, and everything that waits for it fails, once this is dropped.
pub(crate) struct Silent {
    _device: File,
}

fn device() -> File {
    File::options().read(true).write(true).open("/dev/fuse").unwrap()
}

fn mount_on(device: &File, at: &Path) {
    let fd = device.as_raw_fd();
    let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other");
    mount(Some("fuse"), at, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
}

/// Runs `work` in the mount namespace of a process.
fn inside(pid: u32, work: impl FnOnce() + Send) {
    let mounts = File::open(format!("/proc/{pid}/ns/mnt")).unwrap();
    thread::scope(|scope| {
        let enter = || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(&mounts, CloneFlags::CLONE_NEWNS).unwrap();
            work();
        };
        scope.spawn(enter).join().unwrap();
    });
}

/// Mounts a file system that never answers at `at`, a new directory of the container.
pub(crate) fn silent(pid: u32, at: &str) -> Silent {
    fs::create_dir(format!("/proc/{pid}/root{at}")).unwrap();
    let device = device();
    inside(pid, || mount_on(&device, Path::new(at)));
    Silent { _device: device }
}

/// Makes a file system that never answers the root of the container: with `pivot_root`, the kernel
/// changes the root of every process of the mount namespace that has the old one.
pub(crate) fn silent_root(pid: u32) -> Silent {
    let at = "/silent-root";
    fs::create_dir(format!("/proc/{pid}/root{at}")).unwrap();
    let device = device();
    inside(pid, || {
        mount_on(&device, Path::new(at));
        // The old root is stacked on the new one, so that nothing of the new one is looked up.
        pivot_root(at, at).unwrap();
    });
    Silent { _device: device }
}

/// What a server answers to a request.
pub(crate) enum Answer {
    /// Nothing went wrong.
    Done(Vec<u8>),
    /// An errno.
    Failed(i32),
}

/// A request of the kernel.
pub(crate) struct Request<'a> {
    pub(crate) opcode: u32,
    pub(crate) node: u64,
    /// What follows the header.
    pub(crate) body: &'a [u8],
}

pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const BATCH_FORGET: u32 = 42;
}

/// Mounts a file system at `at` whose requests `serve` answers, in the calling thread's mount
/// namespace. The server ends once nothing has it mounted.
pub(crate) fn served(
    at: &Path,
    mut serve: impl FnMut(&Request<'_>) -> Answer + Send + 'static,
) -> thread::JoinHandle<()> {
    let mut device = device();
    mount_on(&device, at);
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        loop {
            let length = match device.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => return,
                // The request was taken back.
                Err(_) => continue,
            };
            let header = &buffer[..40];
            let unique = &header[8..16];
            let request = Request {
                opcode: u32::from_ne_bytes(header[4..8].try_into().unwrap()),
                node: u64::from_ne_bytes(header[16..24].try_into().unwrap()),
                body: &buffer[40..length],
            };
            let answer = match request.opcode {
                opcode::FORGET | opcode::BATCH_FORGET => continue,
                opcode::INIT => Answer::Done(init()),
                _ => serve(&request),
            };
            let (error, body) = match answer {
                Answer::Done(body) => (0, body),
                Answer::Failed(errno) => (-errno, Vec::new()),
            };
            let mut reply = Vec::with_capacity(16 + body.len());
            reply.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
            reply.extend(error.to_ne_bytes());
            reply.extend_from_slice(unique);
            reply.extend(body);
            // Whoever asked may have been killed.
            let _ = device.write(&reply);
        }
    })
}

/// Version 7.31 without any of the options.
fn init() -> Vec<u8> {
    let mut reply = Vec::new();
    for word in [7_u32, 31, 1 << 17, 0, 0, 1 << 17, 1, 32] {
        reply.extend(word.to_ne_bytes());
    }
    reply.resize(64, 0);
    reply
}

/// `fuse_attr` of node `node`. Modes as in `stat.st_mode`.
fn attributes(node: u64, mode: u32, size: u64) -> Vec<u8> {
    let mut attributes = Vec::new();
    for long in [node, size, 0, 0, 0, 0] {
        attributes.extend(long.to_ne_bytes());
    }
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        attributes.extend(u32::to_ne_bytes(word));
    }
    attributes
}

/// The answer to GETATTR. Nothing may be cached.
pub(crate) fn attribute_answer(node: u64, mode: u32, size: u64) -> Answer {
    let mut reply = vec![0; 16];
    reply.extend(attributes(node, mode, size));
    Answer::Done(reply)
}

/// The answer to LOOKUP. Nothing may be cached.
pub(crate) fn entry_answer(node: u64, mode: u32, size: u64) -> Answer {
    let mut reply = node.to_ne_bytes().to_vec();
    reply.resize(40, 0);
    reply.extend(attributes(node, mode, size));
    Answer::Done(reply)
}

/// The answer to OPEN and OPENDIR: reads bypass the page cache.
pub(crate) fn open_answer() -> Answer {
    let mut reply = vec![0; 16];
    reply[8] = 1;
    Answer::Done(reply)
}

/// An entry of a READDIR answer. `next`: the position behind it.
pub(crate) fn dirent(node: u64, next: u64, name: &str, kind: u32) -> Vec<u8> {
    let mut entry = Vec::new();
    entry.extend(node.to_ne_bytes());
    entry.extend(next.to_ne_bytes());
    entry.extend(u32::try_from(name.len()).unwrap().to_ne_bytes());
    entry.extend(kind.to_ne_bytes());
    entry.extend(name.as_bytes());
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry
}
