//! Unified diffs of bytes, in the format of diff(1).

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use similar::{Algorithm, DiffTag, capture_diff_slices_deadline, group_diff_ops};

/// How many bytes at the start of a file decide whether it is binary, as in GNU diff.
const EXAMINED: usize = 64 * 1024;

/// Whether a file is binary: diff(1) takes a NUL for the sign of that.
pub(super) fn is_binary(content: &[u8]) -> bool {
    content.iter().take(EXAMINED).any(|byte| *byte == 0)
}

/// The lines of the hunks, each with its newline.
///
/// Myers' algorithm finds the shortest diff, in time that grows with the size of the files times
/// the number of differences. After `patience` it settles for what it can find quickly, which is
/// still correct but may be longer.
pub(super) fn hunks(old: &[u8], new: &[u8], context: usize, patience: Duration) -> Vec<Vec<u8>> {
    let (old, new) = (lines(old), lines(new));
    let ops =
        capture_diff_slices_deadline(Algorithm::Myers, &old, &new, Some(Instant::now() + patience));
    let mut out = Vec::new();
    for group in group_diff_ops(ops, context) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let span = |start: usize, end: usize| match end - start {
            1 => (start + 1).to_string(),
            0 => format!("{start},0"),
            length => format!("{},{length}", start + 1),
        };
        let olds = span(first.old_range().start, last.old_range().end);
        let news = span(first.new_range().start, last.new_range().end);
        out.push(format!("@@ -{olds} +{news} @@\n").into_bytes());
        for op in group {
            let (tag, olds, news) = op.as_tag_tuple();
            if tag == DiffTag::Equal {
                marked(b' ', &old, olds, &mut out);
            } else {
                marked(b'-', &old, olds, &mut out);
                marked(b'+', &new, news, &mut out);
            }
        }
    }
    out
}

/// The lines of a file, each with its newline; the last one may have none.
fn lines(content: &[u8]) -> Vec<&[u8]> {
    content.split_inclusive(|byte| *byte == b'\n').collect()
}

/// Appends lines with a mark in front of each.
fn marked(mark: u8, lines: &[&[u8]], range: Range<usize>, out: &mut Vec<Vec<u8>>) {
    for line in lines.get(range).unwrap_or_default() {
        let mut marked = [&[mark], *line].concat();
        let is_ended = marked.ends_with(b"\n");
        if !is_ended {
            marked.push(b'\n');
        }
        out.push(marked);
        if !is_ended {
            out.push(b"\\ No newline at end of file\n".to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hunks_are_diff_s() {
        let shown = |old: &str, new: &str| {
            let hunks = hunks(old.as_bytes(), new.as_bytes(), 3, Duration::from_secs(10)).concat();
            String::from_utf8(hunks).unwrap()
        };
        assert_eq!(shown("a\n", "a\n"), "");
        assert_eq!(shown("", "a\nb\n"), "@@ -0,0 +1,2 @@\n+a\n+b\n");
        assert_eq!(
            shown("a\nb", "a\nc\n"),
            "@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+c\n"
        );
    }
}
