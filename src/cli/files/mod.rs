//! The commands on the files of containers, each in a file of its own. They behave as the tools that they are named after.

mod accounts;
pub(super) mod args;
mod cat;
mod cp;
pub(super) mod dialect;
mod diff;
mod entries;
mod find;
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

use super::context::{Context, Exit, Failed};
use args::FilesCommand;

/// Performs a command on files.
pub(super) async fn run(context: &Context, command: &FilesCommand) -> Result<Exit, Failed> {
    match command {
        FilesCommand::Ls(args) => quietly(context, Exit::Trouble, ls::run(context, args)).await,
        FilesCommand::Cat(args) => quietly(context, Exit::Error, cat::run(context, args)).await,
        FilesCommand::Tail(args) => quietly(context, Exit::Error, tail::run(context, args)).await,
        FilesCommand::Cp(args) => quietly(context, Exit::Error, cp::run(context, args)).await,
        FilesCommand::Stat(args) => quietly(context, Exit::Error, stat::run(context, args)).await,
        FilesCommand::Find(args) => quietly(context, Exit::Error, find::run(context, args)).await,
        FilesCommand::Diff(args) => quietly(context, Exit::Trouble, diff::run(context, args)).await,
    }
}

/// Performs a command. A pipe that nobody reads any more ends it well; other failures have the exit code of its own kind.
async fn quietly(
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
