//! From `/proc/<pid>/cgroup` to the containers a process is in.
//!
//! A process belongs to every container whose id is *exactly* one component of its cgroup path, in
//! one of the shapes that runtimes use. A substring never counts, and a runtime's monitor
//! (`crio-conmon-<id>.scope`) is not its container.

/// Length of a container id: SHA-256 in hex.
const ID_LENGTH: usize = 64;

/// Whether `text` is a container id: 64 lower-case hex digits.
pub fn is_container_id(text: &str) -> bool {
    text.len() == ID_LENGTH
        && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A container that a cgroup path leads into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership<'a> {
    /// The runtime's id, 64 hex digits.
    pub id: &'a str,
    /// UID of the pod, with `_` for `-` where the systemd driver wrote it so. None for a container
    /// of no pod.
    pub pod_uid: Option<&'a str>,
}

/// The whole identity of a container on a node. The id alone is none: it is read from a pod's
/// status, and the author of another pod may have written it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContainerCgroup<'a> {
    /// The name that the kubelet gives to the cgroup of the pod, [`super::pod::Pod::cgroup_uid`].
    pub pod: &'a str,
    /// The runtime's id of the container.
    pub id: &'a str,
}

impl Membership<'_> {
    /// Whether it is this container of this pod.
    pub fn is(&self, wanted: ContainerCgroup<'_>) -> bool {
        self.id == wanted.id && self.is_of_pod(wanted.pod)
    }

    /// Whether the cgroup path names this pod.
    pub fn is_of_pod(&self, uid: &str) -> bool {
        self.pod_uid.is_some_and(|found| {
            found.len() == uid.len()
                && found.bytes().zip(uid.bytes()).all(|(a, b)| a == b || (a == b'_' && b == b'-'))
        })
    }
}

/// The containers that a process is in, outermost first, from the whole text of its
/// `/proc/<pid>/cgroup`.
///
/// A process may be in several, as a container may run in a container. The lines, one for each
/// hierarchy, repeat each other; the first line that names a container is taken.
///
/// A reader in a cgroup namespace of its own sees paths relative to its own cgroup, so those of its
/// own pod name no pod: `/../<id>`. They count for `own_pod`.
pub fn memberships<'a>(
    text: &'a str,
    own_pod: Option<&'a str>,
) -> impl Iterator<Item = Membership<'a>> {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let of_path = move |path: &'a str| {
        let default = own_pod.filter(|_| path.starts_with("/.."));
        containers_of_path(path).map(move |m| Membership { pod_uid: m.pod_uid.or(default), ..m })
    };
    paths
        .map(of_path)
        .find_map(|containers| {
            let mut containers = containers.peekable();
            containers.peek().is_some().then_some(containers)
        })
        .into_iter()
        .flatten()
}

/// Whether the host runs cgroup v2 only, from the text of any process' `/proc/<pid>/cgroup`: no v1
/// controller is listed that runtimes use.
/// <https://man7.org/linux/man-pages/man7/cgroups.7.html>
pub fn is_unified(text: &str) -> bool {
    !text.lines().filter_map(|line| line.split(':').nth(1)).any(|controllers| {
        controllers
            .split(',')
            .any(|c| matches!(c, "memory" | "pids" | "cpu" | "devices" | "freezer"))
    })
}

/// The containers named by the components of one path, outermost first.
fn containers_of_path(path: &str) -> impl Iterator<Item = Membership<'_>> {
    let mut pod_uid = None;
    path.split('/').filter_map(move |component| {
        // A driver mismatch joins slice, prefix and id by colons:
        // `kubepods-pod<uid>.slice:cri-containerd:<id>`.
        let mut parts = component.rsplitn(3, ':');
        let last = parts.next().unwrap_or_default();
        let slice = parts.last().unwrap_or(component);
        // The outermost pod: what is below a container is the container's own to name.
        pod_uid = pod_uid.or(pod_of_component(slice));
        id_of_component(last).map(|id| Membership { id, pod_uid })
    })
}

/// The container id in `cri-containerd-<id>.scope`, `crio-<id>.scope`, `docker-<id>.scope`,
/// `libpod-<id>.scope` or `<id>`.
fn id_of_component(component: &str) -> Option<&str> {
    let id = match component.strip_suffix(".scope") {
        Some(scope) => ["cri-containerd-", "crio-", "docker-", "libpod-"]
            .iter()
            .find_map(|p| scope.strip_prefix(p))?,
        // CRI-O with the cgroupfs driver.
        None => component.strip_prefix("crio-").unwrap_or(component),
    };
    is_container_id(id).then_some(id)
}

