//! `podsonde capture -r`: prints a file without asking an agent.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::{args::CaptureArgs, error::PutError, report::link_and_snaplen, text::Lines};
use crate::cli::context::{Context, Exit, Failed};

/// Bytes of one read: the first read, then all others. The first is small, so that the file's type
/// can be announced before its packets are printed.
const CHUNKS: [usize; 2] = [4 * 1024, 256 * 1024];

/// Prints the packets of a file; `-` is stdin.
pub(super) fn run(
    context: &Context,
    args: &CaptureArgs,
    path: &Path,
    filter: &str,
) -> Result<Exit, Failed> {
    if !filter.is_empty() {
        return Err(Failed::Usage(
            "-r takes no filter, for filters are compiled by agents; \
             tcpdump -r FILE -w - FILTER | podsonde capture -r - does it"
                .to_owned(),
        ));
    }
    match print(context, args, path) {
        Ok(()) => Ok(Exit::Ok),
        Err(PutError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Ok),
        Err(PutError::Output(error)) => Err(error.into()),
        Err(PutError::Stream(error)) => {
            context.terminal.error(&format!("{}: {error}", path.display()));
            Ok(Exit::Error)
        }
    }
}

fn print(context: &Context, args: &CaptureArgs, path: &Path) -> Result<(), PutError> {
    let mut file: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path).map_err(crate::domain::pcapng::Error::Read)?),
    };
    let mut lines = Lines::new(args, &[], context.terminal.colour);
    let mut chunk = vec![0; CHUNKS.into_iter().max().unwrap_or_default()];
    let mut sizes = CHUNKS.into_iter();
    let mut size = 0;
    let mut described = false;
    while !lines.is_full() {
        size = sizes.next().unwrap_or(size);
        let room = chunk.get_mut(..size).unwrap_or_default();
        let read = match file.read(room) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(crate::domain::pcapng::Error::Read(error).into()),
        };
        let put = lines.put(0, room.get(..read).unwrap_or_default());
        if let Some(first) = lines.interfaces(0).first().filter(|_| !described) {
            let link = link_and_snaplen(first.linktype.into(), first.snaplen);
            context.terminal.note(&format!("reading from file {}, {link}", path.display()));
            described = true;
        }
        // Prints all complete packets before it reports an error in the rest.
        lines.flush()?;
        put?;
        if read == 0 {
            return lines.finish(0);
        }
    }
    Ok(())
}
