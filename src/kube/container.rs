//! The definition of an ephemeral container, made from a request: kubectl's profiles, its
//! `--custom` merge, or a whole container as the caller gave it; checked field by field before the
//! API server sees it.

use k8s_openapi::api::core::v1::EphemeralContainer;
use serde_json::{Map, Value, json};

use crate::domain::{
    Error, Result,
    debug::{DebugRequest, Definition, Profile, Settings},
    session::{ENV_PREFIX, SessionFacts},
};

/// A JSON object.
type Object = Map<String, Value>;

/// What the API server allows in an ephemeral container.
const ALLOWED: &[&str] = &[
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "envFrom",
    "env",
    "volumeMounts",
    "volumeDevices",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
    "targetContainerName",
];

/// Fields that `kubectl debug --custom` does not allow either, and the target, which the request
/// has a field for.
const NOT_CUSTOM: &[&str] =
    &["name", "command", "image", "lifecycle", "volumeDevices", "targetContainerName"];

/// Whether a debug container may refer to Secrets, ConfigMaps, fields and volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum References {
    /// Yes, as `--allow-references` says.
    Allowed,
    /// No. The kubelet would hand over any Secret of the namespace, whether or not the caller may
    /// read it.
    Refused,
}

/// The container that `request` asks for, with the session's facts in its environment.
///
/// # Errors
/// INVALID_FIELD naming the field of the request, and every field of the container that is not
/// allowed.
pub fn define(
    request: &DebugRequest,
    name: &str,
    facts: &SessionFacts,
    references: References,
) -> Result<Value> {
    let (field, mut container) = match &request.definition {
        Definition::Settings(settings) => ("custom_json", from_settings(settings)?),
        Definition::Whole(json) => ("container_json", whole(json)?),
    };
    check_own_names(field, &container)?;
    if references == References::Refused {
        check_references(field, &container)?;
    }
    container.insert("name".into(), name.into());
    let set = |container: &mut Object, key: &str, value: Option<Value>| {
        if let Some(value) = value {
            container.insert(key.into(), value);
        }
    };
    let target = (!request.target.is_empty()).then(|| request.target.as_str().into());
    set(&mut container, "targetContainerName", target);
    set(&mut container, "imagePullPolicy", request.pull_policy.map(Into::into));
    set(&mut container, "stdin", request.stdin.then_some(true.into()));
    set(&mut container, "tty", request.tty.then_some(true.into()));
    container.entry("terminationMessagePolicy").or_insert_with(|| "File".into());
    // `env: null` is what YAML makes of a bare `env:`.
    let env = container.entry("env").or_insert(Value::Null);
    if env.is_null() {
        *env = json!([]);
    }
    if let Value::Array(env) = env {
        env.extend(
            facts.to_env().into_iter().map(|(name, value)| json!({"name": name, "value": value})),
        );
    }
    let container = Value::Object(container);
    // Checks the types of all fields: the API server's own message would be worse.
    serde_json::from_value::<EphemeralContainer>(container.clone())
        .map_err(|e| Error::invalid(field, e.to_string()))?;
    Ok(container)
}

/// The name in a whole container, if it gives one.
///
/// # Errors
/// As [`define`].
pub fn given_name(definition: &Definition) -> Result<Option<String>> {
    let Definition::Whole(json) = definition else { return Ok(None) };
    Ok(whole(json)?.get("name").and_then(Value::as_str).map(str::to_owned))
}

/// The image in a whole container, if it gives one.
pub fn image_of(json: &str) -> Option<String> {
    whole(json).ok()?.get("image")?.as_str().map(str::to_owned)
}

/// The target in a whole container, if it gives one.
///
/// # Errors
/// As [`define`].
pub fn given_target(definition: &Definition) -> Result<Option<String>> {
    let Definition::Whole(json) = definition else { return Ok(None) };
    Ok(whole(json)?.get("targetContainerName").and_then(Value::as_str).map(str::to_owned))
}

fn from_settings(settings: &Settings) -> Result<Object> {
    let mut container = Object::new();
    container.insert("image".into(), settings.image.as_str().into());
    if !settings.command.is_empty() {
        container.insert("command".into(), settings.command.clone().into());
    }
    if !settings.args.is_empty() {
        container.insert("args".into(), settings.args.clone().into());
    }
    if !settings.env.is_empty() {
        let env = settings.env.iter().map(|(name, value)| json!({"name": name, "value": value}));
        container.insert("env".into(), env.collect());
    }
    if let Some(security) = security_context(settings.profile) {
        container.insert("securityContext".into(), security);
    }
    if !settings.custom.is_empty() {
        let custom = object("custom_json", &settings.custom)?;
        check_fields("custom_json", &custom, |key| {
            ALLOWED.contains(&key) && !NOT_CUSTOM.contains(&key)
        })?;
        merge("custom_json", &mut container, custom)?;
    }
    Ok(container)
}

