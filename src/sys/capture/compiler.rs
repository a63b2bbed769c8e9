//! Compiling a filter in a process that can do nothing else.
//!
//! libpcap's parser is C and its optimiser may run for ever, and both would read what a caller
//! wrote inside a privileged daemon. So each filter is compiled by this program, executed again
//! with [`ARGUMENT`]. It gives up every capability, and every system call except those for memory
//! and its two pipes; then it reads one filter, writes one program, and exits, or is killed at its
//! [`DEADLINE`]. Without files and sockets it cannot look up names either.
//!
//! The request is the link type (`DLT_…`) and the snaplen, 4 bytes each, then the filter's text.
//! The answer is one byte, then: 0, the number of instructions in 4 bytes, those, and the program
//! as text; 1, libpcap's message; 2, nothing: there is no libpcap; 3, why it could not be confined;
//! 4, nothing: libpcap ran out of memory.

use std::{
    io::{Read, Write, stdin, stdout},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, setrlimit};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::set_parent_process_death_signal,
    thread::CapabilitySet,
};

use super::libpcap::{Failure, Libpcap};
use crate::{
    domain::{
        Error, Reason, Result,
        filter::{self, Instruction, MAX_INSTRUCTIONS, MAX_TEXT, Program},
    },
    sys::{SysError, confine, ffi},
};

/// The first argument that makes this program the compiler. It expects pipes, and is not for
/// people.
pub const ARGUMENT: &str = "filter-compiler";

/// How long compiling one filter may take.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// Address space that one compilation may add to that of the program itself, in bytes.
///
/// Whoever may capture may send a filter that libpcap 1.10 answers with 350 MiB, which is more than
/// the agent's pod has. Ordinary filters need far less: of the lists of 200 to 400 hosts, ports,
/// networks or pairs of them that were measured, those that give a program which the kernel takes
/// within [`DEADLINE`] need up to 30 MiB.
pub const MAX_MEMORY: u64 = 48 << 20;
/// Size of the largest answer: the most instructions, and a line for each.
const MAX_ANSWER: usize = 1 << 20;
/// Most names of ports and protocols in one filter that are replaced by numbers.
const MAX_NAMES: usize = 32;

/// A filter, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// Its program.
    pub program: Program,
    /// The program as `tcpdump -d` prints it.
    pub listing: String,
}

/// Compiles filters.
#[derive(Debug, Clone)]
pub struct Compiler {
    program: PathBuf,
}

impl Default for Compiler {
    /// By this program, which has to call [`serve`] if its first argument is [`ARGUMENT`].
    fn default() -> Self {
        Self { program: "/proc/self/exe".into() }
    }
}

impl Compiler {
    /// By another program that does.
    pub fn by(program: PathBuf) -> Self {
        Self { program }
    }

    /// Compiles a filter for packets of a link type (`DLT_…`). Blocks, [`DEADLINE`] at most.
    ///
    /// # Errors
    /// INVALID_FIELD with libpcap's message; FILTER_UNSUPPORTED if there is no libpcap;
    /// SYSTEM_CALL.
    pub fn compile(&self, linktype: u32, snaplen: u32, text: &str) -> Result<Compiled> {
        if text.len() > MAX_TEXT {
            return Err(refused(format!(
                "has {} bytes; at most {MAX_TEXT} are compiled",
                text.len()
            )));
        }
        let request =
            [&linktype.to_le_bytes()[..], &snaplen.to_le_bytes(), text.as_bytes()].concat();
        let answer = self.ask(&request)?;
        match answer.split_first() {
            Some((0, rest)) => {
                read(rest).unwrap_or_else(|| Err(failed("the answer", Errno::BADMSG).into()))
            }
            Some((1, message)) => {
                let message = String::from_utf8_lossy(message);
                Err(refused(format!("{message}{}", filter::advice(&message))))
            }
            Some((2, _)) => Err(Error::new(
                Reason::FilterUnsupported,
                "the agent has no libpcap to compile filters with; capture without a filter, or \
                add libpcap to the agent's image",
            )),
            Some((3, why)) => Err(Error::new(Reason::SystemCall, String::from_utf8_lossy(why))),
            Some((4, _)) => Err(refused(format!(
                "is too large: compiling its {} bytes takes more than {} MiB of memory; write \
                fewer terms, or \
                 ranges and networks instead of lists",
                text.len(),
                MAX_MEMORY >> 20
            ))),
            _ => Err(refused(format!(
                "is too complex: libpcap did not compile it within {} s and {} MiB",
                DEADLINE.as_secs(),
                MAX_MEMORY >> 20
            ))),
        }
    }

    /// The answer; empty if the process ended without one or took too long.
    fn ask(&self, request: &[u8]) -> Result<Vec<u8>, SysError> {
        let child = Command::new(&self.program)
            .arg(ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| failed("execve", Errno::from_io_error(&e).unwrap_or(Errno::NOEXEC)))?;
        let mut child = Ended(child);
        let deadline = Instant::now() + DEADLINE;
        if let Some(mut stdin) = child.0.stdin.take() {
            // All of it fits into the pipe; a process that has ended gives no answer.
            let _ = stdin.write_all(request);
        }
        let Some(mut stdout) = child.0.stdout.take() else { return Ok(Vec::new()) };
        let mut answer = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| failed("poll", Errno::INVAL))?;
            match poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Ok(Vec::new()),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(failed("poll", errno)),
            }
            match stdout.read(&mut buffer) {
                Ok(0) => return Ok(answer),
                Ok(length) => answer.extend(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(failed("read", Errno::from_io_error(&error).unwrap_or(Errno::IO)));
                }
            }
            if answer.len() > MAX_ANSWER {
                return Err(failed("read", Errno::MSGSIZE));
            }
        }
    }
}

