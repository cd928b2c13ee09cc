//! Handles, pins, triggers and errors of the journal, one rule a test.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ondisk::{BlockNr, ClusterNr, Dinode, Kind};
use runtime::sim::{Fault, SimDisk, Simulation, World};
use runtime::{DeviceErrorKind, Host, Op};

use super::volume::{self, Volume, disk, open};
use crate::error::{Errno, Error};
use crate::journal::{Journal, JournalSetup};

const FREE: BlockNr = BlockNr(16_000);

/// A fresh volume with its journal open.
struct Bench {
    sim: Simulation,
    world: World,
    disk: SimDisk,
    setup: JournalSetup,
    journal: Rc<Journal>,
    root: BlockNr,
    dinode: BlockNr,
}

fn bench() -> Bench {
    let volume = Volume::usual();
    let dinode = volume.system_block("journal:0000");
    let sim = Simulation::new(9);
    let world = sim.world();
    let disk = disk(volume.image(), &world);
    let (setup, journal, _) = sim.block_on(open(&disk, &world, dinode)).unwrap();
    let root = setup.geometry.root_dir;
    Bench {
        sim,
        world,
        disk,
        setup,
        journal: Rc::new(journal),
        root,
        dinode,
    }
}

impl Bench {
    fn mtime_at_home(&self) -> u64 {
        let bytes = self.disk.image().read_vec(self.root.0 * 4096, 4096);
        Dinode::of(&bytes).i_mtime.get()
    }
}

#[test]
fn a_dropped_handle_leaves_nothing() {
    let b = bench();
    b.sim
        .block_on(async {
            let root = b.setup.cache.read(b.root, Kind::Dinode).await.unwrap();
            let before = root.snapshot();
            let mut handle = b.journal.begin(3).await.unwrap();
            Dinode::of_mut(&mut handle.modify(&root)).i_mtime.set(1);
            let fresh = handle.fresh(FREE, Kind::Raw);
            handle.modify(&fresh).fill(7);
            assert_eq!(handle.len(), 2);
            drop(handle);
            assert_eq!(*root.data(), before[..]);
            assert!(
                b.setup.cache.peek(FREE).is_none(),
                "nobody's block is not in memory"
            );
            // The same block read again is what is on the device.
            let read = b.setup.cache.read(FREE, Kind::Raw).await.unwrap();
            assert_eq!(read.data()[0], b.disk.image().read_vec(FREE.0 * 4096, 1)[0]);
            let committed = b.journal.committed_tid();
            b.journal.force_commit().await.unwrap();
            assert_eq!(b.journal.committed_tid(), committed, "nothing to commit");
        })
        .unwrap();
}

#[test]
fn a_dropped_handle_keeps_what_earlier_ones_did() {
    let b = bench();
    b.sim
        .block_on(async {
            let root = b.setup.cache.read(b.root, Kind::Dinode).await.unwrap();
            let mut handle = b.journal.begin(1).await.unwrap();
            Dinode::of_mut(&mut handle.modify(&root)).i_mtime.set(11);
            let tid = handle.commit();
            let mut handle = b.journal.begin(1).await.unwrap();
            Dinode::of_mut(&mut handle.modify(&root)).i_mtime.set(12);
            drop(handle);
            b.journal.wait_committed(tid).await.unwrap();
            b.journal.checkpoint().await.unwrap();
            assert_eq!(b.mtime_at_home(), 11);
        })
        .unwrap();
}

#[test]
fn a_checkpoint_writes_committed_bytes_only() {
    let b = bench();
    b.sim
        .block_on(async {
            let root = b.setup.cache.read(b.root, Kind::Dinode).await.unwrap();
            for mtime in [21, 22] {
                let mut handle = b.journal.begin(1).await.unwrap();
                Dinode::of_mut(&mut handle.modify(&root)).i_mtime.set(mtime);
                let tid = handle.commit();
                if mtime == 21 {
                    b.journal.wait_committed(tid).await.unwrap();
                }
            }
            b.journal.checkpoint().await.unwrap();
            assert_eq!(b.mtime_at_home(), 21);
        })
        .unwrap();
}

