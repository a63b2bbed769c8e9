//! The real server's rules for pods (`pkg/apis/core/validation` of Kubernetes) that podsonde can
//! break, with its error messages.

use serde_json::Value;

use super::{
    object::{list, text},
    status::FieldError,
};

/// Fields that an ephemeral container cannot have, in the order of the real server's errors.
const FORBIDDEN: [&str; 9] = [
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];
const NOT_FOR_EPHEMERAL: &str = "cannot be set for an Ephemeral Container";

/// The annotation of a mirror pod, which a node makes for a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The errors of a new pod.
pub(crate) fn new_pod(pod: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = text(pod, "/metadata/name");
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else if let Some(why) = subdomain(name) {
        errors.push(FieldError::invalid("metadata.name", &name.into(), why));
    }
    volumes(pod, &mut errors);
    if list(pod, "/spec/containers").is_empty() {
        errors.push(FieldError::required("spec.containers", ""));
    }
    let mut names = Vec::new();
    for field in ["containers", "initContainers"] {
        for (i, c) in list(pod, &format!("/spec/{field}")).iter().enumerate() {
            let path = format!("spec.{field}[{i}]");
            container(c, pod, &path, &mut errors);
            unique_name(c, &path, &mut names, &mut errors);
            if field == "initContainers" {
                supported(c, "restartPolicy", &path, &["Always"], &mut errors);
            }
        }
    }
    if !list(pod, "/spec/ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
    if let Some(spec) = pod.get("spec") {
        supported(spec, "restartPolicy", "spec", &["Always", "OnFailure", "Never"], &mut errors);
    }
    let yes = |pointer: &str| pod.pointer(pointer).and_then(Value::as_bool) == Some(true);
    if yes("/spec/hostPID") && yes("/spec/shareProcessNamespace") {
        errors.push(FieldError::invalid(
            "spec.shareProcessNamespace",
            &Value::Bool(true),
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    errors
}

/// The errors of a change of `spec.ephemeralContainers`. Nothing else in the pod has changed.
pub(crate) fn ephemeral_update(new: &Value, old: &Value) -> Vec<FieldError> {
    if old.pointer("/metadata/annotations").is_some_and(|all| all.get(MIRROR).is_some()) {
        return vec![FieldError::forbidden("", "static pods do not support ephemeral containers")];
    }
    let mut errors = Vec::new();
    let regular = ["/spec/containers", "/spec/initContainers"];
    let mut names: Vec<String> = regular
        .iter()
        .flat_map(|field| list(new, field))
        .map(|c| text(c, "/name").to_owned())
        .collect();
    let targets = names.clone();
    for (i, c) in list(new, "/spec/ephemeralContainers").iter().enumerate() {
        let path = format!("spec.ephemeralContainers[{i}]");
        container(c, new, &path, &mut errors);
        unique_name(c, &path, &mut names, &mut errors);
        let target = text(c, "/targetContainerName");
        if !target.is_empty() && !targets.iter().any(|name| name == target) {
            errors.push(FieldError::not_found(format!("{path}.targetContainerName"), target));
        }
        for field in FORBIDDEN {
            if c.get(field).is_some_and(|value| !unset(field, value)) {
                errors.push(FieldError::forbidden(format!("{path}.{field}"), NOT_FOR_EPHEMERAL));
            }
        }
        for (j, mount) in list(c, "/volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !text(mount, &format!("/{field}")).is_empty() {
                    let path = format!("{path}.volumeMounts[{j}].{field}");
                    errors.push(FieldError::forbidden(path, NOT_FOR_EPHEMERAL));
                }
            }
        }
    }
    for was in list(old, "/spec/ephemeralContainers") {
        let name = text(was, "/name");
        let is = list(new, "/spec/ephemeralContainers").iter().find(|c| text(c, "/name") == name);
        let why = match is {
            None => format!("existing ephemeral containers {name:?} may not be removed\n"),
            Some(is) if is != was => {
                format!(
                    "existing ephemeral containers {name:?} may not be changed\n  -: {was}\n  +: {is}\n"
                )
            }
            Some(_) => continue,
        };
        errors.push(FieldError::forbidden("spec.ephemeralContainers", why));
    }
    errors
}

/// The errors of a change of a pod's spec: only images, tolerations and the active deadline can
/// change.
pub(crate) fn spec_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let frozen = |pod: &Value| {
        let mut spec = pod.get("spec").cloned().unwrap_or_default();
        for field in ["containers", "initContainers"] {
            for c in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
                super::object::remove(c, &["image"]);
            }
        }
        for field in ["tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds"] {
            super::object::remove(&mut spec, &[field]);
        }
        spec
    };
    let (is, was) = (frozen(new), frozen(old));
    if is == was {
        return Vec::new();
    }
    let why = format!(
        "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
         `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
         `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n  -: {was}\n  +: {is}\n"
    );
    vec![FieldError::forbidden("spec", why)]
}

/// Whether the real server takes the value as not set. An empty `resources` is not set; any other
/// value that is present is set.
fn unset(field: &str, value: &Value) -> bool {
    match (field, value) {
        (_, Value::Null) => true,
        ("resources", Value::Object(fields)) => fields.is_empty(),
        _ => false,
    }
}

