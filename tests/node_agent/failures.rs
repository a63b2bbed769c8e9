//! What goes wrong on a real runtime, and what people are told: the reason, what stays behind, what
//! to do.

use serde_json::json;

use crate::fixture::{Fixture, phase, running, sleeping, status, with};

/// One request that fails.
struct Failure {
    name: &'static str,
    args: &'static [&'static str],
    /// All of it is in the error's line.
    error: &'static [&'static str],
    hint: &'static str,
    /// Whether a container's entry is left in the pod's spec.
    entry: bool,
}

const FAILURES: [Failure; 11] = [
    Failure {
        name: "an image that cannot be pulled",
        args: &["web", "--image=registry.test/absent:1", "-c", "absent"],
        error: &["ErrImagePull", "registry.test/absent:1"],
        hint: "check the image's name and the pod's imagePullSecrets; --wait-for-image",
        entry: true,
    },
    Failure {
        name: "an image that is not there and must not be pulled",
        args: &[
            "web",
            "--image=registry.test/absent:1",
            "--image-pull-policy=Never",
            "-c",
            "never",
        ],
        error: &["ErrImageNeverPull", "is not present with pull policy of Never"],
        hint: "check the image's name",
        entry: true,
    },
    Failure {
        name: "an image name that is none",
        args: &["web", "--image=Not_A_Name", "-c", "no-name"],
        error: &["InvalidImageName", "Not_A_Name"],
        hint: "write [REGISTRY/]NAME[:TAG]",
        entry: true,
    },
    Failure {
        name: "a command that is not in the image",
        args: &[
            "web",
            "--image=busybox",
            "--image-pull-policy=IfNotPresent",
            "-c",
            "command",
            "--",
            "no-such-program",
        ],
        error: &["RunContainerError", "no-such-program", "executable file not found in $PATH"],
        hint: "check that the image has that command",
        entry: true,
    },
    Failure {
        name: "an image that runs as root where nothing may",
        args: &[
            "web",
            "--image=busybox",
            "--image-pull-policy=IfNotPresent",
            "-c",
            "root",
            "--profile=restricted",
        ],
        error: &[
            "CreateContainerConfigError",
            "container has runAsNonRoot and image will run as root",
        ],
        hint: "with --profile=restricted the image must not run as root",
        entry: true,
    },
    Failure {
        name: "a target that the pod does not have",
        args: &["web", "--image=busybox", "-c", "no-target", "--target=nope"],
        error: &["nope", "app"],
        hint: "kubectl get pod web -n default",
        entry: false,
    },
    Failure {
        name: "a target that has ended",
        args: &["half", "--image=busybox", "-c", "ended", "--target=done"],
        error: &["done", "does not run", "exited with 7"],
        hint: "kubectl describe pod half -n default",
        entry: false,
    },
    Failure {
        name: "a name that is taken",
        args: &["web", "--image=busybox", "-c", "app"],
        error: &["container of that name"],
        hint: "choose another with -c",
        entry: false,
    },
    Failure {
        name: "a pod that has run to its end",
        args: &["finished", "--image=busybox", "-c", "late"],
        error: &["finished", "has run to its end"],
        hint: "kubectl debug --copy-to",
        entry: false,
    },
    Failure {
        name: "a pod that is not there",
        args: &["nope", "--image=busybox", "-c", "nowhere"],
        error: &["default/nope"],
        hint: "kubectl get pods -n default",
        entry: false,
    },
    Failure {
        name: "a session that never started for want of time",
        args: &[
            "web",
            "--image=registry.test/absent:1",
            "--wait-for-image",
            "--start-timeout=2s",
            "-c",
            "patience",
        ],
        error: &["did not run in time", "registry.test/absent:1"],
        hint: "wait longer with --start-timeout",
        entry: true,
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_is_told_with_its_reason_and_what_to_do() {
    let Some(fixture) = Fixture::start().await else { return };
    let ends = json!({"name": "done", "image": "busybox", "command": ["sh", "-c", "exit 7"]});
    let both = json!([sleeping()["containers"][0], ends]);
    fixture.create("half", json!({"restartPolicy": "Never", "containers": both})).await;
    fixture
        .create("finished", with(json!({"restartPolicy": "Never"}), json!({"containers": [ends]})))
        .await;
    fixture.pod("web", sleeping()).await;
    fixture.wait("finished", |pod| phase(pod) == "Failed").await;
    let ended = |pod: &_| Some(status(pod, "done")?.state.as_ref()?.terminated.is_some());
    fixture.wait("half", |pod| ended(pod) == Some(true) && running(pod, "app").is_some()).await;

    for Failure { name, args, error, hint, entry } in FAILURES {
        let mut command = vec!["debug"];
        command.extend(args);
        let ended = fixture.podsonde(&command).await;
        println!("# {name} ({:.2?})\n{}", ended.took, ended.stderr);
        let ended = ended.expect(1);
        assert_eq!(ended.stdout, "", "{name}: nothing is a result");
        let line = |label: &str| {
            ended.stderr.lines().find(|line| line.starts_with(label)).unwrap_or_default()
        };
        for text in error {
            assert!(line("error: ").contains(text), "{name}: {text:?} is not in: {}", ended.stderr);
        }
        assert!(line("hint: ").contains(hint), "{name}: {}", ended.stderr);
        assert_eq!(
            line("note: ").contains("stays in the pod's spec"),
            entry,
            "{name}: {}",
            ended.stderr
        );

        // What is said to stay does, and nothing else does.
        let container = command[command.iter().position(|word| *word == "-c").expect("-c") + 1];
        let pods = kube::Api::<k8s_openapi::api::core::v1::Pod>::default_namespaced(
            fixture.cluster.client().expect("client"),
        );
        let pod = pods.get_opt(args[0]).await.expect("get").and_then(|pod| pod.spec);
        let entries =
            pod.into_iter().flat_map(|spec| spec.ephemeral_containers.unwrap_or_default());
        assert_eq!(entries.into_iter().any(|c| c.name == container), entry, "{name}");
    }
    // None of them spoils a later one.
    let args = [
        "debug",
        "web",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--target=app",
        "--",
        "sleep",
        "infinity",
    ];
    fixture.podsonde(&args).await.expect(0);
    fixture.end().await;
}
