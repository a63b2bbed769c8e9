//! The images that exist without a registry, and the errors for all others.

use crate::embedded::runtime::StartError;

/// The path of the podsonde binary in every image.
pub(super) const PROGRAM: &str = "/podsonde";

/// An image: its files and its program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Image {
    /// Whether it contains the host's programs, above all a shell.
    pub host_programs: bool,
    /// Text files in addition to those of every image.
    pub files: &'static [(&'static str, &'static str)],
    /// Directories in addition to those of every image.
    pub directories: &'static [&'static str],
    /// The program, unless the container's `command` replaces it.
    pub entrypoint: Vec<String>,
    /// The program's arguments, unless `command` or `args` replace them.
    pub arguments: Vec<String>,
}

const INDEX: &str = "<!doctype html>\n<title>podsonde</title>\n<h1>It works</h1>\n\
    <p>Served by a container that is nothing but Linux namespaces.</p>\n";
const WEB_CONF: &str =
    "# The demo's web server\nlisten 0.0.0.0:80;\nroot /srv/www;\naccess_log /var/log/web.log;\n";

/// Finds an image by the reference in a pod's spec. `stdin` tells whether the container keeps stdin
/// open: the shell of `busybox` runs only then, as it would end at once otherwise.
///
/// # Errors
/// `InvalidImageName`, `ErrImageNeverPull` or `ErrImagePull`, with the kubelet's messages.
pub(super) fn find(reference: &str, pull_policy: &str, stdin: bool) -> Result<Image, StartError> {
    let normalized = normalize(reference).ok_or_else(|| StartError {
        reason: "InvalidImageName",
        message: format!(
            "Failed to apply default image tag \"{reference}\": couldn't parse image name \"{reference}\": \
             invalid reference format"
        ),
    })?;
    if let Some(image) = built_in(&normalized, stdin) {
        return Ok(image);
    }
    if pull_policy == "Never" {
        return Err(StartError {
            reason: "ErrImageNeverPull",
            message: format!(
                "Container image \"{reference}\" is not present with pull policy of Never"
            ),
        });
    }
    let (code, cause) = if normalized.starts_with("docker.io/") {
        (
            "Unknown",
            "pull access denied, repository does not exist or may require authorization: server message: \
             insufficient_scope: authorization failed"
                .to_owned(),
        )
    } else {
        ("NotFound", format!("{normalized}: not found"))
    };
    Err(StartError {
        reason: "ErrImagePull",
        message: format!(
            "rpc error: code = {code} desc = failed to pull and unpack image \"{normalized}\": \
             failed to resolve reference \"{normalized}\": {cause}"
        ),
    })
}

fn built_in(normalized: &str, stdin: bool) -> Option<Image> {
    let repository = repository(normalized);
    if let Some(name) = repository.strip_prefix("podsonde.dev/test/") {
        return test_image(name);
    }
    Some(match repository {
        "podsonde.dev/demo/web" => Image {
            files: &[("/etc/web.conf", WEB_CONF), ("/srv/www/index.html", INDEX)],
            directories: &["/data"],
            entrypoint: builtin("web"),
            arguments: vec!["80".to_owned()],
            ..Image::default()
        },
        "podsonde.dev/demo/sleep" => Image { entrypoint: builtin("sleep"), ..Image::default() },
        "podsonde.dev/demo/host" | "docker.io/library/busybox" => Image {
            host_programs: true,
            arguments: if stdin { vec!["sh".to_owned()] } else { builtin("sleep") },
            ..Image::default()
        },
        _ => return None,
    })
}

/// Images whose containers fail: the program of `exit<code>` ends at once, that of `noexec` is not
/// executable, and that of `noformat` is no program.
fn test_image(name: &str) -> Option<Image> {
    if let Some(code) = name.strip_prefix("exit").and_then(|code| code.parse::<u8>().ok()) {
        let arguments = vec![code.to_string()];
        return Some(Image { entrypoint: builtin("exit"), arguments, ..Image::default() });
    }
    match name {
        "noexec" => Some(Image { entrypoint: vec!["/etc/passwd".to_owned()], ..Image::default() }),
        "noformat" => Some(Image {
            files: &[("/bin/noformat", "neither a script nor a program\n")],
            entrypoint: vec!["noformat".to_owned()],
            ..Image::default()
        }),
        _ => None,
    }
}

