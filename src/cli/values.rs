//! Parses values in the forms that people and kubectl use: durations, names, `TYPE/NAME`,
//! environment variables, files.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    time::Duration,
};

use crate::domain::{Error, name};

/// Largest container file that is read, in bytes. The agent has the same limit.
const LARGEST_FILE: u64 = 64 * 1024;

/// Parses a duration as Go writes it (`1h30m`, `1.5s`, `300ms`). A bare number means seconds, as in
/// kubectl's timeouts.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration; write 90s, 1h30m or 500ms");
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(invalid()),
        };
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| invalid())?;
        total = total.checked_add(part).ok_or_else(invalid)?;
        rest = after;
    }
    // Go's durations end at 292 years. A limit of 100 years catches typing errors.
    let longest = Duration::from_secs(100 * 365 * 24 * 3600);
    if text.is_empty() || total > longest { Err(invalid()) } else { Ok(total) }
}

/// Parses a number of bytes. The units k, M, G are powers of 1000, and Ki, Mi, Gi are powers of
/// 1024; a B may follow.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let factor = |unit: &str| match unit.strip_suffix('B').unwrap_or(unit) {
        "" => Some(1),
        "k" | "K" => Some(1000),
        "M" => Some(1_000_000),
        "G" => Some(1_000_000_000),
        "Ki" => Some(1 << 10),
        "Mi" => Some(1 << 20),
        "Gi" => Some(1 << 30),
        _ => None,
    };
    scaled(text, factor)
        .ok_or_else(|| format!("{text:?} is not a number of bytes; write 500k, 10M or 2GiB"))
}

/// Parses a file size as tcpdump's `-C` does: millions of bytes, or k, m, g as powers of 1024.
pub(super) fn file_size(text: &str) -> Result<u64, String> {
    let factor = |unit: &str| match unit {
        "" => Some(1_000_000),
        "k" | "K" => Some(1 << 10),
        "m" | "M" => Some(1 << 20),
        "g" | "G" => Some(1 << 30),
        _ => None,
    };
    let invalid =
        || format!("{text:?} is not a size; write 100 for 100 million bytes, or 500k, 64m, 2g");
    scaled(text, factor).ok_or_else(invalid)
}

/// Parses a whole number above 0 with a unit.
fn scaled(text: &str, factor: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    number.parse::<u64>().ok()?.checked_mul(factor(unit)?).filter(|bytes| *bytes > 0)
}

/// Parses a DNS-1123 label, the form of namespace and container names.
pub(super) fn label(text: &str) -> Result<String, String> {
    checked(text, 63, name::label("name", text))
}

/// Parses a DNS-1123 subdomain, the form of pod and node names.
pub(super) fn object_name(text: &str) -> Result<String, String> {
    checked(text, 253, name::subdomain("name", text))
}

/// Returns the text if the check passed and it has at most `longest` characters.
fn checked(text: &str, longest: usize, found: Result<(), Error>) -> Result<String, String> {
    found.map(|()| text.to_owned()).map_err(|_| not_a_name(text, longest))
}

fn not_a_name(text: &str, longest: usize) -> String {
    let shown: String = text.chars().take(80).collect();
    format!(
        "{shown:?} is not a name in Kubernetes: lower-case letters, digits and '-', at most \
         {longest}, a letter or digit first and last"
    )
}

/// An object that the user names on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Named {
    /// `POD` or `pod/POD`.
    Pod(String),
    /// `TYPE/NAME` of any other type.
    Other { kind: String, name: String },
}

/// Parses `POD`, `pod/POD` or `TYPE/NAME`.
pub(super) fn named(text: &str) -> Result<Named, String> {
    let Some((kind, name)) = text.split_once('/') else { return object_name(text).map(Named::Pod) };
    let name = object_name(name)?;
    match kind.to_ascii_lowercase().as_str() {
        "pod" | "pods" | "po" => Ok(Named::Pod(name)),
        "" => Err(format!("{text:?} is not TYPE/NAME: the type is missing")),
        kind => Ok(Named::Other { kind: kind.to_owned(), name }),
    }
}

/// Parses `POD` or `pod/POD`.
pub(super) fn pod(text: &str) -> Result<String, String> {
    match named(text)? {
        Named::Pod(name) => Ok(name),
        Named::Other { .. } => Err(format!("{text:?} is not a pod; write POD or pod/POD")),
    }
}

/// Parses `K=V` as kubectl's `--env` does: text with more than one `=` is a list that is separated
/// by commas.
pub(super) fn env(text: &str) -> Result<Vec<(String, String)>, String> {
    let several = text.bytes().filter(|byte| *byte == b'=').count() > 1;
    let parts: Vec<&str> = if several { text.split(',').collect() } else { vec![text] };
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').filter(|(name, _)| !name.is_empty())?;
        Some((name.to_owned(), value.to_owned()))
    };
    let pairs: Option<Vec<_>> = parts.into_iter().map(pair).collect();
    pairs.ok_or_else(|| format!("{text:?} is not an environment variable; write NAME=VALUE"))
}

