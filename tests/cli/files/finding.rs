//! `find`.

use super::{World, sorted};

#[test]
fn what_is_found_is_find_s() {
    let world = World::sample();
    for line in [
        "",
        "-name *.conf",
        "-iname *.conf",
        "-type f",
        "-type d,l",
        "-type p -o -type s",
        "-size +1M",
        "-size -2",
        "-size 8",
        "-size 4000c",
        "-size +1k -size -4M",
        "-empty",
        "-empty -type d",
        "-maxdepth 0",
        "-maxdepth 1",
        "-mindepth 2",
        "-mindepth 1 -maxdepth 2 -type f",
        "-mtime +1",
        "-mtime -1",
        "-mtime 3",
        "-mmin +60 -mtime -2",
        "-mmin -60",
        "-perm 640",
        "-perm -4000",
        "-perm /011 -type f",
        "! -type f",
        "-not -name *e* -not -type d",
        "( -name plain -o -name empty ) -size +0",
        "-name sub -prune -o -print",
        "-name sub -prune -o -type f -print",
        "-path *deep*",
        "-ipath *DEEP*",
        "-lname pla*",
        "-links 2 -type f",
        "-user root",
        "-group root -uid 0",
        "-newer web:/tree/big.bin -type f",
        "-name [a-p]*",
        "-name ?mlaut",
        "-print0",
        "-type l -ls",
        "-ls",
        "-type f -print -o -type d -print0",
        "-true -false",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ours = world.run(&[&["find", "web:/tree"], words.as_slice()].concat()).expect(0).stdout;
        let theirs = world.oracle(
            "find",
            &[
                &["tree"],
                words
                    .iter()
                    .map(|word| word.trim_start_matches("web:/"))
                    .collect::<Vec<_>>()
                    .as_slice(),
            ]
            .concat(),
        );
        // The file system's order is the same for both.
        assert_eq!(ours.replace("web:/", ""), theirs, "{line}");
    }
    // Two dashes do as well, and -path means the path in the pod, too.
    let two = world.run(&["find", "web:/tree", "--name", "*.conf", "--type=f"]).expect(0).stdout;
    assert_eq!(two, "web:/tree/sub/deep/er/leaf.conf\n");
    assert_eq!(
        world.run(&["find", "web:/tree", "-path", "/tree/sub/deep/er/*"]).expect(0).stdout,
        two
    );
    // A slash behind the start, the root, a file, several starts.
    let root = world.run(&["find", "web:", "-name", "leaf.conf"]).expect(0).stdout;
    assert_eq!(root, two);
    let several =
        world.run(&["find", "web:/tree/plain", "web:/tree/sub/", "-type", "f"]).expect(0).stdout;
    assert_eq!(
        sorted(&several),
        ["web:/tree/plain", "web:/tree/sub/deep/er/leaf.conf", "web:/tree/sub/other.CONF"]
    );
}

#[test]
fn formats_and_failures() {
    let world = World::sample();
    let json =
        world.run(&["find", "web:/tree/sub", "-name", "*.conf", "-o", "json"]).expect(0).json();
    assert_eq!(json["listings"][0]["entries"][0]["path"], "/tree/sub/deep/er/leaf.conf");
    assert_eq!(json["listings"][0]["truncated"], false);
    world
        .run(&["find", "web:/nope", "web:/tree", "-maxdepth", "0"])
        .expect(1)
        .says("No such file or directory");
    for usage in [
        "find web:/ -name",
        "find web:/ -type q",
        "find -name x",
        "find web:/ ( -name x",
        "find web:/ -ls -o json",
        "find web:/ -nonsense",
        "find web:/ -perm rwx",
    ] {
        world.run(&usage.split(' ').collect::<Vec<_>>()).expect(2);
    }
    let words = world.run(&["find", "web:/tree", "-name", "x", "-size"]).expect(2);
    assert!(words.stderr.starts_with("error: -size lacks its value\n"), "{}", words.stderr);
}

#[test]
fn names_are_escaped_on_a_terminal_only() {
    let world = World::new();
    world.write("tree/\u{1b}[31mred", b"");
    world.write("tree/a b", b"");
    let shown = world.on_terminal(80, "find web:/tree -type f");
    assert_eq!(
        sorted(&shown),
        ["''$'web:/tree/\\033''[31mred'", "web:/tree/a b"]
            .map(|line| line.replace("''$'web:/tree/", "'web:/tree/'$'"))
    );
    assert!(
        world
            .run(&["find", "web:/tree", "-type", "f"])
            .expect(0)
            .stdout
            .contains("\u{1b}[31mred\n")
    );
}
