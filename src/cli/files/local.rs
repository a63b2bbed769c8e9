//! What the commands on files need of files on this machine.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
};

use aws_lc_rs::digest::Context as Hash;

/// How much of a file is read at a time to compute its checksum, in bytes.
const HASHED_AT_ONCE: usize = 256 * 1024;

/// The name that a file of a pod gets on this machine.
///
/// # Errors
/// Why this system cannot have a file of that name.
pub(super) fn local_name(name: &[u8]) -> Result<OsString, &'static str> {
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, 0 | b'/')) {
        return Err("this is not the name of a file");
    }
    #[cfg(unix)]
    {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        Ok(OsStr::from_bytes(name).to_owned())
    }
    #[cfg(not(unix))]
    {
        let name = std::str::from_utf8(name).map_err(|_| "its name is not valid Unicode")?;
        windows_name(name).then(|| name.into()).ok_or("this system does not allow its name")
    }
}

/// Whether Windows allows a file of that name and opens that file, not a device, by it.
/// <https://learn.microsoft.com/windows/win32/fileio/naming-a-file>
#[cfg(any(not(unix), test))]
fn windows_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let is_device = matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || stem.strip_prefix("COM").or(stem.strip_prefix("LPT")).is_some_and(|number| {
            matches!(
                number,
                "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9" | "¹" | "²" | "³"
            )
        });
    let is_allowed = |c: char| !c.is_control() && !"<>:\"/\\|?*".contains(c);
    !is_device && name.chars().all(is_allowed) && !name.ends_with(['.', ' '])
}

/// Adds the rest of a file to a checksum. The file is left at its end.
pub(super) fn hash_rest(file: &mut File, hash: &mut Hash) -> io::Result<()> {
    let mut buffer = vec![0; HASHED_AT_ONCE];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            read => hash.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_windows_understands_otherwise() {
        for good in ["a", "a.b", ".a", "COMX", "CONSOLE", "com10", "ä", "a b"] {
            assert!(windows_name(good), "{good}");
        }
        for bad in [
            "a:b", "C:", "a\\b", "..\\x", "CON", "con.txt", "Nul", "com1", "LPT9.log", "COM¹",
            "a.", "a ", "a?", "\u{1}", "aux .c",
        ] {
            assert!(!windows_name(bad), "{bad}");
        }
    }
}
