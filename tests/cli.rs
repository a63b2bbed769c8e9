//! The real binary against a gRPC server with canned answers, over a unix socket, over loopback,
//! and through an API server's port-forward: what people read, what scripts read, exit codes,
//! errors.

// Clippy's exceptions for tests do not reach functions beside them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use podsonde::proto::v1::{DebugCreateRequest, ImagePullPolicy, Profile};
use serde_json::Value;

#[cfg(target_os = "linux")]
#[path = "cli/capture.rs"]
mod capture;
#[cfg(all(feature = "embedded", target_os = "linux"))]
#[path = "cli/capture_cluster.rs"]
mod capture_cluster;
#[path = "cli/fake_agent.rs"]
mod fake_agent;
#[cfg(feature = "embedded")]
#[path = "cli/fake_api.rs"]
mod fake_api;
#[path = "cli/fake_capture.rs"]
mod fake_capture;
#[cfg(target_os = "linux")]
#[path = "cli/fake_files.rs"]
mod fake_files;
#[cfg(target_os = "linux")]
#[path = "cli/files/mod.rs"]
mod files;
#[cfg(feature = "embedded")]
#[path = "cli/cluster.rs"]
mod through_the_api_server;

use fake_agent::FakeAgent;

/// A fake agent and a directory, for one test.
struct Fixture {
    agent: FakeAgent,
    endpoint: String,
    port: u16,
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

/// How a command ended.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Fixture {
    fn new() -> Self {
        Self::with(FakeAgent::default())
    }

