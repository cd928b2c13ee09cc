//! Which node has which slot: the system file `slot_map`, read and written directly, as the kernel
//! does (fs/ocfs2/slot_map.c). Called by mount before anything of the slot is touched, and by
//! unmount before the slot's journal is closed.
//!
//! A slot is taken for a *node*. A local volume has one node, number 0, whatever machine it is: so
//! after a crash it finds the slot that it had, with the journal that is to be replayed. On the
//! medium an entry changes in one sector, so there is no moment without a valid map.

use ondisk::{BlockNr, Geometry, Kind, SlotMapRef, SlotNr};
use runtime::{BlockDevice, BlockDeviceExt};

use crate::cache::Cache;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::file_map::FileMap;
use crate::system::{System, SystemFile};

/// A node's number in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeNr(pub u32);

impl NodeNr {
    /// The only node of a local volume.
    pub const LOCAL: NodeNr = NodeNr(0);
}

/// The map as it was read.
pub struct SlotMap {
    nr: BlockNr,
    file: FileMap,
    /// As much of the file as the slots take, in whole blocks.
    bytes: Vec<u8>,
}

impl SlotMap {
    /// Reads the map.
    pub async fn read(cache: &Cache, geometry: &Geometry, system: &System) -> Result<SlotMap> {
        let nr = system.of(SystemFile::SlotMap, SlotNr(0));
        let dinode = cache.load(nr, Kind::Dinode).await?;
        let file = FileMap::of(cache, geometry, nr, &dinode).await?;
        let needed = ondisk::slot_map_bytes(geometry).div_ceil(geometry.block_size()) as u64;
        let mut bytes = Vec::new();
        for index in 0..needed.min(file.blocks()) {
            let block = file.block(index);
            bytes.extend(cache.load(block, Kind::Raw).await?);
        }
        ondisk::slot_map(&bytes, nr, geometry)?;
        Ok(SlotMap { nr, file, bytes })
    }

    /// Every slot that is taken, with its node.
    pub fn taken(&self, geometry: &Geometry) -> Result<Vec<(SlotNr, NodeNr)>> {
        let map = self.view(geometry)?;
        Ok(map
            .taken()
            .map(|(slot, node)| (slot, NodeNr(node)))
            .collect())
    }

    /// The slot for a node: the one that it has, else the preferred one if that is free, else the
    /// first free one.
    pub fn choose(
        &self,
        geometry: &Geometry,
        node: NodeNr,
        preferred: Option<SlotNr>,
    ) -> Result<SlotNr> {
        let map = self.view(geometry)?;
        if let Some(slot) = map.slot_of(node.0) {
            tracing::info!(slot = slot.0, node = node.0, "the slot was not given back");
            return Ok(slot);
        }
        preferred
            .filter(|slot| usize::from(slot.0) < map.len() && map.node(*slot).is_none())
            .or_else(|| map.first_free())
            .ok_or_else(|| Error::Busy(format!("all {} node slots are taken", map.len())))
    }

    /// The slot of this node on a local volume.
    pub async fn find(cache: &Cache, geometry: &Geometry, system: &System) -> Result<SlotNr> {
        SlotMap::read(cache, geometry, system)
            .await?
            .choose(geometry, NodeNr::LOCAL, None)
    }

    /// Enters this node (of a local volume) as the owner of our slot, durably.
    pub async fn take(core: &Core) -> Result<()> {
        SlotMap::set(core, core.slot, Some(NodeNr::LOCAL)).await
    }

    /// Gives our slot back, durably.
    pub async fn release(core: &Core) -> Result<()> {
        SlotMap::set(core, core.slot, None).await
    }

    /// Gives a slot to a node, or frees it, durably.
    pub async fn set(core: &Core, slot: SlotNr, node: Option<NodeNr>) -> Result<()> {
        let mut map = SlotMap::read(&core.cache, &core.geometry, &core.system).await?;
        map.change(&core.geometry, slot, node)?;
        map.write(&*core.device, &core.geometry).await
    }