/// Reads a JSON or YAML file of at most 64 KiB and converts it to JSON. `-` is stdin.
pub(super) fn json_file(path: &Path) -> Result<String, String> {
    let name = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
    let mut text = String::new();
    let read = match path == Path::new("-") {
        true => io::stdin().take(LARGEST_FILE + 1).read_to_string(&mut text),
        false => {
            File::open(path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_string(&mut text))
        }
    };
    read.map_err(|error| format!("cannot read {name}: {error}"))?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(format!("{name} is larger than 64 KiB"));
    }
    to_json(&text).map_err(|error| format!("{name} is {error}"))
}

fn to_json(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("empty".to_owned());
    }
    // JSON is valid YAML, but the JSON parser gives better messages for it.
    let value: Result<serde_json::Value, String> = if text.trim_start().starts_with(['{', '[']) {
        serde_json::from_str(text)
            .or_else(|json| serde_saphyr::from_str(text).map_err(|_| json.to_string()))
    } else {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    };
    match value {
        Ok(value) if value.is_object() || value.is_array() => Ok(value.to_string()),
        Ok(_) => Err("neither a container nor a list of containers".to_owned()),
        Err(error) => Err(format!("neither JSON nor YAML: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        for (text, milliseconds) in [
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("90s", 90_000),
            ("500ms", 500),
            (".5s", 500),
            ("0", 0),
            ("0s", 0),
            ("60", 60_000),
            ("1m0s", 60_000),
            ("1h0m0.5s", 3_600_500),
            ("2000us", 2),
            ("2000µs", 2),
            ("3000000ns", 3),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in [
            "", "-1s", "1d", "1h30", "h", "1..5s", "1e3s", "nan", "inf", "1 h", "9999999h", "s1",
            "1ħ",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration(&"9".repeat(400)).is_err());
    }

    #[test]
    fn bytes_have_units() {
        for (text, expected) in [
            ("1", 1),
            ("10k", 10_000),
            ("10kB", 10_000),
            ("2MiB", 2 << 20),
            ("3Gi", 3 << 30),
            ("5B", 5),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "k", "1.5M", "-1", "1T", "1 k", "1BB", "99999999999G"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_of_files_are_tcpdump_s() {
        for (text, expected) in
            [("1", 1_000_000), ("3k", 3 << 10), ("64M", 64 << 20), ("2g", 2 << 30)]
        {
            assert_eq!(file_size(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "k", "1.5m", "-1", "1kB", "99999999999G"] {
            assert!(file_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_dns_1123() {
        let (l63, l64) = ("a".repeat(63), "a".repeat(64));
        for good in ["web", "a", "0", "web-6d4b75cb6d-hwtz7", &l63] {
            assert!(label(good).is_ok() && object_name(good).is_ok(), "{good}");
        }
        assert!(
            label("ip-10-0-0-1.ec2.internal").is_err()
                && object_name("ip-10-0-0-1.ec2.internal").is_ok()
        );
        assert!(label(&l64).is_err() && object_name(&"a.".repeat(130)).is_err());
        for bad in
            ["", "-", "Web", "we_b", "web-", "a..b", ".", "../x", "a/b", "wéb", "a b", "a%2fb"]
        {
            assert!(label(bad).is_err() && object_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pod_goes_by_its_name_or_by_type_and_name() {
        for text in ["web", "pod/web", "pods/web", "po/web", "POD/web"] {
            assert_eq!(named(text), Ok(Named::Pod("web".into())));
            assert_eq!(pod(text), Ok("web".into()));
        }
        let other = Named::Other { kind: "deploy".into(), name: "web".into() };
        assert_eq!(named("Deploy/web"), Ok(other));
        assert!(pod("deploy/web").is_err());
        for bad in ["", "/web", "pod/", "pod/a/b", "pod/../b"] {
            assert!(named(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn env_is_read_as_kubectl_reads_it() {
        let pairs = |text: &str| {
            env(text)
                .map(|pairs| pairs.into_iter().map(|(k, v)| format!("{k}|{v}")).collect::<Vec<_>>())
        };
        assert_eq!(pairs("A=1"), Ok(vec!["A|1".into()]));
        assert_eq!(pairs("A="), Ok(vec!["A|".into()]));
        assert_eq!(pairs("A=x,y"), Ok(vec!["A|x,y".into()]));
        assert_eq!(pairs("A=1,B=2"), Ok(vec!["A|1".into(), "B|2".into()]));
        assert_eq!(pairs("URL=http://h/?a=b"), Ok(vec!["URL|http://h/?a=b".into()]));
        for bad in ["", "A", "=1", "A=1,B=2,C"] {
            assert!(env(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_are_json_or_yaml() {
        assert_eq!(to_json("{\"name\": \"a\"}"), Ok("{\"name\":\"a\"}".into()));
        assert_eq!(
            to_json("name: a\ncommand: [sh, -c]\n"),
            Ok("{\"command\":[\"sh\",\"-c\"],\"name\":\"a\"}".into())
        );
        assert_eq!(to_json("[{name: a}]"), Ok("[{\"name\":\"a\"}]".into()));
        for (bad, why) in [
            ("", "empty"),
            (" \n", "empty"),
            ("just text", "neither a container"),
            ("{\"a\": ", "neither JSON nor YAML"),
            ("a: [", "neither JSON nor YAML"),
        ] {
            let error = to_json(bad).unwrap_err();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
    }
}
