//! The commands.

mod attributes;
mod check;
mod counters;
mod exports;
mod listing;
mod names;
mod ranges;
mod volumes;
mod xattrs;

use std::process::ExitCode;

use crate::args::{Cli, Command};
use crate::bench;
use crate::client::Client;
use crate::error::{Exit, Failure, Result};
use crate::output::{self, Output};
use crate::transfer;

pub use names::{make as make_directory, owned};

/// What a command needs to answer.
pub struct Session {
    pub output: Output,
    pub quiet: bool,
    first_failure: Option<Exit>,
}

impl Session {
    pub fn new(cli: &Cli) -> Self {
        Session {
            output: Output::new(cli.json),
            quiet: cli.quiet,
            first_failure: None,
        }
    }

    /// Tells a failure; the program goes on, and its exit status says so at the end.
    pub fn fail(&mut self, failure: Failure) {
        self.output.flush();
        output::complain(&failure.message);
        self.first_failure.get_or_insert(failure.exit);
    }

    /// As [`Session::fail`] if it is one.
    pub fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|failure| self.fail(failure)).ok()
    }

    pub fn exit_code(&self) -> ExitCode {
        self.first_failure
            .map_or(ExitCode::SUCCESS, |exit| ExitCode::from(exit as u8))
    }
}

pub async fn run(session: &mut Session, cli: Cli) -> Result<()> {
    let Cli {
        server, command, ..
    } = cli;
    if let Command::Version = command {
        return volumes::version(session, &server).await;
    }
    let mut client = Client::connect(&server).await?;
    let client = &mut client;
    match command {
        Command::Ls(args) => listing::ls(session, client, args).await,
        Command::Stat { paths, follow } => listing::stat(session, client, paths, follow).await,
        Command::Cat { paths } => transfer::cat(session, client, paths).await,
        Command::Put(args) => transfer::put(session, client, args).await,
        Command::Get(args) => transfer::get(session, client, args).await,
        Command::Bench(args) => bench::bench(session, client, &server, args).await,
        Command::Mkdir {
            paths,
            parents,
            mode,
        } => names::mkdir(session, client, paths, parents, mode).await,
        Command::Rm {
            paths,
            recursive,
            force,
        } => names::rm(session, client, paths, recursive, force).await,
        Command::Rmdir { paths } => names::rmdir(session, client, paths).await,
        Command::Mv {
            from,
            to,
            no_clobber,
            exchange,
        } => names::mv(client, from, to, no_clobber, exchange).await,
        Command::Ln {
            symbolic,
            target,
            link,
        } => names::ln(client, symbolic, &target, link).await,
        Command::Readlink { paths } => listing::readlink(session, client, paths).await,
        Command::Touch {
            paths,
            no_create,
            time,
        } => attributes::touch(session, client, paths, no_create, time).await,
        Command::Chmod { mode, paths } => attributes::chmod(session, client, mode, paths).await,
        Command::Chown {
            owner,
            paths,
            no_follow,
        } => attributes::chown(session, client, owner, paths, no_follow).await,
        Command::Truncate { size, paths } => {
            attributes::truncate(session, client, size, paths).await
        }
        Command::Fallocate {
            keep_size,
            punch_hole,
            zero_range,
            offset,
            length,
            path,
        } => {
            let mode = ranges::mode(punch_hole, zero_range);
            ranges::fallocate(client, &path, mode, keep_size, offset, length).await
        }
        Command::Reflink { from, to, preserve } => {
            ranges::reflink(client, from, to, preserve).await
        }
        Command::Extents { path, link } => {
            ranges::extents(session, client, &path, link.no_follow).await
        }
        Command::Seek {
            hole, offset, path, ..
        } => ranges::seek(session, client, &path, hole, offset).await,
        Command::Df { volumes } => volumes::df(session, client, volumes).await,
        Command::Counters { volumes } => counters::show(session, client, volumes).await,
        Command::Check { volume } => check::check(session, client, volume).await,
        Command::Sync { volumes } => volumes::sync(session, client, volumes).await,
        Command::Xattr(command) => xattrs::run(session, client, command).await,
        Command::Volumes => volumes::list(session, client).await,
        Command::Devices => volumes::devices(session, client).await,
        Command::Attach(what) => volumes::attach(session, client, what).await,
        Command::Detach { name } => volumes::detach(client, name).await,
        Command::Mount {
            device,
            name,
            read_only,
            errors,
            tuning,
        } => volumes::mount(session, client, device, name, read_only, errors, tuning).await,
        Command::Unmount { volume, force } => volumes::unmount(client, volume, force).await,
        Command::Export(args) => exports::create(session, client, args).await,
        Command::Exports => exports::list(session, client).await,
        Command::Unexport { names } => exports::remove(session, client, names).await,
        Command::Health { volume } => volumes::health(session, client, volume).await,
        // Answered before there is a connection.
        Command::Version | Command::Completions { .. } => Ok(()),
    }
}
