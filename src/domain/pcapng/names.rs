//! The names of a pod's interfaces, in the description of the one that stands for all of them.
//!
//! A packet that was captured on "any" carries only the index of its interface. The agent therefore
//! writes the names into the description of the capture's interface, where Wireshark shows them and
//! [`parse`] finds them again. Linux allows no white space in names, so the list is unambiguous.

/// What stands before the list.
const LIST: &str = "; interfaces ";
/// What stands between two interfaces.
const COMMA: &str = ", ";

/// Appends the list to a description: `container app on node n1; interfaces 1 lo, 2 eth0`.
pub fn append<N: AsRef<str>>(
    description: &mut String,
    interfaces: impl IntoIterator<Item = (u32, N)>,
) {
    for (number, (index, name)) in interfaces.into_iter().enumerate() {
        description.push_str(if number == 0 { LIST } else { COMMA });
        description.push_str(&format!("{index} {}", name.as_ref()));
    }
}

/// The indexes and names in a description; none where it holds no list. What a file's author wrote
/// there instead of an index and a name is left out.
pub fn parse(description: &str) -> impl Iterator<Item = (u32, &str)> {
    let list = description.rsplit_once(LIST).map_or("", |(_, list)| list);
    list.split(COMMA).filter_map(|interface| {
        let (index, name) = interface.split_once(' ')?;
        Some((index.parse().ok()?, name))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_description_lists_the_interfaces() {
        let mut description = "container app on node n1".to_owned();
        append(&mut description, [(1, "lo"), (2, "eth0")]);
        assert_eq!(description, "container app on node n1; interfaces 1 lo, 2 eth0");
        for other in ["", "container app on node n1", "; interfaces ", "; interfaces lo, x y"] {
            assert_eq!(parse(other).count(), 0, "{other}");
        }
    }

    proptest! {
        #[test]
        fn names_read_back_as_written(
            // What the kernel's dev_valid_name() takes.
            names in prop::collection::vec((any::<u32>(), "[^/:\\s\u{0}]{1,15}"), 0..8),
            before in any::<String>(),
        ) {
            let mut description = before;
            prop_assume!(!names.is_empty() || !description.contains(LIST));
            append(&mut description, names.iter().map(|(index, name)| (*index, name)));
            let read: Vec<_> = parse(&description).map(|(i, name)| (i, name.to_owned())).collect();
            prop_assert_eq!(read, names);
        }
    }
}
