//! The service end to end.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, process::Command};

use podsonde::proto::v1::{self, FileType, RootOwner};
use serde_json::json;
use tonic::Code;

use crate::{
    fixture::{Fixture, reason},
    support::{Inside, cat, client, hex, read, sha256sum, sleep, walk},
};

#[tokio::test(flavor = "multi_thread")]
async fn files_are_as_the_kernel_has_them() {
    let f = Fixture::start().await;
    let inside = Inside::start(&f, "app", sleep(json!({}))).await;
    // More than one message, and not a whole number of them.
    let content: Vec<u8> = (0..3_000_001_u32).flat_map(u32::to_le_bytes).collect();
    inside.write("/root/large", &content);
    symlink("/root/large", inside.path("/root/link")).unwrap();
    symlink("../../../../root/large", inside.path("/root/up")).unwrap();

    for path in [
        "/root/large",
        "root/large",
        "/root/link",
        "/root/up",
        "//root/./large",
        "/../../root/large",
    ] {
        assert!(cat(&f, &inside, path).await.unwrap() == content, "{path}");
    }
    let request =
        v1::FilesStatRequest { target: inside.target(), path: b"/root/link".into(), follow: false };
    let answer = client(&f).stat(request.clone()).await.unwrap().into_inner();
    let entry = answer.entry.unwrap();
    assert_eq!(
        (entry.r#type(), entry.link_target.as_slice()),
        (FileType::Symlink, &b"/root/large"[..])
    );
    let root = answer.root.unwrap();
    assert_eq!((root.owner(), root.uid), (RootOwner::Container, 0));
    assert_eq!(root.owner_container, root.container);
    assert_eq!(root.container.unwrap().host_pid, inside.pid);

    let answer = client(&f)
        .stat(v1::FilesStatRequest { follow: true, ..request })
        .await
        .unwrap()
        .into_inner();
    let entry = answer.entry.unwrap();
    let theirs = Command::new("stat")
        .args(["-c", "%i %d %s %b %a %u %g %h %Y %Z %X"])
        .arg(inside.path("/root/large"))
        .output();
    let theirs = String::from_utf8(theirs.unwrap().stdout).unwrap();
    let time = |t: &Option<prost_types::Timestamp>| t.as_ref().unwrap().seconds;
    let ours = format!(
        "{} {} {} {} {:o} {} {} {} {} {} {}\n",
        entry.inode,
        entry.device,
        entry.size,
        entry.blocks,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.links,
        time(&entry.modified_at),
        time(&entry.changed_at),
        time(&entry.accessed_at),
    );
    assert_eq!(ours, theirs);
    assert_eq!((entry.file_system.as_str(), entry.mount_point), ("tmpfs", false));

    let request = v1::FilesChecksumRequest {
        target: inside.target(),
        path: b"/root/link".into(),
        ..Default::default()
    };
    let mut stream = client(&f).checksum(request).await.unwrap().into_inner();
    let mut done = None;
    while let Some(message) = stream.message().await.unwrap() {
        if let Some(v1::files_checksum_response::Event::Done(last)) = message.event {
            done = Some(last);
        }
    }
    let done = done.unwrap();
    assert_eq!(hex(&done.sha256), sha256sum(&inside.path("/root/large")));
    assert_eq!(done.bytes, content.len() as u64);
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_walks_are_what_find_prints() {
    let f = Fixture::start().await;
    let inside = Inside::start(&f, "app", sleep(json!({}))).await;
    fs::create_dir_all(inside.path("/root/tree/a/b")).unwrap();
    for i in 0..2500 {
        inside.write(&format!("/root/tree/a/{i}"), i.to_string());
    }
    symlink("/etc/passwd", inside.path("/root/tree/a/b/link")).unwrap();
    symlink("..", inside.path("/root/tree/loop")).unwrap();
    Command::new("mkfifo").arg(inside.path("/root/tree/a/b/fifo")).status().unwrap();

    for (path, depth) in
        [("/root/tree", None), ("/", None), ("/root/tree", Some(1)), ("/root/tree", Some(0))]
    {
        let request = v1::FilesWalkRequest {
            target: inside.target(),
            path: path.into(),
            max_depth: depth,
            ..Default::default()
        };
        let (entries, end) = walk(&f, request).await.unwrap();
        assert_eq!((end.entries, end.truncated), (entries.len() as u64, false));
        let letter = |e: &v1::FileEntry| match e.r#type() {
            FileType::Regular => 'f',
            FileType::Directory => 'd',
            FileType::Symlink => 'l',
            FileType::Fifo => 'p',
            FileType::Socket => 's',
            FileType::CharacterDevice => 'c',
            FileType::BlockDevice => 'b',
            FileType::Unspecified => 'U',
        };
        let ours: BTreeMap<_, _> = entries
            .iter()
            .map(|e| {
                let line = format!(
                    "{} {} {:o} {} {}",
                    letter(e),
                    e.size,
                    e.mode,
                    e.inode,
                    String::from_utf8_lossy(&e.link_target)
                );
                (String::from_utf8_lossy(&e.path).into_owned(), line)
            })
            .collect();
        assert_eq!(ours.len(), entries.len(), "each is told once");
        let mut find = Command::new("find");
        find.arg(inside.path(path)).arg("-xdev");
        depth.map(|depth| find.args(["-maxdepth", &depth.to_string()]));
        let output = find.args(["-printf", "%P\t%y %s %m %i %l\n"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let theirs: BTreeMap<_, _> = text
            .lines()
            .map(|l| l.split_once('\t').unwrap())
            .map(|(p, l)| (p.to_owned(), l.to_owned()))
            .collect();
        assert_eq!(ours, theirs, "{path}");
        println!("{path}: {} entries as find -printf has them", ours.len());
    }

    // In pages.
    let (mut names, mut after, mut pages) = (Vec::new(), Vec::new(), 0);
    loop {
        let request = v1::FilesListRequest {
            target: inside.target(),
            path: b"/root/tree/a".into(),
            page_size: 999,
            after,
        };
        let page = client(&f).list(request).await.unwrap().into_inner();
        pages += 1;
        names.extend(page.entries.into_iter().map(|e| e.path));
        after = page.next_after;
        if after.is_empty() {
            break;
        }
    }
    let mut sorted: Vec<_> = fs::read_dir(inside.path("/root/tree/a"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_encoded_bytes())
        .collect();
    sorted.sort();
    assert_eq!((names, pages), (sorted, 3));

    // As many as are wanted.
    let request = v1::FilesWalkRequest {
        target: inside.target(),
        path: b"/root/tree".into(),
        max_entries: 1000,
        ..Default::default()
    };
    let (entries, end) = walk(&f, request).await.unwrap();
    assert_eq!((entries.len(), end.entries, end.truncated), (1000, 1000, true));
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges() {
    let f = Fixture::start().await;
    let inside = Inside::start(&f, "app", sleep(json!({}))).await;
    inside.write("/root/ten", b"0123456789");
    let text: String = (0..50_000).map(|i| format!("line {i}\n")).collect();
    inside.write("/root/lines", &text);
    let range = |path: &str, offset, length, tail_lines| v1::FilesReadRequest {
        target: inside.target(),
        path: path.into(),
        offset,
        length,
        tail_lines,
        ..Default::default()
    };
    use v1::ReadEnd::{EndOfFile, Length};
    for (offset, length, expected, at, end) in [
        (0, 0, "0123456789", 0, EndOfFile),
        (3, 0, "3456789", 3, EndOfFile),
        (3, 2, "34", 3, Length),
        (-4, 0, "6789", 6, EndOfFile),
        (-4, 1, "6", 6, Length),
        (-40, 0, "0123456789", 0, EndOfFile),
        (10, 0, "", 10, EndOfFile),
        (1_000_000, 0, "", 1_000_000, EndOfFile),
        (i64::MAX, 5, "", i64::MAX as u64, EndOfFile),
        (i64::MIN, 5, "01234", 0, Length),
    ] {
        let content = read(&f, range("/root/ten", offset, length, None)).await.unwrap();
        let (start, last) = (content.start.unwrap(), content.end.unwrap());
        assert_eq!(content.data, expected.as_bytes(), "{offset} {length}");
        assert_eq!(
            (start.offset, last.reason(), last.bytes),
            (at, end, expected.len() as u64),
            "{offset} {length}"
        );
    }
    for lines in [0, 1, 2, 10, 7000, 49_999, 50_000, 60_000] {
        let content = read(&f, range("/root/lines", 0, 0, Some(lines))).await.unwrap();
        let tail = Command::new("tail")
            .args(["-n", &lines.to_string()])
            .arg(inside.path("/root/lines"))
            .output()
            .unwrap();
        assert!(content.data == tail.stdout, "{lines}: {}", String::from_utf8_lossy(&content.data));
    }
    inside.write("/root/ten", b"01\n34\n6789");
    let content = read(&f, range("/root/ten", 0, 0, Some(2))).await.unwrap();
    assert_eq!(content.data, b"34\n6789");

    // A resumed download is of the same file or none.
    let version = read(&f, range("/root/lines", 0, 1, None)).await.unwrap().start.unwrap().version;
    let resumed = v1::FilesReadRequest { if_version: version, ..range("/root/lines", 7, 0, None) };
    assert_eq!(read(&f, resumed.clone()).await.unwrap().data, &text.as_bytes()[7..]);
    inside.write("/root/lines", "other");
    let status = read(&f, resumed).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).0.as_str()), (Code::Aborted, "FILE_CHANGED"));
    f.end().await;
}
