//! Prints verdicts as tables, with one line per container or one per namespace.

use super::{
    report::{ContainerReport, EvidenceReport, IdReport, NamespaceReport, PodReport, Summary},
    table::{Cell, Table, Tone, escape},
};

/// The columns for namespaces.
const KINDS: [&str; 8] = ["ipc", "net", "uts", "pid", "mnt", "user", "cgroup", "time"];
/// The number of columns that fit a terminal of 80 columns. `wide` shows the others too, and the
/// verdict covers all of them.
const NARROW: usize = 6;

/// One line per container. `namespaces` adds the pods' namespaces. `wide` adds ids, node and
/// evidence.
pub(super) fn list(pods: &[PodReport], namespaces: bool, wide: bool, colour: bool) -> String {
    let mut header = Vec::new();
    if namespaces {
        header.push("NAMESPACE");
    }
    let kinds = KINDS.iter().take(if wide { KINDS.len() } else { NARROW });
    let titles: Vec<String> = kinds.clone().map(|kind| kind.to_ascii_uppercase()).collect();
    header.extend(["POD", "CONTAINER", "VERDICT"]);
    header.extend(titles.iter().map(String::as_str));
    if wide {
        header.extend(["NODE", "KIND", "HOST-PID", "CONTAINER-ID", "EVIDENCE"]);
    }
    let mut table = Table::new(&header);
    for pod in pods {
        for container in &pod.containers {
            let mut row: Vec<Cell> = Vec::new();
            if namespaces {
                row.push((&pod.namespace).into());
            }
            row.extend([
                Cell::from(&pod.name),
                Cell::from(&container.container.name),
                verdict(container.verdict),
            ]);
            for kind in kinds.clone() {
                let found = container.namespaces.iter().find(|namespace| namespace.kind == *kind);
                row.push(found.map_or_else(|| "-".into(), |namespace| sharing(namespace, wide)));
            }
            if wide {
                let pid = container
                    .container
                    .host_pid
                    .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
                row.extend([
                    Cell::from(&pod.node),
                    Cell::from(container.container.kind),
                    Cell::from(pid),
                ]);
                row.extend([
                    Cell::from(short_id(&container.container.container_id)),
                    Cell::from(all_evidence(container)),
                ]);
            }
            table.row(row);
        }
    }
    table.render(colour)
}

/// Every namespace of every container of one pod.
pub(super) fn detail(pod: &PodReport, wide: bool, colour: bool) -> String {
    let mut out = format!("pod {}/{} on node {}\n", pod.namespace, pod.name, pod.node);
    for container in &pod.containers {
        out.push('\n');
        out.push_str(&container_detail(container, wide, colour));
    }
    out
}

/// Every namespace of one container, below a line that names the container.
pub(super) fn container_detail(container: &ContainerReport, wide: bool, colour: bool) -> String {
    let (word, tone) = (container.verdict, tone(container.verdict));
    let name = escape(&container.container.name);
    let mut out =
        format!("container {name}: {}, {}\n", tone.paint(word, colour), compared_with(container));
    if word != "OK" {
        for line in [&container.reason, &container.message] {
            if !line.is_empty() {
                out.push_str(&format!("  {}\n", escape(line)));
            }
        }
    }
    if wide {
        let process = &container.container;
        let pid =
            |pid: Option<u32>| pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
        out.push_str(&format!(
            "  {}, pid {} on the node, pid {} inside, {}\n",
            process.kind,
            pid(process.host_pid),
            pid(process.ns_pid),
            escape(&process.container_id)
        ));
    }
    if container.namespaces.is_empty() {
        return out;
    }
    let mut header = vec!["NAMESPACE", "ACTUAL", "EXPECTED", "ID"];
    if wide {
        header.extend(["REFERENCE", "HOST", "DEV", "EVIDENCE"]);
    }
    header.push("BECAUSE");
    let mut table = Table::new(&header);
    for namespace in &container.namespaces {
        let inode = |id: Option<IdReport>| {
            Cell::from(id.map_or_else(|| "-".to_owned(), |id| id.inode.to_string()))
        };
        let expected = namespace.expected.join("|");
        let mut row = vec![
            namespace.kind.into(),
            sharing(namespace, false),
            Cell::from(expected),
            inode(namespace.id),
        ];
        if wide {
            let dev = namespace.id.map_or_else(|| "-".to_owned(), |id| id.dev.to_string());
            let seen = namespace.evidence.as_ref().map_or_else(|| "-".to_owned(), evidence);
            row.extend([
                inode(namespace.reference_id),
                inode(namespace.host_id),
                dev.into(),
                seen.into(),
            ]);
        }
        row.push(Cell::from(because(namespace)));
        table.row(row);
    }
    out + &table.render(colour)
}

/// Text such as `2 pods, 3 containers: 2 OK, 1 DRIFT`. It omits zero counts, except for OK.
pub(super) fn summary(summary: Summary) -> String {
    let plural =
        |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let mut counts = vec![format!("{} OK", summary.ok)];
    for (count, word) in [(summary.drift, "DRIFT"), (summary.unknown, "UNKNOWN")] {
        if count > 0 {
            counts.push(format!("{count} {word}"));
        }
    }
    let (pods, containers) = (plural(summary.pods, "pod"), plural(summary.containers, "container"));
    format!("{pods}, {containers}: {}", counts.join(", "))
}