#[test]
fn a_transaction_is_committed_when_it_is_old() {
    let b = bench();
    let tid = b
        .sim
        .block_on(async {
            let root = b.setup.cache.read(b.root, Kind::Dinode).await.unwrap();
            let mut handle = b.journal.begin(1).await.unwrap();
            Dinode::of_mut(&mut handle.modify(&root)).i_mtime.set(31);
            handle.commit()
        })
        .unwrap();
    b.sim.run_for(Duration::from_millis(4900)).unwrap();
    assert!(b.journal.committed_tid() < tid);
    b.sim.run_for(Duration::from_millis(200)).unwrap();
    assert_eq!(b.journal.committed_tid(), tid);
    // And with nothing else to do it goes home.
    b.sim.run_for(Duration::from_secs(6)).unwrap();
    assert_eq!(b.journal.checkpointed_tid(), tid);
    assert_eq!(
        b.sim.run_until_idle(),
        Ok(0),
        "an idle journal has no timer"
    );
}

#[test]
fn those_who_wait_together_share_a_commit() {
    let b = bench();
    let flushes = b.disk.stats().flushes;
    let done = Rc::new(Cell::new(0));
    for at in 0..32 {
        let (journal, cache, done) = (b.journal.clone(), b.setup.cache.clone(), done.clone());
        b.world.spawn(Box::pin(async move {
            let block = cache.read(BlockNr(FREE.0 + at), Kind::Raw).await.unwrap();
            let mut handle = journal.begin(1).await.unwrap();
            handle.modify(&block)[0] ^= 1;
            let tid = handle.commit();
            journal.wait_committed(tid).await.unwrap();
            done.set(done.get() + 1);
        }));
    }
    b.sim.run_until_idle().unwrap();
    assert_eq!(done.get(), 32);
    let flushes = b.disk.stats().flushes - flushes;
    assert!(flushes <= 10, "{flushes} flushes for 32 waiters");
}

/// Regression 31: a cluster that is free only in the uncommitted bitmap has no new owner.
#[test]
fn freed_clusters_stay_pinned() {
    let b = bench();
    b.sim
        .block_on(async {
            let block = b.setup.cache.read(FREE, Kind::Raw).await.unwrap();
            let mut handle = b.journal.begin(2).await.unwrap();
            handle.modify(&block)[0] ^= 1;
            handle.commit();
            let other = b.setup.cache.read(b.root, Kind::Dinode).await.unwrap();
            let mut handle = b.journal.begin(2).await.unwrap();
            Dinode::of_mut(&mut handle.modify(&other)).i_mtime.set(41);
            handle.freed(ClusterNr(100), 5);
            handle.freed_metadata(ClusterNr(FREE.0 as u32), 2);
            assert_eq!(b.journal.pins().within(ClusterNr(0), u32::MAX).len(), 2);
            handle.commit();
            assert!(
                b.setup.cache.peek(FREE).is_none(),
                "freed metadata is forgotten"
            );
            b.journal.force_commit().await.unwrap();
            assert!(b.journal.pins().within(ClusterNr(100), 5).is_empty());
            let metadata = b.journal.pins().within(ClusterNr(FREE.0 as u32 + 1), 9);
            assert_eq!(metadata, [(ClusterNr(FREE.0 as u32 + 1), 1)]);
            b.journal.checkpoint().await.unwrap();
            assert!(b.journal.pins().is_empty());
        })
        .unwrap();
}

#[test]
fn a_full_transaction_is_committed_for_the_next_handle() {
    let b = bench();
    let max = b.journal.max_handle();
    assert!(
        (200..256).contains(&max),
        "a quarter of 1023 blocks, less descriptors: {max}"
    );
    b.sim
        .block_on(async {
            let refused = b.journal.begin(max + 1).await.err().unwrap();
            assert!(
                matches!(refused, Error::TransactionTooBig { .. }),
                "{refused}"
            );
            let first = b.journal.running_tid();
            for round in 0..12u64 {
                let mut handle = b.journal.begin(max / 2).await.unwrap();
                for at in 0..u64::from(max / 2) {
                    let block = handle.fresh(BlockNr(FREE.0 - 5000 + round * 200 + at), Kind::Raw);
                    handle.modify(&block).fill(round as u8);
                }
                assert!(!handle.extend(max));
                handle.commit();
            }
            assert!(b.journal.running_tid().0 >= first.0 + 4);
            assert!(
                b.journal.checkpointed_tid() >= first,
                "the log was too short for all"
            );
            b.journal.close().await.unwrap();
        })
        .unwrap();
}