    fn view(&self, geometry: &Geometry) -> Result<SlotMapRef<'_>> {
        Ok(ondisk::slot_map(&self.bytes, self.nr, geometry)?)
    }

    fn change(&mut self, geometry: &Geometry, slot: SlotNr, node: Option<NodeNr>) -> Result<()> {
        let nr = self.nr;
        ondisk::slot_map_mut(&mut self.bytes, nr, geometry)?.set(slot, node.map(|node| node.0));
        Ok(())
    }

    async fn write(&self, device: &dyn BlockDevice, geometry: &Geometry) -> Result<()> {
        for (index, block) in self.bytes.chunks_exact(geometry.block_size()).enumerate() {
            let mut buffer = device.allocate(block.len());
            buffer.copy_from_slice(block);
            let place = self.file.block(index as u64);
            device
                .write(place.0 << geometry.block_size_bits, buffer)
                .await
                .1?;
        }
        if device.info().volatile_cache {
            device.flush().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::volume::{self, Volume};
    use runtime::sim::Simulation;

    fn slots(volume: &Volume) -> Vec<String> {
        let text = volume.debugfs("slotmap");
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
        lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn both_forms_are_read_and_written_as_debugfs_sees_them() {
        for (form, extended) in [("extended-slotmap", true), ("noextended-slotmap", false)] {
            let features = format!("--fs-features={form}");
            let volume = Volume::make(
                &["-b", "4096", "-C", "4096", "-J", "size=4M", &features],
                "64M",
            );
            let system = System::find(2, |name| {
                (!name.starts_with("aquota")).then(|| volume.system_block(name))
            })
            .unwrap();
            let sim = Simulation::new(1);
            let disk = volume::disk(volume.image(), &sim.world());
            let setup = volume::setup(&disk, &sim.world());
            let (cache, geometry) = (&*setup.cache, &*setup.geometry);
            assert_eq!(
                geometry.has(ondisk::feature::Incompat::EXTENDED_SLOT_MAP),
                extended
            );
            sim.block_on(async {
                let mut map = SlotMap::read(cache, geometry, &system).await.unwrap();
                assert_eq!(map.taken(geometry).unwrap(), []);
                let choose = |map: &SlotMap, node, preferred| {
                    map.choose(geometry, NodeNr(node), preferred)
                        .map_err(|error| error.errno())
                };
                assert_eq!(choose(&map, 0, None), Ok(SlotNr(0)));
                assert_eq!(choose(&map, 0, Some(SlotNr(1))), Ok(SlotNr(1)));
                assert_eq!(choose(&map, 0, Some(SlotNr(7))), Ok(SlotNr(0)));
                map.change(geometry, SlotNr(0), Some(NodeNr(5))).unwrap();
                assert_eq!(choose(&map, 0, Some(SlotNr(0))), Ok(SlotNr(1)));
                assert_eq!(
                    choose(&map, 5, Some(SlotNr(1))),
                    Ok(SlotNr(0)),
                    "it has one"
                );
                map.change(geometry, SlotNr(1), Some(NodeNr(0))).unwrap();
                assert_eq!(choose(&map, 9, None), Err(crate::Errno::EBUSY));
                map.write(&*setup.device, geometry).await.unwrap();
                let again = SlotMap::read(cache, geometry, &system).await.unwrap();
                let taken = [(SlotNr(0), NodeNr(5)), (SlotNr(1), NodeNr(0))];
                assert_eq!(again.taken(geometry).unwrap(), taken);
            })
            .unwrap();
            volume.save(&disk.crash_image(&runtime::sim::Choice::default()));
            assert_eq!(
                slots(&volume),
                ["0 5", "1 0"],
                "durable, and as debugfs.ocfs2 reads it"
            );
        }
    }
}
