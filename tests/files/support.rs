//! A client of the service, and a container whose root can be written to from outside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use podsonde::proto::v1::{
    self, FileEntry, FileTarget, FilesReadEnd, FilesReadStart, FilesWalkEnd,
    files_client::FilesClient, files_read_response::Event, files_walk_response,
};
use serde_json::{Value, json};
use tonic::{Status, Streaming, transport::Channel};

use crate::fixture::{Fixture, SLEEP, pod_ref};

/// A running container.
pub(crate) struct Inside {
    pub(crate) pod: String,
    pub(crate) pid: u32,
    /// Its root, as the host sees it.
    pub(crate) root: PathBuf,
}

pub(crate) fn sleep(more: Value) -> Value {
    let mut container = json!({"name": "app", "image": SLEEP});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"containers": [container]})
}

impl Inside {
    /// Creates a pod of one container and waits until it runs.
    pub(crate) async fn start(f: &Fixture, pod: &str, spec: Value) -> Self {
        f.pod(pod, spec).await;
        Self::of(f, pod, "app").await
    }

    pub(crate) async fn of(f: &Fixture, pod: &str, container: &str) -> Self {
        let verification = f.verify(pod).await;
        let found = verification.containers.iter().filter_map(|c| c.container.as_ref());
        let pid = found.filter(|c| c.container == container).map(|c| c.host_pid).next().unwrap();
        Self { pod: pod.to_owned(), pid, root: format!("/proc/{pid}/root").into() }
    }

    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    pub(crate) fn write(&self, inside: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(inside), content).unwrap();
    }

    pub(crate) fn target(&self) -> Option<FileTarget> {
        target(&self.pod)
    }
}

pub(crate) fn target(pod: &str) -> Option<FileTarget> {
    Some(FileTarget { pod: pod_ref(pod), container: String::new(), view: 0, as_root: false })
}

pub(crate) fn client(f: &Fixture) -> FilesClient<Channel> {
    FilesClient::new(f.channel())
}

/// All that a read has brought.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) start: Option<FilesReadStart>,
    pub(crate) data: Vec<u8>,
    pub(crate) end: Option<FilesReadEnd>,
}

pub(crate) async fn read(f: &Fixture, request: v1::FilesReadRequest) -> Result<Content, Status> {
    collect(client(f).read(request).await?.into_inner()).await
}

pub(crate) async fn collect(
    mut stream: Streaming<v1::FilesReadResponse>,
) -> Result<Content, Status> {
    let mut content = Content::default();
    while let Some(message) = stream.message().await? {
        assert!(content.end.is_none(), "the end is the last");
        match message.event.unwrap() {
            Event::Start(start) => assert!(content.start.replace(start).is_none()),
            Event::Data(data) => content.data.extend_from_slice(&data),
            Event::Change(change) => panic!("{change:?}"),
            Event::End(end) => content.end = Some(end),
        }
    }
    assert!(content.start.is_some() && content.end.is_some(), "{content:?}");
    Ok(content)
}

pub(crate) async fn cat(f: &Fixture, inside: &Inside, path: &str) -> Result<Vec<u8>, Status> {
    let request =
        v1::FilesReadRequest { target: inside.target(), path: path.into(), ..Default::default() };
    read(f, request).await.map(|content| content.data)
}

pub(crate) async fn walk(
    f: &Fixture,
    request: v1::FilesWalkRequest,
) -> Result<(Vec<FileEntry>, FilesWalkEnd), Status> {
    let mut stream = client(f).walk(request).await?.into_inner();
    let (mut entries, mut end) = (Vec::new(), None);
    while let Some(message) = stream.message().await? {
        match message.event.unwrap() {
            files_walk_response::Event::Start(_) => assert!(entries.is_empty()),
            files_walk_response::Event::Entries(more) => entries.extend(more.entries),
            files_walk_response::Event::End(last) => end = Some(last),
        }
    }
    Ok((entries, end.unwrap()))
}

/// What coreutils say of a file.
pub(crate) fn sha256sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .trim_start_matches('\\')
        .to_owned()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The body of an answer over plain HTTP.
pub(crate) async fn http_get(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
