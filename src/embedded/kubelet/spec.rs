//! Derives from a pod's spec what the runtime is told to start, as a kubelet does.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, EphemeralContainer, Pod, PodSpec, SecurityContext,
};

use super::HOST_IP;
use crate::embedded::runtime::{ContainerStart, Mount, PidMode, StartError};

/// The values outside the container that its start depends on.
pub(super) struct Context<'a> {
    pub(super) pod: &'a Pod,
    pub(super) pod_ip: Option<IpAddr>,
    /// The API server's address for pods; none if they cannot reach it.
    pub(super) api_server: Option<SocketAddr>,
    /// The host directories of the pod's volumes, by volume name.
    pub(super) volumes: &'a BTreeMap<String, PathBuf>,
    /// The data of a ConfigMap in the pod's namespace; none if it does not exist.
    pub(super) config_map: &'a (dyn Fn(&str) -> Option<BTreeMap<String, String>> + Sync),
}

/// An ephemeral container as an ordinary one, without its target.
pub(super) fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let c = ephemeral.clone();
    Container {
        name: c.name,
        image: c.image,
        command: c.command,
        args: c.args,
        working_dir: c.working_dir,
        env: c.env,
        env_from: c.env_from,
        volume_mounts: c.volume_mounts,
        image_pull_policy: c.image_pull_policy,
        security_context: c.security_context,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        tty: c.tty,
        ..Container::default()
    }
}

/// The parameters of a container. `target` is the id of the container whose pid namespace an
/// ephemeral container shares.
pub(super) fn container_start(
    context: &Context<'_>,
    container: &Container,
    attempt: u32,
    target: Option<String>,
) -> Result<ContainerStart, StartError> {
    let pod = context.pod;
    let spec = pod.spec.as_ref();
    let env = environment(context, container)?;
    let lookup: HashMap<&str, &str> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
        words.iter().flatten().map(|word| expand(word, |name| lookup.get(name).copied())).collect()
    };
    let security = effective_security(spec, container.security_context.as_ref());
    if security.run_as_non_root == Some(true) && security.run_as_user == Some(0) {
        return Err(config_error(format!(
            "container's runAsUser breaks non-root policy (pod: {:?}, container: {})",
            format!("{}_{}({})", name(pod), namespace(pod), uid(pod)),
            container.name
        )));
    }
    Ok(ContainerStart {
        name: container.name.clone(),
        attempt,
        image: container.image.clone().unwrap_or_default(),
        pull_policy: container
            .image_pull_policy
            .clone()
            .unwrap_or_else(|| "IfNotPresent".to_owned()),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
        security,
        pid: pid_mode(spec, target),
        mounts: mounts(context, container)?,
        labels: labels(pod, &container.name),
        stdin: container.stdin == Some(true),
        tty: container.tty == Some(true),
        env,
    })
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn config_error(message: String) -> StartError {
    StartError { reason: "CreateContainerConfigError", message }
}

/// `hostPID` and `shareProcessNamespace` take precedence over a target.
fn pid_mode(spec: Option<&PodSpec>, target: Option<String>) -> PidMode {
    let is = |field: fn(&PodSpec) -> Option<bool>| spec.and_then(field) == Some(true);
    if is(|spec| spec.host_pid) {
        PidMode::Node
    } else if is(|spec| spec.share_process_namespace) {
        PidMode::Pod
    } else {
        target.map_or(PidMode::Container, PidMode::Target)
    }
}

fn labels(pod: &Pod, container: &str) -> BTreeMap<String, String> {
    [
        ("io.kubernetes.container.name", container),
        ("io.kubernetes.pod.name", name(pod)),
        ("io.kubernetes.pod.namespace", namespace(pod)),
        ("io.kubernetes.pod.uid", uid(pod)),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// The container's security context, completed by the pod's.
fn effective_security(spec: Option<&PodSpec>, own: Option<&SecurityContext>) -> SecurityContext {
    let mut own = own.cloned().unwrap_or_default();
    if let Some(pod) = spec.and_then(|spec| spec.security_context.as_ref()) {
        own.run_as_user = own.run_as_user.or(pod.run_as_user);
        own.run_as_group = own.run_as_group.or(pod.run_as_group);
        own.run_as_non_root = own.run_as_non_root.or(pod.run_as_non_root);
        own.se_linux_options = own.se_linux_options.or_else(|| pod.se_linux_options.clone());
        own.seccomp_profile = own.seccomp_profile.or_else(|| pod.seccomp_profile.clone());
        own.app_armor_profile = own.app_armor_profile.or_else(|| pod.app_armor_profile.clone());
    }
    own
}

fn mounts(context: &Context<'_>, container: &Container) -> Result<Vec<Mount>, StartError> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let host = context.volumes.get(&mount.name).ok_or_else(|| {
            config_error(format!(
                "failed to find volume {:?} of container {:?}",
                mount.name, container.name
            ))
        })?;
        let sub_path = Path::new(mount.sub_path.as_deref().unwrap_or_default());
        if sub_path.is_absolute() || sub_path.components().any(|c| c.as_os_str() == "..") {
            return Err(config_error(format!(
                "invalid subPath {:?} of volume {:?}",
                sub_path, mount.name
            )));
        }
        let host_path =
            if sub_path.as_os_str().is_empty() { host.clone() } else { host.join(sub_path) };
        mounts.push(Mount {
            host_path,
            container_path: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only == Some(true),
        });
    }
    Ok(mounts)
}

