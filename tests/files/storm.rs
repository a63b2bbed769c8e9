//! Directories, files and links that are exchanged as fast as the kernel can while they are read.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    os::unix::fs::symlink,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use rustix::fs::{RenameFlags, renameat_with};

use crate::lab::{CANARY, CANARY_NAME, INSIDE, Lab, checked};

/// What is exchanged, with what it is read meanwhile.
struct Storm {
    name: &'static str,
    /// Two paths, of the lab's directory, that are exchanged.
    exchange: [&'static str; 2],
    /// What is read.
    path: &'static str,
}

#[test]
fn a_storm_of_exchanges_leads_nobody_out() {
    const STORMS: [Storm; 6] = [
        Storm {
            name: "directory and absolute link",
            exchange: ["jail/root/d", "jail/root/to-outside"],
            path: "/d/file",
        },
        Storm {
            name: "directory and relative link",
            exchange: ["jail/root/d", "jail/root/to-parents"],
            path: "/d/file",
        },
        Storm {
            name: "file and link",
            exchange: ["jail/root/d/file", "jail/root/to-canary"],
            path: "/d/file",
        },
        Storm {
            name: "directory and link, then up",
            exchange: ["jail/root/d/e", "jail/root/to-outside"],
            path: "/d/e/../file",
        },
        Storm {
            name: "directory moved out of the root",
            exchange: ["jail/root/d/e", "outside/deeper"],
            path: "/d/e/../../../../file",
        },
        Storm {
            name: "directory moved out of the root, far up",
            exchange: ["jail/root/d", "outside"],
            path: "/d/../../../file",
        },
    ];
    const ATTEMPTS: usize = 170_000;
    let attempts: usize = STORMS
        .iter()
        .map(|storm| {
            let lab = Lab::new();
            symlink(lab.host("outside"), lab.root.join("to-outside")).unwrap();
            let outside = lab.host("outside").display().to_string();
            let up = "../".repeat(9) + ".." + &outside;
            symlink(up, lab.root.join("to-parents")).unwrap();
            symlink(lab.host("outside").join(CANARY_NAME), lab.root.join("to-canary")).unwrap();
            let before = lab.descriptors();
            let stop = AtomicBool::new(false);
            let [a, b] = storm.exchange.map(|path| lab.host(path));
            let (mut inside, mut naive, mut exchanges) = (0, 0, 0_u64);
            let mut refused = BTreeMap::new();
            thread::scope(|scope| {
                let exchanger = scope.spawn(|| {
                    let cwd = rustix::fs::CWD;
                    let mut done = 0;
                    while !stop.load(Ordering::Relaxed) {
                        renameat_with(cwd, &a, cwd, &b, RenameFlags::EXCHANGE).unwrap();
                        done += 1;
                    }
                    done
                });
                for i in 0..ATTEMPTS {
                    if i % 50 == 0 {
                        let path = storm.path.trim_start_matches('/');
                        naive += usize::from(naive_read(&lab.root.join(path)));
                    }
                    match checked(storm.name, lab.read(storm.path.as_bytes())) {
                        Ok(data) => {
                            assert!(data == INSIDE, "{}: {data:?}", storm.name);
                            inside += 1;
                        }
                        Err(reason) => *refused.entry(reason.as_str()).or_insert(0) += 1,
                    }
                    if i % 500 == 0 {
                        let walked = lab.walk(b"/d", true).unwrap_or_default();
                        // What was moved in is inside; through a link nothing is.
                        let through_link = !storm.exchange[1].starts_with("outside");
                        let led_out =
                            walked.iter().any(|e| e.path.ends_with(CANARY_NAME.as_bytes()));
                        assert!(!(through_link && led_out), "{}: {walked:?}", storm.name);
                    }
                }
                stop.store(true, Ordering::Relaxed);
                exchanges = exchanger.join().unwrap();
            });
            println!(
                "{}: {ATTEMPTS} attempts during {exchanges} exchanges: {inside} inside, \
                 {refused:?}; a naive reader was led out {naive} times of {}",
                storm.name,
                ATTEMPTS / 50
            );
            assert_eq!(lab.descriptors(), before, "no descriptor is left");
            assert!(naive > 0, "{}: the storm is none", storm.name);
            ATTEMPTS
        })
        .sum();
    println!("{attempts} attempts in all");
    assert!(attempts >= 1_000_000);
}

fn naive_read(path: &Path) -> bool {
    match fs::read(path) {
        Ok(data) => data == CANARY,
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
                "{error}"
            );
            false
        }
    }
}
