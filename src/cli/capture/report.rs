//! The lines before and after the packets, in tcpdump's words.

use serde::Serialize;

use super::{
    output::Written,
    stream::{End, Outcome},
    targets::PodTarget,
};
use crate::proto::v1::{CaptureEnd, CaptureStarted};

/// The name of a link type in tcpdump. See <https://www.tcpdump.org/linktypes.html>.
pub(in crate::cli) fn link(linktype: u32) -> (String, &'static str) {
    let (name, description) = match linktype {
        0 => ("NULL", "BSD loopback"),
        1 => ("EN10MB", "Ethernet"),
        9 => ("PPP", "PPP"),
        12 | 101 => ("RAW", "Raw IP"),
        105 => ("IEEE802_11", "802.11"),
        108 => ("LOOP", "OpenBSD loopback"),
        113 => ("LINUX_SLL", "Linux cooked v1"),
        127 => ("IEEE802_11_RADIO", "802.11 plus radiotap header"),
        228 => ("IPV4", "Raw IPv4"),
        229 => ("IPV6", "Raw IPv6"),
        276 => ("LINUX_SLL2", "Linux cooked v2"),
        other => return (other.to_string(), ""),
    };
    (name.to_owned(), description)
}

/// Returns text such as `link-type EN10MB (Ethernet), snapshot length 262144 bytes`.
pub(super) fn link_and_snaplen(linktype: u32, snaplen: u32) -> String {
    let (name, description) = link(linktype);
    let description =
        if description.is_empty() { String::new() } else { format!(" ({description})") };
    format!("link-type {name}{description}, snapshot length {snaplen} bytes")
}

/// The line that announces a capture.
pub(super) fn header(target: &PodTarget, started: &CaptureStarted) -> String {
    let PodTarget { namespace, pod } = target;
    let place = started.container.as_ref().map_or_else(String::new, |container| {
        format!(" (container {}, node {})", container.container, container.node)
    });
    let link = link_and_snaplen(started.linktype, started.snaplen);
    format!("podsonde: listening on {} in pod {namespace}/{pod}{place}, {link}", started.interface)
}

/// The totals of one pod or of all pods.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Totals {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    /// Packets written or printed.
    captured: u64,
    /// Packets that passed the filter.
    received_by_filter: u64,
    dropped_by_kernel: u64,
    /// Packets that the agent dropped. The client drops none.
    dropped_on_the_way: u64,
    /// Packets still in flight when the capture ended: neither written nor lost.
    under_way: u64,
    /// Packets not written because the limit of --count was reached.
    beyond_count: u64,
    /// Whether the agent's figures come from the capture's end. If not, they are lower bounds.
    exact: bool,
    /// Why the capture ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<&'static str>,
}

impl Totals {
    /// The totals of one pod.
    pub(super) fn of(target: &PodTarget, outcome: &Outcome, written: &Written) -> Self {
        let packets = |counts: &[u64]| counts.get(outcome.source).copied().unwrap_or_default();
        let (captured, beyond_count) = (packets(&written.packets), packets(&written.beyond));
        let statistics = outcome.statistics.unwrap_or_default();
        let (kernel, agent) = (statistics.dropped_by_kernel, statistics.dropped_by_agent);
        let accounted =
            captured.saturating_add(beyond_count).saturating_add(kernel).saturating_add(agent);
        // Older figures may count fewer packets than the client has received.
        let received = statistics.received.max(accounted);
        Self {
            namespace: Some(target.namespace.clone()),
            pod: Some(target.pod.clone()),
            captured,
            received_by_filter: received,
            dropped_by_kernel: kernel,
            dropped_on_the_way: agent,
            under_way: received - accounted,
            beyond_count,
            exact: outcome.exact,
            end: Some(match &outcome.end {
                End::Agent(ended) => reason(ended.reason()),
                End::Stopped => "STOPPED",
                End::Failed(_) => "FAILED",
            }),
        }
    }

    /// The sum over all pods.
    pub(super) fn sum(of: &[Self]) -> Self {
        let start = Self { exact: true, ..Self::default() };
        of.iter().fold(start, |sum, pod| Self {
            captured: sum.captured + pod.captured,
            received_by_filter: sum.received_by_filter + pod.received_by_filter,
            dropped_by_kernel: sum.dropped_by_kernel + pod.dropped_by_kernel,
            dropped_on_the_way: sum.dropped_on_the_way + pod.dropped_on_the_way,
            under_way: sum.under_way + pod.under_way,
            beyond_count: sum.beyond_count + pod.beyond_count,
            exact: sum.exact && pod.exact,
            ..Self::default()
        })
    }

    /// The totals of one pod, in one line.
    pub(super) fn line(&self) -> String {
        let name = |part: &Option<String>| part.clone().unwrap_or_default();
        format!("{}/{}: {}", name(&self.namespace), name(&self.pod), self.sentences().join(", "))
    }

    /// tcpdump's closing lines.
    pub(super) fn sentences(&self) -> Vec<String> {
        let packets = |count: u64| format!("{count} packet{}", if count == 1 { "" } else { "s" });
        let least = if self.exact { "" } else { "at least " };
        let mut lines = vec![
            format!("{} captured", packets(self.captured)),
            format!("{least}{} received by filter", packets(self.received_by_filter)),
            format!("{least}{} dropped by kernel", packets(self.dropped_by_kernel)),
            format!("{least}{} dropped on the way", packets(self.dropped_on_the_way)),
        ];
        if self.beyond_count > 0 {
            lines.push(format!("{} left out beyond --count", packets(self.beyond_count)));
        }
        if self.under_way > 0 {
            lines.push(format!("{} still under way at the end", packets(self.under_way)));
        }
        lines
    }
}

/// The end in one word, as in `capture.proto`.
fn reason(end: CaptureEnd) -> &'static str {
    end.as_str_name().trim_start_matches("CAPTURE_END_")
}

/// Reports whether a capture's end was asked for. `timed` says whether a time limit was.
pub(super) fn was_asked_for(end: CaptureEnd, timed: bool) -> bool {
    match end {
        CaptureEnd::Packets | CaptureEnd::Bytes => true,
        CaptureEnd::Duration => timed,
        CaptureEnd::Unspecified
        | CaptureEnd::InterfaceGone
        | CaptureEnd::ContainerEnded
        | CaptureEnd::Draining => false,
    }
}