/// The verdict and one sentence for each container that is not OK.
pub(super) fn complaints(pods: &[PodReport]) -> impl Iterator<Item = (&'static str, Tone, String)> {
    let each =
        pods.iter().flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)));
    each.filter(|(_, container)| container.verdict != "OK").map(|(pod, container)| {
        let said =
            if container.message.is_empty() { &container.reason } else { &container.message };
        let line = format!("{}/{} {}: {said}", pod.namespace, pod.name, container.container.name);
        (container.verdict, tone(container.verdict), line)
    })
}

/// A verdict's word in its colour.
pub(super) fn verdict(word: &str) -> Cell {
    Cell::toned(word, tone(word))
}

fn tone(verdict: &str) -> Tone {
    match verdict {
        "OK" => Tone::Good,
        "DRIFT" => Tone::Bad,
        _ => Tone::Doubtful,
    }
}

fn sharing(namespace: &NamespaceReport, with_id: bool) -> Cell {
    let id =
        namespace.id.filter(|_| with_id).map(|id| format!(":{}", id.inode)).unwrap_or_default();
    let (mark, tone) = match namespace.verdict {
        "OK" => ("", Tone::Plain),
        "DRIFT" => ("!", Tone::Bad),
        _ => ("?", Tone::Doubtful),
    };
    Cell::toned(&format!("{}{mark}{id}", namespace.actual), tone)
}

/// A container id shortened to the 13 characters that runtimes' own tools accept.
fn short_id(id: &str) -> String {
    if id.is_empty() {
        return "-".to_owned();
    }
    let (scheme, id) = id.split_once("://").unwrap_or(("", id));
    let id: String = id.chars().take(13).collect();
    if scheme.is_empty() { id } else { format!("{scheme}://{id}") }
}

fn compared_with(container: &ContainerReport) -> String {
    let Some(reference) = &container.reference else { return "compared with nothing".to_owned() };
    let name =
        reference.container.as_ref().map(|container| escape(&container.name)).unwrap_or_default();
    match reference.kind {
        "target" => format!("compared with its target, container {name}"),
        "sandbox" => "compared with the pod's sandbox".to_owned(),
        "peer" => format!("compared with container {name}"),
        _ => "compared with the host only".to_owned(),
    }
}

fn because(namespace: &NamespaceReport) -> String {
    let foreign = match namespace.foreign_containers {
        0 => {
            return if namespace.because.is_empty() {
                "-".to_owned()
            } else {
                namespace.because.clone()
            };
        }
        1 => "1 container that should not be is in it too".to_owned(),
        count => format!("{count} containers that should not be are in it too"),
    };
    if namespace.because.is_empty() { foreign } else { format!("{}; {foreign}", namespace.because) }
}

fn all_evidence(container: &ContainerReport) -> String {
    let seen = container
        .namespaces
        .iter()
        .filter_map(|namespace| namespace.evidence.as_ref().map(evidence));
    let seen: Vec<String> = seen.filter(|seen| seen != "-").collect();
    if seen.is_empty() { "-".to_owned() } else { seen.join("; ") }
}

fn evidence(evidence: &EvidenceReport) -> String {
    match evidence {
        EvidenceReport::Uts { hostname } => format!("hostname {hostname}"),
        EvidenceReport::Net { cookie, interfaces, interface_count } => {
            let shown =
                interfaces.iter().take(4).map(|interface| match interface.addresses.first() {
                    Some(address) => format!("{} {address}", interface.name),
                    None => interface.name.clone(),
                });
            let mut parts: Vec<String> = shown.collect();
            let more =
                usize::try_from(*interface_count).unwrap_or(usize::MAX).saturating_sub(parts.len());
            if more > 0 {
                parts.push(format!("{more} more"));
            }
            if cookie != "0" {
                parts.push(format!("cookie {cookie}"));
            }
            parts.join(", ")
        }
        EvidenceReport::Ipc { shared_memory_ids, semaphore_ids, message_queue_ids } => {
            let counts =
                [(shared_memory_ids, "shm"), (semaphore_ids, "sem"), (message_queue_ids, "msg")];
            let parts = counts.iter().filter(|(ids, _)| !ids.is_empty()).map(|(ids, what)| {
                let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
                format!("{what} {}", ids.join(","))
            });
            let parts: Vec<String> = parts.collect();
            if parts.is_empty() { "no ipc objects".to_owned() } else { parts.join(" ") }
        }
        EvidenceReport::Pid { reference_seen_from_container, container_seen_from_reference } => {
            let seen =
                |pid: u32| if pid == 0 { "not seen".to_owned() } else { format!("pid {pid}") };
            format!(
                "reference from inside: {}, container from reference: {}",
                seen(*reference_seen_from_container),
                seen(*container_seen_from_reference)
            )
        }
    }
}
