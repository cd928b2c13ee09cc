//! The journal against a model, with a power loss at every point of a recorded run.
//!
//! Several tasks change a few raw blocks in handles of their own, some of which are rolled back.
//! The model is the list of states after each handle. After a power loss and a replay the blocks
//! must be in the state at the end of some transaction, and not of one before the last that was
//! acknowledged.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ondisk::{BlockNr, Kind};
use runtime::Host;
use runtime::sim::{CrashModel, Image, SimDisk, SimRng, Simulation, World};

use super::volume::{self, Volume, disk, open};
use crate::cache::Cache;
use crate::journal::{Journal, Tid};

const BLOCK: u64 = 4096;
/// Free blocks near the volume's end that the test plays with.
const FIRST: u64 = 16_000;
const BLOCKS: usize = 10;

/// First words of the blocks.
type Contents = [u64; BLOCKS];

/// The state after a handle, and its transaction.
type Step = (Tid, Contents);

/// What the tasks share.
struct Play {
    cache: Rc<Cache>,
    journal: Journal,
    world: World,
    steps: RefCell<Vec<Step>>,
    next: Cell<u64>,
    /// At which point of the recording how many steps were acknowledged.
    acknowledged: RefCell<Vec<(usize, usize)>>,
    disk: SimDisk,
}

impl Play {
    fn below(&self, bound: u64) -> u64 {
        self.world.random() % bound
    }

    /// A handle that changes some blocks; kept or rolled back.
    async fn change(&self) {
        let count = 1 + self.below(4);
        let mut blocks = Vec::new();
        for _ in 0..count {
            let nr = BlockNr(FIRST + self.below(BLOCKS as u64));
            blocks.push(self.cache.read(nr, Kind::Raw).await.unwrap());
        }
        let Ok(mut handle) = self.journal.begin(count as u32).await else {
            return;
        };
        let mut contents = self
            .steps
            .borrow()
            .last()
            .map_or([0; BLOCKS], |step| step.1);
        for block in &blocks {
            let at = (block.nr().0 - FIRST) as usize;
            assert_eq!(
                word(&block.data()),
                contents[at],
                "what the last handle left"
            );
            let mut word = self.next.get();
            self.next.set(word + 1);
            if self.below(3) == 0 {
                // Looks like a block of the journal's own.
                word = u64::from_le_bytes([
                    0xC0,
                    0x3B,
                    0x39,
                    0x98,
                    word as u8,
                    (word >> 8) as u8,
                    0,
                    9,
                ]);
            }
            handle.modify(block)[..8].copy_from_slice(&word.to_le_bytes());
            handle.modify(block)[4088..].copy_from_slice(&word.to_le_bytes());
            contents[at] = word;
            if self.below(4) == 0 {
                runtime::sim::yield_now().await;
            }
        }
        if self.below(5) == 0 {
            return;
        }
        let (tid, step) = (handle.commit(), self.steps.borrow().len());
        self.steps.borrow_mut().push((tid, contents));
        if self.below(3) == 0 && self.journal.wait_committed(tid).await.is_ok() {
            assert!(self.journal.committed_tid() >= tid);
            self.acknowledged
                .borrow_mut()
                .push((self.disk.point(), step + 1));
        }
    }
}

fn word(block: &[u8]) -> u64 {
    let word = u64::from_le_bytes(block[..8].try_into().unwrap());
    assert_eq!(word.to_le_bytes(), block[4088..], "a torn block");
    word
}

fn contents(image: &Image) -> Contents {
    std::array::from_fn(|at| word(&image.read_vec((FIRST + at as u64) * BLOCK, BLOCK as usize)))
}

/// The log cut to so many blocks, for a log that wraps often.
fn with_short_log(mut image: Image, volume: &Volume, blocks: u32) -> Image {
    let start = volume.journal_start().0;
    image.write(start * BLOCK + 0x10, &blocks.to_be_bytes());
    image
}

struct Base {
    image: Image,
    dinode: BlockNr,
}

fn base(log_blocks: u32) -> Base {
    let volume = Volume::usual();
    let mut image = with_short_log(volume.image(), &volume, log_blocks);
    for at in 0..BLOCKS as u64 {
        image.write((FIRST + at) * BLOCK, &[0; BLOCK as usize]);
    }
    Base {
        image,
        dinode: volume.system_block("journal:0000"),
    }
}

