//! `ocelot`: the command-line client of an Ocelot node, over gRPC only.
//!
//! [`args`] is the command line, [`commands`] one function per command, [`transfer`] the copying,
//! [`client`] the connection. A command that works on several paths goes on after a failure, tells
//! each, and exits with the first one's status.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod client;
mod commands;
mod error;
mod output;
mod path;
mod progress;
mod transfer;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Cli, Command};
use crate::commands::Session;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "ocelot", &mut script);
        let mut output = output::Output::new(false);
        output.bytes(&script);
        output.flush();
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            output::complain(&format!("starting threads: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let mut session = Session::new(&cli);
    let result = runtime.block_on(commands::run(&mut session, cli));
    session.output.flush();
    if let Err(failure) = result {
        session.fail(failure);
    }
    // Reads of standard input that nobody waits for any more must not hold the end up.
    runtime.shutdown_background();
    session.exit_code()
}
