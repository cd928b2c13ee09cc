//! Random operations of several tasks at once through the door, on a simulated disk whose requests
//! take time and overtake each other, against a model in plain maps. Volumes are small, so that
//! operations often find no space: such a one must leave everything as it was. At the end of a run
//! the volume is unmounted, judged by fsck.ocfs2, mounted again and compared.
//!
//! A failing seed is printed. `OCELOT_SEED=n` runs only that one, `OCELOT_SEEDS=n` runs more.

#![allow(clippy::print_stdout, reason = "says which seed failed")]
#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod support;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use fs::Errno;
use fs::volume::{
    FileHandle, IfExists, MountOptions, NewInode, OpenFlags, RenameMode, SetAttr, Volume, Written,
};
use fs::xattr::XattrMode;
use runtime::sim::{DiskOptions, SimDisk, SimRng, Simulation};
use support::tree::{Body, Name, Node, NodeId, ROOT, Tree};
use support::*;

/// Block size, cluster size, megabytes, features. The megabytes leave a few for files.
const GEOMETRIES: [(u32, u32, u64, &str); 6] = [
    (4096, 4096, 24, ALL),
    (512, 4096, 20, ALL),
    (1024, 32768, 30, ALL),
    (2048, 8192, 28, ALL),
    (4096, 1 << 20, 96, ALL),
    (4096, 4096, 24, PLAIN),
];
const TASKS: usize = 4;
const ROUNDS: usize = 3;
const OPERATIONS: usize = 110;
const FILE_MAX: u64 = 3 << 20;

/// One task's part of the volume: names that begin with its number, in directories of its own and
/// in the root, which all share.
struct Player {
    volume: Volume,
    rng: SimRng,
    task: usize,
    tree: Tree,
    serial: usize,
    full: Rc<Cell<usize>>,
    xattrs: bool,
    open: Vec<(FileHandle, NodeId)>,
    log: Rc<RefCell<Vec<String>>>,
}

/// What an operation ended with, as far as the model cares.
fn expect(result: &Result<(), fs::Error>, wanted: Option<Errno>) -> Outcome {
    match (result, wanted) {
        (Ok(()), None) => Outcome::Done,
        (Err(error), Some(errno)) if error.errno() == errno => Outcome::Refused,
        (Err(error), _) if error.errno() == Errno::ENOSPC => Outcome::Full,
        (other, wanted) => panic!("{other:?} where {wanted:?} was expected"),
    }
}

#[derive(PartialEq, Eq)]
enum Outcome {
    Done,
    Refused,
    Full,
}

impl Player {
    fn say<T>(&self, what: &str, name: &[u8], result: &Result<T, fs::Error>) {
        let name = &name[..name.len().min(12)];
        let end = result
            .as_ref()
            .err()
            .map_or("done".into(), fs::Error::to_string);
        let line = format!(
            "{}: {what} {}: {end}",
            self.task,
            String::from_utf8_lossy(name)
        );
        self.log.borrow_mut().push(line);
    }

    fn below(&mut self, bound: usize) -> usize {
        self.rng.below(bound as u64) as usize
    }

    fn dirs(&self) -> Vec<NodeId> {
        self.tree
            .nodes
            .iter()
            .filter(|(_, n)| n.is_dir())
            .map(|(id, _)| *id)
            .collect()
    }

    fn any_dir(&mut self) -> NodeId {
        let dirs = self.dirs();
        dirs[self.below(dirs.len())]
    }

    fn any_name(&mut self) -> Option<Name> {
        let count = self.tree.names.len();
        if count == 0 {
            return None;
        }
        let index = self.below(count);
        self.tree.names.keys().nth(index).cloned()
    }

    fn any_file(&mut self) -> Option<NodeId> {
        let files: Vec<NodeId> = self
            .tree
            .nodes
            .iter()
            .filter(|(_, n)| matches!(n.body, Body::File(_)))
            .map(|(id, _)| *id)
            .collect();
        if files.is_empty() {
            return None;
        }
        Some(files[self.below(files.len())])
    }

    fn new_name(&mut self) -> Name {
        let dir = self.any_dir();
        self.serial += 1;
        let mut name = format!("{}-{}", self.task, self.serial).into_bytes();
        let longer = [0, 0, 0, 3, 30, 200][self.below(6)];
        name.extend(std::iter::repeat_n(b'n', longer));
        (dir, name)
    }