#[test]
fn a_device_error_stops_the_journal_and_is_kept() {
    for (op, count) in [
        (Op::Write, 0),
        (Op::Write, 1),
        (Op::Flush, 0),
        (Op::Flush, 1),
    ] {
        let b = bench();
        b.sim
            .block_on(async {
                let root = b.setup.cache.read(b.root, Kind::Dinode).await.unwrap();
                let mut handle = b.journal.begin(1).await.unwrap();
                Dinode::of_mut(&mut handle.modify(&root)).i_mtime.set(51);
                let tid = handle.commit();
                b.disk.inject(
                    Fault::fail(DeviceErrorKind::Failed)
                        .on(op)
                        .after(count)
                        .times(1),
                );
                let error = b.journal.wait_committed(tid).await.unwrap_err();
                assert_eq!(error.errno(), Errno::EIO, "{error}");
                let refused = b.journal.begin(1).await.err().unwrap();
                assert_eq!(refused.errno(), Errno::EROFS);
                assert_eq!(b.journal.aborted(), Some(error.to_string()));
                b.journal.abort("something later");
                assert_eq!(b.journal.aborted(), Some(error.to_string()));
                assert!(b.journal.close().await.is_err());
            })
            .unwrap();
        assert_eq!(b.sim.run_until_idle(), Ok(0));
        // The journal is left as in use: the next mount recovers.
        let world = b.sim.world();
        b.disk.clear_faults();
        let (_, _, recovery) = b.sim.block_on(open(&b.disk, &world, b.dinode)).unwrap();
        assert!(recovery.dirty);
    }
}

#[test]
fn a_failed_checkpoint_stops_the_journal() {
    let b = bench();
    b.sim
        .block_on(async {
            let root = b.setup.cache.read(b.root, Kind::Dinode).await.unwrap();
            let mut handle = b.journal.begin(1).await.unwrap();
            Dinode::of_mut(&mut handle.modify(&root)).i_mtime.set(61);
            let tid = handle.commit();
            b.journal.wait_committed(tid).await.unwrap();
            let home = b.root.0 * 4096..b.root.0 * 4096 + 4096;
            b.disk.inject(
                Fault::fail(DeviceErrorKind::Failed)
                    .on(Op::Write)
                    .within(home),
            );
            assert_eq!(
                b.journal.checkpoint().await.unwrap_err().errno(),
                Errno::EIO
            );
            assert_eq!(
                b.journal.begin(1).await.err().unwrap().errno(),
                Errno::EROFS
            );
            assert!(b.journal.close().await.is_err());
        })
        .unwrap();
    b.disk.clear_faults();
    let world = b.sim.world();
    let (_, _, recovery) = b.sim.block_on(open(&b.disk, &world, b.dinode)).unwrap();
    assert_eq!((recovery.transactions, recovery.generation), (1, 1));
    assert_eq!(b.mtime_at_home(), 61);
}

#[test]
fn two_who_miss_the_same_block_read_it_once() {
    let b = bench();
    let reads = b.disk.stats().reads;
    let setup = volume::setup(&b.disk, &b.world);
    b.sim
        .block_on(async {
            let (one, two) = futures_util::join!(
                setup.cache.read(b.root, Kind::Dinode),
                setup.cache.read(b.root, Kind::Dinode)
            );
            assert!(Rc::ptr_eq(&one.unwrap(), &two.unwrap()));
        })
        .unwrap();
    assert_eq!(b.disk.stats().reads, reads + 1);
}

