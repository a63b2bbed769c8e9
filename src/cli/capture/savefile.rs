//! Writes packets to pcapng files: to one file, or to several with tcpdump's `-C`, `-G` and `-W`.

use std::{
    fmt::Display,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::{Zoned, fmt::strtime};

use super::{args::CaptureArgs, error::PutError};
use crate::{
    cli::context::Failed,
    domain::pcapng::{
        Block, Order,
        merge::{self, Merged},
        write,
    },
};

/// Bytes to buffer before a write while more packets are ready, for merged streams.
const BATCH: usize = 256 * 1024;

/// Which files to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Savefiles {
    /// The name of the file, or the pattern for several; `-` means stdout. With `every` it contains
    /// strftime's codes.
    path: PathBuf,
    /// The size in bytes after which the next packet begins a new file.
    size: Option<u64>,
    /// How often a new file begins.
    every: Option<Duration>,
    /// The number of files. With `size` they form a ring. With `every` the last file goes on to the
    /// end.
    most: Option<u32>,
}

impl Savefiles {
    /// Writes everything to one file.
    pub(in crate::cli) fn one(path: PathBuf) -> Self {
        Self { path, size: None, every: None, most: None }
    }

    /// Reads the arguments. The duration is the total that `-G` and `-W` imply together.
    pub(super) fn of(args: &CaptureArgs) -> Result<Option<(Self, Option<Duration>)>, Failed> {
        let Some(path) = &args.write else { return Ok(None) };
        let usage = |message: &str| Err(Failed::Usage(message.to_owned()));
        let (size, every, most) = (args.file_size, args.rotate, args.file_count);
        if (size.is_some() || every.is_some()) && path == Path::new("-") {
            return usage(
                "-C and -G make several files, and stdout is one; name a file with -w FILE",
            );
        }
        let lasts = match (size, every, most) {
            (None, None, Some(_)) => {
                return usage("-W counts files that -C or -G make; give one of them, too");
            }
            (Some(_), Some(_), Some(_)) => {
                return usage("-W counts files by size or by time; with it, give either -C or -G");
            }
            (_, Some(every), _) if every < Duration::from_secs(1) => {
                return usage("-G is at least a second");
            }
            (_, Some(every), most) => most.and_then(|most| every.checked_mul(most)),
            _ => None,
        };
        let files = Self { path: path.clone(), size, every, most };
        if every.is_some() {
            let base = files.base().map_err(|error| Failed::Usage(error.to_string()))?;
            if base == *path {
                return usage(
                    "with -G the name of the file needs the time in it, as in \
                     -w web-%H%M%S.pcapng, for no file to overwrite the last",
                );
            }
        }
        Ok(Some((files, lasts)))
    }

    /// The name for files that begin now, without their numbers.
    fn base(&self) -> io::Result<PathBuf> {
        if self.every.is_none() {
            return Ok(self.path.clone());
        }
        let invalid = |why: &dyn Display| {
            let message = format!("{} cannot name files by time: {why}", self.path.display());
            io::Error::new(io::ErrorKind::InvalidInput, message)
        };
        let format = self.path.to_str().ok_or_else(|| invalid(&"it is not UTF-8"))?;
        Ok(strtime::format(format, &Zoned::now()).map_err(|error| invalid(&error))?.into())
    }

    /// The name of the file with this number. The first file has no number, unless the files form a
    /// ring.
    fn name(&self, base: &Path, number: u32) -> PathBuf {
        let mut name = base.as_os_str().to_owned();
        match self.most.filter(|_| self.every.is_none()) {
            // Leading zeros make names sort as their numbers do.
            Some(most) => {
                name.push(format!("{number:0width$}", width = (most - 1).to_string().len()));
            }
            None if number > 0 => name.push(number.to_string()),
            None => {}
        }
        name.into()
    }
}

/// A pcapng file that grows, and the files that follow it. A single pod's stream is written
/// unchanged. The streams of several pods are merged into one section.
pub(super) struct Writer {
    out: Box<dyn Write + Send>,
    rotation: Option<Rotation>,
    merged: Option<(Merged, Vec<merge::Source>)>,
    buffer: Vec<u8>,
}

