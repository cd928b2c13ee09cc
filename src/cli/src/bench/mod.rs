//! `bench`: requests of one size to a file, so many in flight, for some time; what they took.
//!
//! Each job has a connection, an `Io` stream and a part of the file of its own, so that a job knows
//! what its blocks hold: that is what `--verify` is made of.

mod job;
mod pattern;
mod report;

use std::time::{Duration, Instant};

use proto::v1::*;
use tokio::task::JoinSet;

use crate::args::{self, Work};
use crate::client::Client;
use crate::commands::{self, Session};
use crate::error::{About, Exit, Failure, Result};
use crate::path::Remote;
use job::{Job, Tally};

pub async fn bench(
    session: &mut Session,
    client: &mut Client,
    server: &str,
    args: args::Bench,
) -> Result<()> {
    let plan = Plan::of(&args)?;
    let handles = client.session().await?;
    let found = client.stat_if_any(&args.path, true).await?;
    let made = found.is_none();
    let writes = args.work != Work::Read || args.verify;
    if !made && writes && !args.overwrite {
        let message = format!(
            "{}: is there; --overwrite destroys what it holds",
            args.path
        );
        return Err(Failure::new(Exit::Exists, message));
    }
    let flags = OpenFlags {
        read: true,
        write: made || writes,
        create: made,
        exclusive: made,
        direct: args.mode.direct,
        buffered: args.mode.buffered,
        ..OpenFlags::default()
    };
    let request = OpenRequest {
        at: args.path.location(),
        flags: Some(flags),
        new: commands::owned(0o600),
        session: handles.id,
    };
    let opened = client.files.open(request).await.about(&args.path)?;
    let OpenResponse { handle, attributes } = opened.into_inner();
    let there = attributes.map_or(0, |attributes| attributes.size_bytes);
    let result = run(session, server, &args, plan, handle, there).await;
    let closed = client.files.close(CloseRequest { handle }).await;
    let closed = closed.about(&args.path);
    if made && !args.keep {
        let at = args.path.location();
        let removed = client.names.unlink(UnlinkRequest { at }).await;
        session.keep(removed.about(&args.path));
    }
    let tally = result?;
    closed?;
    report::tell(session, &args, plan, &tally);
    Ok(())
}

/// How the file is divided.
#[derive(Debug, Clone, Copy)]
struct Plan {
    block_bytes: u64,
    /// Of each job.
    blocks: u64,
}

impl Plan {
    fn of(args: &args::Bench) -> Result<Plan> {
        let most = proto::MAX_IO_BYTES as u64;
        let block_bytes = args.block_size;
        if !(8..=most).contains(&block_bytes) || !block_bytes.is_multiple_of(8) {
            let message = format!("--block-size {block_bytes}: 8 to {most}, a multiple of 8");
            return Err(Failure::usage(message));
        }
        let blocks = args.size / block_bytes / u64::from(args.jobs);
        if blocks < u64::from(args.depth) {
            let message = format!(
                "--size {}: each job needs at least as many blocks as it has in flight",
                args.size
            );
            return Err(Failure::usage(message));
        }
        Ok(Plan {
            block_bytes,
            blocks,
        })
    }
}

/// Fills the file if need be, lets the jobs work, and looks at everything if that is asked for.
async fn run(
    session: &mut Session,
    server: &str,
    args: &args::Bench,
    plan: Plan,
    handle: u64,
    there: u64,
) -> Result<Tally> {
    let used = plan.blocks * plan.block_bytes * u64::from(args.jobs);
    let fill = args.verify || there < used;
    if fill && there > 0 && !args.overwrite {
        let message = format!("{}: has {there} bytes, {used} are needed", args.path);
        return Err(Failure::usage(message));
    }
    if !session.quiet && fill {
        crate::output::complain(&format!("filling {used} bytes"));
    }
    let mut jobs = Vec::new();
    for number in 0..args.jobs {
        let client = Client::connect(server).await?;
        jobs.push(Job::new(client, handle, args, plan, u64::from(number)));
    }
    if fill {
        (jobs, _) = all(jobs, &args.path, |mut job| async move {
            job.fill().await?;
            Ok((job, ()))
        })
        .await?;
    }
    let start = Instant::now();
    let until = start + Duration::from_secs(args.time.into());
    let (jobs, tallies) = all(jobs, &args.path, move |mut job| async move {
        let tally = job.work(until).await?;
        Ok((job, tally))
    })
    .await?;
    let mut sum = Tally::default();
    for tally in &tallies {
        sum.add(tally);
    }
    sum.elapsed = start.elapsed();
    if args.verify {
        let (_, verified) = all(jobs, &args.path, |mut job| async move {
            let verified = job.look_at_all().await?;
            Ok((job, verified))
        })
        .await?;
        sum.verified_blocks += verified.iter().sum::<u64>();
    }
    Ok(sum)
}

/// Lets all jobs do something at once.
async fn all<T, F, Fut>(jobs: Vec<Job>, path: &Remote, work: F) -> Result<(Vec<Job>, Vec<T>)>
where
    T: Send + 'static,
    F: Fn(Job) -> Fut,
    Fut: Future<Output = Result<(Job, T)>> + Send + 'static,
{
    let mut set = JoinSet::new();
    for job in jobs {
        set.spawn(work(job));
    }
    let (mut jobs, mut results) = (Vec::new(), Vec::new());
    while let Some(ended) = set.join_next().await {
        match ended {
            Ok(result) => {
                let (job, result) = result?;
                jobs.push(job);
                results.push(result);
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(Failure::new(Exit::Failed, format!("{path}: broken off"))),
        }
    }
    Ok((jobs, results))
}
