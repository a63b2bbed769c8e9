//! `cp`.

use std::{
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Stdio,
};

use super::{World, contents, oracle};

fn noise(length: u32) -> Vec<u8> {
    (0..length).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|child| child.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn sha256sum(path: &Path) -> String {
    let output = oracle(Path::new("/"), "sha256sum", &[path.to_str().unwrap()]);
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn destinations_are_cp_s() {
    let world = World::new();
    let source = world.write("data/file", b"content");
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o4751)).unwrap();
    let here = &world.here;
    std::fs::create_dir(here.join("dir")).unwrap();
    for (destination, arrives) in [
        (".", "file"),
        ("dir", "dir/file"),
        ("dir/", "dir/file"),
        ("new", "new"),
        ("dir/new", "dir/new"),
        ("./a:b", "a:b"),
    ] {
        let ended = world.run(&["cp", "web:/data/file", destination]).expect(0);
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
        assert_eq!(std::fs::read(here.join(arrives)).unwrap(), b"content", "{destination}");
        let mode = here.join(arrives).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o751 & !0o022, "no set-user-id, and the umask");
    }
    assert_eq!(world.run(&["cp", "web:/data/file", "-"]).expect(0).stdout, "content");
    // What is there is replaced; a directory is not.
    std::fs::write(here.join("new"), "something longer than before").unwrap();
    world.run(&["cp", "web:/data/file", "new"]).expect(0);
    assert_eq!(std::fs::read(here.join("new")).unwrap(), b"content");
    std::fs::create_dir(here.join("dir/file.d")).unwrap();
    world.write("data/file.d", b"");
    world.run(&["cp", "web:/data/file.d", "dir"]).expect(1).says("Is a directory");
    world.run(&["cp", "web:/data/file", "nowhere/x"]).expect(1).says("No such file or directory");
    world
        .run(&["cp", "web:/nope", "."])
        .expect(1)
        .says("error: web:/nope: No such file or directory");
    world
        .run(&["cp", "web:/data", "-"])
        .expect(1)
        .says("Is a directory")
        .says("hint: directories:");
    assert!(names(here).iter().all(|name| !name.starts_with('.')), "{:?}", names(here));
    for usage in ["cp web:/a web:/b", "cp a b", "cp web:/a", "cp"] {
        world.run(&usage.split(' ').collect::<Vec<_>>()).expect(2);
    }
}

#[test]
fn trees_arrive_whole() {
    let world = World::sample();
    world.write("tree/big.bin", &noise(3_000_000));
    let ended = world.run(&["cp", "web:/tree", "."]).expect(0);
    for left_out in [
        "link: a symbolic link to plain",
        "fifo: a FIFO",
        "socket: a socket",
        "dangling: a symbolic link to nowhere",
    ] {
        assert!(
            ended.stderr.contains(&format!("skipped web:/tree/{left_out}")),
            "{left_out}: {}",
            ended.stderr
        );
    }
    let all = contents(&world.root.join("tree"));
    let mut expected = all.clone();
    for link in ["link", "dangling", "sublink"] {
        expected.remove(link.as_bytes());
    }
    assert!(contents(&world.here.join("tree")) == expected);
    assert_eq!(
        sha256sum(&world.here.join("tree/big.bin")),
        sha256sum(&world.root.join("tree/big.bin"))
    );
    // Into what is there; with links; by a name of its own; what is in it alone.
    world.run(&["cp", "--links", "-q", "web:/tree", "."]).expect(0);
    assert!(contents(&world.here.join("tree")) == all);
    world.run(&["cp", "-q", "web:/tree/", "other"]).expect(0);
    assert!(contents(&world.here.join("other")) == expected);
    std::fs::create_dir(world.here.join("into")).unwrap();
    world.run(&["cp", "-q", "web:/tree/.", "into"]).expect(0);
    assert!(contents(&world.here.join("into")) == expected);

    let json = world.run(&["cp", "-o", "json", "web:/tree", "json"]).expect(0).json();
    assert_eq!(
        (&json["files"], &json["directories"], &json["verified"]),
        (&10.into(), &5.into(), &true.into())
    );
    assert_eq!(json["skipped"].as_array().unwrap().len(), 5);
}

