//! The command line on a real agent: what people type, on real containers.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Output, Stdio},
};

use podsonde::agent::config::Limits;
use serde_json::json;

use crate::{
    fixture::Fixture,
    support::{Inside, sleep},
};

/// What a tool prints in a directory.
fn tool(directory: &Path, name: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(name);
    command.args(arguments).current_dir(directory).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

fn command(f: &Fixture, here: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podsonde"));
    command
        .arg("--agent")
        .arg(f.endpoint())
        .args(arguments)
        .current_dir(here)
        .env("TZ", "UTC")
        .stdin(Stdio::null());
    for variable in ["KUBECONFIG", "PODSONDE_AGENT", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command.env("HOME", here);
    command
}

#[track_caller]
fn ends(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}{stderr}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_on_a_real_container() {
    let limits = Limits::default();
    let files =
        podsonde::agent::config::FileLimits { allow_file_writes: true, ..limits.files.clone() };
    let f = Fixture::with(|_| {}, Limits { files, ..limits }).await;
    let inside = Inside::start(&f, "app", sleep(json!({}))).await;
    let other = Inside::start(&f, "other", sleep(json!({}))).await;
    let noise: Vec<u8> =
        (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (one, text) in [(&inside, "old\n"), (&other, "new\n")] {
        fs::create_dir_all(one.path("/root/tree/sub/deep")).unwrap();
        one.write("/root/tree/noise", &noise);
        one.write("/root/tree/sub/text", text);
        for i in 0..300 {
            one.write(&format!("/root/tree/sub/deep/{i}"), i.to_string());
        }
        fs::set_permissions(one.path("/root/tree/noise"), fs::Permissions::from_mode(0o750))
            .unwrap();
        symlink("sub/text", one.path("/root/tree/link")).unwrap();
        symlink("/etc/passwd", one.path("/root/tree/passwd")).unwrap();
    }
    let home = tempfile::tempdir().unwrap();
    let here = home.path();
    let run = |arguments: &[&str]| command(&f, here, arguments).output().unwrap();
    let root = inside.path("/root");

    for flags in ["-la", "-lR", "-1i", "-lS", "-lt"] {
        let ours = ends(&run(&["ls", flags, "--numeric-uid-gid", "app:/root/tree"]), 0);
        let theirs = tool(&root, "ls", &[flags, "-n", "tree"]);
        assert_eq!(ours.replace("app:/root/", ""), theirs, "{flags}");
    }
    for expression in [
        "-type f",
        "-name *7 -size -2",
        "-type l",
        "-mindepth 2 -maxdepth 2",
        "-perm 750",
        "-name deep -prune -o -print",
    ] {
        let words: Vec<&str> = expression.split(' ').collect();
        let sorted = |text: String| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let ours = ends(&run(&[&["find", "app:/root/tree"], words.as_slice()].concat()), 0);
        let theirs = tool(&root, "find", &[&["tree"], words.as_slice()].concat());
        assert_eq!(sorted(ours.replace("app:/root/", "")), sorted(theirs), "{expression}");
    }
    let format = "%s %b %f %a %u %g %h %i %d %Y %y";
    let ours = ends(&run(&["stat", "--format", format, "app:/root/tree/noise"]), 0);
    assert_eq!(ours, tool(&root, "stat", &["-c", format, "tree/noise"]));
    assert!(run(&["cat", "app:/root/tree/noise"]).stdout == noise);
    assert_eq!(ends(&run(&["tail", "-n1", "app:/root/tree/link"]), 0), "old\n");

    ends(&run(&["cp", "-pq", "--links", "app:/root/tree", "."]), 0);
    assert_eq!(
        tool(
            here,
            "diff",
            &["-r", "--no-dereference", "tree", root.join("tree").to_str().unwrap()]
        ),
        format!("Only in {}: passwd\n", root.join("tree").display())
    );
    let sums = |directory: &Path| {
        tool(directory, "sh", &["-c", "find tree -type f | sort | xargs sha256sum"])
    };
    assert_eq!(sums(here), sums(&root));
    let compared = ends(&run(&["diff", "app:/root/tree", "other:/root/tree"]), 1);
    assert!(
        compared.starts_with("diff -ru app:/root/tree/sub/text other:/root/tree/sub/text\n--- app"),
        "{compared}"
    );
    assert!(compared.ends_with("@@ -1 +1 @@\n-old\n+new\n"), "{compared}");

    ends(&run(&["cp", "tree/noise", "app:/root/up"]), 0);
    assert!(fs::read(inside.path("/root/up")).unwrap() == noise);
    let again = run(&["cp", "tree/noise", "app:/root/up"]);
    ends(&again, 1);
    assert!(String::from_utf8_lossy(&again.stderr).contains("--force"), "{again:?}");

    // What leads out is not there, or refused.
    symlink("../../../../../../etc/hostname", inside.path("/root/out")).unwrap();
    let theirs = fs::read(inside.path("/etc/hostname")).unwrap_or_default();
    let ours = run(&["cat", "app:/root/out"]);
    assert!(ours.stdout == theirs, "{ours:?}");
    for path in ["app:/proc/1/environ", "app:/proc/self/root/etc/shadow", "app:/nope"] {
        let refused = run(&["cat", path]);
        assert_eq!(ends(&refused, 1), "");
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(
            stderr.starts_with(&format!("error: {path}: ")) && !stderr.contains("pod default/app"),
            "{stderr}"
        );
    }
    f.end().await;
}