/// The rules for containers of every kind.
fn container(c: &Value, pod: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let name = text(c, "/name");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    } else {
        label(name, &format!("{path}.name"), errors);
    }
    let image = text(c, "/image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    }
    supported(c, "terminationMessagePolicy", path, &["File", "FallbackToLogsOnError"], errors);
    env(c, path, errors);
    volume_mounts(c, pod, path, errors);
    volume_devices(c, pod, path, errors);
    supported(c, "imagePullPolicy", path, &["Always", "IfNotPresent", "Never"], errors);
    security_context(c, path, errors);
    if image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(format!("{path}.image"), &image.into(), why));
    }
}

fn unique_name(c: &Value, path: &str, names: &mut Vec<String>, errors: &mut Vec<FieldError>) {
    let name = text(c, "/name");
    if names.iter().any(|known| known == name) {
        errors.push(FieldError::duplicate(format!("{path}.name"), name));
    } else {
        names.push(name.to_owned());
    }
}

fn supported(
    object: &Value,
    field: &str,
    path: &str,
    values: &[&str],
    errors: &mut Vec<FieldError>,
) {
    let value = text(object, &format!("/{field}"));
    if !value.is_empty() && !values.contains(&value) {
        errors.push(FieldError::not_supported(format!("{path}.{field}"), value, values));
    }
}

fn env(c: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (i, var) in list(c, "/env").iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        let name = text(var, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !name.chars().all(|c| (' '..='~').contains(&c) && c != '=') {
            let why = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            errors.push(FieldError::invalid(format!("{path}.name"), &name.into(), why));
        }
        if var.get("valueFrom").is_some() && !text(var, "/value").is_empty() {
            let why = "may not be specified when `value` is not empty";
            errors.push(FieldError::invalid(format!("{path}.valueFrom"), &"".into(), why));
        }
    }
}

fn volumes(pod: &Value, errors: &mut Vec<FieldError>) {
    let mut names = Vec::new();
    for (i, volume) in list(pod, "/spec/volumes").iter().enumerate() {
        let path = format!("spec.volumes[{i}].name");
        let name = text(volume, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(path, ""));
            continue;
        }
        label(name, &path, errors);
        if names.contains(&name) {
            errors.push(FieldError::duplicate(path, name));
        }
        names.push(name);
    }
}

fn has_volume(pod: &Value, name: &str) -> bool {
    list(pod, "/spec/volumes").iter().any(|volume| text(volume, "/name") == name)
}

fn volume_mounts(c: &Value, pod: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut paths = Vec::new();
    for (i, mount) in list(c, "/volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        let (name, at) = (text(mount, "/name"), text(mount, "/mountPath"));
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        if !has_volume(pod, name) {
            errors.push(FieldError::not_found(format!("{path}.name"), name));
        }
        if at.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        }
        if paths.contains(&at) {
            errors.push(FieldError::invalid(
                format!("{path}.mountPath"),
                &at.into(),
                "must be unique",
            ));
        }
        paths.push(at);
    }
}

fn volume_devices(c: &Value, pod: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (i, device) in list(c, "/volumeDevices").iter().enumerate() {
        let path = format!("{path}.volumeDevices[{i}]");
        let name = text(device, "/name");
        if has_volume(pod, name) {
            // No supported kind of volume is a block device.
            let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
            errors.push(FieldError::invalid(format!("{path}.name"), &name.into(), why));
        } else {
            errors.push(FieldError::not_found(format!("{path}.name"), name));
        }
        if text(device, "/devicePath").is_empty() {
            errors.push(FieldError::required(format!("{path}.devicePath"), ""));
        }
    }
}

fn security_context(c: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(context) = c.get("securityContext") else { return };
    let path = format!("{path}.securityContext");
    for field in ["runAsUser", "runAsGroup"] {
        if let Some(id) =
            context.get(field).filter(|id| id.as_u64().is_none_or(|id| id > u64::from(u32::MAX)))
        {
            let why = "must be between 0 and 4294967295, inclusive";
            errors.push(FieldError::invalid(format!("{path}.{field}"), id, why));
        }
    }
    let is =
        |field: &str, wanted: bool| context.get(field).and_then(Value::as_bool) == Some(wanted);
    if !is("allowPrivilegeEscalation", false) {
        return;
    }
    if is("privileged", true) {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.push(FieldError::invalid(path.clone(), context, why));
    }
    if list(context, "/capabilities/add").iter().any(|cap| cap == "CAP_SYS_ADMIN") {
        let why =
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        errors.push(FieldError::invalid(path, context, why));
    }
}

fn is_label(name: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !name.is_empty()
        && name.chars().all(|c| alphanumeric(c) || c == '-')
        && name.starts_with(alphanumeric)
        && name.ends_with(alphanumeric)
}

fn label(name: &str, path: &str, errors: &mut Vec<FieldError>) {
    let value = Value::from(name);
    if name.len() > 63 {
        errors.push(FieldError::invalid(path, &value, "must be no more than 63 bytes"));
    }
    if name.split('.').all(is_label) {
        if name.contains('.') {
            errors.push(FieldError::invalid(path, &value, "must not contain dots"));
        }
        return;
    }
    let why = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
               start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
               validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    errors.push(FieldError::invalid(path, &value, why));
}

/// Why the name is not a DNS subdomain; none if it is one.
pub(crate) fn subdomain(name: &str) -> Option<&'static str> {
    if name.len() > 253 {
        return Some("must be no more than 253 bytes");
    }
    if name.split('.').all(is_label) {
        return None;
    }
    Some(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
         start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
    )
}