/// A run of several tasks, recorded.
fn play(
    base: &Base,
    seed: u64,
    close: bool,
) -> (runtime::sim::Trace, Vec<Step>, Vec<(usize, usize)>) {
    let sim = Simulation::new(seed);
    let world = sim.world();
    let disk = disk(base.image.clone(), &world);
    disk.record();
    let play = sim
        .block_on(async {
            let (setup, journal, _) = open(&disk, &world, base.dinode).await;
            Rc::new(Play {
                cache: setup.cache,
                journal,
                world: world.clone(),
                steps: RefCell::default(),
                next: Cell::new(1),
                acknowledged: RefCell::default(),
                disk: disk.clone(),
            })
        })
        .unwrap();
    for task in 0..4 {
        let play = play.clone();
        world.clone().spawn(Box::pin(async move {
            for _ in 0..12 {
                play.change().await;
                if task == 0 && play.below(4) == 0 {
                    play.journal.checkpoint().await.unwrap();
                }
                if play.below(3) == 0 {
                    play.world
                        .sleep(std::time::Duration::from_millis(play.below(3)))
                        .await;
                }
            }
        }));
    }
    sim.run_until_idle().unwrap();
    if close {
        sim.block_on(play.journal.close()).unwrap().unwrap();
        assert_eq!(sim.run_until_idle(), Ok(0), "every task has ended");
        assert_eq!(
            contents(&disk.image()),
            play.steps.borrow().last().unwrap().1
        );
    }
    assert_eq!(disk.stats().overlapping_writes, 0);
    assert_eq!(disk.stats().errors, 0);
    assert_eq!(play.journal.aborted(), None);
    let (steps, acknowledged) = (play.steps.take(), play.acknowledged.take());
    (disk.take_trace().unwrap(), steps, acknowledged)
}

/// Replays a crashed image, and holds what comes out to the model.
fn check(base: &Base, image: Image, seed: u64, steps: &[Step], least: usize) {
    let mut rng = SimRng::new(seed);
    let mut image = image;
    // Regression 29: crashes inside the replay, before and after its flushes.
    for _ in 0..rng.below(3) {
        let sim = Simulation::new(rng.below(1 << 40));
        let world = sim.world();
        let disk = disk(image.clone(), &world);
        disk.crash_after(rng.below(12));
        let setup = volume::setup(&disk, &world);
        let _ = sim.block_on(Journal::open(setup, base.dinode)).unwrap();
        image = disk.crash(CrashModel::Any, &mut rng).image();
    }
    let sim = Simulation::new(seed);
    let world = sim.world();
    let disk = disk(image, &world);
    sim.block_on(async {
        let (_, journal, _) = open(&disk, &world, base.dinode).await;
        let found = contents(&disk.image());
        let whole = |at: usize| steps.get(at).is_none_or(|next| next.0 != steps[at - 1].0);
        let state = |at: usize| {
            if at == 0 {
                [0; BLOCKS]
            } else {
                steps[at - 1].1
            }
        };
        let ends = (least..=steps.len()).filter(|&at| at == 0 || whole(at));
        assert!(
            ends.into_iter().any(|at| state(at) == found),
            "seed {seed}: {found:?} is no state from {least} on"
        );
        journal.close().await.unwrap();
    })
    .unwrap();
}

fn sweep(base: &Base, seed: u64, stride: usize) -> usize {
    let (trace, steps, acknowledged) = play(base, seed, seed.is_multiple_of(2));
    let mut rng = SimRng::new(seed);
    let points: Vec<usize> = trace.interesting_points().collect();
    let mut crashes = 0;
    for &point in points
        .iter()
        .skip(rng.below(stride as u64) as usize)
        .step_by(stride)
    {
        let sector = 512;
        let choice = CrashModel::Any.choose(&trace.volatile_at(point), sector, &mut rng);
        let image = trace.image_at(point, &choice);
        let least = acknowledged
            .iter()
            .filter(|(at, _)| *at <= point)
            .map(|(_, n)| *n)
            .max();
        check(base, image, seed + point as u64, &steps, least.unwrap_or(0));
        crashes += 1;
    }
    crashes
}

#[test]
fn a_power_loss_leaves_a_transaction_boundary() {
    let base = base(40);
    let crashes: usize = (0..150).map(|seed| sweep(&base, seed, 1)).sum();
    assert!(crashes > 3000, "{crashes} crashes are too few");
}

#[test]
fn a_log_of_the_usual_length_too() {
    let base = base(1024);
    let crashes: usize = (100..104).map(|seed| sweep(&base, seed, 2)).sum();
    assert!(crashes > 100, "{crashes} crashes are too few");
}
