//! An API server with canned objects that forwards ports to the fake agent: what `kubectl
//! port-forward` speaks, by the protocol `portforward.k8s.io` over WebSocket.

use std::convert::Infallible;

use futures::{SinkExt, StreamExt};
use hyper::{
    Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

/// Serves on a loopback port, which is returned. Ports are forwarded to `agent`, whatever the pod.
pub(crate) async fn serve(agent: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service =
                service_fn(
                    move |request| async move { Ok::<_, Infallible>(answer(request, agent)) },
                );
            tokio::spawn(
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades(),
            );
        }
    });
    port
}

fn answer(request: Request<Incoming>, agent: u16) -> Response<String> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let agents = |node: &str| match node {
        "n1" => vec![agent_pod("podsonde-agent-1", "n1", "True")],
        // Being replaced: the old one is not ready any more.
        "n2" => vec![
            agent_pod("podsonde-agent-2-old", "n2", "False"),
            agent_pod("podsonde-agent-2", "n2", "True"),
        ],
        "n3" => vec![agent_pod("podsonde-agent-3", "n3", "False")],
        "n5" => vec![agent_pod("podsonde-agent-refuses", "n5", "True")],
        "n7" => vec![agent_pod("podsonde-agent-hangs-up", "n7", "True")],
        _ => Vec::new(),
    };
    match parts.as_slice() {
        ["api", "v1", "nodes"] => {
            let nodes = ["n1", "n2", "n3", "n4", "n6"];
            list(nodes.iter().map(|name| json!({"metadata": {"name": name}})).collect())
        }
        ["api", "v1", "namespaces", "podsonde", "pods"] => {
            let all = ["n1", "n2", "n3"].into_iter().flat_map(agents).collect();
            let node = query
                .split('&')
                .find_map(|part| part.strip_prefix("fieldSelector=spec.nodeName%3D"));
            list(node.map_or(all, agents))
        }
        ["api", "v1", "pods"] => list(vec![pod("web", Some("n1")), pod("pending", None)]),
        ["api", "v1", "namespaces", "default", "pods"] if query.contains("app%3Dboth") => {
            list(vec![pod("web", Some("n1")), pod("replacing", Some("n2")), pod("pending", None)])
        }
        ["api", "v1", "namespaces", "default", "pods"] if query.contains("app%3Dweb") => {
            list(vec![pod("web", Some("n1")), pod("web-pending", None)])
        }
        ["api", "v1", "namespaces", "default", "pods"] => list(Vec::new()),
        ["api", "v1", "namespaces", "default", "pods", name] => match *name {
            "web" | "drift" => object(pod(name, Some("n1"))),
            "replacing" => object(pod(name, Some("n2"))),
            "unready" => object(pod(name, Some("n3"))),
            "lonely" => object(pod(name, Some("n4"))),
            "refused" => object(pod(name, Some("n5"))),
            "hung-up" => object(pod(name, Some("n7"))),
            "pending" => object(pod(name, None)),
            _ => status(StatusCode::NOT_FOUND, &format!("pods \"{name}\" not found")),
        },
        ["apis", "apps", "v1", "namespaces", "default", "deployments", "web"] => object(
            json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}}),
        ),
        ["api", "v1", "namespaces", "podsonde", "pods", name, "portforward"] => {
            assert_eq!(query.trim_start_matches('&'), "ports=7463");
            forward(request, agent, name)
        }
        ["api", "v1", "namespaces", "locked", ..] => status(
            StatusCode::FORBIDDEN,
            "pods is forbidden: User \"bob\" cannot get resource \"pods\"",
        ),
        _ => status(StatusCode::NOT_FOUND, "the server could not find the requested resource"),
    }
}

fn pod(name: &str, node: Option<&str>) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": if node.is_some() { "Running" } else { "Pending" }}
    })
}

fn agent_pod(name: &str, node: &str, ready: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "podsonde"},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}
    })
}

fn list(items: Vec<Value>) -> Response<String> {
    object(json!({"metadata": {"resourceVersion": "1"}, "items": items}))
}

fn object(value: Value) -> Response<String> {
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(value.to_string())
        .unwrap()
}

fn status(code: StatusCode, message: &str) -> Response<String> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
        "reason": if code == StatusCode::NOT_FOUND { "NotFound" } else { "" }, "code": code.as_u16()});
    let mut response = object(status);
    *response.status_mut() = code;
    response
}

fn forward(request: Request<Incoming>, agent: u16, pod: &str) -> Response<String> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).unwrap();
    let (refuses, hangs_up) = (pod.ends_with("refuses"), pod.ends_with("hangs-up"));
    let accept = derive_accept_key(key.as_bytes());
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await.unwrap();
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        let (mut out, mut back) = socket.split();
        // Channel 0 is data, 1 errors; each opens with the port it belongs to.
        for channel in [0, 1] {
            let [low, high] = 7463_u16.to_le_bytes();
            out.send(Message::binary(vec![channel, low, high])).await.unwrap();
        }
        if hangs_up {
            return;
        }
        if refuses {
            let message = b"\x01error forwarding port 7463 to pod: dial tcp4 127.0.0.1:7463: connect: connection refused";
            out.send(Message::binary(message.to_vec())).await.unwrap();
            while let Some(Ok(_)) = back.next().await {}
            return;
        }
        let (mut from_agent, mut to_agent) =
            TcpStream::connect(("127.0.0.1", agent)).await.unwrap().into_split();
        tokio::spawn(async move {
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(read @ 1..) = from_agent.read(&mut buffer).await {
                let mut frame = vec![0];
                frame.extend_from_slice(&buffer[..read]);
                if out.send(Message::binary(frame)).await.is_err() {
                    break;
                }
            }
        });
        while let Some(Ok(message)) = back.next().await {
            if let Message::Binary(frame) = message
                && let Some((0, data)) = frame.split_first()
                && to_agent.write_all(data).await.is_err()
            {
                break;
            }
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .header(header::SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io")
        .body(String::new())
        .unwrap()
}
