//! Whether a container's namespaces are what its pod's spec asks for.
//!
//! The spec says what is wanted ([`expectation`], by the rules of containerd and CRI-O). Ids read
//! from proven processes say what is there. Equality of ids decides.

use std::collections::HashMap;

use super::{
    Reason,
    namespace::{NamespaceId, NamespaceKind, NamespaceSet},
    pod::{Container, ContainerKind, Pod},
};

/// Whose a namespace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// The reference's, and not the host's.
    Shared,
    /// Neither the reference's nor the host's.
    Private,
    /// The host's.
    Host,
}

impl Sharing {
    /// The word people read.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Private => "private",
            Self::Host => "host",
        }
    }
}

/// Whether reality is what the spec asks for, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// As the spec asks.
    Ok,
    /// It cannot be proven either way.
    Unknown,
    /// Not as the spec asks.
    Drift,
}

/// What a container is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceKind {
    /// The container that `targetContainerName` names.
    Target,
    /// The pod's sandbox process.
    Sandbox,
    /// Another container of the pod.
    Peer,
    /// Nothing: the container is alone in its pod.
    None,
}

/// What the spec asks for one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// What it may be.
    pub allowed: &'static [Sharing],
    /// What in the spec asks for it.
    pub because: String,
}

/// What the spec of `container` in `pod` asks of its namespace of `kind`, seen from a reference of
/// the given kind.
///
/// `unified` says whether the host runs cgroup v2 only: there, runtimes give unprivileged
/// containers a cgroup namespace.
pub fn expectation(
    kind: NamespaceKind,
    pod: &Pod,
    container: &Container,
    reference: ReferenceKind,
    unified: bool,
) -> Expectation {
    use Sharing::{Host, Private, Shared};
    let expect = |allowed, because: &str| Expectation { allowed, because: because.to_owned() };
    let of_pod = |what: &str| match reference {
        ReferenceKind::None => expect(&[Private], "alone in its pod"),
        _ => expect(&[Shared], what),
    };
    match kind {
        NamespaceKind::Net if pod.host_network => expect(&[Host], "hostNetwork: true"),
        // containerd gives such a pod the host's namespace, CRI-O one of its own. No `hostUTS`
        // exists to decide it.
        NamespaceKind::Uts if pod.host_network && reference == ReferenceKind::None => {
            expect(&[Host, Private], "hostNetwork: true")
        }
        NamespaceKind::Uts if pod.host_network => expect(&[Host, Shared], "hostNetwork: true"),
        NamespaceKind::Ipc if pod.host_ipc => expect(&[Host], "hostIPC: true"),
        NamespaceKind::Net | NamespaceKind::Uts | NamespaceKind::Ipc => of_pod("the pod's"),
        NamespaceKind::Pid if pod.host_pid => expect(&[Host], "hostPID: true"),
        NamespaceKind::Pid if pod.share_process_namespace => of_pod("shareProcessNamespace: true"),
        NamespaceKind::Pid
            if container.kind == ContainerKind::Ephemeral && !container.target.is_empty() =>
        {
            Expectation {
                allowed: &[Shared],
                because: format!("targetContainerName: {}", container.target),
            }
        }
        NamespaceKind::Pid if container.kind == ContainerKind::Ephemeral => {
            expect(&[Private], "no targetContainerName")
        }
        NamespaceKind::Pid => expect(&[Private], "its own by default"),
        NamespaceKind::Mnt => expect(&[Private], "always its own"),
        NamespaceKind::Cgroup if !unified => expect(&[Host], "the runtime's on cgroup v1"),
        NamespaceKind::Cgroup if container.privileged => expect(&[Host], "privileged: true"),
        NamespaceKind::Cgroup => expect(&[Private], "its own on cgroup v2"),
        NamespaceKind::User if !pod.host_users => of_pod("hostUsers: false"),
        NamespaceKind::User => expect(&[Host], "the host's by default"),
        NamespaceKind::Time => expect(&[Host], "always the host's"),
    }
}

/// Which containers of the node are in which namespace. This finds namespaces that leak from one
/// pod or container into another, which no comparison with a single reference would.
#[derive(Debug, Default)]
pub struct Census<'a>(HashMap<(NamespaceKind, NamespaceId), Vec<(&'a Pod, &'a Container)>>);

impl<'a> Census<'a> {
    /// Adds a container with its namespaces.
    pub fn add(&mut self, pod: &'a Pod, container: &'a Container, namespaces: &NamespaceSet) {
        for key in namespaces.iter() {
            self.0.entry(key).or_default().push((pod, container));
        }
    }

