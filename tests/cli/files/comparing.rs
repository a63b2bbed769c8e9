//! `diff`.

use std::os::unix::fs::symlink;

use super::World;

/// Two replicas that differ in all ways there are.
fn replicas() -> World {
    let world = World::new();
    std::fs::remove_dir_all(world.root.join("etc")).unwrap();
    for (path, old, new) in [
        ("app/same.conf", Some("a\nb\n"), Some("a\nb\n")),
        (
            "app/text.conf",
            Some("1\n2\n3\n4\n5\n6\n7\n8\n9\n"),
            Some("1\n2\n3\nfour\n5\n6\n7\n8\n9\n10\n"),
        ),
        ("app/no-newline", Some("x\ny"), Some("x\nz\n")),
        ("app/binary", Some("\0a"), Some("\0b")),
        ("app/only-old", Some(""), None),
        ("app/only-new/x", None, Some("")),
        ("app/sub/grown", Some(""), Some("new\n")),
        ("app/sub/kind", Some("file"), None),
        ("app/sub/kind/x", None, Some("in a directory")),
    ] {
        for (root, content) in [(&world.root, old), (&world.other, new)] {
            if let Some(content) = content {
                std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
                std::fs::write(root.join(path), content).unwrap();
            }
        }
    }
    symlink("a", world.root.join("app/link")).unwrap();
    symlink("b", world.other.join("app/link")).unwrap();
    symlink("x", world.root.join("app/same-link")).unwrap();
    symlink("x", world.other.join("app/same-link")).unwrap();
    world
}

#[test]
fn differences_are_diff_s() {
    let world = replicas();
    let top = world.root.parent().unwrap().to_owned();
    let theirs = |flags: &[&str], from: &str, to: &str| {
        let output = super::oracle(&top, "diff", &[flags, &[from, to]].concat());
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let ours = |flags: &[&str], from: &str, to: &str| {
        let ended = world.run(&[&["diff"], flags, &[from, to]].concat());
        let names = ended.stdout.replace("web:/", "root/").replace("web-1:/", "other/");
        (ended.code.unwrap(), names)
    };
    for flags in ["", "-q", "-s", "-U1", "-qs", "-U 0"] {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let format = if flags.iter().any(|flag| flag.starts_with("-U")) { "-r" } else { "-ru" };
        let (code, text) = theirs(
            &[&[format, "--no-dereference"], flags.as_slice()].concat(),
            "root/app",
            "other/app",
        );
        // diff repeats the options that it was given.
        let line = |line: &str| match line.strip_prefix("diff -") {
            Some(command) => {
                let words: Vec<&str> = command.split(' ').collect();
                format!("diff -ru {}\n", words[words.len() - 2..].join(" "))
            }
            None => format!("{line}\n"),
        };
        let expected = (code, text.lines().map(line).collect::<String>());
        assert_eq!(ours(&flags, "web:/app", "web-1:/app"), expected, "{flags:?}");
    }
    for path in ["app/text.conf", "app/same.conf", "app/binary", "app/no-newline", "app/sub/grown"]
    {
        let (from, to) = (format!("root/{path}"), format!("other/{path}"));
        let (code, text) = theirs(&["-u"], &from, &to);
        assert_eq!(
            ours(&["-u"], &format!("web:/{path}"), &format!("web-1:/{path}")),
            (code, text),
            "{path}"
        );
        // And with one of them on this machine.
        let local = world.other.join(path).display().to_string();
        let (code, text) = theirs(&["-u"], &from, &local);
        assert_eq!(ours(&[], &format!("web:/{path}"), &local), (code, text), "{path}");
    }
    let local = world.other.join("app").display().to_string();
    let (code, text) = ours(&["-q"], &local, "web:/app");
    assert_eq!((code, text), theirs(&["-rq", "--no-dereference"], &local, "root/app"));
    // A directory and a file mean the file of that name in it.
    assert_eq!(ours(&[], "web:/app", "web-1:/app/same.conf").0, 0);
    assert_eq!(ours(&[], "web:/app/text.conf", "web-1:/app").0, 1);
}

#[test]
fn what_is_the_same_is_not_transferred() {
    let world = replicas();
    for root in [&world.root, &world.other] {
        std::fs::write(root.join("app/big"), vec![7; 5_000_000]).unwrap();
    }
    world.run(&["diff", "web:/app/big", "web-1:/app/big"]).expect(0);
    world.run(&["diff", "-q", "web:/app", "web-1:/app"]).expect(1);
    let state = world.fixture.agent.files.state();
    assert!(state.reads.is_empty() && state.checksums >= 4, "{:?}", state.reads);
}

#[test]
fn reports_and_troubles() {
    let world = replicas();
    let json = world.run(&["diff", "-o", "json", "web:/app", "web-1:/app"]).expect(1).json();
    assert_eq!((&json["differs"], &json["from"]), (&true.into(), &"web:/app".into()));
    let found: Vec<String> = json["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| format!("{} {} {}", one["kind"], one["path"], one["onlyIn"]).replace('"', ""))
        .collect();
    assert_eq!(
        found,
        [
            "content binary null",
            "link link null",
            "content no-newline null",
            "onlyIn only-new to",
            "onlyIn only-old from",
            "content sub/grown null",
            "type sub/kind null",
            "content text.conf null"
        ]
    );
    assert_eq!(
        world.run(&["diff", "-o", "json", "web:/app", "web:/app"]).expect(0).json()["differs"],
        false
    );
    world
        .run(&["diff", "web:/app", "web-1:/nope"])
        .expect(2)
        .says("web-1:/nope: No such file or directory");
    world.run(&["diff", "web:/app", "./nope"]).expect(2).says("./nope: No such file or directory");
    world.run(&["diff", "web:/app", "nope:/app"]).expect(2).says("there is no pod");
    world.run(&["diff", "./a", "./b"]).expect(2);
    world.run(&["diff", "web:/app"]).expect(2);
}

#[test]
fn a_terminal_gets_colours_and_no_commands() {
    let world = World::new();
    std::fs::write(world.root.join("x"), "same\n\u{1b}]0;owned\u{7}\told\n").unwrap();
    std::fs::write(world.other.join("x"), "same\nnew\n").unwrap();
    let shown = world.on_terminal(80, "diff web:/x web-1:/x");
    assert!(shown.contains("\u{1b}[1;31m-\\u{1b}]0;owned\\u{7}\told\u{1b}[0m\n"), "{shown:?}");
    assert!(shown.contains("\u{1b}[32m+new\u{1b}[0m\n"), "{shown:?}");
}