    fn with(agent: FakeAgent) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let port = runtime.block_on(agent.serve_tcp());
        let endpoint = format!("http://127.0.0.1:{port}");
        Self { agent, endpoint, port, directory, runtime }
    }

    /// podsonde, led to the fake agent.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = podsonde(self.directory.path());
        command.arg("--agent").arg(&self.endpoint).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().unwrap().into()
    }

    /// What the agent was asked to create.
    fn created(&self) -> DebugCreateRequest {
        self.runtime
            .block_on(async { self.agent.created.lock().await.take() })
            .expect("nothing was created")
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// podsonde in an environment that knows no cluster.
fn podsonde(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podsonde"));
    for variable in [
        "PODSONDE_AGENT",
        "PODSONDE_INSECURE_AGENT",
        "KUBECONFIG",
        "RUST_LOG",
        "NO_COLOR",
        "KUBERNETES_SERVICE_HOST",
    ] {
        command.env_remove(variable);
    }
    command.env("HOME", home).stdin(Stdio::null());
    command
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ended {
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "{text:?} is not in:\n{}", self.stderr);
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

#[test]
fn verify_shows_one_pod_by_namespace() {
    let ended = Fixture::new().run(&["verify", "web"]).expect(0).says("1 pod, 1 container: 1 OK\n");
    assert_eq!(
        ended.stdout,
        "\
pod default/web on node n1

container app: OK, compared with its target, container app
NAMESPACE   ACTUAL    EXPECTED       ID           BECAUSE
ipc         shared    shared         4026532401   the pod's sandbox
net         shared    shared         4026532402   the pod's sandbox
uts         shared    shared         4026532403   the pod's sandbox
pid         shared    shared         4026532404   targetContainerName: app
mnt         private   private        4026532405   always its own
cgroup      private   private|host   4026532406   -
user        host      host           4026531837   hostUsers: true
time        host      host           4026531834   -
"
    );
    assert!(ended.stdout.lines().all(|line| line.len() <= 80));
}

#[test]
fn verify_shows_many_pods_by_container() {
    let fixture = Fixture::new();
    let ended = fixture.run(&["verify", "-A"]).expect(3);
    assert_eq!(
        ended.stdout,
        "\
NAMESPACE   POD     CONTAINER   VERDICT   IPC      NET      UTS      PID        MNT       USER
default     doubt   app         UNKNOWN   -        -        -        -          -         -
default     drift   app         OK        shared   shared   shared   shared     private   host
default     drift   dbg         DRIFT     shared   shared   shared   private!   private   host
default     web     app         OK        shared   shared   shared   shared     private   host
"
    );
    assert_eq!(
        ended.stderr,
        "\
UNKNOWN: default/doubt app: no process of the container was found
DRIFT: default/drift dbg: pid is private, the spec asks for shared
4 pods, 4 containers: 2 OK, 1 DRIFT, 1 UNKNOWN
"
    );

    let names = fixture.run(&["verify", "-A", "-o", "name"]).expect(3);
    assert_eq!((names.stdout.as_str(), names.stderr.as_str()), ("pod/doubt\npod/drift\n", ""));
}

#[test]
fn verify_s_exit_code_is_its_verdict() {
    let fixture = Fixture::new();
    for (arguments, code) in [
        (vec!["verify", "web"], 0),
        (vec!["verify", "pod/web", "pods/web"], 0),
        (vec!["verify", "-l", "app=web"], 0),
        (vec!["verify", "drift"], 3),
        (vec!["verify", "drift", "-c", "app"], 0),
        (vec!["verify", "doubt"], 4),
        (vec!["verify", "done"], 4),
        (vec!["verify", "-l", "app=nothing"], 4),
        (vec!["verify", "web", "nope"], 1),
        (vec!["verify", "drift", "nope"], 3),
        (vec!["verify", "doubt", "nope"], 1),
    ] {
        let ended = fixture.run(&arguments);
        assert_eq!(ended.code, Some(code), "{arguments:?}\n{}", ended.stderr);
    }
}

#[test]
fn verify_wide_has_ids_and_evidence_without_what_a_container_would_do_to_the_terminal() {
    let ended = Fixture::new().run(&["verify", "-l", "app=web", "-o", "wide"]).expect(0);
    for text in [
        "shared:4026532402",
        "4711",
        "containerd://ababababababa ",
        "eth0 10.244.0.7/24",
        "cookie 18446744073709551615",
        "n1",
    ] {
        assert!(ended.stdout.contains(text), "{text} is not in:\n{}", ended.stdout);
    }
    assert!(ended.stdout.contains("hostname web\\u{1b}]0;owned\\u{7}\u{fffd}"), "{}", ended.stdout);
    assert!(!ended.stdout.contains('\u{1b}') && !ended.stdout.contains('\u{7}'));
}

#[test]
fn json_and_yaml_are_one_documented_shape() {
    let fixture = Fixture::new();
    let json = fixture.run(&["verify", "-A", "-o", "json"]).expect(3).json();
    assert_eq!(
        json["summary"],
        serde_json::json!({"pods": 4, "containers": 4, "ok": 2, "drift": 1, "unknown": 1, "errors": 0})
    );
    let pods: Vec<_> = json["pods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| (&pod["name"], &pod["verdict"]))
        .collect();
    assert_eq!(
        format!("{pods:?}"),
        r#"[(String("done"), String("NONE")), (String("doubt"), String("UNKNOWN")), (String("drift"), String("DRIFT")), (String("web"), String("OK"))]"#
    );
    let container = &json["pods"][2]["containers"][1];
    assert_eq!(container["hostPid"], 4711);
    assert_eq!(container["startedAt"], "2023-11-14T22:13:20Z");
    assert_eq!(container["reference"]["kind"], "target");
    assert_eq!(
        container["namespaces"][3],
        serde_json::json!({"kind": "pid", "verdict": "DRIFT", "actual": "private", "expected": ["shared"],
            "id": {"dev": 4, "inode": 4_026_532_404_u64}, "referenceId": {"dev": 4, "inode": 4_026_532_400_u64},
            "hostId": {"dev": 4, "inode": 4_026_531_800_u64}, "because": "targetContainerName: app",
            "foreignContainers": 0})
    );
    assert_eq!(container["namespaces"][1]["evidence"]["cookie"], "18446744073709551615");

    let yaml = fixture.run(&["verify", "-A", "-o", "yaml"]).expect(3).stdout;
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), json);
}

#[test]
fn debug_sends_what_kubectl_debug_s_flags_say() {
    let fixture = Fixture::new();
    fixture.run(&["debug", "web", "--image=busybox"]).expect(0);
    let request = fixture.created();
    assert_eq!((request.image.as_str(), request.profile()), ("busybox", Profile::General));
    assert!(
        !request.stdin && !request.tty && request.command.is_empty() && request.name.is_empty()
    );
    assert_eq!(request.start_timeout.unwrap().seconds, 60);
    assert_eq!(request.ttl, None);

    let custom = fixture.file("custom.yaml", "securityContext:\n  runAsUser: 1000\n");
    let arguments = "debug -n shop pod/web -it --image busybox --target app -c dbg --profile netadmin --custom CUSTOM \
        --env A=1 --env B=2,C=3 --image-pull-policy IfNotPresent --ttl 1h30m --start-timeout 5s --wait-for-image --attach=false \
        -- sh -c sleep";
    let arguments: Vec<_> = arguments
        .split_whitespace()
        .map(|word| if word == "CUSTOM" { custom.as_str() } else { word })
        .collect();
    fixture.run(&arguments).expect(0);
    let request = fixture.created();
    let pod = request.pod.clone().unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("shop", "web"));
    assert_eq!((request.target_container.as_str(), request.name.as_str()), ("app", "dbg"));
    assert_eq!(
        (request.profile(), request.image_pull_policy()),
        (Profile::Netadmin, ImagePullPolicy::IfNotPresent)
    );
    assert_eq!(request.custom_json, r#"{"securityContext":{"runAsUser":1000}}"#);
    let env: Vec<_> = request.env.iter().map(|var| format!("{}={}", var.name, var.value)).collect();
    assert_eq!(env, ["A=1", "B=2", "C=3"]);
    assert_eq!((request.command.join(" "), request.args.len()), ("sh -c sleep".to_owned(), 0));
    assert!(request.stdin && request.tty && request.wait_for_image);
    assert_eq!((request.ttl.unwrap().seconds, request.start_timeout.unwrap().seconds), (5400, 5));

    fixture.run(&["debug", "web", "--image=busybox", "--arguments-only", "--", "-l"]).expect(0);
    let request = fixture.created();
    assert_eq!((request.command.len(), request.args), (0, vec!["-l".to_owned()]));

    let container = fixture.file("container.json", r#"[{"name": "dbg", "image": "busybox"}]"#);
    fixture.run(&["debug", "web", "-f", &container]).expect(0);
    let request = fixture.created();
    assert_eq!(request.container_json, r#"[{"image":"busybox","name":"dbg"}]"#);
    assert_eq!((request.image.as_str(), request.profile()), ("", Profile::Unspecified));
}

#[test]
fn debug_shows_the_verdict_and_one_summary_line() {
    let fixture = Fixture::new();
    let ended = fixture.run(&["debug", "drift", "--image=busybox", "-it"]).expect(3);
    assert_eq!(
        ended.stdout,
        "\
container podsonde-x7k2p: DRIFT, compared with its target, container app
  pid is private, the spec asks for shared
NAMESPACE   ACTUAL     EXPECTED       ID           BECAUSE
ipc         shared     shared         4026532401   the pod's sandbox
net         shared     shared         4026532402   the pod's sandbox
uts         shared     shared         4026532403   the pod's sandbox
pid         private!   shared         4026532404   targetContainerName: app
mnt         private    private        4026532405   always its own
cgroup      private    private|host   4026532406   -
user        host       host           4026531837   hostUsers: true
time        host       host           4026531834   -
"
    );
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let endpoint = &fixture.endpoint;
    assert_eq!(lines[0], "looking for the agent of pod default/drift");
    assert_eq!(lines[1], format!("connecting to the agent at {endpoint}"));
    assert_eq!(lines[2], "asking for a debug container in pod default/drift");
    assert_eq!(lines[3], "waiting for container podsonde-x7k2p to run");
    assert_eq!(lines[4], "waiting for container podsonde-x7k2p to run: ContainerCreating");
    assert!(lines[5].starts_with(
        "container podsonde-x7k2p in pod default/drift on node n1 runs, verdict DRIFT ("
    ));
    assert!(lines[5].ends_with("8.3 ms of it the agent's own)"), "{}", lines[5]);
    assert_eq!(lines[6], "podsonde cannot attach to it yet; kubectl can:");
    assert_eq!(lines[7], "  kubectl attach -it drift -c podsonde-x7k2p -n default");
    assert_eq!(
        lines[8],
        "it ends by itself in 40h, or with: podsonde end drift podsonde-x7k2p -n default"
    );
    assert_eq!(lines.len(), 9);

    let quiet = fixture.run(&["debug", "web", "--image=busybox", "-q"]).expect(0);
    assert_eq!(quiet.stderr, "");
    assert!(quiet.stdout.starts_with("container podsonde-x7k2p: OK"));

    let json = fixture.run(&["debug", "web", "--image=busybox", "-o", "json"]).expect(0).json();
    assert_eq!(json["session"]["state"], "Running");
    assert_eq!(json["verification"]["verdict"], "OK");
    assert_eq!(json["agentMilliseconds"], 8.3);

    let exited = fixture.run(&["debug", "brief", "--image=busybox"]).expect(4);
    assert!(exited.stdout.contains("CONTAINER_EXITED"), "{}", exited.stdout);
    exited.says("on node n1 has already exited with code 3, verdict UNKNOWN");
}

#[test]
fn errors_say_what_happened_and_what_to_do() {
    let fixture = Fixture::new();
    let pull = fixture.run(&["debug", "pull", "--image=nope:1", "-q"]).expect(1);
    assert_eq!(
        pull.stderr,
        "\
error: the image nope:1 cannot be pulled: \\u{1b}[2Jnot found
note: the entry of container podsonde-x7k2p stays in the pod's spec; the next try needs another name
hint: check the image's name and the pod's imagePullSecrets; --wait-for-image keeps waiting while the kubelet retries
"
    );
    assert_eq!(pull.stdout, "");
    fixture
        .run(&["debug", "taken", "--image=a", "-c", "dbg"])
        .expect(1)
        .says("hint: a name is taken for as long as");
    fixture
        .run(&["debug", "cut", "--image=a"])
        .expect(1)
        .says("ended its answer without a result")
        .says("note: the entry");
    fixture
        .run(&["verify", "other"])
        .expect(1)
        .says("leave out --agent (and PODSONDE_AGENT)")
        .says("node n2");
    fixture
        .run(&["verify", "nope"])
        .expect(1)
        .says("error: there is no pod default/nope on node n1\nhint: see which");
    fixture.run(&["verify", "plain"]).expect(1).says("error: the agent says: something broke\n");
    fixture.run(&["verify", "a", "b", "c", "web"]).expect(1).says(
        "error: 3 times POD_NOT_FOUND (pod default/a, pod default/b, pod default/c), first: there is no pod default/a on",
    );
    fixture
        .run(&["verify", "stall", "--request-timeout=50ms"])
        .expect(1)
        .says("did not answer within 50ms");
    fixture
        .run(&["end", "web", "none"])
        .expect(1)
        .says("hint: see which there are: podsonde sessions --all -n default");
}

#[test]
fn an_agent_that_is_not_there_is_told_from_one_that_refuses() {
    let fixture = Fixture::new();
    let home = fixture.directory.path();
    let ask = |endpoint: &str| -> Ended {
        podsonde(home)
            .env("PODSONDE_AGENT", endpoint)
            .args(["verify", "web"])
            .output()
            .unwrap()
            .into()
    };
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    ask(&format!("http://127.0.0.1:{port}"))
        .expect(1)
        .says(&format!(
            "cannot connect to the agent at http://127.0.0.1:{port}: Connection refused"
        ))
        .says("hint: see whether the agent runs and listens there");
    ask("unix:///nowhere/agent.sock")
        .expect(1)
        .says("at unix:///nowhere/agent.sock: there is no such socket");
    ask("http://10.0.0.1:7463").expect(2).says("plain http is for this machine only");
    ask(&format!("https://127.0.0.1:{}", fixture.port))
        .expect(1)
        .says("cannot connect to the agent at https://127.0.0.1");
    podsonde_ended(podsonde(home).args(["verify", "web"]))
        .expect(1)
        .says("error: there is no kubeconfig at")
        .says("hint: set KUBECONFIG");
    let empty = fixture.file("empty.yaml", "apiVersion: v1\nkind: Config\n");
    podsonde_ended(podsonde(home).args(["--kubeconfig", &empty, "verify", "web"]))
        .expect(1)
        .says("it has no current context");
}

/// How that command ends.
fn podsonde_ended(command: &mut Command) -> Ended {
    command.output().unwrap().into()
}

#[cfg(unix)]
#[test]
fn a_unix_socket_does_as_well() {
    let fixture = Fixture::new();
    let socket = fixture.directory.path().join("agent.sock");
    fixture.runtime.block_on(fixture.agent.serve_unix(&socket));
    let endpoint = format!("unix://{}", socket.display());
    let ended = podsonde_ended(
        podsonde(fixture.directory.path()).args(["--agent", &endpoint, "verify", "web"]),
    )
    .expect(0);
    assert!(ended.stdout.starts_with("pod default/web on node n1\n"));
}

#[test]
fn usage_errors_end_with_2_before_anybody_is_asked() {
    let fixture = Fixture::new();
    for arguments in [
        "",
        "nonsense",
        "verify",
        "verify web -A",
        "verify --node n1",
        "verify Web",
        "verify deploy/web",
        "verify web -o xml",
        "verify web --request-timeout=soon",
        "verify web -n ../kube-system",
        "debug web",
        "debug --image=a",
        "debug web --image=a -t",
        "debug web --image=a --env nothing",
        "debug web --image=a --profile=root",
        "debug web --image=a --image-pull-policy=Sometimes",
        "debug web --image=a -f b",
        "debug web -f /nonexistent/container.json",
        "debug web --image=a -c Not_A_Name",
        "debug node/n1 --image=a",
        "debug web --image=a sh",
        "end web",
        "end web podsonde-x7k2p --all",
        "node n1",
        "completion tcsh",
    ] {
        let ended = fixture.run(&arguments.split_whitespace().collect::<Vec<_>>());
        assert_eq!(ended.code, Some(2), "{arguments}: {}", ended.stderr);
        assert!(!ended.stderr.is_empty() && ended.stdout.is_empty(), "{arguments}");
    }
    let created = fixture.runtime.block_on(async { fixture.agent.created.lock().await.take() });
    assert_eq!(created, None);
}

#[test]
fn sessions_are_listed_and_ended() {
    let fixture = Fixture::new();
    let ended = fixture.run(&["sessions", "--all"]).expect(0);
    assert_eq!(
        ended.stdout,
        "\
POD   CONTAINER        TARGET   STATUS         AGE   EXPIRES
web   podsonde-x7k2p   app      Running        20h   40h
web   old              app      ExitCode:137   20h   -
"
    );
    let json = fixture.run(&["sessions", "-A", "-o", "json"]).expect(0).json();
    assert_eq!(json["sessions"][0]["requestedBy"], "alice");
    assert_eq!(json["sessions"].as_array().unwrap().len(), 2);
    fixture
        .run(&["sessions", "-n", "empty"])
        .expect(0)
        .says("No sessions found in empty namespace.");

    let end = |arguments: &[&str]| fixture.run(arguments);
    assert_eq!(
        end(&["end", "web", "a"]).expect(0).stdout,
        "session a in pod default/web ended: 1 process\n"
    );
    assert_eq!(
        end(&["end", "pod/web", "gone"]).expect(0).stdout,
        "session gone in pod default/web had already ended\n"
    );
    assert_eq!(
        end(&["end", "web", "stuck", "--grace-period=0"]).expect(1).stdout,
        "session stuck in pod default/web ended in part: 3 processes, 2 of them needed SIGKILL; 1 process could not be ended\n"
    );
    assert_eq!(
        end(&["end", "--all"]).expect(0).stdout,
        "session podsonde-x7k2p in pod default/web ended: 1 process\nsession two in pod default/web ended: 1 process\n"
    );
}

#[test]
fn nodes_and_versions() {
    let fixture = Fixture::new();
    let node = fixture.run(&["node"]).expect(0);
    assert_eq!(
        node.stdout,
        "\
NODE   AGENT   PODS   AGE   MISSING
n1     0.1.0   4      20h   cap-sys-ptrace

FEATURE          AVAILABLE   MESSAGE
host-pid         yes         sees the node's processes
cap-sys-ptrace   no          namespaces of other users cannot be read; add SYS_PTRACE
"
    );
    assert_eq!(
        fixture.run(&["version"]).expect(0).stdout,
        "Client: 0.1.0\nAgent:  0.1.0 (1 node)\n"
    );
    let json = fixture.run(&["version", "-o", "json"]).expect(0).json();
    assert_eq!(json["agents"][0], serde_json::json!({"node": "n1", "version": "0.1.0"}));
    let offline = podsonde_ended(podsonde(fixture.directory.path()).args(["version"])).expect(1);
    assert_eq!(offline.stdout, "Client: 0.1.0\n");
    podsonde_ended(podsonde(fixture.directory.path()).args(["version", "--client"])).expect(0);
}

#[cfg(unix)]
#[test]
fn as_a_plugin_it_calls_itself_kubectl_podsonde() {
    let fixture = Fixture::new();
    let plugin: PathBuf = fixture.directory.path().join("kubectl-podsonde");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_podsonde"), &plugin).unwrap();
    let help = podsonde_ended(Command::new(&plugin).args(["debug", "--help"])).expect(0);
    assert!(help.stdout.contains("Usage: kubectl podsonde debug [OPTIONS]"), "{}", help.stdout);
    let help =
        podsonde_ended(podsonde(fixture.directory.path()).args(["debug", "--help"])).expect(0);
    assert!(help.stdout.contains("Usage: podsonde debug [OPTIONS]"), "{}", help.stdout);
}

#[test]
fn completions_are_what_the_shells_accept() {
    let fixture = Fixture::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = fixture.run(&["completion", shell]).expect(0).stdout;
        assert!(script.contains("podsonde") && script.contains("image-pull-policy"), "{shell}");
        if shell == "bash" && cfg!(unix) {
            let file = fixture.file("completion.bash", &script);
            let complete = format!(
                "source {file} && COMP_WORDS=(podsonde ver) COMP_CWORD=1 && _podsonde podsonde ver podsonde && \
                 echo ${{COMPREPLY[@]}}"
            );
            let bash =
                podsonde_ended(Command::new("bash").args(["--norc", "-c", &complete])).expect(0);
            assert_eq!(bash.stdout, "verify version\n");
        }
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let fixture = Fixture::new();
    for arguments in [
        vec!["verify", "web"],
        vec!["completion", "zsh"],
        vec!["--help"],
        vec!["verify", "web", "-o", "json"],
    ] {
        let mut command = fixture.command(&arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command.stdout(writer).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("error") && !stderr.contains("panic"), "{stderr}");
    }
    // Neither is a stderr that nobody reads, with logs on top.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = fixture.command(&["-vv", "verify", "drift"]).stderr(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let fixture = Fixture::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = fixture.command(&["verify", "web"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("error: cannot write the result: No space left on device"), "{stderr}");
}

#[cfg(target_os = "linux")]
#[test]
fn an_interruption_says_what_stays_behind() {
    use std::io::{BufRead, BufReader};

    let fixture = Fixture::new();
    let mut child = fixture
        .command(&["debug", "stall", "--image=busybox"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.ends_with("ContainerCreating")));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(
        lines.collect::<Vec<_>>(),
        [
            "interrupted: container podsonde-x7k2p stays in the spec of pod default/stall, and runs or still will",
            "hint: end it with: podsonde end stall podsonde-x7k2p -n default"
        ]
    );
}

#[test]
fn logs_go_to_stderr_when_asked_for() {
    let fixture = Fixture::new();
    let log = |arguments: &[&str], filter: Option<&str>| -> Ended {
        let mut command = fixture.command(arguments);
        if let Some(filter) = filter {
            command.env("RUST_LOG", filter);
        }
        podsonde_ended(&mut command).expect(1)
    };
    assert!(!log(&["verify", "nope"], None).stderr.contains("POD_NOT_FOUND"));
    log(&["verify", "nope", "-v"], None).says("DEBUG").says("POD_NOT_FOUND");
    log(&["verify", "nope"], Some("podsonde=debug")).says("POD_NOT_FOUND");
    log(&["verify", "nope"], Some("a=b=c")).says("RUST_LOG is not a filter");
}
