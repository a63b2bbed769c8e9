//! What the CRI runtime of the node tier asks containerd for, checked without a node: the kubelet's
//! rules that no pod of `tests/node.rs` shows.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, SeccompProfile};
use podsonde::embedded::runtime::{ContainerStart, PidMode};
use serde_json::{Value, json};

use crate::support::cri::{
    api::security_profile::ProfileType,
    config::{cgroup_parents, container, profile, sandbox, seccomp},
    image::Resolved,
};

fn pod(spec: Value, status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u-1"},
        "spec": spec,
        "status": status,
    }))
    .unwrap()
}

#[test]
fn a_sandbox_is_where_its_class_of_service_belongs() {
    for (class, parent) in [
        ("Guaranteed", "/kubepods/podu-1"),
        ("Burstable", "/kubepods/burstable/podu-1"),
        ("BestEffort", "/kubepods/besteffort/podu-1"),
    ] {
        let sandbox =
            sandbox(&pod(json!({"containers": []}), json!({"qosClass": class})), None).unwrap();
        assert_eq!(sandbox.linux.unwrap().cgroup_parent, parent);
        assert!(cgroup_parents("u-1").contains(&parent.to_owned()));
    }
}

#[test]
fn a_privileged_ephemeral_container_is_announced() {
    let ephemeral = json!([{"name": "debug", "securityContext": {"privileged": true}}]);
    let spec = json!({"containers": [{"name": "app"}], "ephemeralContainers": ephemeral});
    let sandbox = sandbox(&pod(spec, json!({})), None).unwrap();
    assert!(sandbox.linux.unwrap().security_context.unwrap().privileged);
}

#[test]
fn a_named_image_user_cannot_be_verified_as_non_root() {
    let start = |security: Value| ContainerStart {
        name: "app".to_owned(),
        attempt: 0,
        image: String::new(),
        pull_policy: String::new(),
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        working_dir: None,
        security: serde_json::from_value(security).unwrap(),
        pid: PidMode::Container,
        mounts: Vec::new(),
        labels: BTreeMap::new(),
        stdin: false,
        tty: false,
    };
    let pod = pod(json!({"containers": []}), json!({}));
    let named = Resolved { username: "www".to_owned(), ..Resolved::default() };
    let error = container(&pod, &start(json!({"runAsNonRoot": true})), &named).unwrap_err();
    assert_eq!(error.reason, "CreateContainerConfigError");
    assert_eq!(
        error.message,
        "container has runAsNonRoot and image has non-numeric user (www), \
         cannot verify user is non-root \
         (pod: \"web_shop(u-1)\", container: app)"
    );
    let config = container(&pod, &start(json!({})), &named).unwrap();
    assert_eq!(config.linux.unwrap().security_context.unwrap().run_as_username, "www");
}

#[test]
fn a_localhost_seccomp_profile_is_below_the_kubelet_s_directory() {
    let chosen = SeccompProfile {
        type_: "Localhost".to_owned(),
        localhost_profile: Some("a/b.json".to_owned()),
    };
    assert_eq!(seccomp(Some(&chosen)).localhost_ref, "/var/lib/kubelet/seccomp/a/b.json");
    assert_eq!(seccomp(None), profile(ProfileType::Unconfined));
}
