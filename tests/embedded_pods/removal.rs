//! That nothing is left of a pod, whatever it did and whenever it is removed.

use std::{os::fd::OwnedFd, time::Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use podsonde::embedded::{
    namespaces::{CgroupDriver, NamespaceOptions, NamespaceRuntime},
    runtime::{PidMode, Runtime as _},
};

use crate::support::*;

/// Leaves processes behind that have nothing to do with the first any more.
const FORKS: &str =
    "for i in 1 2 3; do (setsid sleep 600 &); sleep 600 & done; echo >/tmp/forked; wait";

#[tokio::test]
async fn processes_that_a_container_left_behind_end_with_it() {
    if !root() {
        return;
    }
    for (mode, driver) in [
        (PidMode::Container, CgroupDriver::Cgroupfs),
        (PidMode::Pod, CgroupDriver::Cgroupfs),
        (PidMode::Node, CgroupDriver::Systemd),
    ] {
        let runtime =
            NamespaceRuntime::new(NamespaceOptions { cgroup_driver: driver, ..options() }).unwrap();
        let mut pod = pod("forks");
        let spec = pod.spec.as_mut().unwrap();
        spec.host_pid = Some(mode == PidMode::Node);
        spec.share_process_namespace = Some(mode == PidMode::Pod);
        let sandbox = runtime.run_sandbox(&pod).await.unwrap();
        let mut forking = shell(FORKS);
        forking.pid = mode.clone();
        let started = runtime.start_container(&pod, &sandbox, &forking).await.unwrap();
        let pid = View::here().pid(&started.id);
        wait_until(|| std::fs::exists(format!("/proc/{pid}/root/tmp/forked")).unwrap());
        let pids = View::here().pids(&started.id);
        assert!(pids.len() >= 7, "{mode:?}: {pids:?}");
        let processes: Vec<OwnedFd> = pids.into_iter().map(pidfd).collect();
        runtime.remove_pod(uid(&pod)).await;
        wait_for_end(&processes);
        assert_eq!(left_of(uid(&pod)), "", "{mode:?}");
    }
}

#[tokio::test]
async fn processes_end_with_their_container_while_the_pod_stays() {
    if !root() {
        return;
    }
    let runtime = NamespaceRuntime::new(options()).unwrap();
    let mut pod = pod("stays");
    pod.spec.as_mut().unwrap().host_pid = Some(true);
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let mut forking = shell("setsid sleep 600 & echo >/tmp/forked; read line");
    forking.pid = PidMode::Node;
    forking.stdin = true;
    let started = runtime.start_container(&pod, &sandbox, &forking).await.unwrap();
    let pid = View::here().pid(&started.id);
    wait_until(|| std::fs::exists(format!("/proc/{pid}/root/tmp/forked")).unwrap());
    let pids = View::here().pids(&started.id);
    assert_eq!(pids.len(), 2);
    let processes: Vec<OwnedFd> = pids.iter().copied().map(pidfd).collect();
    View::here().run(&format!("kill -9 {pid}"));
    assert_eq!(started.exit.await.code, 137);
    wait_for_end(&processes);
    assert!(!View::here().pids(&sandbox.id).is_empty());
    runtime.remove_pod(uid(&pod)).await;
    assert_eq!(left_of(uid(&pod)), "");
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing() {
    if !root() {
        return;
    }
    let runtime = NamespaceRuntime::new(options()).unwrap();
    let start = async |pod: &Pod| {
        let sandbox = runtime.run_sandbox(pod).await.unwrap();
        runtime.start_container(pod, &sandbox, &container("c", SLEEP)).await.map(drop).unwrap();
    };
    let whole = pod("whole");
    let began = Instant::now();
    start(&whole).await;
    let took = began.elapsed();
    runtime.remove_pod(uid(&whole)).await;

    let mut interrupted = 0;
    // From before the shim is there to about when the container runs.
    for step in 0..60 {
        let mut pod = pod("interrupted");
        pod.spec.as_mut().unwrap().host_pid = Some(step % 2 == 0);
        if tokio::time::timeout(took * step / 55, start(&pod)).await.is_err() {
            interrupted += 1;
        }
        runtime.remove_pod(uid(&pod)).await;
        assert_eq!(left_of(uid(&pod)), "", "given up in step {step} of 60, a start takes {took:?}");
    }
    println!("{interrupted} of 60 starts interrupted");
    assert!(interrupted > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_at_once() {
    if !root() {
        return;
    }
    let runtime = NamespaceRuntime::new(options()).unwrap();
    let pods: Vec<_> = (0..40).map(|number| pod(&format!("many-{number}"))).collect();
    let began = Instant::now();
    let started = join_all(pods.iter().map(async |pod| {
        let sandbox = runtime.run_sandbox(pod).await.unwrap();
        let first = runtime.start_container(pod, &sandbox, &container("c", SLEEP)).await.unwrap();
        let mut second = container("d", SLEEP);
        second.pid = PidMode::Target(first.id.clone());
        let second = runtime.start_container(pod, &sandbox, &second).await.unwrap();
        (first.id, second.id)
    }))
    .await;
    println!("40 pods with two containers each started in {:?}", began.elapsed());
    let view = View::here();
    for (first, second) in &started {
        let pid = |id| view.namespaces(view.pid(id))["pid"].clone();
        assert_eq!(pid(first), pid(second));
    }
    let began = Instant::now();
    join_all(pods.iter().map(|pod| runtime.remove_pod(uid(pod)))).await;
    println!("removed in {:?}", began.elapsed());
    for pod in &pods {
        assert_eq!(left_of(uid(pod)), "");
    }
}

/// A hierarchy of cgroup v1, as on a node without v2.
#[tokio::test]
async fn a_v1_hierarchy_serves_as_well() {
    let hierarchy = std::path::PathBuf::from("/sys/fs/cgroup/pids");
    if !root() || !hierarchy.exists() {
        println!("skipped: needs root and cgroup v1");
        return;
    }
    let runtime =
        NamespaceRuntime::new(NamespaceOptions { cgroup_hierarchy: Some(hierarchy), ..options() })
            .unwrap();
    let pod = pod("v1");
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let started = runtime.start_container(&pod, &sandbox, &container("c", SLEEP)).await.unwrap();
    let cgroup =
        std::fs::read_to_string(format!("/proc/{}/cgroup", View::here().pid(&started.id))).unwrap();
    let tail = format!("/kubepods/besteffort/pod{}/{}", uid(&pod), started.id);
    let lines: Vec<&str> = cgroup.lines().filter(|line| line.ends_with(&tail)).collect();
    assert!(lines.len() == 1 && lines[0].contains(":pids:"), "{cgroup}");
    runtime.remove_pod(uid(&pod)).await;
    assert_eq!(left_of(uid(&pod)), "");
}
