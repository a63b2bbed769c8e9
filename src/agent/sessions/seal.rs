//! Seals: how an agent recognises the facts of a session as its own.
//!
//! A session's facts stand in the environment of its container, where whoever may patch the pod can
//! write what they like: that `system:admin` asked for it, say. An agent therefore adds a MAC over
//! the facts, the container and the pod. Only with that does it say who asked for a session.
//!
//! Without a file for the key, an agent makes one up when it starts, and after a restart no longer
//! knows its own sessions. Agents that are given the same key know each other's.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use aws_lc_rs::{
    hmac::{self, HMAC_SHA256, Key},
    rand::SystemRandom,
};

use crate::domain::session::SessionFacts;

/// Bytes of a key at least: those of the digest, as RFC 2104 advises.
const MIN_KEY: usize = 32;

/// A key that only agents have.
#[derive(Debug)]
pub struct SealKey(Key);

impl SealKey {
    /// Makes a key up.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    pub fn random() -> anyhow::Result<Self> {
        let key = Key::generate(HMAC_SHA256, &SystemRandom::new());
        key.map(Self).ok().context("cannot make a key: the system gives no random bytes")
    }

    /// Reads the key from a file. White space at its end does not count.
    ///
    /// # Errors
    /// If the file cannot be read, or holds fewer than 32 bytes.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let key = bytes.trim_ascii_end();
        let length = key.len();
        ensure!(
            length >= MIN_KEY,
            "{} holds {length} bytes; a key has at least {MIN_KEY}",
            path.display()
        );
        Ok(Self(Key::new(HMAC_SHA256, key)))
    }

    /// The facts with their seal, for this container of this pod.
    pub fn seal(&self, pod_uid: &str, container: &str, facts: SessionFacts) -> SessionFacts {
        let tag = hmac::sign(&self.0, &sealed_text(pod_uid, container, &facts));
        let seal = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        SessionFacts { seal, ..facts }
    }

    /// Whether an agent with this key sealed these facts for this container of this pod.
    pub fn is_valid(&self, pod_uid: &str, container: &str, facts: &SessionFacts) -> bool {
        let Some(tag) = from_hex(&facts.seal) else { return false };
        hmac::verify(&self.0, &sealed_text(pod_uid, container, facts), &tag).is_ok()
    }
}

/// All that is sealed, each part with its length before it, so that no two sessions have one text.
fn sealed_text(pod_uid: &str, container: &str, facts: &SessionFacts) -> Vec<u8> {
    let SessionFacts { id, requested_by, created_at, expires_at, seal: _ } = facts;
    let (created_at, expires_at) = (created_at.to_string(), expires_at.to_string());
    let mut text = b"podsonde session 1".to_vec();
    for part in [pod_uid, container, id, requested_by, &created_at, &expires_at] {
        text.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        text.extend_from_slice(part.as_bytes());
    }
    text
}

/// The bytes of a tag in hex. None unless it is one of SHA-256.
fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut tag = [0; 32];
    for (index, byte) in tag.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> SessionFacts {
        let at = "2026-01-02T03:04:05Z".parse().unwrap();
        SessionFacts {
            id: "id".into(),
            requested_by: "jane".into(),
            created_at: at,
            expires_at: at,
            seal: String::new(),
        }
    }

    /// Checked with `openssl dgst -sha256 -mac HMAC -macopt key:…` over the same bytes.
    #[test]
    fn the_seal_is_an_hmac() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "0123456789abcdef0123456789abcdef\n").unwrap();
        let sealed = SealKey::read(&path).unwrap().seal("uid", "debug", facts());
        let text = directory.path().join("text");
        fs::write(&text, sealed_text("uid", "debug", &facts())).unwrap();
        let openssl = std::process::Command::new("openssl")
            .args(["dgst", "-sha256", "-mac", "HMAC", "-macopt"])
            .arg("key:0123456789abcdef0123456789abcdef")
            .arg(&text)
            .output()
            .unwrap();
        let output = String::from_utf8(openssl.stdout).unwrap();
        assert_eq!(output.trim().rsplit(' ').next(), Some(sealed.seal.as_str()));
        fs::write(&path, "0123456789abcdef0123456789abcde\n").unwrap();
        assert!(SealKey::read(&path).unwrap_err().to_string().contains("holds 31 bytes"));
    }

    #[test]
    fn any_change_breaks_the_seal() {
        let key = SealKey::random().unwrap();
        let sealed = key.seal("uid", "debug", facts());
        assert!(key.is_valid("uid", "debug", &sealed));
        let later = "2027-01-02T03:04:05Z".parse().unwrap();
        let changed = [
            SessionFacts { requested_by: "system:admin".into(), ..sealed.clone() },
            SessionFacts { id: "other".into(), ..sealed.clone() },
            SessionFacts { created_at: later, ..sealed.clone() },
            SessionFacts { expires_at: later, ..sealed.clone() },
            SessionFacts { seal: String::new(), ..sealed.clone() },
            SessionFacts { seal: "0".repeat(64), ..sealed.clone() },
            SessionFacts { seal: "é".repeat(32), ..sealed.clone() },
        ];
        for facts in changed {
            assert!(!key.is_valid("uid", "debug", &facts), "{facts:?}");
        }
        // Copied to another container or pod, and under another key.
        assert!(!key.is_valid("uid", "debugger", &sealed));
        assert!(!key.is_valid("uidd", "ebug", &sealed));
        assert!(!SealKey::random().unwrap().is_valid("uid", "debug", &sealed));
    }
}
