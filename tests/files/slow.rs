//! File systems that answer, but slowly, without end, or with errors of their own making: FUSE
//! servers that the test itself is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, umount2};
use podsonde::domain::{ErrorKind, Reason};

use crate::{
    fuse::{Answer, Request, attribute_answer, dirent, entry_answer, opcode, open_answer, served},
    lab::{Lab, never, with_mounts},
};

const DIRECTORY: u32 = 0o40755;
const FILE: u32 = 0o100_644;
/// Node of the file; the top has 1.
const NODE: u64 = 2;

/// Serves a directory with one file, but for what `special` answers.
fn with_served(
    special: impl Fn(&Request<'_>) -> Option<Answer> + Send + 'static,
    work: impl FnOnce(&Lab) + Send,
) {
    with_mounts(|| {
        let lab = Lab::new();
        let at = lab.root.join("fuse");
        fs::create_dir(&at).unwrap();
        served(&at, move |request| {
            special(request).unwrap_or_else(|| match request.opcode {
                opcode::GETATTR if request.node == 1 => attribute_answer(1, DIRECTORY, 0),
                opcode::GETATTR => attribute_answer(request.node, FILE, 1 << 20),
                opcode::LOOKUP => entry_answer(NODE, FILE, 1 << 20),
                opcode::OPEN | opcode::OPENDIR => open_answer(),
                opcode::STATFS => Answer::Done(vec![0; 80]),
                opcode::ACCESS | opcode::FLUSH | opcode::RELEASE | opcode::RELEASEDIR => {
                    Answer::Done(Vec::new())
                }
                _ => Answer::Failed(nix::libc::ENOSYS),
            })
        });
        work(&lab);
        // Before the lab is removed, since a directory here may have no end.
        umount2(&at, MntFlags::MNT_DETACH).unwrap();
    });
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(300)
}

#[test]
fn a_directory_without_end_is_given_up() {
    // Another name in each answer, for ever.
    let endless = |request: &Request<'_>| {
        (request.opcode == opcode::READDIR).then(|| {
            let offset = u64::from_ne_bytes(request.body[8..16].try_into().unwrap());
            Answer::Done(dirent(NODE, offset + 1, &format!("name-{offset}"), 8))
        })
    };
    with_served(endless, |lab| {
        let top = || lab.rooted.resolve(b"/fuse", true).unwrap();
        let open = || top().open_directory(&lab.rooted).unwrap();
        let error = open().page(b"", 10, usize::MAX, soon()).unwrap_err();
        assert_eq!(error.reason, Reason::FileSystemStuck, "{error}");
        // A walk tells what comes, as long as it is asked.
        let mut walk = open().walk(2, true);
        let mut told = 0;
        for _ in 0..10 {
            told += walk.next(5, 1 << 20, never()).unwrap().len();
        }
        assert_eq!(told, 50);
    });
}

#[test]
fn a_directory_of_nothing_without_end_is_given_up() {
    let endless = |request: &Request<'_>| {
        (request.opcode == opcode::READDIR).then(|| {
            let offset = u64::from_ne_bytes(request.body[8..16].try_into().unwrap());
            Answer::Done(dirent(1, offset + 1, ".", 4))
        })
    };
    with_served(endless, |lab| {
        let walked = lab.walk(b"/fuse", true).unwrap();
        let reasons: Vec<_> = walked.iter().map(|entry| entry.reason).collect();
        assert_eq!(reasons, [None, Some(Reason::FileSystemFailed)]);
    });
}

#[test]
fn a_file_byte_by_byte_is_read_for_as_long_as_the_caller_says() {
    let drop_by_drop = |request: &Request<'_>| {
        (request.opcode == opcode::READ).then(|| {
            std::thread::sleep(Duration::from_millis(5));
            Answer::Done(b"x".to_vec())
        })
    };
    with_served(drop_by_drop, |lab| {
        let content = lab.open(b"/fuse/file").unwrap();
        let part = content.read(0, 1 << 20, soon()).unwrap();
        assert!(!part.at_end && !part.data.is_empty() && part.data.len() < 1 << 20);
        assert!(part.data.iter().all(|byte| *byte == b'x'));
    });
}

#[test]
fn no_errno_of_a_file_system_is_an_error_of_the_agents() {
    use opcode::{LOOKUP, OPEN, OPENDIR, READ, READDIR};
    let failing = Arc::new((AtomicU32::new(0), AtomicI32::new(0)));
    let shared = Arc::clone(&failing);
    let fail = move |request: &Request<'_>| {
        let (stage, errno) = &*shared;
        (request.opcode == stage.load(Ordering::SeqCst))
            .then(|| Answer::Failed(errno.load(Ordering::SeqCst)))
    };
    with_served(fail, |lab| {
        let mut seen = BTreeMap::<&str, BTreeSet<i32>>::new();
        // All that Linux has. ENOSYS to OPEN or OPENDIR comes last: it means not to ask again.
        let all = (1..=133).filter(|errno| *errno != nix::libc::ENOSYS);
        for errno in all.chain([nix::libc::ENOSYS]) {
            for stage in [LOOKUP, OPEN, READ, OPENDIR, READDIR] {
                failing.1.store(errno, Ordering::SeqCst);
                failing.0.store(stage, Ordering::SeqCst);
                let errors = [
                    lab.read(b"/fuse/file").err(),
                    lab.list(b"/fuse").err(),
                    lab.stat(b"/fuse/file", true).err(),
                ];
                failing.0.store(0, Ordering::SeqCst);
                for error in errors.into_iter().flatten() {
                    assert!(
                        !matches!(error.kind(), ErrorKind::Internal | ErrorKind::Unimplemented),
                        "errno {errno} at stage {stage}: {error}"
                    );
                    seen.entry(error.reason.as_str()).or_default().insert(errno);
                }
            }
        }
        println!("reasons, with the errnos that each stands for: {seen:?}");
        assert!(seen["FILE_SYSTEM_FAILED"].len() > 100, "{seen:?}");
    });
}
