//! The commands on files, on real directories behind the fake agent. The expected output is what
//! the tools that they are named after print for the same directories.

mod comparing;
mod copying;
mod finding;
mod hostile;
mod listing;
mod reading;
mod terminal;

use std::{
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, SystemTime},
};

use super::{Ended, Fixture};

/// Pods `web` and `web-1`, whose roots are directories of this machine.
pub(super) struct World {
    pub(super) fixture: Fixture,
    pub(super) root: PathBuf,
    pub(super) other: PathBuf,
    /// Where commands run.
    pub(super) here: PathBuf,
}

impl World {
    pub(super) fn new() -> Self {
        let fixture = Fixture::new();
        let at = |name: &str| {
            let path = fixture.directory.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (root, other, here) = (at("root"), at("other"), at("here"));
        let mut state = fixture.agent.files.state();
        state.roots.insert("web".into(), root.clone());
        state.roots.insert("web-1".into(), other.clone());
        drop(state);
        let world = Self { fixture, root, other, here };
        for name in ["passwd", "group"] {
            world.write(&format!("etc/{name}"), &std::fs::read(format!("/etc/{name}")).unwrap());
        }
        world
    }

    /// A file below web's root.
    pub(super) fn write(&self, path: &str, content: &[u8]) -> PathBuf {
        let path = self.root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A tree with one of each kind of thing, at `/tree`.
    pub(super) fn sample() -> Self {
        let world = Self::new();
        let tree = world.root.join("tree");
        for (path, content) in [
            ("tree/plain", "one\n".repeat(1000).into_bytes()),
            ("tree/empty", Vec::new()),
            ("tree/.hidden", b"x".to_vec()),
            ("tree/run.sh", b"#!/bin/sh\n".to_vec()),
            ("tree/a b", b"space".to_vec()),
            ("tree/sub/deep/er/leaf.conf", b"leaf\n".to_vec()),
            ("tree/sub/other.CONF", b"other\n".to_vec()),
            ("tree/big.bin", vec![7; 3_000_000]),
            ("tree/\u{fc}mlaut", b"u".to_vec()),
        ] {
            world.write(path, &content);
        }
        let mode = |path: &str, mode| {
            std::fs::set_permissions(tree.join(path), std::fs::Permissions::from_mode(mode))
                .unwrap();
        };
        mode("run.sh", 0o4755);
        mode("plain", 0o640);
        std::fs::create_dir(tree.join("void")).unwrap();
        mode("void", 0o1777);
        symlink("plain", tree.join("link")).unwrap();
        symlink("nowhere", tree.join("dangling")).unwrap();
        symlink("sub", tree.join("sublink")).unwrap();
        nix::unistd::mkfifo(&tree.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600))
            .unwrap();
        drop(std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap());
        std::fs::hard_link(tree.join("plain"), tree.join("twin")).unwrap();
        let ago = |path: &str, seconds| {
            let file = std::fs::File::open(tree.join(path)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        let day = 24 * 3600;
        ago("plain", 400 * day);
        ago("a b", 3 * day + 7);
        ago("big.bin", 30 * day);
        ago("sub/other.CONF", 90 * 60);
        world
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.fixture.command(arguments);
        command.current_dir(&self.here).env("TZ", "UTC").env_remove("COLUMNS");
        command
    }

    pub(super) fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().unwrap().into()
    }

    /// The output as it is, also where it is no text.
    pub(super) fn raw(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a tool of this machine prints inside of web's root, with a slash before the paths.
    pub(super) fn oracle(&self, tool: &str, arguments: &[&str]) -> String {
        let output = oracle(&self.root, tool, arguments);
        String::from_utf8(output.stdout).unwrap()
    }

    /// What podsonde prints on a terminal of `columns` columns.
    pub(super) fn on_terminal(&self, columns: u32, arguments: &str) -> String {
        let podsonde = env!("CARGO_BIN_EXE_podsonde");
        let endpoint = &self.fixture.endpoint;
        on_terminal(&self.here, columns, &format!("{podsonde} --agent {endpoint} {arguments}"))
    }
}

/// What a shell's line prints on a terminal of `columns` columns.
pub(super) fn on_terminal(directory: &Path, columns: u32, line: &str) -> String {
    let line = format!("stty cols {columns} rows 40; {line}");
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).current_dir(directory);
    command
        .env("TERM", "xterm")
        .env("TZ", "UTC")
        .env("SHELL", "/bin/sh")
        .env("LC_ALL", "C.UTF-8")
        .env_remove("LS_COLORS")
        .env_remove("NO_COLOR")
        .env_remove("COLUMNS");
    String::from_utf8(command.output().unwrap().stdout).unwrap().replace("\r\n", "\n")
}

/// What a tool of this machine prints in a directory.
pub(super) fn oracle(directory: &Path, tool: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(tool);
    command
        .args(arguments)
        .current_dir(directory)
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .env_remove("LS_COLORS");
    command.output().unwrap()
}

/// The lines in the order of their bytes.
pub(super) fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    lines
}

/// All files below a directory with their content, modes left out.
pub(super) fn contents(directory: &Path) -> std::collections::BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(path) = waiting.pop() {
        for child in std::fs::read_dir(&path).unwrap().map(|child| child.unwrap().path()) {
            let name = child.strip_prefix(directory).unwrap().as_os_str().as_bytes().to_vec();
            let kind = child.symlink_metadata().unwrap().file_type();
            if kind.is_dir() {
                found.insert([name.as_slice(), b"/"].concat(), Vec::new());
                waiting.push(child);
            } else if kind.is_symlink() {
                found.insert(name, child.read_link().unwrap().as_os_str().as_bytes().to_vec());
            } else if kind.is_file() {
                found.insert(name, std::fs::read(child).unwrap());
            }
        }
    }
    found
}
