//! Operands: `POD:PATH` as in `kubectl cp`, with a namespace or a type in front, or a local path.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use crate::{
    cli::values::{self, Named},
    client::files::LONGEST_PATH,
    kube::workloads::WorkloadKind,
};

/// A path in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct PodPath {
    /// Everything up to the path, colon included, as it was typed: `shop/web:`.
    pub(super) prefix: String,
    /// `None` stands for the namespace of `-n` or of the kubeconfig.
    pub(super) namespace: Option<String>,
    pub(super) object: Named,
    /// Never empty: `web:` means the root directory.
    pub(super) path: Vec<u8>,
}

/// A path in a pod or on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum Location {
    Pod(PodPath),
    Local(PathBuf),
}

impl PodPath {
    pub(super) fn parse(text: OsString) -> Result<Self, String> {
        let bytes = text.as_encoded_bytes();
        let shown = || text.to_string_lossy().into_owned();
        let Some(colon) = bytes.iter().position(|b| *b == b':') else {
            return Err(format!("{:?} names no pod; write POD:PATH", shown()));
        };
        let (object, path) = bytes.split_at(colon);
        let object = std::str::from_utf8(object)
            .map_err(|_| format!("{:?} names no pod; write POD:PATH", shown()))?;
        let path = match path.get(1..).unwrap_or_default() {
            // After `scp host:` this is the home directory, which a container does not have.
            b"" => b"/".to_vec(),
            path if path.len() > LONGEST_PATH => {
                return Err(format!("the path is longer than {LONGEST_PATH} bytes"));
            }
            path => path.to_vec(),
        };
        let prefix = format!("{object}:");
        let (namespace, object) = match object.split_once('/') {
            Some((_, rest)) if !rest.contains('/') && is_type(object) => (None, object),
            Some((namespace, rest)) => (Some(values::label(namespace)?), rest),
            None => (None, object),
        };
        Ok(Self { prefix, namespace, object: values::named(object)?, path })
    }

    /// The operand as it was typed, for messages. Bytes that are not UTF-8 are replaced.
    pub(super) fn shown(&self) -> String {
        self.prefix.clone() + &String::from_utf8_lossy(&self.path)
    }

    /// The operand as it was typed.
    pub(super) fn typed(&self) -> Vec<u8> {
        [self.prefix.as_bytes(), &self.path].concat()
    }

    /// The last name of the path. The root, and a path that ends in `..`, have none.
    pub(super) fn name(&self) -> Option<&[u8]> {
        let name = self.path.rsplit(|b| *b == b'/').find(|name| !matches!(*name, b"" | b"."))?;
        (name != b"..").then_some(name)
    }
}

impl Location {
    pub(super) fn parse(text: OsString) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the path is empty".to_owned());
        }
        if is_local(&text) {
            Ok(Self::Local(text.into()))
        } else {
            PodPath::parse(text).map(Self::Pod)
        }
    }
}

/// The path of an entry in a directory.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let directory = match directory.iter().rposition(|b| *b != b'/') {
        Some(last) => directory.get(..=last).unwrap_or_default(),
        None => b"",
    };
    [directory, b"/", name].concat()
}

/// Whether `A/B` means a type and a name rather than a namespace and a pod.
fn is_type(object: &str) -> bool {
    let kind = object.split('/').next().unwrap_or_default().to_ascii_lowercase();
    matches!(kind.as_str(), "pod" | "pods" | "po") || WorkloadKind::named(&kind).is_some()
}

/// Whether an operand is a path on this machine: it has no colon, or what stands before the first
/// one cannot name a pod.
fn is_local(text: &OsStr) -> bool {
    let bytes = text.as_encoded_bytes();
    let Some(colon) = bytes.iter().position(|b| *b == b':') else { return true };
    let before = bytes.get(..colon).unwrap_or_default();
    // A drive: `C:\a`, and on Windows `C:/a`.
    let drive = before.len() == 1
        && bytes.get(colon + 1).is_some_and(|b| *b == b'\\' || (cfg!(windows) && *b == b'/'));
    matches!(before.first(), None | Some(b'.' | b'/' | b'~' | b'\\'))
        || before.contains(&b'\\')
        || drive
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Option<String>, Named, String), String> {
        PodPath::parse(text.into())
            .map(|at| (at.namespace, at.object, String::from_utf8(at.path).unwrap()))
    }

    #[test]
    fn pods_and_paths() {
        let pod = |name: &str| Named::Pod(name.into());
        let deploy = || Named::Other { kind: "deploy".into(), name: "web".into() };
        let shop = || Some("shop".to_owned());
        for (text, namespace, object, path) in [
            ("web:/etc", None, pod("web"), "/etc"),
            ("web:etc", None, pod("web"), "etc"),
            ("web:", None, pod("web"), "/"),
            ("web:/a:b", None, pod("web"), "/a:b"),
            ("pod/web:/etc", None, pod("web"), "/etc"),
            ("shop/web:/etc", shop(), pod("web"), "/etc"),
            ("shop/pod/web:/etc", shop(), pod("web"), "/etc"),
            ("deploy/web:/etc", None, deploy(), "/etc"),
            ("shop/deploy/web:/etc", shop(), deploy(), "/etc"),
            ("web.example:/etc", None, pod("web.example"), "/etc"),
        ] {
            assert_eq!(parse(text), Ok((namespace, object, path.to_owned())), "{text}");
        }
        for bad in [
            "web",
            "",
            ":/etc",
            "/etc:x",
            "Web:/",
            "a/b/c/d:/",
            "shop//web:/",
            "s.h/web:/",
            "../x:/",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&format!("web:{}", "a".repeat(4096))).is_err());
    }

    #[test]
    fn what_has_no_pod_is_local() {
        for text in ["a", "./a:b", "../a:b", "/a:b", "C:\\a", "-", "~/a:b", ".\\a:b", "a\\b:c"] {
            assert_eq!(Location::parse(text.into()), Ok(Location::Local(text.into())), "{text}");
        }
        assert!(matches!(Location::parse("web:a".into()), Ok(Location::Pod(_))));
        assert!(
            Location::parse("a/b/c/d:e".into()).is_err() && Location::parse("".into()).is_err()
        );
    }

    #[test]
    fn the_last_name() {
        let name = |path: &str| {
            PodPath::parse(format!("web:{path}").into()).unwrap().name().map(|name| name.to_vec())
        };
        assert_eq!(name("/etc/passwd"), Some(b"passwd".to_vec()));
        assert_eq!(name("/etc/."), Some(b"etc".to_vec()));
        assert_eq!(name("etc//"), Some(b"etc".to_vec()));
        for none in ["/", "", "/..", "/etc/..", "."] {
            assert_eq!(name(none), None, "{none}");
        }
    }
}
