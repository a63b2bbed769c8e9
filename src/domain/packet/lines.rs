//! Protocols made of lines of text, such as HTTP/1. The first line is printed, and with `-v` all.

use super::{Dissector, Result, text::is_printable};

/// A protocol made of lines.
#[derive(Clone, Copy)]
pub(super) struct TextProtocol {
    name: &'static str,
    upper: &'static str,
    /// What separates the protocol's name from the text of TCP or UDP.
    pub(super) before: &'static str,
    /// The words that begin a request. A payload that begins neither with one of them nor as a
    /// response, `NAME/VERSION CODE`, continues an earlier message and is not printed. `None`
    /// prints every payload.
    requests: Option<&'static [&'static str]>,
}

/// Longest word that a message may begin with, as in tcpdump.
const MAX_WORD: usize = 128;

const HTTP: TextProtocol = TextProtocol {
    name: "http",
    upper: "HTTP",
    before: ": ",
    requests: Some(&[
        "GET",
        "PUT",
        "COPY",
        "HEAD",
        "LOCK",
        "MOVE",
        "POLL",
        "POST",
        "BCOPY",
        "BMOVE",
        "MKCOL",
        "TRACE",
        "LABEL",
        "MERGE",
        "DELETE",
        "SEARCH",
        "UNLOCK",
        "REPORT",
        "UPDATE",
        "NOTIFY",
        "BDELETE",
        "CONNECT",
        "OPTIONS",
        "CHECKIN",
        "PROPFIND",
        "CHECKOUT",
        "CCM_POST",
        "SUBSCRIBE",
        "PROPPATCH",
        "BPROPFIND",
        "BPROPPATCH",
        "UNCHECKOUT",
        "MKACTIVITY",
        "MKWORKSPACE",
        "UNSUBSCRIBE",
        "RPC_CONNECT",
        "VERSION-CONTROL",
        "BASELINE-CONTROL",
    ]),
};

const RTSP: TextProtocol = TextProtocol {
    name: "rtsp",
    upper: "RTSP",
    before: ": ",
    requests: Some(&[
        "DESCRIBE",
        "ANNOUNCE",
        "GET_PARAMETER",
        "OPTIONS",
        "PAUSE",
        "PLAY",
        "RECORD",
        "REDIRECT",
        "SETUP",
        "SET_PARAMETER",
        "TEARDOWN",
    ]),
};

const SIP: TextProtocol = TextProtocol {
    name: "sip",
    upper: "SIP",
    before: "",
    requests: Some(&[
        "ACK",
        "BYE",
        "CANCEL",
        "DO",
        "INFO",
        "INVITE",
        "MESSAGE",
        "NOTIFY",
        "OPTIONS",
        "PRACK",
        "QAUTH",
        "REFER",
        "REGISTER",
        "SPRACK",
        "SUBSCRIBE",
        "UPDATE",
        "PUBLISH",
    ]),
};

const SMTP: TextProtocol =
    TextProtocol { name: "smtp", upper: "SMTP", before: ": ", requests: None };
const FTP: TextProtocol = TextProtocol { name: "ftp", upper: "FTP", before: ": ", requests: None };
const WHOIS: TextProtocol =
    TextProtocol { name: "whois", upper: "WHOIS", before: ": ", requests: None };

/// The protocol of a TCP port. The order is tcpdump's, which matters if both ports have one.
pub(super) fn of_tcp(is: impl Fn(u16) -> bool) -> Option<TextProtocol> {
    [(25, SMTP), (43, WHOIS), (21, FTP), (80, HTTP), (8080, HTTP), (554, RTSP), (8554, RTSP)]
        .into_iter()
        .find_map(|(port, protocol)| is(port).then_some(protocol))
}

/// The protocol of a UDP port.
pub(super) fn of_udp(is: impl Fn(u16) -> bool) -> Option<TextProtocol> {
    is(5060).then_some(SIP)
}

impl Dissector<'_> {
    pub(super) fn text_protocol(
        &mut self,
        at: usize,
        length: usize,
        protocol: TextProtocol,
    ) -> Result {
        self.protocol = protocol.name;
        self.put(protocol.upper);
        if protocol.requests.is_some_and(|requests| !self.begins_message(at, length, requests)) {
            return Ok(());
        }
        let end = at + length;
        if !self.verbose() {
            self.line(": ", at, end)?;
            return Ok(());
        }
        self.put((", length: ", length));
        let mut next = at;
        while next < end {
            match self.line("\n\t", next, end)? {
                Some(after) => next = after,
                None => break,
            }
        }
        Ok(())
    }

    /// Prints the line in which an end of an SSH connection names its software; the rest is
    /// encrypted.
    pub(super) fn ssh(&mut self, at: usize, length: usize) -> Result {
        self.protocol = "ssh";
        for (offset, expected) in b"SSH-".iter().enumerate() {
            if self.u8(at + offset)? != *expected {
                return Ok(());
            }
        }
        for here in at + 4..at + length {
            let is_end = match self.u8(here)? {
                b'\n' => true,
                b'\r' => here + 1 < at + length && self.u8(here + 1)? == b'\n',
                byte if is_printable(byte) => continue,
                _ => false,
            };
            if is_end {
                self.put((": SSH: ", self.up_to(at, here - at)));
            }
            break;
        }
        Ok(())
    }

    /// Whether a message begins here, rather than the rest of an earlier one.
    fn begins_message(&self, at: usize, length: usize, requests: &[&str]) -> bool {
        let text = self.up_to(at, length);
        let whole = text.len() == length;
        let Some((first, rest)) = word(text, whole) else { return false };
        if requests.iter().any(|request| first.eq_ignore_ascii_case(request.as_bytes())) {
            return true;
        }
        word(rest, whole)
            .is_some_and(|(code, _)| code.len() == 3 && code.iter().all(u8::is_ascii_digit))
    }

    /// Prints a line and returns the position of the next one, or `None` if the line is not text or
    /// not complete.
    fn line(&mut self, before: &str, at: usize, end: usize) -> Result<Option<usize>> {
        let mut here = at;
        while here < end {
            let byte = self.u8(here)?;
            let after = match byte {
                b'\n' => here + 1,
                b'\r' if here + 1 >= end || self.u8(here + 1)? != b'\n' => return Ok(None),
                b'\r' => here + 2,
                byte if is_printable(byte) || byte == b'\t' => {
                    here += 1;
                    continue;
                }
                _ => return Ok(None),
            };
            self.put((before, self.up_to(at, here - at)));
            return Ok(Some(after));
        }
        self.put((before, self.up_to(at, here - at)));
        self.truncated();
        Ok(None)
    }
}

/// The first word, and what follows the spaces behind it. A word at the end of the text may have
/// been cut off, so it counts only if the text is `whole`.
fn word(text: &[u8], whole: bool) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    let end = end.or_else(|| whole.then_some(text.len()))?;
    let (word, rest) = text.split_at_checked(end)?;
    if word.is_empty() || word.len() > MAX_WORD || !word.iter().all(|byte| is_printable(*byte)) {
        return None;
    }
    let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
    Some((word, rest.get(spaces..).unwrap_or_default()))
}