    fn finish(&mut self, outcome: Outcome) -> bool {
        if outcome == Outcome::Full {
            self.full.set(self.full.get() + 1);
        }
        outcome == Outcome::Done
    }

    async fn step(&mut self) {
        match self.below(100) {
            0..14 => self.create().await,
            14..20 => self.mkdir().await,
            20..24 => self.symlink().await,
            24..28 => self.link().await,
            28..52 => self.write().await,
            52..60 => self.read().await,
            60..67 => self.truncate().await,
            67..78 => self.remove().await,
            78..86 => self.rename().await,
            86..91 => self.xattr().await,
            91..93 => self.attributes().await,
            93..96 => self.sync().await,
            96..98 => self.hold_open().await,
            _ => self.let_go().await,
        }
    }

    async fn create(&mut self) {
        let name = self.new_name();
        let new = new_inode();
        let dir = self.tree.nodes[&name.0].ino;
        let result = self.volume.create(dir, &name.1, new, IfExists::Fail).await;
        self.say(&format!("create in {}", name.0), &name.1, &result);
        let ino = result.as_ref().map(|attr| attr.ino);
        if self.finish(expect(&result.clone().map(drop), None)) {
            let node = Node::new(ino.unwrap(), Body::File(Vec::new()), 0o644, 1000);
            let id = self.tree.add(name, node);
            if self.below(2) == 0 {
                self.write_to(id).await;
            }
        }
    }

    async fn mkdir(&mut self) {
        let name = self.new_name();
        let dir = self.tree.nodes[&name.0].ino;
        let new = NewInode {
            permissions: 0o755,
            ..new_inode()
        };
        let result = self.volume.mkdir(dir, &name.1, new).await;
        self.say(&format!("mkdir in {}", name.0), &name.1, &result);
        let ino = result.as_ref().map(|attr| attr.ino);
        if self.finish(expect(&result.clone().map(drop), None)) {
            self.tree
                .add(name, Node::new(ino.unwrap(), Body::Dir, 0o755, 1000));
        }
    }

    async fn symlink(&mut self) {
        let name = self.new_name();
        let dir = self.tree.nodes[&name.0].ino;
        let target = vec![b't'; 1 + [30, 400, 4000][self.below(3)]];
        let result = self
            .volume
            .symlink(dir, &name.1, &target, new_inode())
            .await;
        self.say(
            &format!("symlink of {} in {}", target.len(), name.0),
            &name.1,
            &result,
        );
        let ino = result.as_ref().map(|attr| attr.ino);
        if self.finish(expect(&result.clone().map(drop), None)) {
            let node = Node::new(ino.unwrap(), Body::Symlink(target), 0o777, 1000);
            self.tree.add(name, node);
        }
    }

    async fn link(&mut self) {
        let Some(file) = self.any_file() else { return };
        let name = self.new_name();
        let (ino, dir) = (self.tree.nodes[&file].ino, self.tree.nodes[&name.0].ino);
        let result = self.volume.link(ino, dir, &name.1).await.map(drop);
        self.say(&format!("link {file} in {}", name.0), &name.1, &result);
        if self.finish(expect(&result, None)) {
            self.tree.names.insert(name, file);
        }
    }

    async fn write(&mut self) {
        if let Some(file) = self.any_file() {
            self.write_to(file).await;
        }
    }

    async fn write_to(&mut self, id: NodeId) {
        let Body::File(content) = &self.tree.nodes[&id].body else {
            return;
        };
        let size = content.len() as u64;
        let len = match self.below(8) {
            0 => 1 + self.rng.below(60),
            1 | 2 => 1 + self.rng.below(5000),
            3 => 4096,
            4 => 512 * (1 + self.rng.below(64)),
            5 => 4096 * (1 + self.rng.below(64)),
            6 => 1 + self.rng.below(200_000),
            _ => 1 + self.rng.below(1_500_000),
        };
        let append = self.below(6) == 0;
        let position = match self.below(6) {
            _ if append => size,
            0 => 0,
            1 => size,
            2 => self.rng.below(FILE_MAX / 4096) * 4096,
            3 => size + self.rng.below(10_000),
            _ => self.rng.below(size + 1),
        };
        if position + len > FILE_MAX {
            return;
        }
        let flags = OpenFlags {
            append,
            dsync: self.below(12) == 0,
            ..READ_WRITE
        };
        let (volume, ino) = (self.volume.clone(), self.tree.nodes[&id].ino);
        let file = volume.open(ino, flags).await.unwrap();
        let data = pattern(self.rng.below(1 << 40), len as usize);
        let at = if append { 7 } else { position };
        let written = volume.write(&file, at, Bytes::copy_from_slice(&data)).await;
        volume.close(file).await.unwrap();
        let end = written.error.clone().map_or(Ok(()), Err);
        let bytes = written.bytes;
        self.say(
            &format!("write {id}: {len} at {position} of {size}, {bytes} in"),
            b"",
            &end,
        );
        self.wrote(id, position, &data, &written);
    }