#[test]
fn modes_and_times_are_preserved_on_request() {
    let world = World::sample();
    world.run(&["cp", "-pq", "web:/tree", "."]).expect(0);
    let listed = |root: &Path| {
        let format = "%P %m %T@\n";
        let output = oracle(
            root,
            "find",
            &["tree", "(", "-type", "f", "-o", "-type", "d", ")", "-printf", format],
        );
        let mut lines: Vec<_> =
            String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let theirs: Vec<_> = listed(&world.root)
        .iter()
        .map(|line| line.replace(" 4755 ", " 755 ").replace(" 1777 ", " 777 "))
        .collect();
    assert_eq!(listed(&world.here), theirs);
}

#[test]
fn a_directory_that_was_here_keeps_its_mode_and_times() {
    let world = World::sample();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&world.root.join("tree"), 0o777);
    let into = world.here.join("into");
    std::fs::create_dir(&into).unwrap();
    mode(&into, 0o700);
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    std::fs::File::open(world.root.join("tree")).unwrap().set_modified(long_ago).unwrap();
    for (source, destination) in [("web:/tree/.", "into"), ("web:/tree/.", "into/.")] {
        world.run(&["cp", "-pq", source, destination]).expect(0);
        let found = into.metadata().unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o700, "{source} {destination}");
        assert_ne!(found.modified().unwrap(), long_ago);
    }
    // What the copy itself makes is as it is in the pod.
    assert_eq!(into.join("void").metadata().unwrap().permissions().mode() & 0o777, 0o777);
    world.run(&["cp", "-pq", "web:/tree/.", "new"]).expect(0);
    let new = world.here.join("new").metadata().unwrap();
    assert_eq!(new.permissions().mode() & 0o777, 0o777);
    assert_eq!(new.modified().unwrap(), long_ago);
}

#[test]
fn no_more_is_copied_than_was_announced() {
    let world = World::new();
    let content = noise(1_000_000);
    world.write("grows", &content);
    // As a file that has grown since it was opened, or an agent that sends without end.
    world.fixture.agent.files.state().announced = Some(300_001);
    world.run(&["cp", "web:/grows", "."]).expect(0);
    assert!(std::fs::read(world.here.join("grows")).unwrap() == content[..300_001]);
    let printed = world.raw(&["cp", "web:/grows", "-"]);
    assert!(printed.status.success() && printed.stdout == content[..300_001]);
    world.fixture.agent.files.state().announced = Some(0);
    world.run(&["cp", "web:/grows", "nothing"]).expect(0);
    assert_eq!(std::fs::read(world.here.join("nothing")).unwrap(), b"");
}

#[test]
fn a_connection_that_breaks_is_made_again() {
    let world = World::new();
    let content = noise(1_000_000);
    world.write("big", &content);
    world.fixture.agent.files.state().cut_after = Some(300_000);
    world.run(&["cp", "web:/big", "."]).expect(0);
    assert!(std::fs::read(world.here.join("big")).unwrap() == content);
    let reads = world.fixture.agent.files.state().reads.clone();
    assert_eq!(reads.iter().map(|read| read.offset).collect::<Vec<_>>(), [0, 300_000]);
    assert!(!reads[1].if_version.is_empty());
    // An agent that gives only so much at a time.
    world.fixture.agent.files.state().limit = Some(256 * 1024);
    world.run(&["cp", "web:/big", "again"]).expect(0);
    assert!(std::fs::read(world.here.join("again")).unwrap() == content);
    assert_eq!(names(&world.here), ["again", "big"]);
}