    /// Counts the containers in this namespace of `container` that no spec puts there: those of
    /// other pods and, where the namespace should be the container's own, of its own pod. A debug
    /// container that targets it belongs there.
    pub fn foreign(
        &self,
        pod: &Pod,
        container: &Container,
        kind: NamespaceKind,
        id: NamespaceId,
        own: bool,
    ) -> usize {
        let belongs = |other_pod: &Pod, other: &Container| {
            other_pod.uid == pod.uid
                && (!own
                    || other.name == container.name
                    || kind == NamespaceKind::Pid
                        && (other.target == container.name || container.target == other.name))
        };
        self.0.get(&(kind, id)).map_or(0, |all| all.iter().filter(|(p, c)| !belongs(p, c)).count())
    }
}

/// The verdict on one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceVerdict {
    /// Which kind.
    pub kind: NamespaceKind,
    /// Whose it is. None where the container's id could not be read.
    pub actual: Option<Sharing>,
    /// What the spec asks for.
    pub expected: Expectation,
    /// Whether that is so.
    pub outcome: Outcome,
    /// The container's.
    pub id: Option<NamespaceId>,
    /// The reference's.
    pub reference_id: Option<NamespaceId>,
    /// The host's.
    pub host_id: Option<NamespaceId>,
    /// [`Census::foreign`].
    pub foreign: usize,
}

/// The verdict on one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerVerdict {
    /// The worst of its namespaces.
    pub outcome: Outcome,
    /// For UNKNOWN: why.
    pub reason: Option<Reason>,
    /// One sentence; empty for OK.
    pub message: String,
    /// One per kind the kernel has.
    pub namespaces: Vec<NamespaceVerdict>,
}

impl ContainerVerdict {
    /// Nothing can be said, for this reason.
    pub fn unknown(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Unknown,
            reason: Some(reason),
            message: message.into(),
            namespaces: Vec::new(),
        }
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a Container,
    /// Its namespaces.
    pub own: &'a NamespaceSet,
    /// What it is compared with.
    pub reference_kind: ReferenceKind,
    /// The reference's namespaces; empty without a reference.
    pub reference: &'a NamespaceSet,
    /// The host's namespaces.
    pub host: &'a NamespaceSet,
    /// Whether the host runs cgroup v2 only.
    pub unified: bool,
}

impl Comparison<'_> {
    /// Judges every kind that the kernel has.
    pub fn judge(&self, census: &Census<'_>) -> ContainerVerdict {
        let namespaces: Vec<_> = NamespaceKind::ALL
            .into_iter()
            .filter_map(|kind| self.namespace(kind, census))
            .collect();
        let outcome = namespaces.iter().map(|n| n.outcome).max().unwrap_or(Outcome::Unknown);
        let notable: Vec<_> =
            namespaces.iter().filter(|n| n.outcome == outcome).map(describe).collect();
        ContainerVerdict {
            outcome,
            reason: (outcome == Outcome::Unknown).then_some(Reason::Unreadable),
            message: if outcome == Outcome::Ok { String::new() } else { notable.join("; ") },
            namespaces,
        }
    }

    /// Judges one kind. None where the kernel has none.
    fn namespace(&self, kind: NamespaceKind, census: &Census<'_>) -> Option<NamespaceVerdict> {
        let (id, reference_id, host_id) =
            (self.own.get(kind), self.reference.get(kind), self.host.get(kind));
        if id.is_none() && host_id.is_none() {
            return None;
        }
        let expected =
            expectation(kind, self.pod, self.container, self.reference_kind, self.unified);
        let has_reference = self.reference_kind != ReferenceKind::None;
        // Without the host's id, both "private" and "shared" could really be the host's namespace.
        let actual = match (id, host_id) {
            (Some(id), Some(host)) if id == host => Some(Sharing::Host),
            (Some(id), Some(_)) if has_reference => {
                reference_id.map(|r| if r == id { Sharing::Shared } else { Sharing::Private })
            }
            (Some(_), Some(_)) => Some(Sharing::Private),
            _ => None,
        };
        let foreign = match (id, actual) {
            (Some(id), Some(Sharing::Shared | Sharing::Private)) => {
                let own = expected.allowed == [Sharing::Private] && has_reference;
                census.foreign(self.pod, self.container, kind, id, own)
            }
            _ => 0,
        };
        let outcome = match actual {
            None => Outcome::Unknown,
            Some(actual) if expected.allowed.contains(&actual) && foreign == 0 => Outcome::Ok,
            Some(_) => Outcome::Drift,
        };
        Some(NamespaceVerdict {
            kind,
            actual,
            expected,
            outcome,
            id,
            reference_id,
            host_id,
            foreign,
        })
    }
}