#[test]
fn a_block_made_while_it_is_read_wins() {
    let b = bench();
    b.sim
        .block_on(async {
            let cache = &b.setup.cache;
            let make = async {
                let mut handle = b.journal.begin(1).await.unwrap();
                let block = handle.fresh(FREE, Kind::Raw);
                handle.modify(&block).fill(3);
                handle.commit();
                b.journal.force_commit().await.unwrap();
                b.journal.checkpoint().await.unwrap();
            };
            let (read, ()) = futures_util::join!(cache.read(FREE, Kind::Raw), make);
            assert_eq!(read.unwrap().data()[0], 3);
        })
        .unwrap();
}

#[test]
fn blocks_in_a_transaction_are_not_evicted() {
    let b = bench();
    b.sim
        .block_on(async {
            let mut handle = b.journal.begin(1).await.unwrap();
            let block = handle.fresh(FREE, Kind::Raw);
            handle.modify(&block).fill(5);
            handle.commit();
            drop(block);
            // The cache holds 256 blocks here.
            for at in 0..1000 {
                b.setup
                    .cache
                    .read(BlockNr(FREE.0 - 3000 + at), Kind::Raw)
                    .await
                    .unwrap();
            }
            assert_eq!(b.setup.cache.peek(FREE).unwrap().data()[0], 5);
            b.journal.force_commit().await.unwrap();
            for at in 0..1000 {
                b.setup
                    .cache
                    .read(BlockNr(FREE.0 - 3000 + at), Kind::Raw)
                    .await
                    .unwrap();
            }
            assert_eq!(
                b.setup.cache.peek(FREE).unwrap().data()[0],
                5,
                "not home yet"
            );
            b.journal.checkpoint().await.unwrap();
            for at in 0..1000 {
                b.setup
                    .cache
                    .read(BlockNr(FREE.0 - 3000 + at), Kind::Raw)
                    .await
                    .unwrap();
            }
            assert!(b.setup.cache.peek(FREE).is_none(), "evicted at last");
            let block = b.setup.cache.read(FREE, Kind::Raw).await.unwrap();
            assert_eq!(block.data()[0], 5);
        })
        .unwrap();
}

#[test]
fn an_error_is_noted_in_the_log_and_taken_back_by_the_next_owner() {
    let volume = Volume::usual();
    let place = volume.journal_start().0 * 4096 + 0x20;
    let b = bench();
    let noted = |disk: &SimDisk| {
        let bytes = disk.image().read_vec(place, 4);
        i32::from_be_bytes(bytes.try_into().unwrap())
    };
    let stopped = Rc::new(Cell::new(false));
    let (journal, told) = (b.journal.clone(), stopped.clone());
    b.world.spawn(Box::pin(async move {
        let cause = journal.until_aborted().await.expect("it is told");
        assert!(cause.contains("write of"), "{cause}");
        told.set(true);
    }));
    b.sim
        .block_on(async {
            let root = b.setup.cache.read(b.root, Kind::Dinode).await.unwrap();
            let mut handle = b.journal.begin(1).await.unwrap();
            Dinode::of_mut(&mut handle.modify(&root)).i_mtime.set(71);
            let tid = handle.commit();
            b.journal.wait_committed(tid).await.unwrap();
            let home = b.root.0 * 4096..b.root.0 * 4096 + 4096;
            let fault = Fault::fail(DeviceErrorKind::Failed).on(Op::Write);
            b.disk.inject(fault.within(home));
            b.journal.checkpoint().await.unwrap_err();
            b.journal.close().await.unwrap_err();
        })
        .unwrap();
    assert_eq!(b.sim.run_until_idle(), Ok(0));
    assert!(stopped.get());
    assert_eq!(noted(&b.disk), -5, "EIO, as jbd2 has it");
    b.disk.clear_faults();
    volume.save(&b.disk.image());
    let (text, _) = volume.fsck("-fn");
    assert!(!text.contains("rror reading"), "{text}");
    // What was committed is replayed all the same, and the error is acknowledged.
    let (_, journal, recovery) = b.sim.block_on(open(&b.disk, &b.world, b.dinode)).unwrap();
    assert_eq!(recovery.transactions, 1);
    assert_eq!(b.mtime_at_home(), 71);
    b.sim.block_on(journal.close()).unwrap().unwrap();
    assert_eq!(noted(&b.disk), 0);
}