fn environment(
    context: &Context<'_>,
    container: &Container,
) -> Result<Vec<(String, String)>, StartError> {
    let mut env: Vec<(String, String)> = Vec::new();
    if let Some(address) = context.api_server {
        set(&mut env, "KUBERNETES_SERVICE_HOST", address.ip().to_string());
        set(&mut env, "KUBERNETES_SERVICE_PORT", address.port().to_string());
        set(&mut env, "KUBERNETES_SERVICE_PORT_HTTPS", address.port().to_string());
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(from) = &source.config_map_ref {
            match (context.config_map)(&from.name) {
                Some(data) => {
                    for (key, value) in data {
                        set(&mut env, &format!("{prefix}{key}"), value);
                    }
                }
                None if from.optional == Some(true) => {}
                None => return Err(config_error(format!("configmap {:?} not found", from.name))),
            }
        }
        if let Some(from) = source.secret_ref.as_ref().filter(|from| from.optional != Some(true)) {
            return Err(config_error(format!("secret {:?} not found", from.name)));
        }
    }
    for var in container.env.iter().flatten() {
        let Some(value) = value_of(context, var, &env)? else { continue };
        set(&mut env, &var.name, value);
    }
    Ok(env)
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: String) {
    env.retain(|(known, _)| known != name);
    env.push((name.to_owned(), value));
}

/// The value of a variable; none if an optional reference has no target.
fn value_of(
    context: &Context<'_>,
    var: &EnvVar,
    env: &[(String, String)],
) -> Result<Option<String>, StartError> {
    let Some(from) = &var.value_from else {
        let known = |name: &str| {
            env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
        };
        return Ok(Some(expand(var.value.as_deref().unwrap_or_default(), known)));
    };
    match from {
        EnvVarSource { field_ref: Some(field), .. } => {
            let value = field_value(context.pod, context.pod_ip, &field.field_path);
            value
                .map(Some)
                .ok_or_else(|| config_error(format!("unsupported fieldPath: {}", field.field_path)))
        }
        EnvVarSource { config_map_key_ref: Some(key), .. } => {
            let data = (context.config_map)(&key.name);
            let found = data.as_ref().and_then(|data| data.get(&key.key).cloned());
            match found {
                None if key.optional == Some(true) => Ok(None),
                None if data.is_none() => {
                    Err(config_error(format!("configmap {:?} not found", key.name)))
                }
                None => Err(config_error(format!(
                    "couldn't find key {} in ConfigMap {}/{}",
                    key.key,
                    namespace(context.pod),
                    key.name
                ))),
                found => Ok(found),
            }
        }
        EnvVarSource { secret_key_ref: Some(key), .. } if key.optional == Some(true) => Ok(None),
        EnvVarSource { secret_key_ref: Some(key), .. } => {
            Err(config_error(format!("secret {:?} not found", key.name)))
        }
        _ => Err(config_error(format!("the source of variable {:?} is not supported", var.name))),
    }
}

/// A field of the pod by its path in the downward API; none if the API has no such path.
pub(super) fn field_value(pod: &Pod, pod_ip: Option<IpAddr>, path: &str) -> Option<String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    if let Some((field, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let all = match field {
            "metadata.labels" => &pod.metadata.labels,
            "metadata.annotations" => &pod.metadata.annotations,
            _ => return None,
        };
        return Some(all.as_ref().and_then(|all| all.get(key)).cloned().unwrap_or_default());
    }
    let all = |values: &Option<BTreeMap<String, String>>| {
        let lines: Vec<String> =
            values.iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
        lines.join("\n")
    };
    Some(match path {
        "metadata.name" => text(&pod.metadata.name),
        "metadata.namespace" => text(&pod.metadata.namespace),
        "metadata.uid" => text(&pod.metadata.uid),
        "metadata.labels" => all(&pod.metadata.labels),
        "metadata.annotations" => all(&pod.metadata.annotations),
        "spec.nodeName" => spec.map(|spec| text(&spec.node_name))?,
        "spec.serviceAccountName" => spec.map(|spec| text(&spec.service_account_name))?,
        "status.podIP" | "status.podIPs" => pod_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => HOST_IP.to_string(),
        _ => return None,
    })
}

/// Replaces `$(NAME)` by the variable's value. Unknown names stay, and `$$` becomes `$`.
fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').and_then(|rest| rest.split_once(')'))
        {
            match lookup(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::expand;

    /// The cases of Kubernetes' own `expand_test.go`.
    #[test]
    fn expansion_follows_kubernetes() {
        let lookup = |name: &str| match name {
            "VAR_A" => Some("A"),
            "VAR_B" => Some("B"),
            "VAR_REF" => Some("$(VAR_A)"),
            "VAR_EMPTY" => Some(""),
            _ => None,
        };
        for (input, expected) in [
            ("$(VAR_A)", "A"),
            ("___$(VAR_B)___", "___B___"),
            ("$(VAR_A)-$(VAR_A)", "A-A"),
            ("$(VAR_A)-1", "A-1"),
            ("$(VAR_REF)", "$(VAR_A)"),
            ("$$(VAR_B)_$(VAR_A)", "$(VAR_B)_A"),
            ("$$(VAR_A)_$$(VAR_B)", "$(VAR_A)_$(VAR_B)"),
            ("f000-$$VAR_A", "f000-$VAR_A"),
            ("foo\\$(VAR_C)bar", "foo\\$(VAR_C)bar"),
            ("foo$(VAR_EMPTY)bar", "foobar"),
            ("$VAR_A", "$VAR_A"),
            ("$(VAR_C", "$(VAR_C"),
            ("$", "$"),
            ("$$$$$$$(GOOD_ODDS)", "$$$$(GOOD_ODDS)"),
            ("$?_boo_$!_$(VAR_A)", "$?_boo_$!_A"),
        ] {
            assert_eq!(expand(input, lookup), expected, "{input}");
        }
    }
}
