//! `ls` and `stat`.

use std::os::unix::ffi::OsStrExt;

use super::{World, oracle};

#[test]
fn listings_are_ls_s() {
    let world = World::sample();
    for flags in [
        "-1",
        "-a",
        "-A",
        "-l",
        "-la",
        "-lA",
        "-lh",
        "-lah",
        "-li",
        "-lS",
        "-lSr",
        "-lt",
        "-ltr",
        "-i",
        "-R",
        "-lR",
        "-aR",
        "-d",
        "-ld",
        "-F",
        "--full-time",
        "-lai",
        "-r",
        "-S",
        "-t",
        "-C -w 80",
        "-C -w 40",
        "-C -w 200",
        "-C -w 1",
        "-CF -w 60",
        "-Ci -w 70",
        "-CA -w 0",
        "-1i",
        "-N",
    ] {
        let flags: Vec<&str> = flags.split(' ').collect();
        let ours =
            world.run(&[&["ls"], flags.as_slice(), &["web:/tree"]].concat()).expect(0).stdout;
        let theirs = world.oracle("ls", &[&["-T0"], flags.as_slice(), &["tree"]].concat());
        // Operands are named as they are typed. Both are in the same directory, but for its own
        // parent.
        let ours = ours.replace("web:/tree", "tree");
        assert_eq!(ours, theirs, "{flags:?}");
    }
    let numeric = world.run(&["ls", "--numeric-uid-gid", "web:/tree"]).expect(0).stdout;
    assert_eq!(numeric, world.oracle("ls", &["-n", "tree"]));
    let files = world
        .run(&["ls", "-l", "web:/tree/plain", "web:/tree/void", "web:/tree/link"])
        .expect(0)
        .stdout;
    let theirs = world.oracle("ls", &["-l", "tree/plain", "tree/void", "tree/link"]);
    // The names are longer, which moves nothing.
    assert_eq!(files.replace("web:/", ""), theirs);
    for operand in ["tree/link", "tree/sublink", "tree/sublink/", "tree/dangling", "tree/plain"] {
        for flags in ["-1", "-l", "-d"] {
            let ours = world.run(&["ls", flags, &format!("web:/{operand}")]).expect(0).stdout;
            assert_eq!(
                ours.replace("web:/", ""),
                world.oracle("ls", &[flags, operand]),
                "{flags} {operand}"
            );
        }
    }
}

#[test]
fn a_terminal_gets_columns_quotes_and_colours() {
    let world = World::sample();
    world.write("tree/\u{1b}[31mred\n", b"");
    for columns in [80, 200, 20] {
        let ours = world.on_terminal(columns, "ls web:/tree");
        let width = columns.to_string();
        let theirs = world.oracle(
            "ls",
            &["-C", "-T0", "-w", &width, "--color=always", "--quoting-style=shell-escape", "tree"],
        );
        // ls resets before the first colour, and colours what a dangling link is red.
        let plain = |text: &str| without_colours(text);
        assert_eq!(plain(&ours), plain(&theirs), "{columns}");
        assert!(
            ours.contains("\u{1b}[01;34msub\u{1b}[0m")
                && ours.contains("\u{1b}[37;41mrun.sh\u{1b}[0m"),
            "{ours}"
        );
        assert!(!ours.contains("\u{1b}[31mred"), "{ours:?}");
    }
    let long = world.on_terminal(80, "ls -la web:/tree --color=never");
    let theirs = world.oracle("ls", &["-la", "--quoting-style=shell-escape", "tree"]);
    assert_eq!(long, theirs);
    // NO_COLOR is respected, and a pipe gets names as they are.
    assert!(!world.on_terminal(80, "ls web:/tree --color=never").contains('\u{1b}'));
    let raw = world.raw(&["ls", "web:/tree"]).stdout;
    assert_eq!(raw, oracle(&world.root, "ls", &["tree"]).stdout);
}

fn without_colours(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    plain + rest
}

#[test]
fn a_large_directory_comes_in_pages() {
    let world = World::new();
    for number in 0..250 {
        world.write(&format!("many/{number}"), b"");
    }
    world.fixture.agent.files.state().page = Some(7);
    for flags in ["-1", "-l", "-R"] {
        let ours = world.run(&["ls", flags, "web:/many"]).expect(0).stdout;
        assert_eq!(ours.replace("web:/", ""), world.oracle("ls", &[flags, "many"]));
    }
}

