//! Image references, `[DOMAIN/]PATH[:TAG][@ALGORITHM:HEX]`, in the grammar of the distribution
//! project, which kubelets use.

/// Adds `:latest` to a reference that has neither tag nor digest, as a kubelet does before it asks
/// the runtime.
///
/// # Errors
/// What is wrong with it, in the words of the distribution project's parser.
pub fn with_default_tag(reference: &str) -> Result<String, &'static str> {
    const INVALID: &str = "invalid reference format";
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    // A colon before the last slash belongs to a port.
    let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest.get(path_start..).and_then(|last| last.split_once(':')) {
        Some((last, tag)) => (rest.get(..path_start + last.len()).unwrap_or_default(), Some(tag)),
        None => (rest, None),
    };
    if name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("invalid repository name, cannot specify 64-byte hexadecimal strings");
    }
    // The part before the first slash is a domain only if it looks like one.
    let (domain, path) = match name.split_once('/') {
        Some((domain, path))
            if domain.contains(['.', ':']) || domain == "localhost" || has_upper(domain) =>
        {
            (Some(domain), path)
        }
        _ => (None, name),
    };
    if has_upper(path) {
        return Err("invalid reference format: repository name must be lowercase");
    }
    if name.len() > 255 {
        return Err("repository name must not be more than 255 characters");
    }
    let valid = domain.is_none_or(is_domain)
        && path.split('/').all(is_path_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest);
    match (valid, tag, digest) {
        (false, ..) => Err(INVALID),
        (true, None, None) => Ok(format!("{reference}:latest")),
        (true, ..) => Ok(reference.to_owned()),
    }
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// `HOST[:PORT]`; the host is a name, an IPv4 address, or an IPv6 address in brackets.
fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => {
            !address.is_empty()
                && address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':')
        }
        None => host.split('.').all(|label| {
            let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(inner)
        }),
    };
    is_host
        && port
            .is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Lowercase letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: char| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges = component.starts_with(alphanumeric) && component.ends_with(alphanumeric);
    edges
        && component.split(alphanumeric).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        algorithm.split(['+', '.', '-', '_']).all(|part| {
            part.starts_with(|first: char| first.is_ascii_alphabetic())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        }) && hex.len() >= 32
            && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::with_default_tag;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_default_tag_is_added_only_where_nothing_is_said() {
        let tagged = |reference: &str| with_default_tag(reference).unwrap();
        assert_eq!(tagged("busybox"), "busybox:latest");
        assert_eq!(tagged("localhost:5000/a/b"), "localhost:5000/a/b:latest");
        let digest = format!("registry.test/a@{DIGEST}");
        for whole in
            ["busybox:1.36", "registry.test/a-b__c.d/e:V1.0_x-y", "[::1]:5000/a:b", &digest]
        {
            assert_eq!(tagged(whole), whole);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(256);
        let hex = "0".repeat(64);
        for reference in [
            "",
            ":",
            "nginx:",
            "nginx:-x",
            "a//b",
            "/a",
            "a/",
            "nginx::1",
            "a b",
            "a..b",
            "a___b",
            "-a",
            "a@sha256:00",
            "a@",
            "registry.test:port/a",
            "https://registry.test/a",
            "Nginx",
            "docker.io/Library/a",
            &long,
            &hex,
            "bücher",
        ] {
            assert!(with_default_tag(reference).is_err(), "{reference:?}");
        }
    }
}
