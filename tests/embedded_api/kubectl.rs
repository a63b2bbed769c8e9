//! The real `kubectl` against the embedded API server.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Output, Stdio},
    thread,
};

use podsonde::embedded::{Cluster, runtime::PidMode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{Fake, PATIENCE, cluster, get, phase, run, running, state, status, wait, web, within};

/// `kubectl` with a home of its own, for it keeps what it discovered there.
struct Kubectl {
    home: TempDir,
    kubeconfig: String,
}

impl Kubectl {
    fn new(cluster: &Cluster) -> Self {
        let home = TempDir::new().unwrap();
        let kubeconfig = home.path().join("config").to_str().unwrap().to_owned();
        std::fs::write(&kubeconfig, cluster.kubeconfig()).unwrap();
        Self { home, kubeconfig }
    }

    fn arguments(&self, arguments: &[&str]) -> Vec<String> {
        let cache = self.home.path().join("cache");
        let own = ["--kubeconfig", &self.kubeconfig, "--cache-dir", cache.to_str().unwrap()];
        own.iter().chain(arguments).map(|word| (*word).to_owned()).collect()
    }

    async fn output(&self, arguments: &[&str]) -> Output {
        run("kubectl", self.arguments(arguments)).await
    }

    /// Standard output of a command that must succeed.
    async fn ok(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of a command that must fail.
    async fn fails(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        assert!(!output.status.success(), "kubectl {arguments:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_from_creation_to_deletion() {
    let (cluster, runtime) = cluster().await;
    let kubectl = Kubectl::new(&cluster);
    let manifest = kubectl.home.path().join("pod.json");
    let mut pod = web("web");
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    std::fs::write(&manifest, pod.to_string()).unwrap();
    let manifest = manifest.to_str().unwrap();

    assert_eq!(kubectl.ok(&["create", "-f", manifest]).await, "pod/web created\n");
    let error = kubectl.fails(&["create", "-f", manifest]).await;
    assert!(error.contains("pods \"web\" already exists"), "{error}");

    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    assert_eq!(
        kubectl.ok(&["wait", "--for=condition=Ready", &timeout, "pod/web"]).await,
        "pod/web condition met\n"
    );
    let pod: Value =
        serde_json::from_str(&kubectl.ok(&["get", "pod", "web", "-o", "json"]).await).unwrap();
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    assert_eq!(pod["status"]["podIP"], "10.0.0.7");
    assert_eq!(pod["spec"]["restartPolicy"], "Always");
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 30);
    assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    let container = &pod["status"]["containerStatuses"][0];
    assert_eq!(container["ready"], true);
    assert_eq!(container["imageID"], "sha256:nginx:1.27");
    assert!(container["containerID"].as_str().unwrap().starts_with("fake://0000"));

    let names = |selector: &'static [&'static str]| {
        let mut arguments = vec!["get", "pods", "-A", "-o", "name"];
        arguments.extend(selector);
        let kubectl = &kubectl;
        async move { kubectl.ok(&arguments).await }
    };
    assert_eq!(names(&["-l", "app=web"]).await, "pod/web\n");
    assert_eq!(names(&["-l", "app in (web,db),!gone"]).await, "pod/web\n");
    assert_eq!(names(&["-l", "app!=web"]).await, "");
    assert_eq!(names(&["-l", "app notin (web)"]).await, "");
    assert_eq!(
        names(&["--field-selector", "spec.nodeName=node-a,status.phase=Running"]).await,
        "pod/web\n"
    );
    assert_eq!(names(&["--field-selector", "spec.nodeName=node-b"]).await, "");
    let error = kubectl.fails(&["get", "pods", "--field-selector", "spec.color=red"]).await;
    assert!(error.contains("field label not supported: spec.color"), "{error}");

    assert_eq!(kubectl.ok(&["label", "pod", "web", "tier=front"]).await, "pod/web labeled\n");
    assert_eq!(names(&["-l", "tier"]).await, "pod/web\n");
    assert!(kubectl.ok(&["get", "nodes", "-o", "name"]).await.contains("node/node-a"));
    let namespaces = kubectl.ok(&["get", "ns", "-o", "name"]).await;
    assert_eq!(namespaces, "namespace/default\nnamespace/kube-system\nnamespace/podsonde\n");

    let deleted = kubectl.ok(&["delete", "pod", "web", &timeout]).await;
    assert_eq!(deleted.lines().next(), Some("pod \"web\" deleted"));
    let error = kubectl.fails(&["get", "pod", "web"]).await;
    assert!(error.contains("pods \"web\" not found"), "{error}");
    assert_eq!(runtime.removed(), [pod["metadata"]["uid"].as_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn debug_adds_a_container_with_a_target() {
    let (cluster, runtime) = cluster().await;
    let kubectl = Kubectl::new(&cluster);
    cluster.create_pod(web("web")).await.unwrap();
    let pod = wait(&cluster, "web", |pod| running(pod, "web")).await;
    let target = status(&pod, "web").unwrap().container_id.clone().unwrap();

    for name in ["first", "second"] {
        let output = kubectl
            .output(&[
                "debug",
                "web",
                "--image=busybox:1.36",
                "--target=web",
                "-c",
                name,
                "--profile=general",
                "--env=WHO=$(ME)-x",
                "--",
                "sleep",
                "9",
            ])
            .await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        wait(&cluster, "web", |pod| running(pod, name)).await;
    }
    let starts = runtime.starts("second");
    assert_eq!(starts.len(), 1);
    assert_eq!(starts[0].pid, PidMode::Target(target.strip_prefix("fake://").unwrap().to_owned()));
    assert_eq!(starts[0].command, ["sleep", "9"]);
    assert_eq!(starts[0].env, [("WHO".to_owned(), "$(ME)-x".to_owned())]);
    let capabilities = starts[0].security.capabilities.clone().unwrap();
    assert_eq!(capabilities.add.unwrap(), ["SYS_PTRACE"]);
    // kubectl says in its patch that the new one comes last.
    let pod: Value =
        serde_json::from_str(&kubectl.ok(&["get", "pod", "web", "-o", "json"]).await).unwrap();
    let names: Vec<&Value> =
        pod["spec"]["ephemeralContainers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["first", "second"]);

    runtime.exit("first", 3);
    let pod = wait(&cluster, "web", |pod| state(pod, "first").terminated.is_some()).await;
    let ended = state(&pod, "first").terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (3, Some("Error")));
    assert_eq!(phase(&pod), "Running");
    assert_eq!(runtime.starts("first").len(), 1);

    let output =
        kubectl.output(&["debug", "web", "--image=busybox", "--target=nobody", "--", "true"]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("targetContainerName: Not found: \"nobody\""), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_each_change() {
    let (cluster, _runtime) = cluster().await;
    let kubectl = Kubectl::new(&cluster);
    cluster.create_pod(web("web")).await.unwrap();
    wait(&cluster, "web", |pod| running(pod, "web")).await;
    let arguments = kubectl.arguments(&[
        "get",
        "pod",
        "web",
        "-w",
        "-o",
        "jsonpath={.metadata.labels.tier}{\"\\n\"}",
    ]);
    let mut child = Command::new("kubectl").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let (sender, mut lines) = mpsc::channel(16);
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let reader = thread::spawn(move || {
        stdout.lines().map_while(Result::ok).try_for_each(|line| sender.blocking_send(line))
    });
    assert_eq!(within(lines.recv()).await.unwrap(), "");
    for tier in ["front", "back"] {
        kubectl.ok(&["label", "--overwrite", "pod", "web", &format!("tier={tier}")]).await;
        assert_eq!(within(lines.recv()).await.unwrap(), tier);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn https_for_everyone() {
    let cluster = Cluster::builder().https("127.0.0.1:0".parse().unwrap()).start().await.unwrap();
    let namespaces = Kubectl::new(&cluster).ok(&["get", "ns", "-o", "name"]).await;
    assert!(namespaces.contains("namespace/default\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn https_with_a_kubeconfig_and_a_token() {
    let runtime = std::sync::Arc::new(Fake::default());
    let cluster = Cluster::builder()
        .node("node-a", runtime.clone())
        .https("127.0.0.1:0".parse().unwrap())
        .token("s3cret")
        .start()
        .await
        .unwrap();
    let kubectl = Kubectl::new(&cluster);
    assert!(kubectl.ok(&["get", "nodes", "-o", "name"]).await.contains("node/node-a"));
    let (code, answer) = get(&cluster, "/api/v1/nodes").await;
    assert_eq!((code, &answer["reason"]), (401, &json!("Unauthorized")));
    let (code, answer) = get(&cluster, "/readyz").await;
    assert_eq!((code, answer), (200, json!("ok")));

    let pods = kube::Api::<k8s_openapi::api::core::v1::Pod>::default_namespaced(
        cluster.https_client().unwrap(),
    );
    assert_eq!(within(pods.list(&Default::default())).await.unwrap().items.len(), 0);

    // A pod finds the server, trusts it, and is known.
    let mut pod = web("web");
    pod["spec"]["serviceAccountName"] = "web".into();
    cluster.create_pod(pod).await.unwrap();
    wait(&cluster, "web", |pod| running(pod, "web")).await;
    let start = &runtime.starts("web")[0];
    let env: std::collections::HashMap<_, _> = start.env.iter().cloned().collect();
    let server =
        format!("https://{}:{}", env["KUBERNETES_SERVICE_HOST"], env["KUBERNETES_SERVICE_PORT"]);
    assert_eq!(Some(server.clone()), cluster.https_url());
    let mount = &start.mounts[0];
    assert_eq!(
        mount.container_path.to_str(),
        Some("/var/run/secrets/kubernetes.io/serviceaccount")
    );
    let read = |file: &str| std::fs::read_to_string(mount.host_path.join(file)).unwrap();
    assert_eq!(read("namespace"), "default");
    let mut header = tempfile::NamedTempFile::new().unwrap();
    writeln!(header, "Authorization: Bearer {}", read("token")).unwrap();
    let authority = mount.host_path.join("ca.crt");
    let arguments = [
        "--silent",
        "--cacert",
        authority.to_str().unwrap(),
        "--header",
        &format!("@{}", header.path().display()),
        &format!("{server}/api/v1/namespaces/default/pods/web"),
    ];
    let get = async || -> Value {
        let output = run("curl", arguments.map(str::to_owned).to_vec()).await;
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // It may do what RBAC says.
    let answer = get().await;
    assert_eq!((&answer["code"], &answer["reason"]), (&json!(403), &json!("Forbidden")));
    let user = "User \"system:serviceaccount:default:web\" cannot get resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert_eq!(answer["message"], format!("pods \"web\" is forbidden: {user}"));
    for role in [
        json!({
            "kind": "Role", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "reader"},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "resourceNames": ["web"], "verbs": ["get"]}],
        }),
        json!({
            "kind": "RoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "web"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "web"}],
        }),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), role.to_string()).unwrap();
        kubectl.ok(&["apply", "-f", file.path().to_str().unwrap()]).await;
    }
    let answer = get().await;
    assert_eq!(answer["metadata"]["name"], "web");
}
