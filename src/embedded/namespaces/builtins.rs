//! The programs of the built-in images. They are parts of the podsonde binary, so that a container
//! needs no other file.
//!
//! They use only the standard library and signals. The kernel does not end the first process of a
//! pid namespace by a signal that it does not handle, so that each program handles SIGTERM.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::ExitCode,
    thread,
    time::Duration,
};

use nix::sys::{
    signal::{SigSet, Signal},
    wait::{WaitPidFlag, WaitStatus, waitpid},
};

/// Requests that are served at a time.
const WEB_THREADS: usize = 8;
/// The longest request head in bytes.
const MAX_HEAD: u64 = 8 << 10;
/// The time limit for a client to send its request, and to read the answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Blocks the signals, so that they can be waited for. Threads that start later inherit the mask.
fn block(signals: &[Signal]) -> nix::Result<SigSet> {
    let set: SigSet = signals.iter().copied().collect();
    set.thread_block()?;
    Ok(set)
}

/// Waits for SIGTERM or SIGINT, and then ends with the exit code of `sleep infinity` in a shell:
/// 143 for SIGTERM.
pub(super) fn sleep() -> ExitCode {
    let Ok(signals) = block(&[Signal::SIGTERM, Signal::SIGINT]) else { return ExitCode::FAILURE };
    match signals.wait() {
        Ok(Signal::SIGINT) => ExitCode::from(130),
        Ok(_) => ExitCode::from(143),
        Err(_) => ExitCode::FAILURE,
    }
}

/// Holds the sandbox's namespaces, and reaps orphans in its pid namespace.
pub(super) fn pause() -> ExitCode {
    let Ok(signals) = block(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD]) else {
        return ExitCode::FAILURE;
    };
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    if status == WaitStatus::StillAlive {
                        break;
                    }
                }
            }
            Ok(_) => return ExitCode::SUCCESS,
            Err(_) => return ExitCode::FAILURE,
        }
    }
}

/// Ends with the code in its argument.
pub(super) fn exit(code: Option<&str>) -> ExitCode {
    code.and_then(|code| code.parse::<u8>().ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// A web server with one page, on all IPv4 addresses. The argument is the port; default: 80.
pub(super) fn web(port: Option<&str>) -> ExitCode {
    let served = (|| {
        let signals = block(&[Signal::SIGTERM, Signal::SIGINT])?;
        let port = port.unwrap_or("80").parse().map_err(io::Error::other)?;
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        for _ in 0..WEB_THREADS {
            let listener = listener.try_clone()?;
            // A container that does not run as root cannot write it, and then has no log.
            let log = File::options().create(true).append(true).open("/var/log/web.log").ok();
            thread::Builder::new().spawn(move || {
                for client in listener.incoming().flatten() {
                    // A client that has gone away needs no answer.
                    let _ = answer(client, log.as_ref());
                }
            })?;
        }
        signals.wait().map_err(io::Error::from)
    })();
    match served {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "web: {error}");
            ExitCode::FAILURE
        }
    }
}

fn answer(mut client: TcpStream, log: Option<&File>) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    client.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let mut lines = BufReader::new((&client).take(MAX_HEAD)).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, body) = match (method, path) {
        ("GET" | "HEAD", "/" | "/index.html") => match std::fs::read("/srv/www/index.html") {
            Ok(page) => ("200 OK", page),
            Err(_) => ("404 Not Found", b"not found\n".to_vec()),
        },
        ("GET" | "HEAD", _) => ("404 Not Found", b"not found\n".to_vec()),
        _ => ("405 Method Not Allowed", b"only GET and HEAD\n".to_vec()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nServer: podsonde-demo\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    let mut response = head.into_bytes();
    if method != "HEAD" {
        response.extend_from_slice(&body);
    }
    client.write_all(&response)?;
    if let Some(mut log) = log {
        let peer = client.peer_addr()?.ip();
        let code = status.split(' ').next().unwrap_or_default();
        let line =
            format!("{peer} - - [{}] {request:?} {code} {}\n", jiff::Timestamp::now(), body.len());
        log.write_all(line.as_bytes())?;
    }
    Ok(())
}
