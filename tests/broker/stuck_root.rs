//! A container makes a file system that never answers its root.

use podsonde::proto::v1::{self, files_client::FilesClient};
use tonic::Status;
use tonic_types::StatusExt;

use crate::{
    agent::{Agent, possible},
    fuse, proc,
};

async fn read(agent: &Agent, pod: &str) -> Result<(), Status> {
    let target = v1::FileTarget {
        pod: Some(v1::PodRef { namespace: "default".into(), name: pod.into(), uid: "".into() }),
        ..Default::default()
    };
    let request = v1::FilesStatRequest { target: Some(target), path: b"/".into(), follow: true };
    FilesClient::new(agent.channel()).stat(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_root_costs_its_container_alone_and_the_agent_still_ends() {
    if !possible() {
        return;
    }
    let limits = ["--file-threads=8", "--file-timeout=500ms"];
    let agent = Agent::start(&limits, None).await;
    agent.pod("stuck").await;
    agent.pod("healthy").await;
    read(&agent, "stuck").await.unwrap();
    let silent = fuse::silent_root(agent.host_pid("stuck").await);

    let stuck = |text| format!("podsonde_file_threads{{state=\"{text}\"}}");
    assert_eq!(agent.metric(&stuck("stuck")), "0");
    // It may have two threads, a quarter of all; then it has none left.
    for expected in ["FILE_SYSTEM_STUCK", "FILE_SYSTEM_STUCK", "TOO_MANY_FILE_REQUESTS"] {
        let status = tokio::time::timeout(proc::PATIENCE, read(&agent, "stuck")).await;
        let status = status.expect("an answer").unwrap_err();
        let reason = status.get_details_error_info().unwrap().reason;
        assert_eq!(reason, expected, "{status:?}");
    }
    assert_eq!(agent.metric(&stuck("stuck")), "2");
    // More requests than there are threads, and than there are passes over /proc.
    for _ in 0..20 {
        tokio::time::timeout(proc::PATIENCE, read(&agent, "healthy")).await.unwrap().unwrap();
    }
    // Verification looks at every container of the node.
    tokio::time::timeout(proc::PATIENCE, agent.verify()).await.unwrap();
    // SIGTERM ends the process while its root is still stuck.
    agent.stop().await;
    drop(silent);
}
