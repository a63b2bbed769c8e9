//! Names of users and groups, from the container's own `/etc/passwd` and `/etc/group`.

use std::collections::HashMap;

use crate::{
    client::files::{Files, ReadEvent},
    proto::v1::FilesReadRequest,
};

/// Longest account file that is read, in bytes.
const LONGEST: i64 = 1024 * 1024;
/// Longest name that is shown, in bytes.
const LONGEST_NAME: usize = 64;

/// Names by number. Empty where the container has no such files: numbers are shown then.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Accounts {
    /// Those of a container. What cannot be read is left out.
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
        FilesReadRequest { path: path.to_vec(), length: LONGEST, ..FilesReadRequest::default() };
    let mut reading = files.read(request).await?;
    let mut text = Vec::new();
    while let ReadEvent::Data(data) = reading.next().await? {
        text.extend_from_slice(&data);
        if text.len() as u64 > LONGEST.unsigned_abs() {
            break;
        }
    }
    Ok(text)
}

/// passwd(5) and group(5) begin alike: name, password, number. The first line for a number counts.
fn parse(text: &[u8]) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.split(|b| *b == b'\n') {
        let mut fields = line.split(|b| *b == b':');
        let (Some(name), Some(_), Some(id)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
        let is_shown = |name: &&str| {
            (1..=LONGEST_NAME).contains(&name.len())
                && name.chars().all(|c| !c.is_control() && !c.is_whitespace())
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
        let text = b"root:x:0:0:root:/root:/bin/sh\n# a comment\ntoor:x:0:0::/:\nwww:x:33\n\x1b[2J:x:5:\nbad:x:-1:\n:x:9:\n\xff:x:8:\nlast:x:7:";
        let names = parse(text);
        let mut found: Vec<_> = names.iter().map(|(id, name)| format!("{id} {name}")).collect();
        found.sort();
        assert_eq!(found, ["0 root", "33 www", "7 last"]);
    }
}