fn builtin(name: &str) -> Vec<String> {
    [PROGRAM, super::HIDDEN, name].map(str::to_owned).to_vec()
}

/// The reference with registry, `library/` and tag filled in, as by containerd; none if it is not
/// valid.
fn normalize(reference: &str) -> Option<String> {
    let (name, digest) = match reference.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (reference, None),
    };
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:")?;
        if hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
    }
    let (domain, remainder) = match name.split_once('/') {
        Some((domain, remainder)) if domain.contains(['.', ':']) || domain == "localhost" => {
            (domain, remainder)
        }
        _ => ("docker.io", name),
    };
    let (path, tag) = match remainder.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (remainder, None),
    };
    let valid = name.len() <= 255
        && domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:".contains(&byte))
        && path.split('/').all(valid_component)
        && tag.is_none_or(valid_tag);
    if !valid {
        return None;
    }
    let library = if domain == "docker.io" && !path.contains('/') { "library/" } else { "" };
    let mut normalized = format!("{domain}/{library}{path}");
    match (tag, digest) {
        (Some(tag), _) => normalized += &format!(":{tag}"),
        (None, None) => normalized += ":latest",
        (None, Some(_)) => {}
    }
    if let Some(digest) = digest {
        normalized += &format!("@{digest}");
    }
    Some(normalized)
}

/// A normalized reference without its tag and digest.
fn repository(normalized: &str) -> &str {
    let name = normalized.split('@').next().unwrap_or_default();
    let slash = name.rfind('/').unwrap_or_default();
    match name.get(slash..).and_then(|last| last.find(':')) {
        Some(colon) => name.get(..slash + colon).unwrap_or_default(),
        None => name,
    }
}

/// Whether it is lowercase letters and digits, with single separators between them.
fn valid_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    component.bytes().next().is_some_and(alphanumeric)
        && component.bytes().last().is_some_and(alphanumeric)
        && component.bytes().all(|byte| alphanumeric(byte) || b"._-".contains(&byte))
}

fn valid_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_normalized_as_containerd_does() {
        let digest = "a".repeat(64);
        for (reference, expected) in [
            ("busybox", Some("docker.io/library/busybox:latest".to_owned())),
            ("busybox:1.36", Some("docker.io/library/busybox:1.36".to_owned())),
            ("bitnami/nginx", Some("docker.io/bitnami/nginx:latest".to_owned())),
            ("localhost:5000/a/b:v1", Some("localhost:5000/a/b:v1".to_owned())),
            ("podsonde.dev/demo/web:1", Some("podsonde.dev/demo/web:1".to_owned())),
            (&format!("a@sha256:{digest}"), Some(format!("docker.io/library/a@sha256:{digest}"))),
            ("Nginx", None),
            ("a b", None),
            ("", None),
            ("a:", None),
            ("a//b", None),
            ("-a", None),
            ("a@sha256:12", None),
        ] {
            assert_eq!(normalize(reference), expected, "{reference:?}");
        }
        assert_eq!(repository("localhost:5000/a/b:v1"), "localhost:5000/a/b");
        assert_eq!(
            repository(&format!("docker.io/library/a@sha256:{digest}")),
            "docker.io/library/a"
        );
    }

    #[test]
    fn unknown_images_fail_as_on_a_node() {
        let reason =
            |reference, policy| find(reference, policy, false).map_err(|error| error.reason);
        assert_eq!(reason("nginx", "IfNotPresent"), Err("ErrImagePull"));
        assert_eq!(reason("podsonde.dev/test/missing", "Always"), Err("ErrImagePull"));
        assert_eq!(reason("podsonde.dev/test/never", "Never"), Err("ErrImageNeverPull"));
        assert_eq!(reason("Upper/Case", "Never"), Err("InvalidImageName"));
        assert!(reason("podsonde.dev/demo/web:1", "Never").is_ok());
        assert_eq!(
            find("podsonde.dev/test/missing", "Always", false).unwrap_err().message,
            "rpc error: code = NotFound desc = failed to pull and unpack image \
             \"podsonde.dev/test/missing:latest\": failed to resolve reference \
             \"podsonde.dev/test/missing:latest\": podsonde.dev/test/missing:latest: not found"
        );
    }
}