/// A process that does not outlive its use.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn failed(op: &'static str, errno: Errno) -> SysError {
    SysError::new(op, "the compiler of filters", errno)
}

fn refused(message: String) -> Error {
    Error::invalid("filter", message)
}

fn read(answer: &[u8]) -> Option<Result<Compiled>> {
    let (count, rest) = answer.split_first_chunk()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (instructions, listing) = rest.split_at_checked(count.checked_mul(8)?)?;
    let instructions =
        instructions.as_chunks().0.iter().copied().map(Instruction::from_bytes).collect();
    let Some(program) = Program::new(instructions) else {
        return Some(Err(refused(format!(
            "is too complex: it has {count} instructions, and the kernel takes {MAX_INSTRUCTIONS}"
        ))));
    };
    Some(Ok(Compiled { program, listing: String::from_utf8_lossy(listing).into_owned() }))
}

/// Serves one request on stdin and stdout. The process must have one thread and nothing open that
/// it needs but its stdio.
pub fn serve() -> ExitCode {
    let answer = match prepare() {
        Err(error) => [b"\x03", error.to_string().as_bytes()].concat(),
        Ok(None) => vec![2],
        Ok(Some(libpcap)) => {
            let mut request = Vec::new();
            let most = u64::try_from(MAX_TEXT + 8).unwrap_or(u64::MAX);
            if stdin().take(most).read_to_end(&mut request).is_err() {
                return ExitCode::FAILURE;
            }
            answer(&libpcap, &request).unwrap_or_else(|failure| match failure {
                Failure::Message(message) => [b"\x01", message.as_bytes()].concat(),
                Failure::OutOfMemory => vec![4],
            })
        }
    };
    let mut stdout = stdout();
    match stdout.write_all(&answer).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Loads libpcap, if it is there, and gives up all else.
fn prepare() -> Result<Option<Libpcap>, SysError> {
    let failed = |errno| failed("confine", errno);
    ffi::close_beyond_stdio().map_err(failed)?;
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(failed)?;
    let nix = |errno: nix::errno::Errno| failed(Errno::from_raw_os_error(errno as i32));
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(nix)?;
    setrlimit(Resource::RLIMIT_CPU, DEADLINE.as_secs(), DEADLINE.as_secs()).map_err(nix)?;
    // While files can still be opened.
    let Some(libpcap) = Libpcap::load() else { return Ok(None) };
    let most = address_space().ok_or(failed(Errno::NOENT))?.saturating_add(MAX_MEMORY);
    setrlimit(Resource::RLIMIT_AS, most, most).map_err(nix)?;
    let confined = confine::confine(CapabilitySet::empty(), confine::Filter::Compiler)?;
    // Names would be looked up.
    if confined.filtered { Ok(Some(libpcap)) } else { Err(failed(Errno::NOSYS)) }
}

/// The size of the process' address space in bytes.
fn address_space() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    size.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

fn answer(libpcap: &Libpcap, request: &[u8]) -> Result<Vec<u8>, Failure> {
    let malformed = || Failure::Message("the request is malformed".to_owned());
    let (linktype, rest) = request.split_first_chunk().ok_or_else(malformed)?;
    let (snaplen, text) = rest.split_first_chunk().ok_or_else(malformed)?;
    let mut text = std::str::from_utf8(text).map_err(|_| malformed())?.to_owned();
    let (linktype, snaplen) = (i32::from_le_bytes(*linktype), i32::from_le_bytes(*snaplen));
    let mut result = libpcap.compile(linktype, snaplen, &text);
    for _ in 0..MAX_NAMES {
        let Err(Failure::Message(message)) = &result else { break };
        let Some(again) = filter::with_number(&text, message) else { break };
        text = again;
        result = libpcap.compile(linktype, snaplen, &text);
    }
    let (instructions, listing) = result?;
    let count = u32::try_from(instructions.len()).map_err(|_| malformed())?;
    let mut answer = vec![0];
    answer.extend(count.to_le_bytes());
    answer.extend(instructions.iter().flat_map(|instruction| instruction.to_bytes()));
    answer.extend(listing.as_bytes());
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_or_refused() {
        let whole = [
            &[1, 0, 0, 0][..],
            &Instruction::from_bytes([6, 0, 0, 0, 1, 0, 0, 0]).to_bytes(),
            b"(000) ret #1\n",
        ]
        .concat();
        let compiled = read(&whole).unwrap().unwrap();
        assert_eq!(
            (compiled.listing.as_str(), compiled.program),
            ("(000) ret #1\n", Program::everything(1))
        );
        for end in 0..12 {
            assert!(read(&whole[..end]).is_none(), "{end}");
        }
        assert!(read(&[0, 0, 0, 0]).unwrap().is_err());
        assert!(read(&[255; 400]).is_none());
    }
}
