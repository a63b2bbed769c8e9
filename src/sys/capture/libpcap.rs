//! libpcap's compiler of filters, loaded when it is needed: the programs are built and start
//! without it.
//!
//! It is C code that reads what a caller wrote, so it is loaded only into the process that
//! [`super::compiler`] confines.
//!
//! <https://www.tcpdump.org/manpages/pcap_compile.3pcap.html>
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    ptr, slice,
};

use nix::{errno::Errno, libc};

use crate::domain::filter::Instruction;

/// The names that distributions give to it, Debian's first.
const NAMES: [&CStr; 3] = [c"libpcap.so.0.8", c"libpcap.so.1", c"libpcap.so"];

/// `PCAP_NETMASK_UNKNOWN`
const NO_NETMASK: c_uint = u32::MAX;

/// `struct bpf_insn`
#[repr(C)]
#[derive(Clone, Copy)]
struct Insn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// `struct bpf_program`
#[repr(C)]
struct RawProgram {
    length: c_uint,
    instructions: *mut Insn,
}

type OpenDead = unsafe extern "C" fn(c_int, c_int) -> *mut c_void;
type Compile =
    unsafe extern "C" fn(*mut c_void, *mut RawProgram, *const c_char, c_int, c_uint) -> c_int;
type GetError = unsafe extern "C" fn(*mut c_void) -> *mut c_char;
type Image = unsafe extern "C" fn(*const Insn, c_int) -> *mut c_char;
type FreeCode = unsafe extern "C" fn(*mut RawProgram);
type Close = unsafe extern "C" fn(*mut c_void);

/// What is used of the library.
pub(super) struct Libpcap {
    open_dead: OpenDead,
    compile: Compile,
    error: GetError,
    image: Image,
    free: FreeCode,
    close: Close,
}

/// Why a filter was not compiled.
#[derive(Debug)]
pub(super) enum Failure {
    /// libpcap's message.
    Message(String),
    /// libpcap was refused memory.
    OutOfMemory,
}

/// Finds a function of the library.
macro_rules! function {
    ($library:expr, $name:literal, $type:ty) => {{
        // SAFETY: the handle is that of a loaded library, which is never unloaded, and the name is
        // terminated.
        let found = unsafe { libc::dlsym($library, $name.as_ptr()) };
        if found.is_null() {
            return None;
        }
        // SAFETY: the function of this name has had this type in every version of the library.
        unsafe { std::mem::transmute::<*mut c_void, $type>(found) }
    }};
}

impl Libpcap {
    /// Loads it. None if it is not there, or not what is known of it.
    pub(super) fn load() -> Option<Self> {
        // SAFETY: the names are terminated; the library's constructors have no preconditions.
        let load =
            |name: &CStr| unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        let library = NAMES.into_iter().map(load).find(|library| !library.is_null())?;
        Some(Self {
            open_dead: function!(library, c"pcap_open_dead", OpenDead),
            compile: function!(library, c"pcap_compile", Compile),
            error: function!(library, c"pcap_geterr", GetError),
            image: function!(library, c"bpf_image", Image),
            free: function!(library, c"pcap_freecode", FreeCode),
            close: function!(library, c"pcap_close", Close),
        })
    }

    /// Compiles a filter for packets of a link type (`DLT_…`), optimised, and prints it as `tcpdump
    /// -d` does.
    ///
    /// # Errors
    /// What libpcap says, and whether it lacked memory.
    pub(super) fn compile(
        &self,
        linktype: c_int,
        snaplen: c_int,
        filter: &str,
    ) -> Result<(Vec<Instruction>, String), Failure> {
        let filter =
            CString::new(filter).map_err(|_| Failure::Message("a filter has no NUL".to_owned()))?;
        // SAFETY: takes two numbers.
        let handle = unsafe { (self.open_dead)(linktype, snaplen) };
        if handle.is_null() {
            return Err(Failure::OutOfMemory);
        }
        // Its messages name the allocation that failed in ways that differ between versions. The C
        // library's errno does not, and nothing but a failed allocation sets it to ENOMEM.
        Errno::clear();
        let mut program = RawProgram { length: 0, instructions: ptr::null_mut() };
        // SAFETY: the handle is live, the program is one that libpcap fills in, the text is
        // terminated.
        let done =
            unsafe { (self.compile)(handle, &raw mut program, filter.as_ptr(), 1, NO_NETMASK) };
        let errno = Errno::last();
        let result = match (done, errno) {
            (0, _) => Ok(self.read(&program)),
            (_, Errno::ENOMEM) => Err(Failure::OutOfMemory),
            _ => Err(Failure::Message(self.message(handle))),
        };
        if done == 0 {
            // SAFETY: the program is the one that was filled in, and not used any more.
            unsafe { (self.free)(&raw mut program) };
        }
        // SAFETY: the handle is live, and not used any more.
        unsafe { (self.close)(handle) };
        result
    }

    fn read(&self, program: &RawProgram) -> (Vec<Instruction>, String) {
        let length = usize::try_from(program.length).unwrap_or_default();
        if program.instructions.is_null() || length == 0 {
            return (Vec::new(), String::new());
        }
        // SAFETY: libpcap has filled in this number of instructions.
        let instructions = unsafe { slice::from_raw_parts(program.instructions, length) };
        let mut text = String::new();
        for (number, instruction) in (0..).zip(instructions) {
            // SAFETY: the instruction is live; the answer is a terminated text in a buffer of the
            // library's.
            let line = unsafe { (self.image)(instruction, number) };
            text.push_str(&copied(line));
            text.push('\n');
        }
        let convert = |&Insn { code, jt, jf, k }: &Insn| Instruction { code, jt, jf, k };
        (instructions.iter().map(convert).collect(), text)
    }

    fn message(&self, handle: *mut c_void) -> String {
        // SAFETY: the handle is live; the answer is a terminated text inside of it.
        copied(unsafe { (self.error)(handle) })
    }
}

/// A text of the library's.
fn copied(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: terminated, and not changed before the library is called again.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
