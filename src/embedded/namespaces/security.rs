//! The program of a container and its privileges: the security context as the kubelet and
//! containerd apply it.

use k8s_openapi::api::core::v1::{Pod, SecurityContext};
use rustix::thread::CapabilitySet;

use super::{create_error, images::Image, plan::ProcessPlan};
use crate::embedded::runtime::{ContainerStart, StartError};

/// containerd's default capabilities.
pub(super) const DEFAULT_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Refuses a container that must not run as root but would. All images here run as root by default.
///
/// # Errors
/// `CreateContainerConfigError` with the kubelet's message.
pub(super) fn check_non_root(pod: &Pod, container: &ContainerStart) -> Result<(), StartError> {
    if container.security.run_as_non_root != Some(true) {
        return Ok(());
    }
    let what = match container.security.run_as_user {
        None => "container has runAsNonRoot and image will run as root",
        Some(0) => "container's runAsUser breaks non-root policy",
        Some(_) => return Ok(()),
    };
    let metadata = &pod.metadata;
    let field = |field: &Option<String>| field.clone().unwrap_or_default();
    let (name, namespace, uid) =
        (field(&metadata.name), field(&metadata.namespace), field(&metadata.uid));
    Err(StartError {
        reason: "CreateContainerConfigError",
        message: format!(
            "{what} (pod: \"{name}_{namespace}({uid})\", container: {})",
            container.name
        ),
    })
}

/// The program of a container, from its spec and its image.
///
/// # Errors
/// If the security context asks for something that does not exist.
pub(super) fn process_plan(
    pod: &Pod,
    container: &ContainerStart,
    image: Image,
    hostname: &str,
) -> Result<ProcessPlan, StartError> {
    let security = &container.security;
    let (entrypoint, arguments) = match (container.command.as_slice(), container.args.as_slice()) {
        ([], []) => (image.entrypoint, image.arguments),
        ([], arguments) => (image.entrypoint, arguments.to_vec()),
        (command, arguments) => (command.to_vec(), arguments.to_vec()),
    };
    let mut env =
        vec![("PATH".to_owned(), PATH.to_owned()), ("HOSTNAME".to_owned(), hostname.to_owned())];
    if container.tty {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    env.retain(|(name, _)| !container.env.iter().any(|(own, _)| own == name));
    env.extend(container.env.iter().cloned());
    let invalid = |text: &String| text.contains('\0');
    let argv = [entrypoint, arguments].concat();
    if argv.iter().any(invalid) || env.iter().any(|(name, value)| invalid(name) || invalid(value)) {
        return Err(create_error("arguments and environment must not contain NUL"));
    }
    let pod_security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let groups = pod_security.map_or(Vec::new(), |security| {
        security.supplemental_groups.iter().flatten().chain(&security.fs_group).copied().collect()
    });
    Ok(ProcessPlan {
        argv,
        env,
        working_dir: container.working_dir.clone().unwrap_or_else(|| "/".to_owned()),
        uid: id(security.run_as_user.unwrap_or(0))?,
        gid: id(security.run_as_group.unwrap_or(0))?,
        groups: groups.into_iter().map(id).collect::<Result<_, _>>()?,
        capabilities: capabilities(security)?,
        no_new_privs: security.allow_privilege_escalation == Some(false),
        stdin: container.stdin || container.tty,
    })
}

fn id(number: i64) -> Result<u32, StartError> {
    u32::try_from(number).map_err(|_| create_error(&format!("{number} is not a user or group id")))
}

/// The bounding set; none means every capability of the runtime.
fn capabilities(security: &SecurityContext) -> Result<Option<u64>, StartError> {
    if security.privileged == Some(true) {
        return Ok(None);
    }
    let wanted = security.capabilities.clone().unwrap_or_default();
    let set = |names: Option<Vec<String>>| {
        names.unwrap_or_default().iter().try_fold(CapabilitySet::empty(), |set, name| {
            let name = name.to_ascii_uppercase();
            let name = name.strip_prefix("CAP_").unwrap_or(&name);
            let one = if name == "ALL" {
                Some(CapabilitySet::all())
            } else {
                CapabilitySet::from_name(name)
            };
            one.map(|one| set | one)
                .ok_or_else(|| create_error(&format!("unknown capability \"CAP_{name}\"")))
        })
    };
    let (add, drop) = (set(wanted.add)?, set(wanted.drop)?);
    // `drop: [ALL]` with `add` leaves only the added ones.
    let kept = if drop == CapabilitySet::all() { add } else { (DEFAULT_CAPABILITIES | add) - drop };
    Ok(Some(kept.bits()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Capabilities;

    use super::*;

    fn kept(add: &[&str], drop: &[&str]) -> Option<u64> {
        let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        let wanted = Some(Capabilities { add: names(add), drop: names(drop) });
        capabilities(&SecurityContext { capabilities: wanted, ..Default::default() }).unwrap()
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_containerd_does() {
        // The value of `grep CapBnd /proc/1/status` in a container of containerd.
        assert_eq!(kept(&[], &[]), Some(0xa804_25fb));
        assert_eq!(kept(&["SYS_PTRACE"], &["ALL"]), Some(1 << 19));
        assert_eq!(
            kept(&["CAP_NET_ADMIN"], &["NET_RAW"]),
            Some((0xa804_25fb | 1 << 12) & !(1 << 13))
        );
    }
}