    fn wrote(&mut self, id: NodeId, position: u64, data: &[u8], written: &Written) {
        assert_eq!(written.position, position);
        match &written.error {
            None => assert_eq!(written.bytes, data.len() as u64),
            Some(error) if error.errno() == Errno::ENOSPC => {
                assert!(written.bytes < data.len() as u64);
                self.full.set(self.full.get() + 1);
            }
            Some(error) => panic!("write: {error}"),
        }
        let Body::File(content) = &mut self.tree.nodes.get_mut(&id).unwrap().body else {
            unreachable!()
        };
        if written.bytes > 0 {
            let end = (position + written.bytes) as usize;
            content.resize(content.len().max(end), 0);
            content[position as usize..end].copy_from_slice(&data[..written.bytes as usize]);
        }
    }

    async fn read(&mut self) {
        let Some(id) = self.any_file() else { return };
        let Body::File(content) = self.tree.nodes[&id].body.clone() else {
            return;
        };
        let ino = self.tree.nodes[&id].ino;
        let from = self.rng.below(content.len() as u64 + 10);
        let len = self.rng.below(300_000);
        let shown = self.volume.read_ino(ino, from, len).await.unwrap();
        let from = (from as usize).min(content.len());
        let end = (from + len as usize).min(content.len());
        assert!(
            shown == content[from..end],
            "node {id} from {from} to {end}"
        );
    }

    async fn truncate(&mut self) {
        let Some(id) = self.any_file() else { return };
        let Body::File(content) = &self.tree.nodes[&id].body else {
            return;
        };
        let size = content.len() as u64;
        let to = match self.below(5) {
            0 => 0,
            1 => self.rng.below(FILE_MAX),
            2 => self.rng.below(4000),
            _ => self.rng.below(size + 1),
        };
        let set = SetAttr {
            size_bytes: Some(to),
            ..SetAttr::default()
        };
        let ino = self.tree.nodes[&id].ino;
        let result = self.volume.setattr(ino, set).await.map(drop);
        self.say(&format!("truncate {id} from {size} to {to}"), b"", &result);
        if self.finish(expect(&result, None)) {
            let Body::File(content) = &mut self.tree.nodes.get_mut(&id).unwrap().body else {
                return;
            };
            content.resize(to as usize, 0);
        }
    }

    async fn remove(&mut self) {
        let Some(name) = self.any_name() else { return };
        let id = self.tree.names[&name];
        let dir = self.tree.nodes[&name.0].ino;
        let is_dir = self.tree.nodes[&id].is_dir();
        let wanted = (is_dir && !self.tree.is_empty(id)).then_some(Errno::ENOTEMPTY);
        let result = if is_dir {
            self.volume.rmdir(dir, &name.1).await
        } else {
            self.volume.unlink(dir, &name.1).await
        };
        self.say(&format!("remove {id} in {}", name.0), &name.1, &result);
        if self.finish(expect(&result, wanted)) {
            self.tree.remove(&name);
        }
    }

