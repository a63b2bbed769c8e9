//! What a hostile agent, or a pod behind an honest one, may answer.

use podsonde::proto::v1::{FileEntry, FileType, FilesListResponse};

use super::{World, contents};

fn entry(path: &[u8], kind: FileType) -> FileEntry {
    FileEntry {
        path: path.to_vec(),
        r#type: kind.into(),
        mode: 0o7777,
        links: 1,
        ..FileEntry::default()
    }
}

fn link(path: &str, target: &str) -> FileEntry {
    FileEntry {
        link_target: target.as_bytes().to_vec(),
        ..entry(path.as_bytes(), FileType::Symlink)
    }
}

/// A world where the pod `evil` walks like this, and reads whatever it is asked for.
fn evil(walk: Vec<FileEntry>) -> World {
    let world = World::new();
    let mut state = world.fixture.agent.files.state();
    state.walks.insert("evil".into(), walk);
    state.roots.insert("evil".into(), world.root.clone());
    drop(state);
    world
}

/// All that is beside the destination, before and after.
fn surroundings(world: &World) -> Vec<Vec<u8>> {
    let top = world.here.parent().unwrap();
    contents(top).into_keys().filter(|path| !path.starts_with(b"here/")).collect()
}

#[test]
fn paths_that_lead_out_end_the_copy() {
    for path in [
        "../x",
        "/abs",
        "a/../../b",
        "..",
        ".",
        "a/..",
        "a//b",
        "a/",
        "./a",
        "a/./b",
        "/",
        "x\0y",
        "a/../b",
        "../../../../tmp/x",
        &"d/".repeat(3000),
        &"n".repeat(300),
    ] {
        let world = evil(vec![
            entry(b"ok", FileType::Directory),
            entry(path.as_bytes(), FileType::Regular),
        ]);
        world.write("ok", b"never");
        let before = surroundings(&world);
        let ended = world.run(&["cp", "evil:/tree", "copy"]).expect(1);
        assert!(
            ended.stderr.contains("the agent sent a path that leads out of the tree"),
            "{path:?}: {}",
            ended.stderr
        );
        assert!(!ended.stderr.contains('\0') && ended.stderr.len() < 1000, "{}", ended.stderr);
        assert_eq!(surroundings(&world), before, "{path:?}");
        world.run(&["find", "evil:/tree"]).expect(1);
    }
}

#[test]
fn nothing_goes_through_a_link() {
    let outside = "../outside";
    let attacks: [(&str, Vec<FileEntry>); 6] = [
        (
            "a link, then a file below it",
            vec![link("d", outside), entry(b"d/x", FileType::Regular)],
        ),
        (
            "a link in the place of a directory",
            vec![
                entry(b"d", FileType::Directory),
                link("d", outside),
                entry(b"d/x", FileType::Regular),
            ],
        ),
        (
            "a link inside, then a way out of it",
            vec![
                entry(b"d", FileType::Directory),
                link("in", "d"),
                link("out", "in/../../outside"),
                entry(b"out/x", FileType::Regular),
                entry(b"in/x", FileType::Regular),
            ],
        ),
        ("an absolute link", vec![link("abs", "/etc"), entry(b"abs/x", FileType::Regular)]),
        (
            "a directory where a link is",
            vec![
                link("d", "e"),
                entry(b"d", FileType::Directory),
                entry(b"d/x", FileType::Regular),
            ],
        ),
        (
            "the names of unfinished copies",
            vec![
                link(".x.podsonde-part", "../../outside/x"),
                link(".x.podsonde-version", "../../outside/x"),
                entry(b"x", FileType::Regular),
            ],
        ),
    ];
    for (what, walk) in attacks {
        for flags in [vec!["cp"], vec!["cp", "--links"], vec!["cp", "--links", "-p"]] {
            let world = evil(walk.clone());
            for path in ["tree/d/x", "tree/out/x", "tree/in/x", "tree/abs/x", "tree/x"] {
                world.write(path, b"owned");
            }
            let outside = world.here.join("outside");
            std::fs::create_dir(&outside).unwrap();
            let before = surroundings(&world);
            world.run(&[flags.as_slice(), &["evil:/tree", "copy"]].concat());
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{what} {flags:?}");
            assert_eq!(surroundings(&world), before, "{what} {flags:?}");
            assert!(!std::path::Path::new("/etc/x").exists());
            for (path, target) in contents(&world.here.join("copy")) {
                let path = world.here.join("copy").join(String::from_utf8(path).unwrap());
                if path.is_symlink() {
                    let target = String::from_utf8(target).unwrap();
                    assert!(
                        !target.starts_with('/') && !target.contains("outside"),
                        "{what}: {path:?} -> {target}"
                    );
                }
                let mode = std::os::unix::fs::PermissionsExt::mode(
                    &path.symlink_metadata().unwrap().permissions(),
                );
                assert!(path.is_symlink() || mode & 0o7000 == 0, "{what}: {path:?} {mode:o}");
            }
        }
    }
}

