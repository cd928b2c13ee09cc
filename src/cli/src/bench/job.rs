//! One job: its stream, its part of the file, and what is in flight.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use proto::v1::io_request::Operation;
use proto::v1::{IoRead, IoRequest, IoResponse, IoWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Plan;
use super::pattern::{self, Numbers};
use crate::args::{self, Work};
use crate::client::Client;
use crate::error::{About, Exit, Failure, Result};
use crate::path::Remote;

/// The longest time that is told apart, in nanoseconds.
const LONGEST_NS: u64 = 600_000_000_000;

/// Requests of one kind.
pub struct Kind {
    pub bytes: u64,
    /// In nanoseconds.
    pub latency: Histogram<u64>,
}

impl Default for Kind {
    fn default() -> Self {
        Kind {
            bytes: 0,
            latency: Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("the bounds are in order"),
        }
    }
}

impl Kind {
    fn note(&mut self, bytes: u64, took: Duration) {
        self.bytes += bytes;
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.latency.saturating_record(ns.clamp(1, LONGEST_NS));
    }

    fn add(&mut self, other: &Kind) {
        self.bytes += other.bytes;
        let same = self.latency.add(&other.latency);
        same.expect("all have the same bounds");
    }
}

/// What was done.
#[derive(Default)]
pub struct Tally {
    pub reads: Kind,
    pub writes: Kind,
    pub elapsed: Duration,
    /// Blocks that held what they should.
    pub verified_blocks: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
        self.verified_blocks += other.verified_blocks;
    }
}

/// A request in flight.
struct Flying {
    block: u64,
    is_read: bool,
    since: Instant,
}

pub struct Job {
    client: Client,
    path: Remote,
    handle: u64,
    plan: Plan,
    depth: usize,
    work: Work,
    read_percent: u64,
    sequential: bool,
    /// Where the job's part of the file begins.
    start: u64,
    numbers: Numbers,
    /// The next block in order.
    next: u64,
    /// Writes of each block so far; empty if nothing is verified.
    versions: Vec<u32>,
    /// The same bytes for every write that is not verified.
    data: Bytes,
}

impl Job {
    pub fn new(client: Client, handle: u64, args: &args::Bench, plan: Plan, number: u64) -> Job {
        let versions = match args.verify {
            true => vec![0; plan.blocks as usize],
            false => Vec::new(),
        };
        Job {
            client,
            path: args.path.clone(),
            handle,
            plan,
            depth: usize::from(args.depth),
            work: args.work,
            read_percent: u64::from(args.read_percent),
            sequential: args.sequential,
            start: number * plan.blocks * plan.block_bytes,
            numbers: Numbers::from(args.seed.wrapping_add(number << 32)),
            next: 0,
            versions,
            data: pattern::block(number, 0, plan.block_bytes),
        }
    }

    fn offset(&self, block: u64) -> u64 {
        self.start + block * self.plan.block_bytes
    }

    /// Writes every block once, in order.
    pub async fn fill(&mut self) -> Result<()> {
        let mut blocks = 0..self.plan.blocks;
        self.run(&mut Tally::default(), |_, _| {
            blocks.next().map(|block| (block, false))
        })
        .await
    }

    /// Reads every block once, in order; how many.
    pub async fn look_at_all(&mut self) -> Result<u64> {
        let mut tally = Tally::default();
        let mut blocks = 0..self.plan.blocks;
        self.run(&mut tally, |_, _| blocks.next().map(|block| (block, true)))
            .await?;
        Ok(tally.verified_blocks)
    }

    /// The measured requests.
    pub async fn work(&mut self, until: Instant) -> Result<Tally> {
        let mut tally = Tally::default();
        self.run(&mut tally, |job, flying| {
            (Instant::now() < until).then(|| job.choose(flying))
        })
        .await?;
        Ok(tally)
    }

