//! Network namespaces that a test makes for itself.

use std::{
    fs,
    os::fd::OwnedFd,
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A network namespace, held by a process that sleeps. Gone, with its interfaces, when this is
/// dropped.
pub struct Netns {
    holder: Child,
}

impl Netns {
    /// A new one with nothing but `lo`, which is up.
    pub fn new() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare");
        let own = fs::read_link("/proc/self/ns/net").expect("a namespace");
        let theirs = || fs::read_link(format!("/proc/{}/ns/net", holder.id())).ok();
        super::wait_until("a network namespace", || theirs().is_some_and(|found| found != own));
        let made = Self { holder };
        made.run(&["ip", "link", "set", "lo", "up"]);
        made
    }

    /// One with `eth0`, 192.0.2.1/24 and 2001:db8::1/64, whose other end is `peer0` of the second,
    /// with .2 and ::2.
    pub fn pair() -> (Self, Self) {
        let (here, there) = (Self::new(), Self::new());
        let pid = there.pid().to_string();
        here.run(&[
            "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0", "netns", &pid,
        ]);
        for (end, name, last) in [(&here, "eth0", 1), (&there, "peer0", 2)] {
            end.run(&["ip", "link", "set", name, "up"]);
            end.run(&["ip", "addr", "add", &format!("192.0.2.{last}/24"), "dev", name]);
            end.run(&["ip", "addr", "add", &format!("2001:db8::{last}/64"), "dev", name, "nodad"]);
        }
        (here, there)
    }

    /// The process that holds it.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> OwnedFd {
        pidfd_of(self.pid())
    }

    /// A program inside of it.
    pub fn command(&self, args: &[&str]) -> Command {
        inside(self.pid(), args)
    }

    /// Runs a program inside of it. Returns what it wrote to stdout.
    pub fn run(&self, args: &[&str]) -> String {
        let output: Output = self.command(args).output().expect("nsenter");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }
}

/// A program in the network namespace of a process.
pub fn inside(pid: u32, args: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{pid}/ns/net")).arg("--").args(args);
    command
}

/// The pidfd of a process.
pub fn pidfd_of(pid: u32) -> OwnedFd {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    pidfd_open(pid, PidfdFlags::empty()).expect("a process")
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
