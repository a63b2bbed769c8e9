//! The commands on files of containers. Each is a file of its own, a variant of [`FilesCommand`]
//! and an arm of [`run`], and behaves as the tool that it is named after.

mod accounts;
mod args;
mod cat;
mod cp;
pub(super) mod dialect;
mod diff;
mod entries;
mod find;
mod local;
mod location;
mod ls;
mod names;
mod open;
mod out;
mod report;
mod sink;
mod stat;
mod tail;

use std::{future::Future, io};

use clap::Subcommand;

use super::context::{Context, Exit, Failed};

/// The commands on files.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum FilesCommand {
    /// List files in a container
    Ls(Box<ls::LsArgs>),
    /// Print files from a container
    Cat(cat::CatArgs),
    /// Print the end of files in a container, and follow them
    Tail(tail::TailArgs),
    /// Copy files and directories from a container, or upload one file into it
    Cp(Box<cp::CpArgs>),
    /// Show the metadata of files in a container
    Stat(stat::StatArgs),
    /// Search for files in a container
    Find(find::FindArgs),
    /// Compare files or directories of two pods, or of a pod and this machine
    Diff(Box<diff::DiffArgs>),
}

/// Runs a command on files.
pub(super) async fn run(context: &Context, command: &FilesCommand) -> Result<Exit, Failed> {
    match command {
        FilesCommand::Ls(args) => finish(context, Exit::Trouble, ls::run(context, args)).await,
        FilesCommand::Cat(args) => finish(context, Exit::Error, cat::run(context, args)).await,
        FilesCommand::Tail(args) => finish(context, Exit::Error, tail::run(context, args)).await,
        FilesCommand::Cp(args) => finish(context, Exit::Error, cp::run(context, args)).await,
        FilesCommand::Stat(args) => finish(context, Exit::Error, stat::run(context, args)).await,
        FilesCommand::Find(args) => finish(context, Exit::Error, find::run(context, args)).await,
        FilesCommand::Diff(args) => finish(context, Exit::Trouble, diff::run(context, args)).await,
    }
}

/// Runs a command to its end. A closed pipe on stdout ends it without an error, as with
/// `cat FILE | head`; any other failure exits with `exit`, as the tool of that name does.
async fn finish(
    context: &Context,
    exit: Exit,
    command: impl Future<Output = Result<Exit, Failed>>,
) -> Result<Exit, Failed> {
    match command.await {
        Err(Failed::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Ok),
        Err(failed @ Failed::Usage(_)) => Err(failed),
        Err(failed) => {
            context.report(&failed);
            Ok(exit)
        }
        done => done,
    }
}
