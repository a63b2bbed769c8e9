//! Port-forwards through `kube`'s client.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use podsonde::embedded::Cluster;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, split},
    net::TcpListener,
};

use super::{cluster, get, running, wait, web, within};

/// A server that sends everything back.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// Sends and receives more than all buffers on the way hold, both at once.
async fn exchange(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let sent: Vec<u8> = (0..16_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut received = vec![0; sent.len()];
    let (mut read, mut write) = split(stream);
    let (write, read) =
        within(async { tokio::join!(write.write_all(&sent), read.read_exact(&mut received)) })
            .await;
    write.unwrap();
    read.unwrap();
    assert!(sent == received, "what came back differs");
}

#[tokio::test(flavor = "multi_thread")]
async fn into_a_pod() {
    let (cluster, _runtime) = cluster().await;
    cluster.create_pod(web("web")).await.unwrap();
    wait(&cluster, "web", |pod| running(pod, "web")).await;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client().unwrap());
    let (first, second) = (echo().await.port(), echo().await.port());
    let mut forward = within(pods.portforward("web", &[first, second])).await.unwrap();
    let (one, two) = (forward.take_stream(first).unwrap(), forward.take_stream(second).unwrap());
    tokio::join!(exchange(one), exchange(two));
    within(forward.join()).await.unwrap();

    // Nobody listens there.
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let mut forward = within(pods.portforward("web", &[closed])).await.unwrap();
    let error = within(forward.take_error(closed).unwrap()).await.unwrap();
    assert!(error.contains("refused"), "{error}");
    let mut rest = Vec::new();
    within(forward.take_stream(closed).unwrap().read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn to_an_agent_of_this_process() {
    let (cluster, runtime) = cluster().await;
    let name = cluster.register_agent("node-b", echo().await).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.client().unwrap(), "podsonde");
    let agents = ListParams::default()
        .labels("app.kubernetes.io/name=podsonde-agent")
        .fields("spec.nodeName=node-b,status.phase=Running");
    let found = within(pods.list(&agents)).await.unwrap().items;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].metadata.name.as_ref(), Some(&name));
    let mut forward = within(pods.portforward(&name, &[7443])).await.unwrap();
    exchange(forward.take_stream(7443).unwrap()).await;
    assert!(runtime.order().is_empty());
    // Its node exists, and it can be deleted although nothing runs it.
    assert_eq!(get(&cluster, "/api/v1/nodes/node-b").await.0, 200);
    within(pods.delete(&name, &Default::default())).await.unwrap();
    within(cluster.wait_deleted("podsonde", &name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_forwarded() {
    let (cluster, _runtime): (Cluster, _) = cluster().await;
    let mut pod = web("web");
    pod["spec"]["nodeName"] = Value::Null;
    pod["spec"]["schedulerName"] = "mine".into();
    cluster.create_pod(pod).await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(cluster.client().unwrap());
    let failure =
        async |name: &str| within(pods.portforward(name, &[80])).await.err().unwrap().to_string();
    let error = failure("web").await;
    assert!(error.contains("pod is not running. Current status=Pending"), "{error}");
    assert!(failure("none").await.contains("pods \"none\" not found"));
    let (code, _) = get(&cluster, "/api/v1/namespaces/default/pods/web/portforward?ports=80").await;
    assert_eq!(code, 400);
}