/// Starts a copy, interrupts it after so many bytes, and returns what it said.
fn interrupt(world: &World, bytes: usize) -> String {
    world.fixture.agent.files.state().stall_after = Some(bytes);
    let child = world
        .command(&["cp", "web:/big", "."])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let part = world.here.join(".big.podsonde-part");
    while part.metadata().map_or(0, |found| found.len()) < bytes as u64 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn an_interrupted_copy_goes_on_the_next_time() {
    let world = World::new();
    let content = noise(1_000_000);
    world.write("big", &content);
    let said = interrupt(&world, 500_000);
    assert_eq!(said, "488.2 KiB are kept; run the same command to continue\n");
    assert_eq!(names(&world.here), [".big.podsonde-part", ".big.podsonde-version"]);
    world.fixture.agent.files.state().reads.clear();
    let json = world.run(&["cp", "-o", "json", "web:/big", "."]).expect(0).json();
    assert_eq!((&json["resumedBytes"], &json["bytes"]), (&500_000.into(), &500_000.into()));
    assert_eq!(world.fixture.agent.files.state().reads[0].offset, 500_000);
    assert!(std::fs::read(world.here.join("big")).unwrap() == content);
    assert_eq!(names(&world.here), ["big"]);
}

#[test]
fn what_has_changed_is_copied_anew() {
    let world = World::new();
    world.write("big", &noise(1_000_000));
    interrupt(&world, 500_000);
    let other: Vec<u8> = noise(900_000).into_iter().rev().collect();
    world.write("big", &other);
    world
        .run(&["cp", "web:/big", "."])
        .expect(0)
        .says("web:/big: the file has changed since the last time, so it was copied again");
    assert!(std::fs::read(world.here.join("big")).unwrap() == other);
    // And on request.
    interrupt(&world, 500_000);
    world.fixture.agent.files.state().reads.clear();
    world.run(&["cp", "--no-resume", "web:/big", "."]).expect(0);
    assert_eq!(world.fixture.agent.files.state().reads[0].offset, 0);
    assert_eq!(names(&world.here), ["big"]);
}

#[test]
fn a_checksum_that_differs_leaves_nothing() {
    let world = World::new();
    world.write("file", b"content");
    world.fixture.agent.files.state().lies = true;
    world.run(&["cp", "web:/file", "."]).expect(1).says("the checksum is not the agent's");
    assert_eq!(names(&world.here), Vec::<String>::new());
    world.run(&["cp", "web:/file", "-"]).expect(1);
    world.fixture.agent.files.state().checksums = 0;
    world.run(&["cp", "--no-verify", "web:/file", "."]).expect(0);
    assert_eq!(world.fixture.agent.files.state().checksums, 0);
    assert_eq!(names(&world.here), ["file"]);
}

#[test]
fn what_cannot_be_written_is_an_error() {
    let world = World::new();
    world.write("file", b"content");
    symlink("/dev/full", world.here.join(".file.podsonde-part")).unwrap();
    world.run(&["cp", "web:/file", "."]).expect(1);
    assert_eq!(names(&world.here), [".file.podsonde-part"]);
}

#[test]
fn uploads_are_for_agents_that_allow_them() {
    let world = World::new();
    std::fs::write(world.here.join("up"), noise(700_000)).unwrap();
    world
        .run(&["cp", "./up", "web:/etc/up"])
        .expect(1)
        .says("the agent writes no files")
        .says("hint: the agent writes files only if it is started with --allow-file-writes");
    world.fixture.agent.files.state().writable = true;
    std::fs::set_permissions(world.here.join("up"), std::fs::Permissions::from_mode(0o640))
        .unwrap();
    for destination in ["web:/etc/up", "web:/etc", "web:/etc/"] {
        std::fs::remove_file(world.root.join("etc/up")).ok();
        world.run(&["cp", "./up", destination]).expect(0);
        let arrived = world.root.join("etc/up");
        assert!(std::fs::read(&arrived).unwrap() == noise(700_000));
        assert_eq!(arrived.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
    }
    world.run(&["cp", "./up", "web:/etc/up"]).expect(1).says("File exists").says("--force");
    world.run(&["cp", "--force", "./up", "web:/etc/up"]).expect(0);
    world.run(&["cp", ".", "web:/etc/dir"]).expect(1).says("only single files");
    world.run(&["cp", "./none", "web:/etc/none"]).expect(1).says("./none: No such file");
}

#[test]
fn a_terminal_sees_how_far_it_is() {
    let world = World::new();
    world.write("tree/a", &noise(100_000));
    let shown = world.on_terminal(80, "cp web:/tree .");
    assert!(
        shown.contains("1 file, 1 directory, 97.6 KiB in ") && shown.contains(" s, verified\n"),
        "{shown:?}"
    );
}