/// The pod UID in `pod<uid>`, `kubepods-pod<uid_>.slice` or `kubepods-besteffort-pod<uid_>.slice`,
/// the latter also below a prefix of its own (`kubelet-kubepods-…`).
fn pod_of_component(component: &str) -> Option<&str> {
    let uid = match component.strip_prefix("pod") {
        Some(uid) => uid,
        None => component.strip_suffix(".slice")?.split_once("kubepods")?.1.rsplit_once("-pod")?.1,
    };
    // A UUID, or the hash of a static pod's file: `podman` and `podsonde-1` name no pod.
    let plausible = |b: u8| b.is_ascii_hexdigit() || matches!(b, b'-' | b'_');
    (matches!(uid.len(), 32 | 36) && uid.bytes().all(plausible)).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "1b2c3d4e-0000-4000-8000-00000000abcd";

    fn first(text: &str) -> Option<(String, Option<bool>)> {
        memberships(text, None)
            .last()
            .map(|m| (m.id.to_owned(), m.pod_uid.map(|_| m.is_of_pod(UID))))
    }

    #[test]
    fn shapes_of_real_runtimes() {
        let u = UID.replace('-', "_");
        let of_pod = [
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{u}.slice/cri-containerd-{ID}.scope"
            ),
            format!("0::/kubepods.slice/kubepods-pod{u}.slice/cri-containerd-{ID}.scope"),
            format!("0::/kubepods.slice/kubepods-pod{u}.slice/crio-{ID}.scope"),
            format!("0::/kubepods.slice/kubepods-pod{u}.slice/crio-{ID}.scope/container"),
            format!(
                "12:pids:/kubepods/besteffort/pod{UID}/{ID}\n11:memory:/kubepods/besteffort/pod{UID}/{ID}"
            ),
            format!("0::/kubepods/besteffort/pod{UID}/{ID}"),
            format!("9:name=systemd:/\n1:cpu:/\n0::/kubepods/besteffort/pod{UID}/{ID}"),
            format!("0::/kubepods/pod{UID}/crio-{ID}"),
            format!("0::/kubepods.slice/kubepods-pod{u}.slice/docker-{ID}.scope"),
            format!(
                "11:devices:/system.slice/containerd.service/kubepods-pod{u}.slice:cri-containerd:{ID}"
            ),
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{u}.slice/cri-containerd-{ID}.scope"
            ),
            format!("0::/../../kubepods-besteffort-pod{u}.slice/cri-containerd-{ID}.scope"),
        ];
        for text in of_pod {
            assert_eq!(first(&text), Some((ID.to_owned(), Some(true))), "{text}");
        }
        assert_eq!(first(&format!("4:memory:/../{ID}")), Some((ID.to_owned(), None)));
    }

    #[test]
    fn what_is_not_a_container() {
        let none = [
            format!("0::/kubepods.slice/crio-conmon-{ID}.scope"),
            format!("0::/kubepods.slice/x{ID}"),
            format!("0::/kubepods.slice/{ID}0"),
            format!("0::/kubepods.slice/cri-containerd-{ID}"),
            format!("0::/{}", ID.to_uppercase()),
            format!("0::/{ID}.scope"),
            "0::/".into(),
            String::new(),
            "garbage".into(),
            "::".into(),
            "0::/pod/kubepods-pod.slice/:::/-pod".into(),
        ];
        for text in none {
            assert_eq!(first(&text), None, "{text}");
        }
    }

    #[test]
    fn what_only_begins_like_a_pod_is_none() {
        let text = format!("0::/podsonde-9a24de00/kubepods/besteffort/pod{UID}/{ID}");
        assert!(memberships(&text, None).any(|m| m.is(ContainerCgroup { pod: UID, id: ID })));
    }

    #[test]
    fn nested_containers_are_all_named() {
        let inner = ID.replace('0', "f");
        let text = format!("0::/docker/{ID}/kubelet/kubepods/pod{UID}/{inner}");
        let found: Vec<_> = memberships(&text, None).map(|m| (m.id, m.is_of_pod(UID))).collect();
        assert_eq!(found, [(ID, false), (inner.as_str(), true)]);
    }

    #[test]
    fn a_container_cannot_pass_for_one_of_another_pod() {
        let (own, other) = (ID.replace('0', "e"), UID.replace('1', "2"));
        for below in
            [ID.to_owned(), format!("pod{UID}/{ID}"), format!("kubepods-pod{UID}.slice/{ID}")]
        {
            let text = format!("0::/kubepods/pod{other}/{own}/{below}");
            assert!(
                !memberships(&text, None).any(|m| m.is(ContainerCgroup { pod: UID, id: ID })),
                "{text}"
            );
        }
        let text = format!("0::/kubepods/pod{UID}/{ID}/nested");
        assert!(memberships(&text, None).any(|m| m.is(ContainerCgroup { pod: UID, id: ID })));
        assert!(
            memberships(&format!("0::/../{ID}"), Some(UID))
                .any(|m| m.is(ContainerCgroup { pod: UID, id: ID }))
        );
    }

    #[test]
    fn a_path_that_names_no_pod_is_of_the_readers_pod_or_of_none() {
        let own = UID.replace('1', "2");
        let of = |text: &str, own_pod: Option<&str>, pod: &str| {
            memberships(text, own_pod).any(|m| m.is(ContainerCgroup { pod, id: ID }))
        };
        for text in [format!("0::/../{ID}"), format!("0::/../cri-containerd-{ID}.scope")] {
            assert!(of(&text, Some(&own), &own) && !of(&text, Some(&own), UID), "{text}");
            assert!(!of(&text, None, &own) && !of(&text, None, UID), "{text}");
        }
        let docker = format!("0::/docker/{ID}");
        assert!(!of(&docker, Some(&own), &own) && !of(&docker, Some(&own), UID));
        let other = format!("0::/../../pod{UID}/{ID}");
        assert!(of(&other, Some(&own), UID) && !of(&other, Some(&own), &own));
    }

    #[test]
    fn other_pods_do_not_match() {
        let text = format!("0::/kubepods/pod{}/{ID}", UID.replace('1', "2"));
        assert_eq!(first(&text), Some((ID.to_owned(), Some(false))));
    }

    #[test]
    fn unified_or_not() {
        assert!(is_unified("0::/init.scope\n"));
        assert!(!is_unified("4:memory:/\n0::/\n"));
        assert!(!is_unified("2:cpu,cpuacct:/\n"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "[0-9a-f:/.a-z-]{0,300}") {
            for m in memberships(&text, None) {
                assert!(is_container_id(m.id));
            }
        }
    }
}