/// When the next file begins, and the blocks that it begins with.
struct Rotation {
    files: Savefiles,
    base: PathBuf,
    number: u32,
    /// The number of files that began because of `every`.
    begun: u32,
    /// Bytes in the current file.
    written: u64,
    due: Option<Instant>,
    /// The section header and all interface descriptions so far, which begin every file.
    beginning: Vec<u8>,
    order: Option<Order>,
}

impl Writer {
    pub(super) fn create(files: &Savefiles, sources: usize) -> io::Result<Self> {
        let base = files.base()?;
        let name = files.name(&base, 0);
        let out: Box<dyn Write + Send> = if name == Path::new("-") {
            Box::new(io::stdout())
        } else {
            Box::new(File::create(&name)?)
        };
        let mut buffer = Vec::new();
        let merged = (sources > 1).then(|| {
            let application = concat!("podsonde ", env!("CARGO_PKG_VERSION"));
            write::section_header(
                &mut buffer,
                &write::Section { application, ..Default::default() },
            );
            (Merged::default(), (0..sources).map(|_| merge::Source::default()).collect())
        });
        let rotation = (files.size.is_some() || files.every.is_some()).then(|| Rotation {
            files: files.clone(),
            base,
            number: 0,
            begun: 1,
            written: 0,
            due: files.every.map(|every| Instant::now() + every),
            beginning: Vec::new(),
            order: None,
        });
        Ok(Self { out, rotation, merged, buffer })
    }

    /// Returns how many bytes it added.
    pub(super) fn put(&mut self, source: usize, blocks: &[u8]) -> Result<u64, PutError> {
        let Some((merged, sources)) = &mut self.merged else {
            self.write(blocks)?;
            return Ok(blocks.len() as u64);
        };
        let before = self.buffer.len();
        if let Some(source) = sources.get_mut(source) {
            merged.append(source, blocks, &mut self.buffer)?;
        }
        let added = self.buffer.len().saturating_sub(before) as u64;
        if self.buffer.len() >= BATCH {
            self.write_buffer()?;
        }
        Ok(added)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.write_buffer()?;
        self.out.flush()
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        self.write(&buffer)?;
        buffer.clear();
        self.buffer = buffer;
        Ok(())
    }

    /// Writes whole blocks, and begins a new file where one is due.
    fn write(&mut self, blocks: &[u8]) -> io::Result<()> {
        let Some(rotation) = &mut self.rotation else { return self.out.write_all(blocks) };
        let mut rest = blocks;
        while !rest.is_empty() {
            // The part of the blocks that belongs into the current file.
            let mut length = 0;
            let mut next = None;
            while let Ok(Some(block)) =
                Block::first(rest.get(length..).unwrap_or_default(), &mut rotation.order)
            {
                if block.is_packet() {
                    next = rotation.next()?;
                    if next.is_some() {
                        break;
                    }
                }
                rotation.note(&block);
                length += block.bytes.len();
            }
            let (file, others) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            self.out.write_all(file)?;
            match next {
                Some(file) => {
                    self.out = Box::new(file);
                    self.out.write_all(&rotation.beginning)?;
                }
                // Only a malformed block can be left, and the code that counts packets refused it.
                None => return Ok(()),
            }
            rest = others;
        }
        Ok(())
    }
}

impl Rotation {
    fn note(&mut self, block: &Block<'_>) {
        self.written += block.bytes.len() as u64;
        if block.begins_section() {
            self.beginning.clear();
        }
        if block.begins_section() || block.is_interface() {
            self.beginning.extend_from_slice(block.bytes);
        }
    }

