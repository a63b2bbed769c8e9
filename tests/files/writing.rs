//! Writing files: whole or not at all, where the agent was started with it, and never anywhere
//! else.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    process::Command,
};

use podsonde::{
    agent::config::{FileLimits, Limits},
    proto::v1::{self, FilesWriteStart, files_write_request::Event},
};
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    fixture::{Fixture, reason},
    support::{Inside, client, sha256sum, sleep},
};

async fn write(
    f: &Fixture,
    start: FilesWriteStart,
    content: &[u8],
) -> Result<v1::FilesWriteResponse, Status> {
    let parts = content.chunks(1 << 20).map(|part| Event::Data(part.to_vec().into()));
    let messages: Vec<_> = std::iter::once(Event::Start(start))
        .chain(parts)
        .map(|event| v1::FilesWriteRequest { event: Some(event) })
        .collect();
    client(f).write(tokio_stream::iter(messages)).await.map(tonic::Response::into_inner)
}

fn why<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
    let status = result.unwrap_err();
    (status.code(), reason(&status).0)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_appear_whole_or_not_at_all() {
    let files =
        FileLimits { allow_file_writes: true, max_write_bytes: 8 << 20, ..FileLimits::default() };
    let f = Fixture::with(|_| {}, Limits { files, ..Limits::default() }).await;
    let spec = sleep(json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 1000}}));
    let inside = Inside::start(&f, "app", spec).await;
    let start = |path: &str| FilesWriteStart {
        target: inside.target(),
        path: path.into(),
        ..Default::default()
    };
    let content: Vec<u8> = (0..1_500_001_u32).flat_map(u32::to_le_bytes).collect();

    let answer = write(&f, start("/tmp/new"), &content).await.unwrap();
    let entry = answer.entry.unwrap();
    assert_eq!(
        (entry.size, entry.mode, entry.uid, entry.gid),
        (content.len() as u64, 0o600, 1000, 1000)
    );
    let there = fs::metadata(inside.path("/tmp/new")).unwrap();
    assert_eq!(
        (there.uid(), there.gid(), there.mode() & 0o7777, there.nlink()),
        (1000, 1000, 0o600, 1)
    );
    assert!(fs::read(inside.path("/tmp/new")).unwrap() == content);
    // What is there stays, unless it is to be replaced; a link that is there is not followed, nor
    // replaced.
    assert_eq!(
        why(write(&f, start("/tmp/new"), b"x").await),
        (Code::AlreadyExists, "FILE_EXISTS".into())
    );
    assert!(fs::read(inside.path("/tmp/new")).unwrap() == content);
    let over = FilesWriteStart { overwrite: true, mode: 0o640, ..start("/tmp/new") };
    write(&f, over.clone(), b"replaced").await.unwrap();
    assert_eq!(fs::read(inside.path("/tmp/new")).unwrap(), b"replaced");
    assert_eq!(fs::metadata(inside.path("/tmp/new")).unwrap().mode() & 0o7777, 0o640);
    symlink("/etc/passwd", inside.path("/tmp/link")).unwrap();
    fs::create_dir(inside.path("/tmp/directory")).unwrap();
    for (path, reason) in
        [("/tmp/link", "NOT_A_FILE"), ("/tmp/directory", "NOT_A_FILE"), ("/tmp", "FILE_PERMISSION")]
    {
        let over = FilesWriteStart { overwrite: true, ..start(path) };
        assert_eq!(why(write(&f, over, b"x").await).1, reason, "{path}");
    }
    assert_eq!(why(write(&f, start("/tmp/link"), b"x").await).1, "FILE_EXISTS");

    // Checked before it appears.
    let sum = sha256sum(&inside.path("/tmp/new"));
    let sum: Vec<u8> =
        (0..32).map(|i| u8::from_str_radix(&sum[2 * i..2 * i + 2], 16).unwrap()).collect();
    let checked = FilesWriteStart { sha256: sum, ..start("/tmp/checked") };
    write(&f, checked.clone(), b"replaced").await.unwrap();
    let other = FilesWriteStart { path: b"/tmp/other".into(), ..checked };
    assert_eq!(
        why(write(&f, other, b"other").await),
        (Code::InvalidArgument, "INVALID_FIELD".into())
    );
    assert!(!inside.path("/tmp/other").exists());
    // A caller who breaks off leaves nothing.
    let (messages, queue) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(queue);
    let mut hangs_up = client(&f);
    let call = tokio::spawn(async move { hangs_up.write(stream).await.map(drop) });
    let begun = [
        Event::Start(start("/tmp/broken")),
        Event::Data(vec![0; 1000].into()),
        Event::Data(vec![0; 9].into()),
    ];
    for event in begun {
        messages.send(v1::FilesWriteRequest { event: Some(event) }).await.unwrap();
    }
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    let left: Vec<_> =
        fs::read_dir(inside.path("/tmp")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(
        !left
            .iter()
            .any(|name| name == "broken" || name.as_encoded_bytes().starts_with(b".podsonde")),
        "{left:?}"
    );

    // Where its user may not, and what is no file's name.
    let too_large = vec![0; (8 << 20) + 1];
    for (path, content, expected) in [
        ("/etc/x", &b""[..], "FILE_PERMISSION"),
        ("/nowhere/x", b"", "PATH_NOT_FOUND"),
        ("/tmp/new/x", b"", "NOT_A_DIRECTORY"),
        ("/tmp/", b"", "INVALID_FIELD"),
        ("/tmp/..", b"", "INVALID_FIELD"),
        ("/", b"", "INVALID_FIELD"),
        ("", b"", "INVALID_FIELD"),
        ("/proc/x", b"", "PATH_REFUSED"),
        ("/tmp/large", &too_large, "INVALID_FIELD"),
    ] {
        assert_eq!(why(write(&f, start(path), content).await).1, expected, "{path}");
    }
    let bits = FilesWriteStart { mode: 0o4755, ..start("/tmp/setuid") };
    assert_eq!(why(write(&f, bits, b"").await).1, "INVALID_FIELD");
    let first = client(&f).write(tokio_stream::iter([v1::FilesWriteRequest { event: None }])).await;
    assert_eq!(first.unwrap_err().code(), Code::InvalidArgument);
    // A link on the way leads within the root alone.
    fs::create_dir(inside.path("/tmp/d")).unwrap();
    fs::set_permissions(inside.path("/tmp/d"), fs::Permissions::from_mode(0o777)).unwrap();
    symlink("../../../../../../tmp/d", inside.path("/tmp/up")).unwrap();
    write(&f, start("/tmp/up/inside"), b"inside").await.unwrap();
    assert_eq!(fs::read(inside.path("/tmp/d/inside")).unwrap(), b"inside");
    let listed = Command::new("ls").args(["-A"]).arg(inside.path("/tmp")).output().unwrap();
    println!("{}", String::from_utf8_lossy(&listed.stdout));
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn not_unless_the_agent_was_started_with_it() {
    let f = Fixture::start().await;
    let inside = Inside::start(&f, "app", sleep(json!({}))).await;
    let start =
        FilesWriteStart { target: inside.target(), path: b"/tmp/x".into(), ..Default::default() };
    assert_eq!(why(write(&f, start, b"x").await), (Code::Unimplemented, "WRITES_DISABLED".into()));
    assert!(!inside.path("/tmp/x").exists());
    f.end().await;
}