/// kubectl's profiles: `k8s.io/kubectl/pkg/cmd/debug/profiles.go`.
fn security_context(profile: Profile) -> Option<Value> {
    match profile {
        Profile::General => Some(json!({"capabilities": {"add": ["SYS_PTRACE"]}})),
        Profile::Baseline => None,
        Profile::Restricted => Some(json!({
            "runAsNonRoot": true,
            "capabilities": {"drop": ["ALL"]},
            "allowPrivilegeEscalation": false,
            "seccompProfile": {"type": "RuntimeDefault"},
        })),
        Profile::Netadmin => Some(json!({"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}})),
        Profile::Sysadmin => Some(json!({"privileged": true})),
    }
}

/// A whole container: bare, or the only one of a list, of `ephemeralContainers`, or of an
/// `EphemeralContainers` object as the API server took it until v1.22.
fn whole(json: &str) -> Result<Object> {
    let field = "container_json";
    let one = |list: Vec<Value>| match <[Value; 1]>::try_from(list) {
        Ok([Value::Object(container)]) => Ok(container),
        Ok(_) => Err(Error::invalid(field, "the list's entry is not an object")),
        Err(list) => Err(Error::invalid(
            field,
            format!("holds {} containers; a request makes exactly one", list.len()),
        )),
    };
    let container = match parse(field, json)? {
        Value::Array(list) => one(list)?,
        Value::Object(mut object) => match object.remove("ephemeralContainers") {
            Some(Value::Array(list)) => one(list)?,
            Some(_) => return Err(Error::invalid(field, "ephemeralContainers is not a list")),
            None => object,
        },
        _ => return Err(Error::invalid(field, "is neither a container nor a list of one")),
    };
    check_fields(field, &container, |key| ALLOWED.contains(&key))?;
    match container.get("image") {
        Some(Value::String(image)) if !image.is_empty() => Ok(container),
        _ => Err(Error::invalid(field, "image is required")),
    }
}

fn parse(field: &str, json: &str) -> Result<Value> {
    serde_json::from_str(json).map_err(|e| Error::invalid(field, format!("is not JSON: {e}")))
}

fn object(field: &str, json: &str) -> Result<Object> {
    match parse(field, json)? {
        Value::Object(object) => Ok(object),
        _ => Err(Error::invalid(field, "is not an object")),
    }
}

/// Refuses fields that are not allowed, naming every one of them.
fn check_fields(field: &str, container: &Object, allowed: impl Fn(&str) -> bool) -> Result<()> {
    let mut refused: Vec<String> = container.keys().filter(|key| !allowed(key)).cloned().collect();
    let mounts = container.get("volumeMounts").and_then(Value::as_array);
    for (index, mount) in mounts.into_iter().flatten().enumerate() {
        for key in ["subPath", "subPathExpr"] {
            if mount.get(key).is_some() {
                refused.push(format!("volumeMounts[{index}].{key}"));
            }
        }
    }
    match refused.as_slice() {
        [] => Ok(()),
        [one] => Err(Error::invalid(
            format!("{field}.{one}"),
            "may not be set in an ephemeral container",
        )),
        all => Err(Error::invalid(
            field,
            format!("may not set these in an ephemeral container: {}", all.join(", ")),
        )),
    }
}

/// Refuses what makes the kubelet hand something to the container that its spec does not spell out.
fn check_references(field: &str, container: &Object) -> Result<()> {
    let whole = ["envFrom", "volumeMounts", "volumeDevices"]
        .into_iter()
        .find(|key| container.get(*key).is_some_and(|value| !value.is_null()))
        .map(str::to_owned);
    let env = container.get("env").and_then(Value::as_array).into_iter().flatten();
    let value_from = env
        .enumerate()
        .find(|(_, variable)| variable.get("valueFrom").is_some_and(|v| !v.is_null()));
    let found = whole.or_else(|| value_from.map(|(index, _)| format!("env[{index}].valueFrom")));
    match found {
        Some(found) => Err(Error::invalid(
            format!("{field}.{found}"),
            "this agent lets debug containers neither take values from Secrets, ConfigMaps or \
             fields nor mount volumes; started with --allow-references it does",
        )),
        None => Ok(()),
    }
}

/// Refuses environment variables that would be taken for the session's facts.
fn check_own_names(field: &str, container: &Object) -> Result<()> {
    let env = container.get("env").and_then(Value::as_array).into_iter().flatten();
    for variable in env {
        match variable.get("name").and_then(Value::as_str) {
            Some(name) if name.starts_with(ENV_PREFIX) => {
                let message = format!(
                    "the variable {name} is reserved: names with {ENV_PREFIX} hold the session's \
                     facts"
                );
                return Err(Error::invalid(format!("{field}.env"), message));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Strategic merge of `custom` over `base`, as the API machinery does it for a container: objects
/// are merged, `null` removes, the lists `env` and `volumeMounts` are merged by their key, every
/// other list is replaced.
fn merge(field: &str, base: &mut Object, custom: Object) -> Result<()> {
    for (key, value) in custom {
        if key.starts_with('$') {
            return Err(Error::invalid(
                format!("{field}.{key}"),
                "patch directives are not supported",
            ));
        }
        let merge_key = match key.as_str() {
            "env" => Some("name"),
            "volumeMounts" => Some("mountPath"),
            _ => None,
        };
        match (base.get_mut(&key), value, merge_key) {
            (_, Value::Null, _) => {
                base.remove(&key);
            }
            (Some(Value::Object(old)), Value::Object(new), _) => merge(field, old, new)?,
            (Some(Value::Array(old)), Value::Array(new), Some(id)) => {
                for entry in new {
                    match old.iter_mut().find(|o| o.get(id).is_some() && o.get(id) == entry.get(id))
                    {
                        Some(same) => *same = entry,
                        None => old.push(entry),
                    }
                }
            }
            (_, value, _) => {
                base.insert(key, value);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn facts() -> SessionFacts {
        let at = "2026-01-02T03:04:05Z".parse().unwrap();
        SessionFacts {
            id: "id".into(),
            requested_by: "me".into(),
            created_at: at,
            expires_at: at,
            seal: String::new(),
        }
    }

    fn request(definition: Definition) -> DebugRequest {
        DebugRequest {
            namespace: "default".into(),
            pod: "web".into(),
            pod_uid: String::new(),
            name: None,
            target: "nginx".into(),
            pull_policy: Some("Never"),
            stdin: true,
            tty: false,
            definition,
            ttl: Duration::ZERO,
            start_timeout: Duration::ZERO,
            wait_for_image: false,
        }
    }

    fn settings(profile: Profile, custom: &str) -> Definition {
        Definition::Settings(Box::new(Settings {
            image: "busybox".into(),
            env: vec![("A".into(), "1".into())],
            profile,
            custom: custom.into(),
            ..Settings::default()
        }))
    }

    fn defined(definition: Definition) -> Value {
        define(&request(definition), "d", &facts(), References::Refused).unwrap()
    }

    fn refused(definition: Definition) -> String {
        define(&request(definition), "d", &facts(), References::Refused).unwrap_err().to_string()
    }

    #[test]
    fn settings_make_a_container() {
        let c = defined(settings(Profile::Baseline, ""));
        assert_eq!(
            c,
            json!({
                "name": "d", "image": "busybox", "targetContainerName": "nginx", "imagePullPolicy": "Never", "stdin": true,
                "terminationMessagePolicy": "File",
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "PODSONDE_SESSION_ID", "value": "id"},
                    {"name": "PODSONDE_REQUESTED_BY", "value": "me"},
                    {"name": "PODSONDE_CREATED_AT", "value": "2026-01-02T03:04:05Z"},
                    {"name": "PODSONDE_EXPIRES_AT", "value": "2026-01-02T03:04:05Z"},
                ],
            })
        );
    }

    #[test]
    fn custom_is_merged_as_kubectl_does() {
        let custom = r#"{"env":[{"name":"A","value":"2"},{"name":"B","value":"3"}],"securityContext":{"runAsUser":7,"capabilities":{"add":["X"]}},"args":["a"],"imagePullPolicy":null}"#;
        let c = defined(settings(Profile::General, custom));
        assert_eq!(c["env"][0], json!({"name": "A", "value": "2"}));
        assert_eq!(c["env"][1], json!({"name": "B", "value": "3"}));
        assert_eq!(c["securityContext"], json!({"runAsUser": 7, "capabilities": {"add": ["X"]}}));
        assert_eq!(c["args"], json!(["a"]));
    }

    #[test]
    fn forbidden_fields_are_each_named() {
        for key in [
            "ports",
            "resources",
            "resizePolicy",
            "restartPolicy",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
            "nonsense",
        ] {
            let message = format!("custom_json.{key}: may not be set in an ephemeral container");
            assert_eq!(
                refused(settings(Profile::General, &format!("{{\"{key}\":{{}}}}"))),
                message
            );
            let whole = format!("{{\"image\":\"x\",\"{key}\":{{}}}}");
            assert!(
                refused(Definition::Whole(whole)).starts_with(&format!("container_json.{key}: "))
            );
        }
        for key in NOT_CUSTOM {
            assert!(refused(settings(Profile::General, &format!("{{\"{key}\":1}}"))).contains(key));
        }
        let several = r#"{"ports":[],"lifecycle":{},"volumeMounts":[{"name":"v","mountPath":"/v","subPath":"s"}]}"#;
        let message = refused(settings(Profile::General, several));
        assert!(
            ["ports", "lifecycle", "volumeMounts[0].subPath"].iter().all(|f| message.contains(f)),
            "{message}"
        );
    }

    #[test]
    fn references_are_refused_unless_allowed() {
        let table = [
            (r#""envFrom":[{"secretRef":{"name":"s"}}]"#, "envFrom"),
            (r#""envFrom":[{"configMapRef":{"name":"c"}}]"#, "envFrom"),
            (r#""volumeMounts":[{"name":"v","mountPath":"/v"}]"#, "volumeMounts"),
            (
                r#""env":[{"name":"A","value":"1"},{"name":"B","valueFrom":{"secretKeyRef":{"name":"s","key":"k"}}}]"#,
                "env[1].valueFrom",
            ),
            (
                r#""env":[{"name":"B","valueFrom":{"configMapKeyRef":{"name":"s","key":"k"}}}]"#,
                ".valueFrom",
            ),
            (
                r#""env":[{"name":"B","valueFrom":{"fieldRef":{"fieldPath":"spec.nodeName"}}}]"#,
                ".valueFrom",
            ),
        ];
        for (fields, named) in table {
            let custom = settings(Profile::General, &format!("{{{fields}}}"));
            let whole = Definition::Whole(format!("{{\"image\":\"x\",{fields}}}"));
            for definition in [custom, whole] {
                let allowed = request(definition.clone());
                assert!(define(&allowed, "d", &facts(), References::Allowed).is_ok(), "{fields}");
                let message = refused(definition);
                assert!(message.contains(named), "{fields}: {message}");
                assert!(message.contains("--allow-references"), "{message}");
            }
        }
        let devices = r#"{"image":"x","volumeDevices":[{"name":"v","devicePath":"/dev/v"}]}"#;
        assert!(refused(Definition::Whole(devices.into())).contains("volumeDevices"));
        let none = r#"{"image":"x","envFrom":null,"env":[{"name":"A","valueFrom":null}]}"#;
        defined(Definition::Whole(none.into()));
    }

    #[test]
    fn malformed_json_is_refused_with_its_place() {
        let table = [
            ("{", "is not JSON"),
            ("[]", "is not an object"),
            ("7", "is not an object"),
            (r#"{"env":7}"#, "invalid type"),
            (r#"{"tty":"yes"}"#, "invalid type"),
            (r#"{"$patch":"delete"}"#, "$patch"),
            (r#"{"env":[{"name":"PODSONDE_SESSION_ID","value":"x"}]}"#, "reserved"),
        ];
        for (custom, expected) in table {
            let message = refused(settings(Profile::General, custom));
            assert!(message.contains(expected), "{custom}: {message}");
        }
    }

    #[test]
    fn the_facts_are_there_whatever_env_is() {
        for env in ["", r#","env":null"#, r#","env":[]"#] {
            let c = defined(Definition::Whole(format!("{{\"image\":\"x\"{env}}}")));
            assert_eq!(c["env"].as_array().map(Vec::len), Some(4), "{c}");
        }
    }

    #[test]
    fn a_whole_container_comes_in_four_shapes() {
        let bare = r#"{"name":"n","image":"x","targetContainerName":"t"}"#;
        let list = format!("[{bare}]");
        let spec = format!("{{\"ephemeralContainers\":{list}}}");
        let old = format!(
            "{{\"kind\":\"EphemeralContainers\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"ephemeralContainers\":{list}}}"
        );
        for json in [bare, &list, &spec, &old] {
            let definition = Definition::Whole(json.to_owned());
            assert_eq!(given_name(&definition).unwrap().as_deref(), Some("n"), "{json}");
            assert_eq!(given_target(&definition).unwrap().as_deref(), Some("t"), "{json}");
            assert_eq!(defined(definition)["image"], "x");
        }
        let two = format!("[{bare},{bare}]");
        for (json, expected) in [
            ("[]", "0 containers"),
            (&two, "2 containers"),
            ("{}", "image is required"),
            ("[1]", "not an object"),
        ] {
            assert!(refused(Definition::Whole(json.into())).contains(expected), "{json}");
        }
    }
}