#[test]
fn a_link_of_the_destination_is_not_followed_either() {
    let world = World::new();
    world.write("tree/sub/x", b"new");
    world.write("file", b"new");
    let outside = world.here.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir(world.here.join("tree")).unwrap();
    std::os::unix::fs::symlink(&outside, world.here.join("tree/sub")).unwrap();
    world.run(&["cp", "web:/tree", "."]).expect(1);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    // A file takes the place of a link, it does not go through it.
    std::fs::write(outside.join("kept"), "old").unwrap();
    std::os::unix::fs::symlink("outside/kept", world.here.join("file")).unwrap();
    world.run(&["cp", "web:/file", "."]).expect(0);
    assert_eq!(std::fs::read(outside.join("kept")).unwrap(), b"old");
    assert_eq!(std::fs::read(world.here.join("file")).unwrap(), b"new");
}

#[test]
fn what_comes_twice_is_copied_once_and_said() {
    let world = evil(vec![entry(b"x", FileType::Regular), entry(b"x", FileType::Regular)]);
    world.write("tree/x", b"content");
    world
        .run(&["cp", "evil:/tree", "copy"])
        .expect(1)
        .says("evil:/tree/x: the agent sent it twice");
    assert_eq!(std::fs::read(world.here.join("copy/x")).unwrap(), b"content");
}

#[test]
fn a_depth_bomb_ends() {
    let deep: Vec<u8> = b"d/".iter().copied().cycle().take(4000).chain(*b"d").collect();
    let walk = (1..=2000).map(|depth| entry(&deep[..depth * 2 - 1], FileType::Directory)).collect();
    let world = evil(walk);
    world.run(&["cp", "-p", "evil:/tree", "copy"]).expect(0);
    let found = world.run(&["find", "evil:/tree", "-type", "d"]).expect(0);
    assert_eq!(found.stdout.lines().count(), 2000);
    assert_eq!(world.run(&["find", "evil:/tree", "-prune"]).expect(0).stdout, "evil:/tree/d\n");
    // Too deep for a path: the directory's own removal would fail.
    std::process::Command::new("rm").arg("-r").arg(world.here.join("copy")).status().unwrap();
}

#[test]
fn names_of_a_page_are_names_and_in_order() {
    let page = |names: &[&[u8]], next: &[u8]| FilesListResponse {
        entries: names.iter().map(|name| entry(name, FileType::Regular)).collect(),
        next_after: next.to_vec(),
        ..FilesListResponse::default()
    };
    let cases: [(&str, Vec<FilesListResponse>); 7] = [
        ("a name that is none", vec![page(&[b"../x"], b"")]),
        ("a name that is none", vec![page(&[b".."], b"")]),
        ("a name that is none", vec![page(&[b""], b"")]),
        ("names out of order", vec![page(&[b"b", b"a"], b"")]),
        ("names out of order", vec![page(&[b"a", b"a"], b"")]),
        ("names out of order", vec![page(&[b"b"], b"b"), page(&[b"a"], b"")]),
        ("a page that leads nowhere", vec![page(&[], b"a")]),
    ];
    for (what, pages) in cases {
        let world = World::new();
        let mut state = world.fixture.agent.files.state();
        state.pages.insert("evil".into(), pages);
        state.roots.insert("evil".into(), world.root.clone());
        drop(state);
        world.run(&["ls", "evil:/"]).expect(2).says(&format!("the agent sent {what}"));
    }
}

#[test]
fn a_million_entries_take_little_memory() {
    let name = |number: u32| format!("directory/with/a/longish/name/{number:010}").into_bytes();
    let mut walk = vec![entry(b"", FileType::Directory)];
    walk.extend((0..1_000_000).map(|number| FileEntry {
        link_target: b"x".to_vec(),
        ..entry(&name(number), FileType::Symlink)
    }));
    let world = evil(walk);
    for (arguments, lines) in
        [(vec!["find", "evil:/", "-name", "*7"], 100_000), (vec!["cp", "-q", "evil:/", "copy"], 0)]
    {
        // The peak of its memory, by the kernel's account.
        let report = world.here.join("peak");
        let inner = world.command(&arguments);
        let mut timed = std::process::Command::new("python3");
        timed.args(["-c", "import os,resource,subprocess,sys\nended=subprocess.run(sys.argv[2:])\nopen(sys.argv[1],'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))\nsys.exit(ended.returncode)"]);
        timed.arg(&report).arg(inner.get_program()).args(inner.get_args()).current_dir(&world.here);
        let output = timed.output().unwrap();
        assert_eq!(output.stdout.iter().filter(|b| **b == b'\n').count(), lines);
        let peak: u64 = std::fs::read_to_string(&report).unwrap().parse().unwrap();
        println!("{arguments:?}: peak {peak} KiB");
        assert!(peak < 150_000, "{arguments:?} took {peak} KiB");
    }
}
