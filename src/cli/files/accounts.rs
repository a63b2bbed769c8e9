//! Names of users and groups, from the container's own `/etc/passwd` and `/etc/group`.

use std::collections::HashMap;

use crate::{
    client::files::{Files, ReadEvent},
    domain::text::is_unsafe,
    proto::v1::FilesReadRequest,
};

/// How much of an account file is read, in bytes.
const MAX_FILE: i64 = 1024 * 1024;
/// Longest name that is shown, in bytes: useradd allows 32, and some directories have more.
const MAX_NAME: usize = 64;

/// Names by number. Without an entry, the number is shown.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Accounts {
    /// Reads a container's accounts. A file that is missing or unreadable leaves its map empty.
    pub(super) async fn read(files: &Files) -> Self {
        let (users, groups) =
            futures::join!(names(files, b"/etc/passwd"), names(files, b"/etc/group"));
        Self { users, groups }
    }

    pub(super) fn user(&self, uid: u32) -> Option<&str> {
        self.users.get(&uid).map(String::as_str)
    }

    pub(super) fn group(&self, gid: u32) -> Option<&str> {
        self.groups.get(&gid).map(String::as_str)
    }
}

async fn names(files: &Files, path: &[u8]) -> HashMap<u32, String> {
    match content(files, path).await {
        Ok(text) => parse(&text),
        Err(error) => {
            tracing::debug!(%error, path = %String::from_utf8_lossy(path), "no account names");
            HashMap::new()
        }
    }
}

async fn content(files: &Files, path: &[u8]) -> Result<Vec<u8>, crate::client::Error> {
    let request =
        FilesReadRequest { path: path.to_vec(), length: MAX_FILE, ..FilesReadRequest::default() };
    let mut reading = files.read(request).await?;
    let mut text = Vec::new();
    while let ReadEvent::Data(data) = reading.next().await? {
        text.extend_from_slice(&data);
        if text.len() as u64 > MAX_FILE.unsigned_abs() {
            break;
        }
    }
    Ok(text)
}

/// Parses passwd(5) or group(5), whose lines begin alike: name, password, number. The first line
/// for a number counts, as for getpwuid(3). A name that could mislead the reader of a terminal is
/// left out, and its number shown.
fn parse(text: &[u8]) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.split(|b| *b == b'\n') {
        let mut fields = line.split(|b| *b == b':');
        let (Some(name), Some(_), Some(id)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
        let is_shown = |name: &&str| {
            (1..=MAX_NAME).contains(&name.len())
                && name.chars().all(|c| !is_unsafe(c) && !c.is_whitespace())
        };
        if let (Some(id), Some(name)) = (id, std::str::from_utf8(name).ok().filter(is_shown)) {
            names.entry(id).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_files_are_read_leniently() {
        let text = b"root:x:0:0:root:/root:/bin/sh\n# a comment\ntoor:x:0:0::/:\nwww:x:33\n\x1b[2J:x:5:\nbad:x:-1:\n:x:9:\n\xff:x:8:\nlast:x:7:\n\xe2\x80\xaetoor:x:6:\n\xc2\x9b2J:x:4:";
        let names = parse(text);
        let mut found: Vec<_> = names.iter().map(|(id, name)| format!("{id} {name}")).collect();
        found.sort();
        assert_eq!(found, ["0 root", "33 www", "7 last"]);
    }
}