    async fn rename(&mut self) {
        let Some(from) = self.any_name() else { return };
        let to = match self.below(3) {
            0 => self.any_name().unwrap(),
            _ => self.new_name(),
        };
        let mode = [
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
        ][self.below(3)];
        let moved = self.tree.names[&from];
        let there = self.tree.names.get(&to).copied();
        let tree = &self.tree;
        let is_dir = |id: NodeId| tree.nodes[&id].is_dir();
        let wanted = match (mode, there) {
            (RenameMode::NoReplace, Some(_)) => Some(Errno::EEXIST),
            (RenameMode::Exchange, None) => Some(Errno::ENOENT),
            (_, Some(there)) if there == moved => None,
            _ if is_dir(moved) && tree.is_below(to.0, moved) => Some(Errno::EINVAL),
            (RenameMode::Exchange, Some(there))
                if is_dir(there) && tree.is_below(from.0, there) =>
            {
                Some(Errno::EINVAL)
            }
            (RenameMode::Replace, Some(there)) => match (is_dir(moved), is_dir(there)) {
                (true, false) => Some(Errno::ENOTDIR),
                (false, true) => Some(Errno::EISDIR),
                (_, true) if !tree.is_empty(there) => Some(Errno::ENOTEMPTY),
                _ => None,
            },
            _ => None,
        };
        let (a, b) = (self.tree.nodes[&from.0].ino, self.tree.nodes[&to.0].ino);
        let result = self.volume.rename(a, &from.1, b, &to.1, mode).await;
        let what = format!(
            "rename {mode:?} {moved} from {} to {} = {there:?}",
            from.0, to.0
        );
        self.say(&what, &to.1, &result);
        if !self.finish(expect(&result, wanted)) || there == Some(moved) {
            return;
        }
        if mode == RenameMode::Exchange {
            self.tree.names.insert(from, there.unwrap());
        } else {
            if there.is_some() {
                self.tree.remove(&to);
            }
            self.tree.names.remove(&from);
        }
        self.tree.names.insert(to, moved);
    }

    async fn xattr(&mut self) {
        let ids: Vec<NodeId> = self
            .tree
            .nodes
            .iter()
            .filter(|(id, n)| **id != ROOT && !matches!(n.body, Body::Symlink(_)))
            .map(|(id, _)| *id)
            .collect();
        if ids.is_empty() || !self.xattrs {
            return;
        }
        let id = ids[self.below(ids.len())];
        let ino = self.tree.nodes[&id].ino;
        let name = format!("user.x{}", self.below(30)).into_bytes();
        let known = self.tree.nodes[&id].xattrs.contains_key(&name);
        if self.below(3) == 0 {
            let result = self.volume.removexattr(ino, &name).await;
            self.say(&format!("removexattr {id}"), &name, &result);
            let wanted = (!known).then_some(Errno::ENODATA);
            if self.finish(expect(&result, wanted)) {
                self.tree.nodes.get_mut(&id).unwrap().xattrs.remove(&name);
            }
            return;
        }
        let len = [0, 5, 40, 79, 80, 81, 200, 1000, 9000, 65_000][self.below(10)];
        let value = pattern(self.rng.below(1 << 40), len);
        let mode = [
            XattrMode::Any,
            XattrMode::Any,
            XattrMode::Create,
            XattrMode::Replace,
        ][self.below(4)];
        let wanted = match mode {
            XattrMode::Create if known => Some(Errno::EEXIST),
            XattrMode::Replace if !known => Some(Errno::ENODATA),
            _ => None,
        };
        let result = self.volume.setxattr(ino, &name, &value, mode).await;
        self.say(&format!("setxattr {id} {len} {mode:?}"), &name, &result);
        if self.finish(expect(&result, wanted)) {
            self.tree
                .nodes
                .get_mut(&id)
                .unwrap()
                .xattrs
                .insert(name, value);
        }
    }

    async fn attributes(&mut self) {
        let ids: Vec<NodeId> = self
            .tree
            .nodes
            .keys()
            .copied()
            .filter(|id| *id != ROOT)
            .collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[self.below(ids.len())];
        let permissions = self.below(0o1000) as u16;
        let uid = self.below(70_000) as u32;
        let set = SetAttr {
            permissions: Some(permissions),
            uid: Some(uid),
            ..SetAttr::default()
        };
        let node = self.tree.nodes.get_mut(&id).unwrap();
        self.volume.setattr(node.ino, set).await.unwrap();
        node.permissions = permissions;
        node.uid = uid;
    }

    async fn sync(&mut self) {
        match self.any_file() {
            Some(id) if self.below(4) > 0 => {
                self.volume
                    .fsync_ino(self.tree.nodes[&id].ino, false)
                    .await
                    .unwrap();
            }
            _ => self.volume.sync().await.unwrap(),
        }
    }

    async fn hold_open(&mut self) {
        if self.open.len() < 3
            && let Some(id) = self.any_file()
        {
            let file = self
                .volume
                .open(self.tree.nodes[&id].ino, READ_WRITE)
                .await
                .unwrap();
            self.open.push((file, id));
        }
    }

