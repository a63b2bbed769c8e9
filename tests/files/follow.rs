//! Following a file through what log rotation does to it.

use std::{fs, io::Write};

use podsonde::proto::v1::{self, FileChange, ReadEnd, files_read_response::Event};
use serde_json::json;
use tonic::Streaming;

use crate::{
    fixture::{Fixture, within},
    support::{Inside, client, sleep},
};

/// A file that is followed, and what has come of it.
struct Follower {
    stream: Streaming<v1::FilesReadResponse>,
    data: Vec<u8>,
    changes: Vec<FileChange>,
}

impl Follower {
    async fn start(f: &Fixture, inside: &Inside, path: &str, tail_lines: Option<u32>) -> Self {
        let path = path.into();
        let request = v1::FilesReadRequest {
            target: inside.target(),
            path,
            follow: true,
            tail_lines,
            ..Default::default()
        };
        let stream = client(f).read(request).await.unwrap().into_inner();
        let mut this = Self { stream, data: Vec::new(), changes: Vec::new() };
        assert!(matches!(this.event().await, Event::Start(_)));
        this
    }

    async fn event(&mut self) -> Event {
        let event = within("something happens", self.stream.message())
            .await
            .unwrap()
            .unwrap()
            .event
            .unwrap();
        match &event {
            Event::Data(data) => self.data.extend_from_slice(data),
            Event::Change(change) => self.changes.push(change.change()),
            _ => {}
        }
        event
    }

    /// Until the last line is this one.
    async fn until(&mut self, line: &str) {
        while !self.data.ends_with(format!("{line}\n").as_bytes()) {
            self.event().await;
        }
    }

    async fn until_change(&mut self, change: FileChange) {
        while self.changes.last() != Some(&change) {
            self.event().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_or_repeated() {
    let f = Fixture::start().await;
    let inside = Inside::start(&f, "app", sleep(json!({}))).await;
    let log = inside.path("/tmp/log");
    fs::write(&log, "before 1\nbefore 2\n").unwrap();
    let mut follower = Follower::start(&f, &inside, "/tmp/log", Some(1)).await;

    // Appended, also by halves.
    let append = |text: &str| {
        fs::File::options().append(true).open(&log).unwrap().write_all(text.as_bytes()).unwrap();
    };
    append("one\nhal");
    append("f\n");
    follower.until("half").await;
    assert_eq!(follower.data, b"before 2\none\nhalf\n");

    // Truncated, as copytruncate does, once all was read.
    follower.data.clear();
    fs::File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
    follower.until_change(FileChange::Truncated).await;
    append("after truncation\n");
    follower.until("after truncation").await;
    assert_eq!(follower.data, b"after truncation\n");

    // Missing for a while, then there again.
    follower.data.clear();
    fs::rename(&log, inside.path("/tmp/log.old")).unwrap();
    follower.until_change(FileChange::Missing).await;
    fs::File::options()
        .append(true)
        .open(inside.path("/tmp/log.old"))
        .unwrap()
        .write_all(b"late\n")
        .unwrap();
    follower.until("late").await;
    fs::write(&log, "new\n").unwrap();
    follower.until("new").await;
    assert_eq!(follower.data, b"late\nnew\n");
    assert_eq!(
        follower.changes,
        [FileChange::Truncated, FileChange::Missing, FileChange::Replaced]
    );
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_rotates_loses_nothing() {
    const ROTATIONS: usize = 12;
    let f = Fixture::start().await;
    let inside = Inside::start(&f, "app", sleep(json!({}))).await;
    let log = inside.path("/tmp/log");
    fs::write(&log, "").unwrap();
    let mut follower = Follower::start(&f, &inside, "/tmp/log", None).await;
    // As logrotate does it with `create`: renamed, made anew, and only some time later does the
    // writer open the new one.
    let (sender, seen) = std::sync::mpsc::channel::<usize>();
    let directory = inside.path("/tmp");
    let writer = std::thread::spawn(move || {
        let log = directory.join("log");
        let mut file = fs::File::options().append(true).open(&log).unwrap();
        let mut line = 0;
        let mut write = |file: &mut fs::File, lines: usize| {
            for _ in 0..lines {
                file.write_all(format!("{line}\n").as_bytes()).unwrap();
                line += 1;
            }
            line
        };
        for rotation in 0..ROTATIONS {
            write(&mut file, 5000);
            fs::rename(&log, directory.join(format!("log.{rotation}"))).unwrap();
            write(&mut file, 500);
            fs::File::create(&log).unwrap();
            write(&mut file, 500);
            file = fs::File::options().append(true).open(&log).unwrap();
            let written = write(&mut file, 100);
            // A name says nothing of what it was between two looks, so the next rotation comes
            // after the last line was seen.
            while seen.recv().unwrap() < written {}
        }
        line
    });
    let mut lines = 0;
    let mut rest = Vec::new();
    while lines < ROTATIONS * 6100 {
        follower.event().await;
        rest.append(&mut follower.data);
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let line: Vec<_> = rest.drain(..=end).collect();
            assert_eq!(line, format!("{lines}\n").as_bytes(), "in order, each once");
            lines += 1;
        }
        // It may be done.
        let _ = sender.send(lines);
    }
    assert_eq!(writer.join().unwrap(), lines);
    let replaced = follower.changes.iter().filter(|c| **c == FileChange::Replaced).count();
    println!("{lines} lines through {replaced} rotations, each once");
    assert_eq!(replaced, ROTATIONS);
    f.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn following_ends_with_the_container_and_with_the_agent() {
    let mut f = Fixture::start().await;
    let inside = Inside::start(&f, "app", sleep(json!({}))).await;
    inside.write("/tmp/log", "line\n");
    let mut follower = Follower::start(&f, &inside, "/tmp/log", None).await;
    follower.until("line").await;
    let pid = rustix::process::Pid::from_raw(inside.pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let end = loop {
        if let Event::End(end) = follower.event().await {
            break end;
        }
    };
    assert_eq!((end.reason(), end.bytes), (ReadEnd::ContainerEnded, 5));
    assert!(follower.stream.message().await.unwrap().is_none());

    let inside = Inside::start(&f, "other", sleep(json!({}))).await;
    inside.write("/tmp/log", "line\n");
    let mut follower = Follower::start(&f, &inside, "/tmp/log", None).await;
    follower.until("line").await;
    let stopping = f.stop_agent();
    let ended = async {
        loop {
            match follower.stream.message().await {
                Ok(Some(_)) => {}
                other => break other,
            }
        }
    };
    let ((), ended) = within("the agent stops", async { tokio::join!(stopping, ended) }).await;
    println!("at the end of the agent: {ended:?}");
    assert!(ended.is_err());
    f.start_agent().await;
    f.end().await;
}
