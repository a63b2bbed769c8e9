//! Makes an ordinary user's process root of a user namespace, where it can make the other
//! namespaces.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};
use rustix::thread::CapabilitySet;

/// Why an ordinary user cannot have a user namespace here, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    /// The kernel or its configuration forbids it.
    #[error(
        "this system does not let ordinary users make user namespaces: {hint} (unshare: {errno})"
    )]
    Forbidden {
        /// The remedy, a sentence for people.
        hint: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The namespace was made, but could not be set up.
    #[error("{operation}: {error}")]
    SetUp {
        /// The step that failed.
        operation: &'static str,
        /// The error of the system call.
        error: io::Error,
    },
}

/// Gives a process without CAP_SYS_ADMIN a user namespace in which it has it, and a mount
/// namespace. Its user and group become 0 there, and no other ids exist. A process with
/// CAP_SYS_ADMIN stays as it is. Returns whether a namespace was made.
///
/// The process must have a single thread.
///
/// # Errors
/// If the system does not allow it.
pub fn enter_user_namespace() -> Result<bool, RootlessError> {
    let privileged = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    if privileged {
        return Ok(false);
    }
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| forbidden(errno, sysctl))?;
    let write = |operation, path, text: String| {
        fs::write(path, text).map_err(|error| RootlessError::SetUp { operation, error })
    };
    write("deny setgroups", "/proc/self/setgroups", "deny".to_owned())?;
    write("map the user", "/proc/self/uid_map", format!("0 {user} 1"))?;
    write("map the group", "/proc/self/gid_map", format!("0 {group} 1"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    // AppArmor may allow the namespace and then refuse everything in it, which this mount shows.
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|errno| forbidden(errno, sysctl))?;
    Ok(true)
}

/// Executes a command after [`enter_user_namespace`], for a program that cannot call it.
pub(super) fn run(command: Option<Command>) -> ExitCode {
    let error = match (enter_user_namespace(), command) {
        (Ok(_), Some(mut command)) => command.exec().to_string(),
        (Ok(_), None) => "no command".to_owned(),
        (Err(error), _) => error.to_string(),
    };
    let _ = writeln!(io::stderr(), "{error}");
    ExitCode::FAILURE
}

fn sysctl(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok().map(|value| value.trim().to_owned())
}

/// Names the setting that forbids it, in the order in which the kernel checks them.
fn forbidden(errno: Errno, sysctl: impl Fn(&str) -> Option<String>) -> RootlessError {
    let is = |name, value: &str| sysctl(name).as_deref() == Some(value);
    let hint = if is("user/max_user_namespaces", "0") {
        "run as root, or `sysctl user.max_user_namespaces=10000`"
    } else if is("kernel/unprivileged_userns_clone", "0") {
        "run as root, or `sysctl kernel.unprivileged_userns_clone=1`"
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "run as root, or `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or give the binary an AppArmor \
         profile with `userns,`"
    } else if errno == Errno::ENOSPC {
        "user.max_user_namespaces is used up: run as root, or raise it"
    } else if errno == Errno::EINVAL || errno == Errno::ENOSYS {
        "the kernel lacks CONFIG_USER_NS, or the process has several threads: run as root"
    } else {
        "a seccomp profile or security module forbids it, as in a container by default: run as root, or outside of \
         the container"
    };
    RootlessError::Forbidden { hint: hint.to_owned(), errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_in_the_way_is_named() {
        let text = |errno, set: &'static str, value: &'static str| {
            forbidden(errno, |name| (name == set).then(|| value.to_owned())).to_string()
        };
        assert!(
            text(Errno::ENOSPC, "user/max_user_namespaces", "0")
                .contains("max_user_namespaces=10000")
        );
        assert!(
            text(Errno::EPERM, "kernel/unprivileged_userns_clone", "0").contains("userns_clone=1")
        );
        let apparmor = text(Errno::EPERM, "kernel/apparmor_restrict_unprivileged_userns", "1");
        assert!(apparmor.contains("AppArmor profile"), "{apparmor}");
        assert!(text(Errno::EPERM, "user/max_user_namespaces", "100").contains("seccomp"));
    }
}
