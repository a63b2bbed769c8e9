//! The address of an agent in the form that a user types.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use tonic::transport::Uri;

use super::{error::Error, reason::Reason};

/// The address at which an agent listens.
///
/// Written as `https://host:port`, `unix:///path/to/socket` or `http://127.0.0.1:port`. Plain HTTP
/// is for loopback only, because it is neither encrypted nor authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// TLS over TCP.
    Https(Uri),
    /// Plain TCP to this machine.
    Loopback(Uri),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| {
            let text: String = text.chars().take(200).collect();
            Error::new(
                Reason::EndpointInvalid,
                format!("{text:?} is not an endpoint of an agent: {why}"),
            )
        };
        if let Some(path) = text.strip_prefix("unix:") {
            // What remains of both `unix:///path` and `unix:/path` begins with the path's slash.
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" | "/" => Err(invalid("the path of the socket is missing")),
                _ if !path.starts_with('/') => {
                    Err(invalid("the path of the socket must be absolute"))
                }
                _ if path.contains('\0') => Err(invalid("the path of the socket holds a NUL")),
                _ => Ok(Self::Unix(path.into())),
            };
        }
        let (scheme, _) = text.split_once("://").ok_or_else(|| {
            invalid("write https://HOST:PORT, http://127.0.0.1:PORT or unix:///PATH")
        })?;
        let secure = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(invalid("the scheme is none of https, http and unix")),
        };
        let uri: Uri = text.parse().map_err(|_| invalid("it is not a URI"))?;
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(|| invalid("the host is missing"))?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(invalid("credentials do not belong in it"));
        }
        if uri.port_u16().is_none_or(|port| port == 0) {
            return Err(invalid("a port from 1 to 65535 must follow the host"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(invalid("nothing may follow the port"));
        }
        match secure {
            true => Ok(Self::Https(uri)),
            false if is_loopback(host) => Ok(Self::Loopback(uri)),
            false => {
                Err(invalid("plain http is for this machine only (127.0.0.1, [::1]); use https"))
            }
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    // The system resolves `localhost`. RFC 6761 allows only loopback addresses for it.
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Https(uri) | Self::Loopback(uri) => {
                write!(
                    f,
                    "{}://{}",
                    uri.scheme_str().unwrap_or_default(),
                    uri.authority().map_or("", |a| a.as_str())
                )
            }
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_back_as_written() {
        for text in [
            "https://node-1.example:7463",
            "https://[2001:db8::1]:7463",
            "http://127.0.0.1:7463",
            "http://127.9.9.9:1",
            "http://[::1]:7463",
            "http://localhost:7463",
            "unix:///run/podsonde/agent.sock",
        ] {
            assert_eq!(text.parse::<Endpoint>().expect(text).to_string(), text);
        }
        assert_eq!("unix:/run/a".parse::<Endpoint>().unwrap(), Endpoint::Unix("/run/a".into()));
        assert_eq!("https://a:1/".parse::<Endpoint>().unwrap().to_string(), "https://a:1");
    }

    #[test]
    fn what_is_no_endpoint_says_why() {
        for (text, why) in [
            ("http://10.0.0.1:7463", "plain http is for this machine only"),
            ("http://localhost.evil.example:1", "plain http is for this machine only"),
            ("http://127.0.0.1.evil.example:1", "plain http is for this machine only"),
            ("http://127.0.0.1@evil.example:1", "credentials"),
            ("http://127.0.0.1", "a port from 1 to 65535"),
            ("https://host:0", "a port from 1 to 65535"),
            ("https://host:99999", "a port from 1 to 65535"),
            ("https://host:1/path", "nothing may follow"),
            ("https://host:1/?q", "nothing may follow"),
            ("https://", "not a URI"),
            ("ftp://host:1", "the scheme"),
            ("127.0.0.1:7463", "write https://HOST:PORT"),
            ("unix://", "path of the socket is missing"),
            ("unix:run/a", "must be absolute"),
            ("unix://run/a", "must be absolute"),
            ("", "write https://HOST:PORT"),
        ] {
            let error = text.parse::<Endpoint>().expect_err(text);
            assert_eq!(error.reason, Reason::EndpointInvalid);
            assert!(error.message.contains(why), "{text}: {error}");
        }
    }
}
