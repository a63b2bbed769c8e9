//! That containers run what they are told, as whom they are told, and fail as on a real node.

use std::fs;

use k8s_openapi::api::core::v1::{Capabilities, Pod, PodSecurityContext, PodSpec, SecurityContext};
use podsonde::embedded::{
    namespaces::{NamespaceOptions, NamespaceRuntime},
    runtime::{ContainerStart, Exit, Mount, PidMode, Runtime as _, Sandbox, StartError, Started},
};
use rustix::process::{Pid, Signal, kill_process, pidfd_send_signal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::*;

/// A runtime with one pod.
struct OnePod {
    runtime: NamespaceRuntime,
    pod: Pod,
    sandbox: Sandbox,
}

impl OnePod {
    async fn new(name: &str) -> Self {
        Self::with(name, options(), |_| {}).await
    }

    async fn with(name: &str, options: NamespaceOptions, spec: impl FnOnce(&mut PodSpec)) -> Self {
        let runtime = NamespaceRuntime::new(options).unwrap();
        let mut pod = pod(name);
        spec(pod.spec.as_mut().unwrap());
        let sandbox = runtime.run_sandbox(&pod).await.unwrap();
        Self { runtime, pod, sandbox }
    }

    async fn start(&self, container: &ContainerStart) -> Result<Started, StartError> {
        self.runtime.start_container(&self.pod, &self.sandbox, container).await
    }

    async fn exit(&self, container: &ContainerStart) -> Exit {
        self.start(container).await.unwrap().exit.await
    }

    /// What starting it fails with: the reason and the message.
    async fn failure(&self, container: &ContainerStart) -> (&'static str, String) {
        match self.start(container).await {
            Ok(started) => panic!("{} started as {}", container.name, started.id),
            Err(error) => (error.reason, error.message),
        }
    }

    /// What a shell script prints in a container, told by way of a file in its root.
    async fn script(&self, script: &str, change: impl FnOnce(&mut ContainerStart)) -> String {
        let mut container =
            shell(&format!("{{ {script}; }} >/tmp/out 2>&1; echo done >/tmp/done; sleep 600"));
        change(&mut container);
        let started = self.start(&container).await.unwrap();
        let root = format!("/proc/{}/root/tmp", View::here().pid(&started.id));
        wait_until(|| fs::metadata(format!("{root}/done")).is_ok_and(|done| done.len() > 0));
        fs::read_to_string(format!("{root}/out")).unwrap()
    }

    async fn remove(self) {
        self.runtime.remove_pod(uid(&self.pod)).await;
        assert_eq!(left_of(uid(&self.pod)), "");
    }
}

#[tokio::test]
async fn the_web_server_answers_from_everywhere() {
    if !root() {
        return;
    }
    let pod = OnePod::new("web").await;
    let web = pod.start(&container("web", "podsonde.dev/demo/web:1")).await.unwrap();
    let pid = View::here().pid(&web.id);
    let inside =
        format!("nsenter -t {pid} -n curl -sf --retry 20 --retry-connrefused --retry-delay 1");
    let page = View::here().run(&format!("{inside} http://127.0.0.1:80/"));
    assert!(page.contains("<h1>It works</h1>"), "{page:?}");
    assert_eq!(page, fs::read_to_string(format!("/proc/{pid}/root/srv/www/index.html")).unwrap());

    let ip = pod.sandbox.ip.unwrap();
    assert_eq!(View::here().run(&format!("curl -sf http://{ip}/index.html")), page);
    // Nothing of the runtime's is open in it: sockets and what its program opened.
    let open = View::here().run(&format!(
        "ls -l /proc/{pid}/fd | grep -vE 'socket:|/dev/null|/var/log/web.log|^total'"
    ));
    assert_eq!(open, "");
    let status =
        View::here().run(&format!("curl -s -o /dev/null -w '%{{http_code}}' http://{ip}/nope"));
    assert_eq!(status, "404");
    let status =
        View::here().run(&format!("curl -s -o /dev/null -w '%{{http_code}}' -d x http://{ip}/"));
    assert_eq!(status, "405");

    let mut stream = pod.runtime.connect(&pod.sandbox, 80).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(&page), "{answer}");
    let refused = pod.runtime.connect(&pod.sandbox, 81).await.err().unwrap();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    let log = fs::read_to_string(format!("/proc/{pid}/root/var/log/web.log")).unwrap();
    assert_eq!(log.lines().count(), 5, "{log}");
    // As distroless as can be: no shell, but a file tree of its own.
    assert!(!fs::exists(format!("/proc/{pid}/root/bin/sh")).unwrap());
    assert!(fs::exists(format!("/proc/{pid}/root/data")).unwrap());
    assert_ne!(
        View::here().run("stat -c %d:%i /"),
        View::here().run(&format!("stat -c %d:%i /proc/{pid}/root/"))
    );
    pod.remove().await;
}

