//! `ocelotd`: one process that owns the devices and serves the volumes on them.
//!
//! Exit status: 0 after a graceful end, 1 if something failed, 2 for a wrong command line or
//! configuration.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use server::config::{Args, Config, ConfigError};
use server::serve::{self, Listeners, ServeError};
use server::spdk_world::{self, SpdkWorld};

fn main() -> ExitCode {
    let args = Args::parse();
    let config = match Config::load(&args) {
        Ok(config) => config,
        Err(error) => {
            complain(&error);
            return ExitCode::from(2);
        }
    };
    if args.check_config {
        let _ = writeln!(std::io::stdout(), "the configuration is good");
        return ExitCode::SUCCESS;
    }
    serve::start_logging(&config);
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(error.as_ref());
            let usage = matches!(error.downcast_ref(), Some(ServeError::Config(_)))
                || error.downcast_ref::<ConfigError>().is_some();
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// Sockets and signals first, so that nothing is taken from the machine for a daemon that cannot
/// serve or be ended.
fn run(config: &Config) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("grpc")
        .enable_all()
        .build()?;
    let (end, listeners) = runtime.block_on(async {
        let end = serve::signals().await?;
        Ok::<_, ServeError>((end, Listeners::bind(config).await?))
    })?;
    let spdk = Arc::new(spdk::Spdk::start(spdk_world::options(&config.spdk))?);
    let world = Arc::new(SpdkWorld::new(spdk.clone()));
    let result = runtime.block_on(serve::run(config, listeners, world, end));
    // Nothing may call into SPDK once it is gone.
    drop(runtime);
    drop(spdk);
    Ok(result?)
}

/// An error and its reasons, in one line.
fn complain(error: &dyn Error) {
    let mut message = format!("ocelotd: {error}");
    let mut source = error.source();
    while let Some(reason) = source {
        message.push_str(&format!(": {reason}"));
        source = reason.source();
    }
    // If standard error is gone, nobody can be told.
    let _ = writeln!(std::io::stderr(), "{message}");
}