    /// Opens the next file if one is due.
    fn next(&mut self) -> io::Result<Option<File>> {
        let now = Instant::now();
        let mut is_due = false;
        while let (Some(due), Some(every)) = (self.due.filter(|due| now >= *due), self.files.every)
        {
            self.due = due.checked_add(every);
            is_due = true;
        }
        let mut base = None;
        // A packet that comes late must not begin one more file than `-W` allows.
        if is_due && self.files.most.is_none_or(|most| self.begun < most) {
            // If the pattern gives the same name again, a new file would overwrite this one.
            base = Some(self.files.base()?).filter(|base| *base != self.base);
        }
        if let Some(base) = base {
            (self.base, self.number, self.begun) = (base, 0, self.begun + 1);
        } else if self.files.size.is_some_and(|size| self.written > size) {
            self.number = (self.number + 1) % self.files.most.unwrap_or(u32::MAX);
        } else {
            return Ok(None);
        }
        self.written = self.beginning.len() as u64;
        File::create(self.files.name(&self.base, self.number)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::domain::pcapng::write::{Interface, Packet, Section};

    fn beginning() -> Vec<u8> {
        let mut blocks = Vec::new();
        write::section_header(&mut blocks, &Section::default());
        write::interface(&mut blocks, &Interface { linktype: 1, ..Interface::default() });
        blocks
    }

    fn packet(number: u64) -> Vec<u8> {
        let mut block = Vec::new();
        write::enhanced_packet(
            &mut block,
            &Packet { timestamp: number, ..Packet::default() },
            [&[0; 60]],
        );
        block
    }

    fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
        let files = fs::read_dir(directory).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        });
        let mut files: Vec<_> = files.collect();
        files.sort();
        files
    }

    #[test]
    fn the_oldest_of_so_many_files_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let size = (beginning().len() + packet(0).len()) as u64;
        let path = directory.path().join("f");
        let kept = Savefiles { path, size: Some(size), every: None, most: Some(11) };
        let mut writer = Writer::create(&kept, 1).unwrap();
        writer.put(0, &beginning()).unwrap();
        // Two packets exceed the size, so the third begins another file: 14 files in all, of which
        // 3 replaced others.
        for number in 0..28 {
            writer.put(0, &packet(number)).unwrap();
        }
        writer.flush().unwrap();
        let files = files(directory.path());
        assert_eq!(files.len(), 11);
        for (number, (name, content)) in files.iter().enumerate() {
            assert_eq!(*name, format!("f{number:02}"));
            let first = 2 * if number < 3 { number + 11 } else { number } as u64;
            assert!(*content == [beginning(), packet(first), packet(first + 1)].concat(), "{name}");
        }
    }

    #[test]
    fn a_time_begins_a_file_if_it_has_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f%f");
        let every = Duration::from_secs(3600);
        let by_time = Savefiles { path, size: None, every: Some(every), most: Some(3) };
        let mut writer = Writer::create(&by_time, 2).unwrap();
        let due = |writer: &mut Writer, path: Option<&str>| {
            let rotation = writer.rotation.as_mut().unwrap();
            rotation.due = Some(Instant::now());
            path.into_iter().for_each(|path| rotation.files.path = directory.path().join(path));
        };
        for source in [0, 1] {
            writer.put(source, &beginning()).unwrap();
        }
        writer.put(1, &packet(1)).unwrap();
        writer.flush().unwrap();
        due(&mut writer, None);
        writer.put(0, &packet(2)).unwrap();
        writer.flush().unwrap();
        let named = files(directory.path());
        assert_eq!(named.len(), 2, "{:?}", named.iter().map(|file| &file.0).collect::<Vec<_>>());
        let begins = |content: &[u8]| content[..content.len() - packet(0).len()].to_vec();
        assert_eq!(
            begins(&named[0].1),
            begins(&named[1].1),
            "all interfaces stand in the second file, too"
        );

        due(&mut writer, Some("same"));
        writer.put(0, &packet(3)).unwrap();
        writer.flush().unwrap();
        due(&mut writer, None);
        writer.put(0, &packet(4)).unwrap();
        writer.flush().unwrap();
        let content = &files(directory.path())[2];
        assert_eq!(
            (content.0.as_str(), content.1.len()),
            ("same", named[0].1.len() + packet(4).len())
        );

        // The number of files that `-W` asked for is reached.
        due(&mut writer, Some("fourth"));
        writer.put(0, &packet(5)).unwrap();
        writer.flush().unwrap();
        assert_eq!(files(directory.path()).len(), 3);
    }
}