    /// The next block, and whether it is read. What is verified has one request at a time.
    fn choose(&mut self, flying: &[Option<Flying>]) -> (u64, bool) {
        let is_read = match self.work {
            Work::Read => true,
            Work::Write => false,
            Work::Mixed => self.numbers.below(100) < self.read_percent,
        };
        loop {
            let block = if self.sequential {
                let block = self.next;
                self.next = (block + 1) % self.plan.blocks;
                block
            } else {
                self.numbers.below(self.plan.blocks)
            };
            let taken = || flying.iter().flatten().any(|other| other.block == block);
            if self.versions.is_empty() || !taken() {
                return (block, is_read);
            }
        }
    }

    /// Keeps requests in flight for as long as `next` gives some, and waits for all of them.
    async fn run(
        &mut self,
        tally: &mut Tally,
        mut next: impl FnMut(&mut Job, &[Option<Flying>]) -> Option<(u64, bool)>,
    ) -> Result<()> {
        let (requests, outgoing) = mpsc::channel(self.depth);
        let answers = self.client.files.io(ReceiverStream::new(outgoing)).await;
        let mut answers = answers.about(&self.path)?.into_inner();
        let mut flying: Vec<Option<Flying>> = (0..self.depth).map(|_| None).collect();
        let mut free: Vec<usize> = (0..self.depth).rev().collect();
        let mut more = true;
        loop {
            while more && let Some(&place) = free.last() {
                let Some((block, is_read)) = next(self, &flying) else {
                    more = false;
                    break;
                };
                free.pop();
                let request = self.request(place as u64, block, is_read);
                flying[place] = Some(Flying {
                    block,
                    is_read,
                    since: Instant::now(),
                });
                // If the daemon has gone, its answer says so.
                if requests.send(request).await.is_err() {
                    more = false;
                }
            }
            if free.len() == self.depth {
                return Ok(());
            }
            let Some(answer) = answers.message().await.about(&self.path)? else {
                let left = self.depth - free.len();
                return Err(self.failed(format!("no answer came for {left} requests")));
            };
            let place = usize::try_from(answer.id).unwrap_or(usize::MAX);
            let Some(done) = flying.get_mut(place).and_then(Option::take) else {
                return Err(self.failed("an answer came to no request".into()));
            };
            free.push(place);
            self.take(tally, &done, answer)?;
        }
    }

    fn request(&mut self, id: u64, block: u64, is_read: bool) -> IoRequest {
        let (handle, offset) = (self.handle, self.offset(block));
        let operation = if is_read {
            Operation::Read(IoRead {
                handle,
                offset,
                length: self.plan.block_bytes as u32,
            })
        } else {
            let data = match self.versions.get_mut(block as usize) {
                Some(version) => {
                    *version += 1;
                    pattern::block(offset, *version, self.plan.block_bytes)
                }
                None => self.data.clone(),
            };
            Operation::Write(IoWrite {
                handle,
                offset,
                data,
                explain: false,
            })
        };
        IoRequest {
            id,
            operation: Some(operation),
        }
    }

    /// An answer to a request.
    fn take(&self, tally: &mut Tally, done: &Flying, answer: IoResponse) -> Result<()> {
        let took = done.since.elapsed();
        let offset = self.offset(done.block);
        if let Some(detail) = answer.error {
            let about = format_args!("{} at byte {offset}", self.path);
            return Err(Failure::of_detail(about, &detail));
        }
        if answer.bytes != self.plan.block_bytes {
            let (bytes, wanted) = (answer.bytes, self.plan.block_bytes);
            return Err(self.failed(format!("{bytes} of {wanted} bytes at byte {offset}")));
        }
        if !done.is_read {
            tally.writes.note(answer.bytes, took);
            return Ok(());
        }
        tally.reads.note(answer.bytes, took);
        if let Some(&version) = self.versions.get(done.block as usize) {
            if answer.data.len() as u64 != self.plan.block_bytes {
                return Err(self.failed(format!("too few bytes came of byte {offset}")));
            }
            if let Some(at) = pattern::first_difference(offset, version, &answer.data) {
                return Err(self.failed(format!(
                    "byte {} is not what was written there last",
                    offset + at as u64
                )));
            }
            tally.verified_blocks += 1;
        }
        Ok(())
    }

    fn failed(&self, message: String) -> Failure {
        Failure::new(Exit::Failed, format!("{}: {message}", self.path))
    }
}