    /// A handle that may be the last thing an unlinked file has.
    async fn let_go(&mut self) {
        let Some((file, id)) = self.open.pop() else {
            return;
        };
        if self.tree.nodes.contains_key(&id) {
            let size = self.volume.fstat(&file).await.unwrap().size_bytes;
            let Body::File(content) = &self.tree.nodes[&id].body else {
                unreachable!()
            };
            assert_eq!(size, content.len() as u64);
        } else {
            self.volume.read(&file, 0, 100_000).await.unwrap();
            let written = self
                .volume
                .write(&file, 50_000, Bytes::from_static(b"last"))
                .await;
            assert!(written.error.is_none_or(|e| e.errno() == Errno::ENOSPC));
        }
        self.say(&format!("last of {id}"), b"", &Ok(()));
        self.volume.close(file).await.unwrap();
    }
}

/// The log of a run, shown when it panics.
struct Witness(u64, Rc<RefCell<Vec<String>>>);

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.1.borrow();
            for line in &log[log.len().saturating_sub(60)..] {
                println!("{line}");
            }
            println!("OCELOT_SEED={} reproduces this", self.0);
        }
    }
}

fn run(seed: u64) -> usize {
    let (block, cluster, size_mb, features) = GEOMETRIES[(seed % 6) as usize];
    let rig = Rig::new(block, cluster, size_mb, features);
    let sim = Simulation::new(seed);
    sim.set_step_budget(50_000_000);
    let world = sim.world();
    let disk = SimDisk::with(rig.disk.image(), DiskOptions::default(), Some(&world));
    let mut rng = SimRng::new(seed);
    let full = Rc::new(Cell::new(0));
    let log = Rc::new(RefCell::new(Vec::new()));
    let _witness = Witness(seed, log.clone());
    let mut trees: Vec<Option<(Tree, usize)>> = vec![None; TASKS];
    for round in 0..ROUNDS {
        let volume = sim
            .block_on(Volume::mount(
                disk.device(),
                sim.host(),
                MountOptions::default(),
            ))
            .unwrap()
            .unwrap();
        if round > 0 {
            compare(&sim, &volume, &trees);
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        for (task, tree) in trees.iter_mut().enumerate() {
            let (tree, serial) = tree.take().unwrap_or_else(|| (Tree::new(volume.root()), 0));
            let mut player = Player {
                volume: volume.clone(),
                rng: rng.fork(),
                task,
                tree,
                serial,
                full: full.clone(),
                xattrs: features == ALL,
                open: Vec::new(),
                log: log.clone(),
            };
            let sender = sender.clone();
            world.spawn_named("player", async move {
                for _ in 0..OPERATIONS {
                    player.step().await;
                }
                while !player.open.is_empty() {
                    player.let_go().await;
                }
                sender.send((task, player.tree, player.serial)).unwrap();
            });
        }
        drop(sender);
        let left = sim.run_until_idle().unwrap();
        assert_eq!(left, 0, "tasks wait for ever");
        for (task, tree, serial) in receiver {
            trees[task] = Some((tree, serial));
        }
        compare(&sim, &volume, &trees);
        assert_eq!(volume.read_only(), None);
        sim.block_on(volume.unmount()).unwrap().unwrap();
        assert_eq!(
            disk.stats().overlapping_writes,
            0,
            "writes in flight overlap"
        );
    }
    rig.fsck_image(&disk.image(), &[]);
    full.get()
}

/// All players' trees at once; they share the root.
fn compare(sim: &Simulation, volume: &Volume, trees: &[Option<(Tree, usize)>]) {
    let mut whole = Tree::new(volume.root());
    for (tree, _) in trees.iter().flatten() {
        let mut ids = std::collections::BTreeMap::from([(ROOT, ROOT)]);
        for (id, node) in tree.nodes.iter().filter(|(id, _)| **id != ROOT) {
            let name = (usize::MAX, id.to_string().into_bytes());
            let new = whole.add(name.clone(), node.clone());
            whole.names.remove(&name);
            ids.insert(*id, new);
        }
        for ((dir, name), id) in &tree.names {
            whole.names.insert((ids[dir], name.clone()), ids[id]);
        }
    }
    let found = sim.block_on(whole.differences(volume)).unwrap();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn random_operations_agree_with_the_model() {
    let mut full = 0;
    for seed in seeds(18) {
        let begun = std::time::Instant::now();
        let hits = run(seed);
        println!(
            "seed {seed}: {hits} operations found no space, {:?}",
            begun.elapsed()
        );
        full += hits;
    }
    assert!(
        full > 0 || std::env::var("OCELOT_SEED").is_ok(),
        "no volume was ever full"
    );
}