#[test]
fn a_restarted_handle_joins_its_blocks_again() {
    let b = bench();
    b.sim
        .block_on(async {
            let root = b.setup.cache.read(b.root, Kind::Dinode).await.unwrap();
            let set = |bytes: &mut [u8], mtime| Dinode::of_mut(bytes).i_mtime.set(mtime);
            let max = b.journal.max_handle();
            let mut handle = b.journal.begin(2).await.unwrap();
            set(&mut handle.modify(&root), 81);
            let first = handle.tid();
            // No room for so many more beside it: the next transaction has.
            assert!(!handle.extend(max));
            let mut handle = b.journal.restart(handle, max).await.unwrap();
            assert!(handle.is_empty() && handle.credits() == max);
            assert!(handle.tid() > first);
            set(&mut handle.modify(&root), 82);
            assert_eq!(handle.credits(), max - 1, "joined to the new transaction");
            drop(handle);
            assert_eq!(
                Dinode::of(&root.data()).i_mtime.get(),
                81,
                "and rolled back in it"
            );
            let mut handle = b.journal.begin(1).await.unwrap();
            set(&mut handle.modify(&root), 83);
            // With room the transaction stays the same, and so does the block in it.
            let tid = handle.tid();
            let mut handle = b.journal.restart(handle, 1).await.unwrap();
            assert_eq!(handle.tid(), tid);
            set(&mut handle.modify(&root), 84);
            assert_eq!(handle.credits(), 1, "it was in this transaction already");
            handle.commit();
            b.journal.wait_committed(tid).await.unwrap();
            b.journal.checkpoint().await.unwrap();
            assert_eq!(b.mtime_at_home(), 84);
            b.journal.close().await.unwrap();
        })
        .unwrap();
}

/// With the log full and the checkpoint's home writes held back, handles still begin and end: up to
/// the size of a transaction they wait for nobody.
#[test]
fn a_checkpoint_under_pressure_does_not_stop_writers() {
    let b = bench();
    let max = u64::from(b.journal.max_handle());
    let first = FREE.0 - 6000;
    // Home writes only; the log is elsewhere.
    let home = first * 4096..(first + 3 * max) * 4096;
    b.disk.inject(Fault::hold().on(Op::Write).within(home));
    let fill = async |round: u64, blocks: u64| {
        let mut handle = b.journal.begin(blocks as u32).await.unwrap();
        for at in 0..blocks {
            let block = handle.fresh(BlockNr(first + (round % 3) * max + at), Kind::Raw);
            handle.modify(&block).fill(round as u8);
        }
        handle.commit()
    };
    b.sim
        .block_on(async {
            // As much as the log holds: the checkpoint runs into the held writes.
            for round in 0..4 {
                let tid = fill(round, max - 8).await;
                b.journal.wait_committed(tid).await.unwrap();
            }
            assert!(b.disk.in_flight() > 0, "a checkpoint is on its way");
        })
        .unwrap();
    let done = b.journal.checkpointed_tid();
    let waiting = b.sim.block_on(fill(4, max - 8)).unwrap();
    let (journal, wanted) = (b.journal.clone(), waiting);
    b.world.spawn(Box::pin(async move {
        // There is no room for this one in the log: it waits for the checkpoint.
        journal.wait_committed(wanted).await.unwrap();
    }));
    b.sim.run_for(Duration::from_millis(20)).unwrap();
    let last = b.sim.block_on(fill(5, max - 8)).unwrap();
    assert!(last > waiting, "a later transaction runs");
    assert!(b.journal.committed_tid() < waiting);
    assert_eq!(b.journal.checkpointed_tid(), done);
    b.disk.clear_faults();
    b.disk.release_held();
    b.sim.block_on(b.journal.close()).unwrap().unwrap();
    assert!(b.journal.checkpointed_tid() >= last);
    assert_eq!(b.disk.stats().overlapping_writes, 0);
    let image = b.disk.image();
    for (slot, round) in [(0, 3u8), (1, 4), (2, 5)] {
        let at = (first + slot * max) * 4096;
        assert_eq!(image.read_vec(at, 1), [round]);
    }
}
