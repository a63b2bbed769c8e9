//! `cat` and `tail`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdout, Stdio},
};

use super::World;

#[test]
fn cat_gives_bytes_as_they_are() {
    let world = World::new();
    let noise: Vec<u8> =
        (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    world.write("noise", &noise);
    world.write("text", b"no newline");
    let output = world.raw(&["cat", "web:/noise", "web:/text"]);
    assert!(output.status.success() && output.stdout == [noise.as_slice(), b"no newline"].concat());
    // The agent gives only so much at a time.
    world.fixture.agent.files.state().limit = Some(1_000_000);
    assert!(world.raw(&["cat", "web:/noise"]).stdout == noise);
    let reads = world.fixture.agent.files.state().reads.clone();
    let offsets: Vec<_> =
        reads.iter().rev().take(3).map(|read| (read.offset, !read.if_version.is_empty())).collect();
    assert_eq!(offsets, [(2_000_000, true), (1_000_000, true), (0, false)]);

    let ended = world.run(&["cat", "web:/nope", "web:/text", "web:/"]).expect(1);
    assert_eq!(ended.stdout, "no newline");
    assert!(
        ended.stderr.contains("web:/nope: No such")
            && ended.stderr.contains("web:/: Is a directory"),
        "{}",
        ended.stderr
    );

    let json = world.run(&["cat", "-o", "json", "web:/text"]).expect(0).json();
    assert_eq!(
        (&json["files"][0]["content"], &json["files"][0]["path"]),
        (&"no newline".into(), &"/text".into())
    );
    world.write("bytes", b"\xff\x00");
    let json = world.run(&["cat", "-o", "json", "web:/bytes"]).expect(0).json();
    assert_eq!(json["files"][0]["contentBase64"], "/wA=");
}

#[test]
fn a_connection_that_breaks_is_an_error_and_a_pipe_that_closes_is_none() {
    let world = World::new();
    world.write("big", &vec![b'x'; 2_000_000]);
    world.fixture.agent.files.state().cut_after = Some(100_000);
    let ended = world.run(&["cat", "web:/big"]).expect(1);
    assert_eq!(ended.stdout.len(), 100_000);
    ended.says("error: web:/big: the agent says: the connection broke");
    for arguments in [
        vec!["cat", "web:/big"],
        vec!["ls", "-la", "web:/"],
        vec!["find", "web:/"],
        vec!["tail", "-f", "web:/big"],
        vec!["stat", "web:/"],
        vec!["cp", "web:/big", "-"],
        vec!["diff", "web:/big", "web-1:/"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = world.command(&arguments).stdout(writer).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(matches!(output.status.code(), Some(0 | 2)), "{arguments:?}: {stderr}");
        assert!(
            !stderr.contains("Broken pipe") && !stderr.contains("panic"),
            "{arguments:?}: {stderr}"
        );
    }
}

#[test]
fn tails_are_tail_s() {
    let world = World::new();
    let lines: String = (1..=30).map(|n| format!("line {n}\n")).collect();
    world.write("lines", lines.as_bytes());
    world.write("open", b"a\nb\nc");
    world.write("none", b"");
    for line in [
        "",
        "-n 3",
        "-n3",
        "-3",
        "-n 0",
        "-n 100",
        "-n +1",
        "-n +28",
        "-n +100",
        "-c 5",
        "-c5",
        "-c +200",
        "-c 0",
        "-c 1K",
        "-q",
        "-v",
        "-qn 2",
        "--lines=4",
        "--bytes 7",
        "--lines -4",
        "-n -4",
    ] {
        let flags: Vec<&str> = line.split_whitespace().collect();
        for files in [vec!["lines"], vec!["open"], vec!["none"], vec!["lines", "none", "open"]] {
            let operands: Vec<String> = files.iter().map(|file| format!("web:/{file}")).collect();
            let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
            let ours =
                world.run(&[&["tail"], flags.as_slice(), &operands].concat()).expect(0).stdout;
            // GNU tail knows -3 before one file only.
            let theirs: Vec<&str> =
                flags.iter().map(|flag| if *flag == "-3" { "-n3" } else { *flag }).collect();
            let theirs = world.oracle("tail", &[theirs.as_slice(), &files].concat());
            assert_eq!(ours.replace("web:/", ""), theirs, "{line} {files:?}");
        }
    }
    let json = world.run(&["tail", "-n", "1", "-o", "json", "web:/lines"]).expect(0).json();
    assert_eq!(
        (&json["files"][0]["content"], &json["files"][0]["offset"]),
        (&"line 30\n".into(), &(lines.len() - 8).into())
    );
    world.run(&["tail", "web:/nope", "web:/open"]).expect(1);
    world.run(&["tail", "-n", "2000000", "web:/open"]).expect(2).says("1000000 lines");
    // Both of -n's and of -c's meanings at once.
    world.run(&["tail", "-n", "2", "-n", "shop", "-c", "dbg", "web:/open"]).expect(0);
    let target = world.fixture.agent.files.state().target.clone().unwrap();
    assert_eq!(
        (target.pod.unwrap().namespace.as_str(), target.container.as_str()),
        ("shop", "dbg")
    );
}

/// A command that goes on, and what it prints.
struct Going {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Going {
    fn start(world: &World, arguments: &[&str]) -> Self {
        let mut child =
            world.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn next(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    fn end(mut self) -> (Option<i32>, String) {
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (self.child.wait().unwrap().code(), stderr)
    }
}

#[test]
fn a_followed_file_goes_on_through_rotation() {
    let world = World::new();
    let path = world.write("log", b"one\ntwo\nthree\n");
    let mut tail = Going::start(&world, &["tail", "-n1", "-f", "web:/log"]);
    assert_eq!(tail.next(), "three");
    let append = |text: &str| {
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    };
    append("four\n");
    assert_eq!(tail.next(), "four");
    std::fs::write(&path, "5\n").unwrap();
    assert_eq!(tail.next(), "5");
    std::fs::rename(&path, world.root.join("log.1")).unwrap();
    std::fs::write(&path, "six\nTHE END\n").unwrap();
    assert_eq!((tail.next(), tail.next()), ("six".into(), "THE END".into()));
    let (code, stderr) = tail.end();
    assert_eq!(code, Some(0));
    assert_eq!(
        stderr,
        "web:/log: file truncated\nweb:/log: has been replaced; following the new file\nweb:/log: the container has ended\n"
    );
}

#[test]
fn several_followed_files_have_headers_and_json_has_lines() {
    let world = World::new();
    world.write("a", b"a1\nTHE END\n");
    world.write("b", b"b1\nTHE END\n");
    let mut tail = Going::start(&world, &["tail", "-f", "-n", "+1", "-o", "json", "web:/a"]);
    let event: serde_json::Value = serde_json::from_str(&tail.next()).unwrap();
    assert_eq!(event, serde_json::json!({"path": "/a", "offset": 0, "content": "a1\nTHE END\n"}));
    drop(tail.child.kill());
    tail.child.wait().unwrap();
    let mut tail = Going::start(&world, &["tail", "-F", "web:/a", "web:/b", "web:/nope"]);
    let mut seen = Vec::new();
    while seen.iter().filter(|line| *line == "THE END").count() < 2 {
        seen.push(tail.next());
    }
    // Whose turn it is is not certain, that each is told is.
    for (header, first) in [("==> web:/a <==", "a1"), ("==> web:/b <==", "b1")] {
        let at = seen.iter().position(|line| line == first).unwrap();
        assert_eq!(seen[..at].iter().rfind(|line| line.starts_with("==>")).unwrap(), header);
    }
    let mut said = String::new();
    BufReader::new(tail.child.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("error: web:/nope: No such file or directory"), "{said}");
    tail.child.kill().unwrap();
    tail.child.wait().unwrap();
}