/// What is notable about a namespace that is not OK.
fn describe(verdict: &NamespaceVerdict) -> String {
    let NamespaceVerdict { kind, actual, expected, foreign, .. } = verdict;
    let wanted: Vec<_> = expected.allowed.iter().map(|s| s.as_str()).collect();
    let (wanted, because) = (wanted.join(" or "), &expected.because);
    match actual {
        None => format!("{kind} cannot be read"),
        Some(actual) if !expected.allowed.contains(actual) => {
            format!("{kind} is {}, expected {wanted} ({because})", actual.as_str())
        }
        Some(_) => {
            let s = if *foreign == 1 { "" } else { "s" };
            format!("{kind} is also that of {foreign} container{s} that should not be in it")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::pod::ContainerState;

    fn set(seed: [u64; 8]) -> NamespaceSet {
        let mut inos = seed.into_iter();
        NamespaceSet::from_fn(|_| {
            inos.next().filter(|i| *i != 0).map(|ino| NamespaceId { dev: 4, ino })
        })
    }

    fn container(name: &str, kind: ContainerKind, target: &str) -> Container {
        Container {
            name: name.into(),
            kind,
            image: String::new(),
            privileged: false,
            target: target.into(),
            session: None,
            id: None,
            state: ContainerState::Running,
        }
    }

    fn pod() -> Pod {
        Pod { uid: "u1".into(), host_users: true, ..Pod::default() }
    }

    // ipc net uts pid mnt cgroup user time
    const HOST: [u64; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
    const TARGET: [u64; 8] = [11, 12, 13, 14, 15, 16, 7, 8];
    const WITH_TARGET: [u64; 8] = [11, 12, 13, 14, 25, 26, 7, 8];
    const WITHOUT: [u64; 8] = [11, 12, 13, 24, 25, 26, 7, 8];

    fn judge(
        pod: &Pod,
        c: &Container,
        own: [u64; 8],
        kind: ReferenceKind,
        reference: [u64; 8],
    ) -> ContainerVerdict {
        let (own, reference, host) = (set(own), set(reference), set(HOST));
        Comparison {
            pod,
            container: c,
            own: &own,
            reference_kind: kind,
            reference: &reference,
            host: &host,
            unified: true,
        }
        .judge(&Census::default())
    }

    #[test]
    fn a_honoured_target_is_ok_and_an_ignored_one_drifts() {
        let (pod, debug) = (pod(), container("d", ContainerKind::Ephemeral, "web"));
        let ok = judge(&pod, &debug, WITH_TARGET, ReferenceKind::Target, TARGET);
        assert_eq!((ok.outcome, ok.message.as_str()), (Outcome::Ok, ""));
        let sharing: Vec<_> =
            ok.namespaces.iter().filter_map(|n| n.actual).map(Sharing::as_str).collect();
        assert_eq!(sharing.join(" "), "shared shared shared shared private private host host");
        let ignored = judge(&pod, &debug, WITHOUT, ReferenceKind::Target, TARGET);
        assert_eq!(ignored.outcome, Outcome::Drift);
        assert_eq!(ignored.message, "pid is private, expected shared (targetContainerName: web)");
    }

    #[test]
    fn without_a_target_pid_is_private() {
        let (pod, debug) = (pod(), container("d", ContainerKind::Ephemeral, ""));
        assert_eq!(
            judge(&pod, &debug, WITHOUT, ReferenceKind::Sandbox, TARGET).outcome,
            Outcome::Ok
        );
        assert_eq!(
            judge(&pod, &debug, WITH_TARGET, ReferenceKind::Sandbox, TARGET).outcome,
            Outcome::Drift
        );
    }

    #[test]
    fn the_spec_turns_the_expectation() {
        let regular = container("web", ContainerKind::Regular, "");
        let cases: [(&str, Pod, [u64; 8], Outcome); 8] = [
            (
                "hostNetwork",
                Pod { host_network: true, ..pod() },
                [11, 2, 3, 24, 25, 26, 7, 8],
                Outcome::Ok,
            ),
            (
                "hostNetwork on CRI-O",
                Pod { host_network: true, ..pod() },
                [11, 2, 13, 24, 25, 26, 7, 8],
                Outcome::Ok,
            ),
            ("hostNetwork not given", Pod { host_network: true, ..pod() }, WITHOUT, Outcome::Drift),
            (
                "hostIPC",
                Pod { host_ipc: true, ..pod() },
                [1, 12, 13, 24, 25, 26, 7, 8],
                Outcome::Ok,
            ),
            (
                "hostPID",
                Pod { host_pid: true, ..pod() },
                [11, 12, 13, 4, 25, 26, 7, 8],
                Outcome::Ok,
            ),
            ("share", Pod { share_process_namespace: true, ..pod() }, WITH_TARGET, Outcome::Ok),
            (
                "hostUsers: false, not honoured",
                Pod { host_users: false, ..pod() },
                WITHOUT,
                Outcome::Drift,
            ),
            ("the host's mounts", pod(), [11, 12, 13, 24, 5, 26, 7, 8], Outcome::Drift),
        ];
        for (name, pod, own, outcome) in cases {
            assert_eq!(
                judge(&pod, &regular, own, ReferenceKind::Sandbox, TARGET).outcome,
                outcome,
                "{name}"
            );
        }
    }

    #[test]
    fn cgroup_is_inherited_on_v1_and_when_privileged() {
        let mut c = container("web", ContainerKind::Regular, "");
        let e = |c: &Container, unified| {
            expectation(NamespaceKind::Cgroup, &pod(), c, ReferenceKind::Sandbox, unified)
                .allowed
                .to_vec()
        };
        assert_eq!(e(&c, true), [Sharing::Private]);
        assert_eq!(e(&c, false), [Sharing::Host]);
        c.privileged = true;
        assert_eq!(e(&c, true), [Sharing::Host]);
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_what_the_kernel_lacks_is_left_out() {
        let (pod, c) = (pod(), container("web", ContainerKind::Regular, ""));
        let mut own = WITHOUT;
        own[1] = 0;
        let v = judge(&pod, &c, own, ReferenceKind::Sandbox, TARGET);
        assert_eq!((v.outcome, v.message.as_str()), (Outcome::Unknown, "net cannot be read"));
        let (own, host, none) = (
            set([11, 12, 13, 24, 25, 26, 7, 0]),
            set([1, 2, 3, 4, 5, 6, 7, 0]),
            NamespaceSet::default(),
        );
        let v = Comparison {
            pod: &pod,
            container: &c,
            own: &own,
            reference_kind: ReferenceKind::None,
            reference: &none,
            host: &host,
            unified: true,
        }
        .judge(&Census::default());
        assert_eq!((v.outcome, v.namespaces.len()), (Outcome::Ok, 7));
    }

    #[test]
    fn a_namespace_that_leaks_into_another_pod_drifts() {
        let (ours, theirs) = (pod(), Pod { uid: "u2".into(), ..pod() });
        let c = container("web", ContainerKind::Regular, "");
        let (own, sandbox, host) = (set(WITHOUT), set(TARGET), set(HOST));
        let mut census = Census::default();
        census.add(&ours, &c, &own);
        let comparison = Comparison {
            pod: &ours,
            container: &c,
            own: &own,
            reference_kind: ReferenceKind::Sandbox,
            reference: &sandbox,
            host: &host,
            unified: true,
        };
        assert_eq!(comparison.judge(&census).outcome, Outcome::Ok);
        census.add(&theirs, &c, &set([91, 12, 93, 94, 95, 96, 7, 8]));
        let v = comparison.judge(&census);
        assert_eq!(v.outcome, Outcome::Drift);
        assert_eq!(v.message, "net is also that of 1 container that should not be in it");
    }

    #[test]
    fn within_the_pod_only_a_debug_container_may_enter_the_pid_namespace() {
        let pod = pod();
        let web = container("web", ContainerKind::Regular, "");
        let id = NamespaceId { dev: 4, ino: 24 };
        for (other, foreign) in [("web", 0), ("log", 1)] {
            let debug = container("d", ContainerKind::Ephemeral, other);
            let mut census = Census::default();
            census.add(&pod, &web, &set(WITHOUT));
            census.add(&pod, &debug, &set(WITHOUT));
            assert_eq!(
                census.foreign(&pod, &web, NamespaceKind::Pid, id, true),
                foreign,
                "{other}"
            );
        }
    }
}
