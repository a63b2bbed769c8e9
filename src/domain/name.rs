//! Names as Kubernetes validates them.
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/>

use super::{Error, Result};

/// Checks that the value of `field` is a DNS-1123 label: at most 63 bytes of `a-z0-9-`, the first
/// and the last of them no `-`.
///
/// # Errors
/// INVALID_FIELD naming the field and what is wrong with it.
pub fn label(field: &str, value: &str) -> Result<()> {
    check(field, value, 63, value.as_bytes())
}

/// Checks that the value of `field` is a DNS-1123 subdomain: labels joined by dots, together at
/// most 253 bytes.
///
/// # Errors
/// INVALID_FIELD naming the field and what is wrong with it.
pub fn subdomain(field: &str, value: &str) -> Result<()> {
    if value.is_empty() {
        return check(field, value, 253, b"");
    }
    value.split('.').try_for_each(|part| check(field, value, 253, part.as_bytes()))
}

/// Checks `part`, one label of `value`, which has at most `max` bytes.
fn check(field: &str, value: &str, max: usize, part: &[u8]) -> Result<()> {
    let alphanumeric =
        |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if value.is_empty() {
        return Err(Error::invalid(field, "is required"));
    }
    if value.len() > max {
        return Err(Error::invalid(
            field,
            format!("is {} bytes long; at most {max} are allowed", value.len()),
        ));
    }
    let inner = part.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    if !inner || !alphanumeric(part.first()) || !alphanumeric(part.last()) {
        return Err(Error::invalid(
            field,
            format!(
                "{value:?} must consist of lower case letters, digits and '-'{}, and begin and end with a letter or digit",
                if max > 63 { ", in parts joined by '.'" } else { "" }
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        let long = "a".repeat(64);
        for good in ["a", "a-b", "0", "web-0", &long[..63]] {
            assert!(label("f", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", &long] {
            assert!(label("f", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn subdomains() {
        let long = "a.".repeat(126) + "ab";
        for good in ["a", "a.b", "web-0.x1"] {
            assert!(subdomain("f", good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a..b", "a.", ".a", "a.-b", &long] {
            assert!(subdomain("f", bad).is_err(), "{bad}");
        }
    }
}