#[tokio::test]
async fn a_port_of_a_host_network_pod_is_the_hosts() {
    if !root() {
        return;
    }
    let pod = OnePod::with("host-network", options(), |spec| spec.host_network = Some(true)).await;
    assert_eq!(pod.sandbox.ip, None);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut stream = pod.runtime.connect(&pod.sandbox, port).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    drop(stream);
    let (mut accepted, _) = listener.accept().unwrap();
    assert_eq!(std::io::read_to_string(&mut accepted).unwrap(), "hello");
    pod.remove().await;
}

#[tokio::test]
async fn programs_that_cannot_be_executed_are_reported_in_runcs_words() {
    if !root() {
        return;
    }
    let pod = OnePod::new("noexec").await;
    for (image, command, expected) in [
        (
            "podsonde.dev/demo/sleep:1",
            Some("nope"),
            r#"exec: "nope": executable file not found in $PATH"#,
        ),
        (
            "podsonde.dev/demo/sleep:1",
            Some("/nope"),
            r#"exec: "/nope": stat /nope: no such file or directory"#,
        ),
        ("podsonde.dev/demo/sleep:1", Some("/etc"), r#"exec: "/etc": is a directory"#),
        ("podsonde.dev/test/noexec", None, r#"exec: "/etc/passwd": permission denied"#),
    ] {
        let mut container = container("c", image);
        container.command = command.map(str::to_owned).into_iter().collect();
        let (reason, message) = pod.failure(&container).await;
        assert_eq!(reason, "RunContainerError");
        assert_eq!(
            message,
            format!(
                "failed to create containerd task: failed to create shim task: OCI runtime create failed: \
                 runc create failed: unable to start container process: {expected}: unknown"
            )
        );
    }
    // A file that is executable, but nothing the kernel can run.
    let script = tempfile::tempdir().unwrap();
    fs::write(script.path().join("run"), "no magic\n").unwrap();
    View::here().run(&format!("chmod 755 {0} {0}/run", script.path().display()));
    let mut no_format = container("c", SLEEP);
    no_format.mounts = vec![mount(script.path(), "/opt", true)];
    no_format.command = vec!["/opt/run".to_owned()];
    let (reason, message) = pod.failure(&no_format).await;
    assert_eq!(reason, "RunContainerError");
    assert!(message.ends_with(": exec /opt/run: exec format error: unknown"), "{message}");
    // Only the sandbox is left of these attempts.
    let uid = uid(&pod.pod);
    let lines = View::here().run(&format!("grep -shE {uid} /proc/[0-9]*/cgroup | sort -u"));
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(lines.contains(&pod.sandbox.id), "{lines}");
    pod.remove().await;
}

fn mount(host: &std::path::Path, inside: &str, read_only: bool) -> Mount {
    Mount { host_path: host.to_owned(), container_path: inside.into(), read_only }
}

#[tokio::test]
async fn exit_codes_are_those_of_the_first_process() {
    if !root() {
        return;
    }
    let pod = OnePod::new("exit").await;
    assert_eq!(pod.exit(&container("c", "podsonde.dev/test/exit0")).await.code, 0);
    assert_eq!(pod.exit(&container("c", "podsonde.dev/test/exit3")).await.code, 3);
    assert_eq!(pod.exit(&shell("exit 42")).await.code, 42);
    // Without stdin a shell has nothing to do; with it, it waits.
    let mut idle = shell("");
    idle.command = vec!["sh".to_owned()];
    assert_eq!(pod.exit(&idle).await.code, 0);
    idle.stdin = true;
    for (container, signal, code) in [
        (&idle, Signal::KILL, 137),
        (&container("c", SLEEP), Signal::TERM, 143),
        (&container("c", "podsonde.dev/demo/web:1"), Signal::TERM, 0),
        (&container("c", "busybox"), Signal::KILL, 137),
    ] {
        let started = pod.start(container).await.unwrap();
        let pid = View::here().pid(&started.id);
        let process = pidfd(pid);
        let before = k8s_openapi::jiff::Timestamp::now();
        // A signal that comes before the program waits for it is lost on the first process of a pid
        // namespace.
        wait_until(|| {
            let _ = pidfd_send_signal(&process, signal);
            has_ended(&process)
        });
        let exit = started.exit.await;
        assert_eq!(exit.code, code, "{} {:?}", container.image, container.command);
        assert!(exit.finished_at >= before);
    }
    pod.remove().await;
}

#[tokio::test]
async fn a_container_dies_with_its_shim() {
    if !root() {
        return;
    }
    let pod = OnePod::new("shim").await;
    let started = pod.start(&container("c", SLEEP)).await.unwrap();
    let pid = View::here().pid(&started.id);
    let shim = View::here().run(&format!("ps -o ppid= -p {pid}")).trim().parse().unwrap();
    let container = pidfd(pid);
    kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
    wait_for_end(&[container]);
    assert_eq!(started.exit.await.code, 137);
    // Its cgroup goes with the pod.
    pod.remove().await;
}

#[tokio::test]
async fn what_a_kubelet_refuses_is_refused() {
    if !root() {
        return;
    }
    let pod = OnePod::new("refused").await;
    let mut root_image = container("c", SLEEP);
    root_image.security.run_as_non_root = Some(true);
    let (reason, message) = pod.failure(&root_image).await;
    assert_eq!(reason, "CreateContainerConfigError");
    let expected = format!(
        "container has runAsNonRoot and image will run as root (pod: \"refused_default({})\", container: c)",
        uid(&pod.pod)
    );
    assert_eq!(message, expected);
    root_image.security.run_as_user = Some(0);
    assert_eq!(pod.failure(&root_image).await.0, "CreateContainerConfigError");

    assert_eq!(pod.failure(&container("c", "nginx")).await.0, "ErrImagePull");
    assert_eq!(pod.failure(&container("c", "podsonde.dev/test/missing")).await.0, "ErrImagePull");
    assert_eq!(pod.failure(&container("c", "Upper case")).await.0, "InvalidImageName");
    let mut never = container("c", "podsonde.dev/test/never");
    never.pull_policy = "Never".to_owned();
    assert_eq!(pod.failure(&never).await.0, "ErrImageNeverPull");

    let mut unknown = container("c", SLEEP);
    unknown.security.capabilities =
        Some(Capabilities { add: Some(vec!["SUPERCOW".to_owned()]), ..Capabilities::default() });
    let (reason, message) = pod.failure(&unknown).await;
    assert_eq!(reason, "CreateContainerError");
    assert!(message.contains("unknown capability \"CAP_SUPERCOW\""), "{message}");

    let ended = pod.start(&container("c", "podsonde.dev/test/exit0")).await.unwrap();
    let id = ended.id.clone();
    ended.exit.await;
    for target in [id, "0".repeat(64)] {
        let mut debugger = container("d", SLEEP);
        debugger.pid = PidMode::Target(target);
        let (reason, message) = pod.failure(&debugger).await;
        assert_eq!(reason, "CreateContainerError");
        assert!(message.contains("invalid target container"), "{message}");
    }

    for path in ["/x/../../escape", "/dev/stdin/x"] {
        let mut escape = container("c", SLEEP);
        escape.mounts = vec![mount("/usr/share".as_ref(), path, true)];
        let (reason, message) = pod.failure(&escape).await;
        assert_eq!(reason, "CreateContainerError", "{path}: {message}");
    }
    let mut missing = container("c", SLEEP);
    missing.mounts = vec![mount("/does/not/exist".as_ref(), "/x", true)];
    let (_, message) = pod.failure(&missing).await;
    assert!(message.contains("open /does/not/exist: No such file"), "{message}");
    pod.remove().await;

    let removed = OnePod::new("removed").await;
    removed.runtime.remove_pod(uid(&removed.pod)).await;
    assert_eq!(removed.failure(&container("c", SLEEP)).await.0, "CreateContainerError");
    let error = removed.runtime.connect(&removed.sandbox, 80).await.err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

/// `/proc/<pid>/status` of a container, by field.
fn status(id: &str, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", View::here().pid(id))).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn the_security_context_decides_what_a_container_may_do() {
    if !root() {
        return;
    }
    let groups = PodSecurityContext {
        fs_group: Some(2000),
        supplemental_groups: Some(vec![3000]),
        ..PodSecurityContext::default()
    };
    let pod =
        OnePod::with("security", options(), |spec| spec.security_context = Some(groups)).await;
    let mut c = container("c", SLEEP);
    let plain = pod.start(&c).await.unwrap();
    assert_eq!(status(&plain.id, "Uid"), "0 0 0 0");
    assert_eq!(status(&plain.id, "Groups"), "2000 3000");
    // What containerd gives.
    for set in ["CapBnd", "CapEff", "CapPrm"] {
        assert_eq!(status(&plain.id, set), "00000000a80425fb", "{set}");
    }
    assert_eq!(status(&plain.id, "CapInh"), "0000000000000000");
    assert_eq!(status(&plain.id, "NoNewPrivs"), "0");

    c.security = SecurityContext {
        run_as_user: Some(1000),
        run_as_group: Some(1001),
        run_as_non_root: Some(true),
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    };
    let restricted = pod.start(&c).await.unwrap();
    assert_eq!(status(&restricted.id, "Uid"), "1000 1000 1000 1000");
    assert_eq!(status(&restricted.id, "Gid"), "1001 1001 1001 1001");
    assert_eq!(status(&restricted.id, "CapBnd"), "0000000000000000");
    assert_eq!(status(&restricted.id, "CapEff"), "0000000000000000");
    assert_eq!(status(&restricted.id, "NoNewPrivs"), "1");
    // It still dies with its shim, though a change of user makes the kernel forget that.
    let pid = View::here().pid(&restricted.id);
    let shim = View::here().run(&format!("ps -o ppid= -p {pid}")).trim().parse().unwrap();
    let process = pidfd(pid);
    kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
    wait_for_end(&[process]);

    c.security = SecurityContext { privileged: Some(true), ..SecurityContext::default() };
    let privileged = pod.start(&c).await.unwrap();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    assert!(own.contains(&status(&privileged.id, "CapBnd")));

    let out =
        pod.script("echo x >/x && echo wrote; echo 1 >/proc/sys/net/ipv4/ip_forward", |_| {}).await;
    assert!(out.contains("wrote") && out.contains("Read-only file system"), "{out}");
    let volume = tempfile::tempdir().unwrap();
    let out = pod
        .script("echo x >/x && echo wrote; echo fine", |c| {
            c.security.read_only_root_filesystem = Some(true);
            c.mounts = vec![mount(volume.path(), "/tmp", false)];
        })
        .await;
    assert!(!out.contains("wrote") && out.contains("fine"), "{out}");
    pod.remove().await;
}

#[tokio::test]
async fn a_container_sees_its_own_world() {
    if !root() {
        return;
    }
    let pod = OnePod::new("own-world").await;
    let ip = pod.sandbox.ip.unwrap();
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("from-host"), "volume\n").unwrap();
    let script = "hostname; echo $GREETING; pwd; echo $$; cat /data/from-host; echo hi >/data/from-pod; \
                  echo hi >/ro/x || echo refused; ls /root | wc -l; ls /proc | grep -c '^[0-9]'; cat /etc/hosts";
    let out = pod
        .script(script, |c| {
            c.env = vec![("GREETING".to_owned(), "hello".to_owned())];
            c.working_dir = Some("/made/for/it".to_owned());
            c.mounts =
                vec![mount(volume.path(), "/data", false), mount(volume.path(), "/ro", true)];
        })
        .await;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(&lines[..5], &["own-world", "hello", "/made/for/it", "1", "volume"], "{out}");
    assert!(lines[5].contains("Read-only file system") && lines[6] == "refused", "{out}");
    assert_eq!(lines[7], "0", "{out}");
    // The shell, its subshells, ls and grep: nobody else.
    assert!(lines[8].parse::<u32>().unwrap() <= 5, "{out}");
    assert!(out.contains(&format!("{ip} own-world\n")), "{out}");
    assert_eq!(fs::read_to_string(volume.path().join("from-pod")).unwrap(), "hi\n");
    pod.remove().await;
}

#[tokio::test]
async fn a_start_can_be_delayed() {
    if !root() {
        return;
    }
    let delay = std::time::Duration::from_millis(300);
    let pod =
        OnePod::with("delayed", NamespaceOptions { start_delay: delay, ..options() }, |_| {}).await;
    let began = std::time::Instant::now();
    pod.start(&container("c", SLEEP)).await.unwrap();
    assert!(began.elapsed() >= delay);
    pod.remove().await;
}