#[test]
fn stat_is_stat_s() {
    let world = World::sample();
    for name in ["plain", "empty", "sub", "link", "fifo", "socket", "void", "run.sh", "dangling"] {
        let path = format!("tree/{name}");
        // Reading a link may change when it was last read, once.
        world.oracle("stat", &[&path]);
        let ours =
            world.run(&["stat", &format!("web:/{path}")]).expect(0).stdout.replace("web:/", "");
        let theirs = world.oracle("stat", &[&path]);
        // An agent does not tell the size of I/O; below it stands what stat does not know.
        let theirs: Vec<String> = theirs
            .lines()
            .map(|line| match line.split_once("IO Block: ") {
                Some((before, after)) => {
                    before.to_owned() + after.split_once(' ').unwrap().1.trim_start()
                }
                None => line.to_owned(),
            })
            .collect();
        let ours: Vec<&str> = ours.lines().collect();
        assert_eq!(ours[..theirs.len()], theirs, "{name}");
        assert_eq!(
            ours[theirs.len()..],
            ["    On: overlay", "    Of: container app of pod default/web, read as 1000:1000"]
        );
        let format =
            "%N %s %b %B %f %F %a %A %u %U %g %G %h %i %d %t %T %w %W %x %X %y %Y %z %Z %%";
        for flags in [vec!["--format", format], vec!["-L", "--format", format]] {
            if flags[0] == "-L" && name == "dangling" {
                continue;
            }
            let ours = world
                .run(&[&["stat"], flags.as_slice(), &[&format!("web:/{path}")]].concat())
                .expect(0)
                .stdout;
            assert_eq!(
                ours.replace("web:/", ""),
                world.oracle("stat", &[flags.as_slice(), &[&path]].concat())
            );
        }
    }
}

#[test]
fn exit_codes_and_errors_are_the_tools() {
    let world = World::sample();
    let ended = world.run(&["ls", "web:/nope", "web:/tree/plain"]).expect(2);
    assert_eq!(ended.stdout, "web:/tree/plain\n");
    assert!(
        ended.stderr.starts_with("error: web:/nope: No such file or directory\n"),
        "{}",
        ended.stderr
    );
    world.run(&["stat", "web:/nope", "web:/tree/plain"]).expect(1);
    world
        .run(&["ls", "nope:/"])
        .expect(2)
        .says("there is no pod default/nope")
        .says("hint: see which there are");
    world
        .run(&["ls", "web:/secret"])
        .expect(2)
        .says("error: web:/secret: Permission denied\nhint: ")
        .says("--as-root");
    world.run(&["stat", "web:/proc/1/environ"]).expect(1).says("hint: ").says("--view=proc1");
    world.run(&["stat", "web:/forbidden"]).expect(1).says("create pods/exec").says("hint: ");
    world
        .run(&["ls", "web:/", "-c", "gone"])
        .expect(2)
        .says("hint: see its state: kubectl describe pod web -n default");
    world
        .run(&["ls", "-n", "shop", "prod/web:/", "-c", "app", "--as-root", "--view", "proc1"])
        .expect(0);
    let target = world.fixture.agent.files.state().target.clone().unwrap();
    assert_eq!(target.pod.unwrap().namespace, "prod");
    assert_eq!((target.container.as_str(), target.view, target.as_root), ("app", 2, true));
    for usage in [
        "ls",
        "ls web",
        "ls web:/ -Z",
        "ls Web:/",
        "cat",
        "stat web:/ --format %n -o json",
        "ls web:/ --view=host",
    ] {
        world.run(&usage.split(' ').collect::<Vec<_>>()).expect(2);
    }
}

#[test]
fn json_and_yaml_have_one_shape() {
    let world = World::sample();
    let path = world.root.join("tree").join(std::ffi::OsStr::from_bytes(b"bad\xff"));
    std::fs::write(&path, b"").unwrap();
    let json = world.run(&["ls", "-o", "json", "web:/tree", "web:/nope"]).expect(2).json();
    assert_eq!(json["errors"][0]["reason"], "PATH_NOT_FOUND");
    let listing = &json["listings"][0];
    assert_eq!(listing["path"], "/tree");
    assert_eq!(
        listing["root"],
        serde_json::json!({"owner": "container", "node": "n1", "namespace": "default", "pod": "web", "podUid": "u1",
            "container": "app", "containerId": "containerd://abc", "ownerContainer": "app", "asUid": 1000, "asGid": 1000})
    );
    let entry = |name: &str| {
        listing["entries"]
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["path"] == name)
            .unwrap()
            .clone()
    };
    let plain = entry("plain");
    assert_eq!(
        (&plain["type"], &plain["mode"], &plain["size"]),
        (&"regular".into(), &"0640".into(), &4000.into())
    );
    assert_eq!(plain["permissions"], "-rw-r-----");
    assert_eq!(entry("link")["linkTarget"], "plain");
    assert_eq!(entry("bad\u{fffd}")["pathBase64"], "YmFk/w==");
    assert!(listing["entries"].as_array().unwrap().iter().all(|entry| entry["path"] != ".hidden"));

    let yaml = world.run(&["stat", "-o", "yaml", "web:/tree/plain"]).expect(0).stdout;
    let json = world.run(&["stat", "-o", "json", "web:/tree/plain"]).expect(0).json();
    assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&yaml).unwrap(), json);
    assert_eq!(json["files"][0]["fileSystem"], "overlay");
}

#[test]
fn help_and_usage_read_as_the_others() {
    let world = World::new();
    for command in ["ls", "cat", "tail", "cp", "stat", "find", "diff"] {
        let help = world.run(&[command, "--help"]).expect(0).stdout;
        for text in [
            "Examples:",
            "Exit codes:",
            "--as-root",
            "--container",
            &format!("Usage: podsonde {command}"),
        ] {
            assert!(help.contains(text), "{command}: {text} is not in\n{help}");
        }
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
}
